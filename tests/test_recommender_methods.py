"""Q-learning recommenders: which method becomes which, what they learn and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recommenders as toy
import toy_sessions
from ml_collections import ConfigDict
from toy_recommenders import BATCH, apart, batch_of, data, make, run, start

from jaxrec.methods import (
    ce,
    copies,
    dqn_ns,
    lea,
    proxy,
    recommender,
    sa2c,
    sac,
    sarsa,
    smorl,
    snqn,
    sqn,
    vpq,
    windows,
)
from jaxrec.models import recommender as networks


def test_only_copy_one_ranks():
    method = make(sqn)
    state = start(method)
    event = windows.transition(batch_of())
    args = event.items, event.length, event.timestep
    ranks = toy.compiled(method.scores)
    scores = ranks(state, *args)
    other = state.replace(target_params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_array_equal(scores, ranks(other, *args))
    assert scores.shape == (BATCH, toy_sessions.VOCAB)
    assert np.isneginf(scores[:, 0]).all()
    assert np.isneginf(scores[:, toy_sessions.NUM_ITEMS + 1 :]).all()
    assert np.isfinite(scores[:, 1 : toy_sessions.NUM_ITEMS + 1]).all()


def test_a_learner_of_values_ranks_by_either_head():
    """The same parameters, by "q" as the method without a softmax head has it."""
    event = windows.transition(batch_of())
    args = event.items, event.length, event.timestep
    state = start(make(snqn))
    found = [
        np.array(toy.compiled(method.scores)(state, *args))
        for method in (make(snqn), make(snqn, rank_by="q"), make(dqn_ns))
    ]
    np.testing.assert_array_equal(found[1], found[2])
    assert not np.array_equal(found[0], found[1])


def grafted(state, base, graft):
    """`state` with the parameters of `base` put into both copies by `graft`."""
    return state.replace(
        params=graft(state.params, base.params),
        target_params=graft(state.target_params, base.target_params),
    )


def same(one, two, graft=lambda own, base: base, part=lambda params: params, **options):
    """From the same parameters five updates of `two` do to them what `one` does."""
    base = start(one)
    other = grafted(start(two, earlier=options.pop("earlier", None)), base, graft)
    a, b = run(one, base, 5, **options)[0][-1], run(two, other, 5, **options)[0][-1]
    assert apart(a.params, part(b.params)) < 2e-6
    assert apart(a.target_params, part(b.target_params)) < 2e-6
    assert apart(base.params, a.params) > 1e-3 < apart(base.target_params, a.params)
    return other, b


def test_snqn_without_negatives_is_sqn():
    same(make(sqn), make(snqn, negatives=0))


def test_sqn_that_selects_the_logged_item_is_eval(monkeypatch):
    """At gamma 0.5: the selector is all that differs."""
    event = windows.transition(batch_of())
    assert (event.next_action > 0).any() and (event.done > 0).any()
    options = dict(batch=lambda step: batch_of())
    with pytest.raises(AssertionError):
        same(make(sarsa), make(sqn), **options)
    selects = toy.build(sqn)  # its own step, so that it is traced with the patch
    logged = lambda *args: jnp.asarray(event.next_action)  # noqa: E731
    monkeypatch.setattr(recommender, "best_item", logged)
    same(make(sarsa), selects, **options)


def test_eval_asks_for_no_value_of_an_item_that_is_not_known():
    """Also where the session goes on, as in shuffled buffers."""
    batch = batch_of()
    on = dict(batch, done=np.zeros_like(batch["done"]))
    assert (batch["done"] > 0).any()
    method = make(sarsa)
    one, two = (
        run(method, start(method), 1, batch=lambda step, b=b: b)[1][0]
        for b in (batch, on)
    )
    assert one == two


def test_vpq_of_one_head_is_sac():
    def graft(own, base):
        head = {k: v[None] for k, v in base["params"]["q_head"].items()}
        return {"params": base["params"] | {"q_head": head}}

    def part(params):
        head = {k: v[0] for k, v in params["params"]["q_head"].items()}
        return {"params": params["params"] | {"q_head": head}}

    options = dict(switch=4, reset_optim=True)
    same(make(sac, **options), make(vpq, num_heads=1, **options), graft, part)


def test_smorl_of_accuracy_alone_is_sqn():
    def graft(own, base):
        head = {
            k: v.at[0].set(base["params"]["q_head"][k])
            for k, v in own["params"]["q_head"].items()
        }
        return {"params": base["params"] | {"q_head": head}}

    def part(params):
        head = {k: v[0] for k, v in params["params"]["q_head"].items()}
        return {"params": params["params"] | {"q_head": head}}

    method = make(smorl, objectives=(1.0, 0.0, 0.0))
    earlier = dict(embed=start(make(ce)))
    before, after = same(make(sqn), method, graft, part, earlier=earlier)
    for copy in ("params", "target_params"):  # heads of weight 0 rest
        heads = [getattr(s, copy)["params"]["q_head"] for s in (before, after)]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b[1:]), *heads)


def test_lea_with_weights_of_zero_is_its_backbone():
    weights = dict(proposal_ce=0.0, proposal_td=0.0, similarity=0.0)
    method = toy.build(
        lea, info=toy.info_with_teacher(ce, "ce"), proposals=2, **weights
    )
    same(
        make(sqn),
        method,
        lambda own, base: own | dict(network=base),
        lambda params: params["network"],
        earlier=dict(teacher=start(make(ce))),
    )


def values(params, event):
    """Q(s, a) of the logged items by a value head."""
    config = ConfigDict(sqn.HPARAMS)
    config.encoder.width = 16
    network = networks.make(config, data().info, q_heads=0)

    def q(params):
        x = recommender.state_of(network, params, event.items, event.length)
        return recommender.apply(network, params, "q_at", x, event.action)

    return np.asarray(toy.jit(q)(params))


def test_gamma_zero_is_regression_of_the_reward():
    method = make(sqn, gamma=0.0)
    states, metrics = run(method, start(method), 2)
    for step, state in enumerate(states[:2]):
        event = windows.transition(batch_of(step))
        first = bool(copies.coin(jnp.int32(step)))
        q = values(state.params if first else state.target_params, event)
        want = 0.5 * np.mean((event.reward - q) ** 2)
        np.testing.assert_allclose(metrics[step]["td"], want, rtol=1e-4)


def test_sa2c_with_unit_weights_is_snqn():
    method = make(sa2c, switch=0, advantage_clip=(1.0, 1.0))
    found = run(method, start(method), 1)[1][0]
    plain = run(make(snqn), start(make(snqn)), 1)[1][0]
    for name in ("loss", "ce", "td", "negative"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-6)
    np.testing.assert_allclose(
        plain["loss"], plain["ce"] + plain["td"] + plain["negative"], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["sac", pytest.param("sa2c", marks=pytest.mark.slow)])
def test_the_weight_of_the_actor_carries_no_gradient(name):
    """Without the value loss nothing moves the value head after T."""
    options = dict(sac={}, sa2c=dict(advantage_clip=()))[name]
    method = make(dict(sac=sac, sa2c=sa2c)[name], switch=0, weight=0.0, **options)
    states, metrics = run(method, start(method), 3)
    for copy in ("params", "target_params"):
        one, two = (getattr(state, copy)["params"] for state in (states[0], states[-1]))
        jax.tree.map(np.testing.assert_array_equal, one["q_head"], two["q_head"])
        assert apart(one["item_table"], two["item_table"]) > 0
    assert abs(metrics[0]["loss"]) < 0.3 * metrics[0]["ce"]  # a weight near zero


def test_negatives_bootstrap_at_the_end_unless_masked():
    event = windows.transition(batch_of())
    done = np.asarray(event.done) > 0
    assert done.any() and not done.all()
    config = ConfigDict(snqn.HPARAMS | dict(negative_reward=-0.25))
    config.encoder.width = 16
    network = networks.make(config, data().info, q_heads=0)
    state = start(make(sqn))

    def found(one, two):
        args = network, one, two, event, (None, None)
        targets = []
        for mask in (False, True):
            config.mask_negative_target = mask
            targets.append(recommender.negative_bellman(*args, config))
        xs = (
            recommender.state_of(network, p, event.items, event.length)
            for p in (one, two)
        )
        q = [recommender.apply(network, p, "q", x) for p, x in zip((one, two), xs)]
        return targets, q

    found = jax.device_get(toy.jit(found)(state.params, state.target_params))
    (plain, masked), (q_main, q_target) = found
    np.testing.assert_array_equal(masked[done], -0.25)
    np.testing.assert_array_equal(masked[~done], plain[~done])
    same_state = q_target[np.arange(BATCH), q_main.argmax(axis=1)]
    np.testing.assert_allclose(plain, -0.25 + 0.5 * same_state, rtol=1e-5)


@pytest.mark.parametrize(
    "name,encoder",
    [("ce", "sasrec"), pytest.param("sqn", "gru", marks=pytest.mark.slow)],
)
def test_learns_the_ring(name, encoder):
    """The two items that can follow come first."""
    module = dict(ce=ce, sqn=sqn)[name]
    method = make(module, encoder=dict(name=encoder), optim=dict(lr=1e-2))
    state, loss = toy.train(method, start(method), 150)
    assert np.isfinite(loss).all() and loss[-10:].mean() < loss[:5].mean()
    event = windows.transition(batch_of(500))
    ranks = toy.compiled(method.scores)
    scores = np.array(ranks(state, event.items, event.length, event.timestep))
    rank = 1 + (scores > scores[np.arange(BATCH), event.action][:, None]).sum(1)
    assert np.median(rank[np.asarray(event.length) > 0]) <= 3


@pytest.mark.parametrize("function", ["make_hist", "make_fut"])
def test_proxies_regress_their_count(function):
    method = make(proxy, function, optim=dict(lr=1e-2), max_count=10)
    _, metrics = run(method, start(method), 60)
    assert metrics[-1]["proxy"] < 0.5 * metrics[0]["proxy"]


def test_chunks_give_the_plain_softmax():
    a, b = make(ce), make(ce, chunk=13)
    one, two = (run(m, start(m), 2)[0][-1].params for m in (a, b))
    assert apart(one, two) < 1e-5
