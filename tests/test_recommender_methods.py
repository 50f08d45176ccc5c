"""Q-learning recommenders: copies, coin, switch, and which method becomes which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_sessions
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import loader
from jaxrec.methods import (
    ce,
    copies,
    dqn_ns,
    proxy,
    recommender,
    sa2c,
    sac,
    sarsa,
    snqn,
    sqn,
)
from jaxrec.types import UserError

BATCH = 16
MODULES = dict(ce=ce, sqn=sqn, sac=sac, snqn=snqn, sa2c=sa2c, sarsa=sarsa, dqn=dqn_ns)
NEVER = 10**6


@functools.cache
def data():
    return toy_sessions.dataset()


def make(module, function="make", **changes):
    config = ConfigDict(module.HPARAMS | dict(steps=100, batch_size=BATCH))
    config.encoder.width = 16
    config.update(changes)
    return getattr(module, function)(FrozenConfigDict(config), data().info)


def batch_of(step=0):
    return loader.host_batch(data(), BATCH, np.uint32(0), step)


def start(method, key=0):
    return method.init(jax.random.key(key), batch_of(), {})


def run(method, state, steps, first=0):
    """States after each of `steps` updates, and the metrics."""
    step = jax.jit(method.train_step)
    states, metrics = [state], []
    for number in range(first, first + steps):
        key = jax.random.fold_in(jax.random.key(7), number)
        state, found = step(state, batch_of(number), key)
        states.append(state)
        metrics.append({k: float(v) for k, v in found.items()})
    return states, metrics


def test_transitions_by_hand():
    batch = dict(
        item=jnp.array([[9, 9, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]),
        mask=jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool),
    )
    names = ("reward", "kind", "done", "timestep", "reward_to_go", "remaining")
    row = jnp.arange(6.0)[None].repeat(2, 0)
    batch |= {name: row for name in (*names, "next_item")}
    found = recommender.transition(batch)
    np.testing.assert_array_equal(found.items, [[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(found.length, [3, 5])
    np.testing.assert_array_equal(found.action, [6, 6])
    np.testing.assert_array_equal(found.next_items, [[3, 4, 5, 6, 0], [2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(found.next_length, [4, 5])
    np.testing.assert_array_equal(found.reward, [5, 5])


def test_coin_is_fair_and_the_other_copy_rests():
    sides = jax.vmap(copies.coin)(jnp.arange(1000))
    assert 450 < sides.sum() < 550
    method = make(sqn)
    states, _ = run(method, start(method), 6)
    assert len({bool(copies.coin(jnp.int32(t))) for t in range(6)}) == 2
    for t, (before, after) in enumerate(zip(states, states[1:])):
        first = bool(copies.coin(jnp.int32(t)))
        rests = [("target_params", "second")] if first else [("params", "first")]
        moves = [("params", "first")] if first else [("target_params", "second")]
        for field, copy in rests:
            jax.tree.map(
                np.testing.assert_array_equal,
                (getattr(before, field), before.opt_state[copy]),
                (getattr(after, field), after.opt_state[copy]),
            )
        for field, _ in moves:
            a, b = (jax.tree.leaves(getattr(s, field))[0] for s in (before, after))
            assert (np.asarray(a) != np.asarray(b)).any()


def test_only_copy_one_ranks():
    method = make(sqn)
    state = start(method)
    event = recommender.transition(batch_of())
    args = event.items, event.length, event.timestep
    scores = method.scores(state, *args)
    other = state.replace(target_params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_array_equal(scores, method.scores(other, *args))
    assert scores.shape == (BATCH, toy_sessions.VOCAB)
    assert np.isneginf(scores[:, 0]).all()
    assert np.isneginf(scores[:, toy_sessions.NUM_ITEMS + 1 :]).all()
    assert np.isfinite(scores[:, 1 : toy_sessions.NUM_ITEMS + 1]).all()


def same(one, two, steps=5):
    """Both end in the same parameters; `two` may carry more in its optimiser."""
    a = run(one, start(one), steps)[0][-1]
    b = run(two, start(two), steps)[0][-1]
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, a.params, b.params)
    jax.tree.map(close, a.target_params, b.target_params)


def test_what_becomes_what():
    same(make(sqn), make(sac, switch=NEVER))
    same(make(snqn), make(sa2c, switch=NEVER))
    # Other numbers of keys are split, which the GRU without dropout does not notice.
    same(make(sqn), make(snqn, negatives=0))


def test_gamma_zero_is_regression_of_the_reward():
    a, b = make(sqn, gamma=0.0), make(sarsa, gamma=0.0)
    same(a, b)


def losses_at(method, state, steps):
    return [m["loss"] for m in run(method, state, steps)[1]]


def test_sa2c_with_unit_weights_is_snqn_and_clipped_rows_give_nothing():
    state = start(make(snqn))
    plain = losses_at(make(snqn), state, 1)
    late = make(sa2c, switch=0, advantage_clip=(1.0, 1.0))
    np.testing.assert_allclose(losses_at(late, start(late), 1), plain, rtol=1e-6)
    none = make(sa2c, switch=0, advantage_clip=(0.0, 0.0))
    found = run(none, start(none), 1)[1][0]
    np.testing.assert_allclose(
        found["loss"], found["td"] + found["negative"], rtol=1e-6
    )


@pytest.mark.parametrize("module", [sac, sa2c])
@pytest.mark.parametrize("reset", [True, False])
def test_the_switch_is_exactly_at_t(module, reset):
    options = dict(optim=dict(lr=1e-2), optim_after=dict(lr=1e-2), reset_optim=reset)
    switched = make(module, switch=4, **options)
    never = make(module, switch=NEVER, **options)
    a, b = run(switched, start(switched), 6)[0], run(never, start(never), 6)[0]
    for t in range(7):
        equal = all(
            (np.asarray(x) == np.asarray(y)).all()
            for x, y in zip(jax.tree.leaves(a[t].params), jax.tree.leaves(b[t].params))
        )
        other = all(
            (np.asarray(x) == np.asarray(y)).all()
            for x, y in zip(
                jax.tree.leaves(a[t].target_params), jax.tree.leaves(b[t].target_params)
            )
        )
        assert (equal and other) == (t <= 4), t
    first = a[-1].opt_state["first"]
    assert set(first) == ({"before", "after"} if reset else {"before"})


def test_the_weight_of_the_actor_carries_no_gradient():
    """Without the value loss nothing moves the value head, before or after T."""
    for module in (sac, sa2c):
        method = make(module, switch=0, weight=0.0)
        states, _ = run(method, start(method), 3)
        for copy in ("params", "target_params"):
            heads = [
                getattr(state, copy)["params"]["q_head"]
                for state in (states[0], states[-1])
            ]
            jax.tree.map(np.testing.assert_array_equal, *heads)


@pytest.mark.parametrize("name,encoder", [("ce", "sasrec"), ("sqn", "gru")])
def test_learns_the_ring(name, encoder):
    """The two items that can follow come first."""
    method = make(MODULES[name], encoder=dict(name=encoder), optim=dict(lr=1e-2))
    batches = [batch_of(step) for step in range(150)]
    batches = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    keys = jax.random.split(jax.random.key(1), 150)

    @jax.jit
    def train(state):
        body = lambda s, x: method.train_step(s, *x)  # noqa: E731
        return jax.lax.scan(body, state, (batches, keys))

    state, metrics = train(start(method))
    loss = np.asarray(metrics["loss"])
    assert np.isfinite(loss).all() and loss[-10:].mean() < loss[:5].mean()
    event = recommender.transition(batch_of(500))
    scores = np.array(method.scores(state, event.items, event.length, event.timestep))
    rank = 1 + (scores > scores[np.arange(BATCH), event.action][:, None]).sum(1)
    assert np.median(rank[np.asarray(event.length) > 0]) <= 3


@pytest.mark.parametrize("function", ["make_hist", "make_fut"])
def test_proxies_regress_their_count(function):
    method = make(proxy, function, optim=dict(lr=1e-2), max_count=10)
    _, metrics = run(method, start(method), 60)
    assert metrics[-1]["proxy"] < 0.5 * metrics[0]["proxy"]


def test_ce_forms_agree():
    """Chunks give the plain softmax; a window gives what its prefixes give."""
    a, b = make(ce), make(ce, chunk=13)
    np.testing.assert_allclose(
        losses_at(a, start(a), 2), losses_at(b, start(b), 2), rtol=1e-5
    )
    whole = make(ce, positions="all")
    batch = dict(batch_of())
    single = make(ce)
    state = start(single)
    rows = []
    for end in range(2, toy_sessions.SEQ_LEN + 2):
        part = {k: np.zeros_like(v) for k, v in batch.items()}
        for k, v in batch.items():
            part[k][:, -end:] = v[:, :end]
        part["mask"][:, :-end] = False
        keep = part["mask"][:, -2]  # the event has a history in the window
        loss = [
            float(
                single.eval_step(
                    state,
                    {k: v[i : i + 1] for k, v in part.items()}
                    | dict(weight=np.ones(1)),
                    jax.random.key(0),
                )["loss"]
            )
            for i in np.flatnonzero(keep)
        ]
        rows += loss
    state_all = state
    _, metrics = jax.jit(whole.train_step)(state_all, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], np.mean(rows), rtol=1e-5)


def test_data_without_items_are_refused():
    config = FrozenConfigDict(sqn.HPARAMS | dict(steps=10, batch_size=4))
    with pytest.raises(UserError, match="no sessions of items"):
        sqn.make(config, dict(name="toy/linear"))
    with pytest.raises(UserError, match="positions 'every' is unknown"):
        make(ce, positions="every")
