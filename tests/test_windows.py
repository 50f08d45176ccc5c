"""All events of a window in one pass against one window for each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recommenders as toy
import toy_sessions
from ml_collections import ConfigDict
from toy_recommenders import BATCH, batch_of, data, make, start

from jaxrec.data import loader
from jaxrec.methods import (
    ce,
    dqn_ns,
    lea,
    prl,
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
from jaxrec.types import UserError

SIZE = toy_sessions.SEQ_LEN + 1  # events of a window


def test_transitions_by_hand():
    batch = dict(
        item=jnp.array([[9, 9, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]),
        mask=jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool),
    )
    names = ("reward", "kind", "done", "timestep", "reward_to_go", "remaining")
    row = jnp.arange(6.0)[None].repeat(2, 0)
    batch |= {name: row for name in (*names, "next_item")}
    found = windows.transition(batch)
    np.testing.assert_array_equal(found.items, [[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(found.length, [3, 5])
    np.testing.assert_array_equal(found.action, [6, 6])
    np.testing.assert_array_equal(found.next_items, [[3, 4, 5, 6, 0], [2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(found.next_length, [4, 5])
    np.testing.assert_array_equal(found.reward, [5, 5])


def prefixes(batch, first):
    """(end, rows, batch): windows that end at each event, and whose rows count."""
    for end in range(2, SIZE + 1):
        part = {k: np.zeros_like(v) for k, v in batch.items()}
        for k, v in batch.items():
            part[k][:, -end:] = v[:, :end]
        starts = first & (part["timestep"][:, -1] == 0)
        yield end, part["mask"][:, -1] & (part["mask"][:, -2] | starts), part


FIRST = [pytest.param(False, marks=pytest.mark.slow), True]


@pytest.mark.parametrize("first", FIRST)
def test_how_often_an_event_counts_in_an_epoch(first):
    length, window = [2, 9, 1, 4], 4
    step = np.concatenate([np.arange(n) for n in length])
    flat = {name: np.arange(len(step)) for name in windows.COLUMNS.values()}
    flat |= dict(timestep=step, remaining=np.repeat(length, length) - step - 1)
    ends = np.flatnonzero(first | (step > 0))  # as the protocol has them drawn
    event = windows.transitions(loader.gather(flat, ends, window, np), first)
    total = np.bincount(event.action, event.weight, len(step))
    want = np.minimum(flat["remaining"] + 1, window - 1)
    np.testing.assert_array_equal(total[ends], want[ends])


def anything(params, seed=0):
    """Large random parameters: at the start all events are as likely."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "encoder",
    [
        "gru",
        pytest.param("sasrec", marks=pytest.mark.slow),
        pytest.param("caser", marks=pytest.mark.slow),
        pytest.param("nextitnet", marks=pytest.mark.slow),
        pytest.param("mamba2", marks=pytest.mark.slow),
    ],
)
def test_events_and_states_are_those_of_the_prefixes(encoder, first):
    """The first event of a session, from nothing, where the data score it."""
    config = ConfigDict(dict(encoder=ce.HPARAMS["encoder"], tied=False))
    config.encoder.update(name=encoder, width=16, head_dim=16)
    network = networks.make(config, data().info)
    batch = dict(batch_of())
    event = windows.transitions(batch, first)
    params = network.init(jax.random.key(0), event.items, event.length)
    before = np.asarray(recommender.states(network, params, event))
    after = np.asarray(recommender.next_states(network, params, event))
    columns = SIZE - 1 + first
    count = batch["mask"].sum(1)
    seen = 0
    for end, rows, part in prefixes(batch, first):
        one = windows.transition(part)
        s = recommender.states(network, params, one)
        s_next = recommender.next_states(network, params, one)
        lost = part | dict(mask=part["mask"].copy())  # the oldest event of full windows
        lost["mask"][:, SIZE - end] = False
        lost = recommender.next_states(network, params, windows.transition(lost))
        for i in np.flatnonzero(rows):
            j = end - 1 - (SIZE - count[i])  # the event's place among those that exist
            n = i * columns + j - (not first)
            assert event.weight[n] == 1
            for name in (*windows.COLUMNS, "previous"):
                assert getattr(event, name)[n] == getattr(one, name)[i], name
            np.testing.assert_allclose(before[n], s[i], atol=1e-5)
            want = lost if count[i] == SIZE else s_next
            np.testing.assert_allclose(after[n], want[i], atol=1e-5)
            seen += 1
    assert seen == event.weight.sum() > BATCH


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "module, function",
    [
        (ce, "make"),
        (sqn, "make"),
        pytest.param(sarsa, "make", marks=pytest.mark.slow),
        pytest.param(proxy, "make_hist", marks=pytest.mark.slow),
        pytest.param(proxy, "make_fut", marks=pytest.mark.slow),
        pytest.param(sac, "make", marks=pytest.mark.slow),
        pytest.param(vpq, "make", marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_the_mean_of_the_events(module, function, first):
    """Where no event draws numbers of its own; sac and vpq after their switch."""
    options = dict(switch=0) if "switch" in module.HPARAMS else {}
    info = data().info | dict(protocol=dict(score_first_event=first))
    whole = toy.build(module, function, info=info, positions="all", **options)
    single = make(module, function, **options)
    # One step more than a window, so that no state after an event has lost the first.
    batch = {k: v[:, 1:] for k, v in batch_of().items() if np.ndim(v) == 2}
    batch = {k: np.pad(v, ((0, 0), (1, 0))) for k, v in batch.items()}
    state = start(single)
    state = state.replace(params=anything(state.params))
    if state.target_params is not None:
        state = state.replace(target_params=anything(state.target_params, 1))
    step = toy.compiled(single.train_step)
    losses = []
    for _, rows, part in prefixes(batch, first):
        for i in np.flatnonzero(rows):
            alike = {k: np.repeat(v[i : i + 1], BATCH, axis=0) for k, v in part.items()}
            losses.append(float(step(state, alike, jax.random.key(0))[1]["loss"]))
    _, metrics = toy.jit(whole.train_step)(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("module", [sa2c, prl, snqn, dqn_ns, smorl])
def test_other_methods_learn_from_all_events(module):
    """The loss falls from batches whose padding would be noticed: it is not finite."""
    earlier = {}
    if module is smorl:
        earlier = dict(embed=start(make(ce)))
    method = toy.build(module, positions="all")
    state = start(method, earlier=earlier)
    step = toy.jit(method.train_step)
    found = []
    for number in range(30):
        batch = batch_of(number)
        hidden = ~batch["mask"]
        batch = batch | dict(reward=np.where(hidden, np.nan, batch["reward"]))
        state, metrics = step(state, batch, jax.random.key(number))
        found.append(float(metrics["loss"]))
    assert np.isfinite(found).all() and np.mean(found[-5:]) < np.mean(found[:5])


def test_choices_of_positions():
    with pytest.raises(UserError, match="positions 'some' is unknown: use last or all"):
        make(sqn, positions="some")
    with pytest.raises(UserError, match="the teacher of lea sees one event"):
        toy.build(lea, info=toy.info_with_teacher(ce, "ce"), positions="all")
