"""The ranker with inferred profiles: what it may see, and what it gains by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_sessions
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import held_out
from jaxrec.data import loader
from jaxrec.methods import profile, sidiff_rec
from jaxrec.types import Dataset, UserError

pytestmark = pytest.mark.slow  # compiling them takes minutes

OBSERVE = (1, 3)


def jit(f):
    return jax.jit(f, compiler_options=dict(xla_backend_optimization_level=0))


def settings(module, **changes):
    config = ConfigDict(module.HPARAMS | dict(steps=600, batch_size=32))
    config.observe = OBSERVE
    config.encoder.width = 16
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return FrozenConfigDict(config)


def stage_of(data, **changes):
    """The method profile and its settings."""
    small = dict(dims=6, width=32, num_layers=2, samples=2)
    config = settings(profile, **small | changes)
    return profile.make(config, data.info), config


def ranker(data, before, **changes):
    """The method sidiff_rec after a stage `inference` of those settings."""
    section = ConfigDict(dict(method="profile"))
    section.profile = ConfigDict(before.to_dict())
    info = data.info | dict(stages=dict(inference=(FrozenConfigDict(section), None)))
    return sidiff_rec.make(settings(sidiff_rec, size=16, **changes), info)


def train(method, data, steps, earlier=None, batch_size=32):
    batches = [
        loader.host_batch(data, batch_size, np.uint32(0), n) for n in range(steps or 1)
    ]
    state = jit(lambda key: method.init(key, batches[0], earlier or {}))(
        jax.random.key(0)
    )
    if not steps:
        return state
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    keys = jax.random.split(jax.random.key(1), steps)
    body = lambda s, x: method.train_step(s, *x)  # noqa: E731
    return jax.jit(lambda s: jax.lax.scan(body, s, (stacked, keys))[0])(state)


@functools.cache
def toy():
    """(data, settings of the stage, its first state)."""
    data = toy_sessions.dataset(60)
    method, config = stage_of(data)
    return data, config, train(method, data, 0)


HISTORY = np.array([[4, 9, 2, 7, 11], [1, 2, 3, 5, 8], [6, 3, 12, 0, 0]], np.int32)
LENGTH = np.array([5, 5, 3], np.int32)


def scores_of(inference, steps=2):
    """(method, state) after so many updates on the toy data."""
    data, config, before = toy()
    method = ranker(data, config, inference=inference)
    earlier = {} if inference == "none" else dict(inference=before)
    return method, train(method, data, steps, earlier)


@pytest.mark.parametrize("inference", sidiff_rec.SOURCES)
def test_what_each_source_may_see(inference):
    """Serving, the inferred profile is of the session alone; the oracle's is not."""
    method, state = scores_of(inference)
    step = jnp.asarray(LENGTH)
    serve = jit(lambda items: method.scores(state, items, LENGTH, step))
    found = np.asarray(serve(HISTORY))
    assert np.isneginf(found[:, 0]).all() and np.isfinite(found[:, 1:21]).all()
    older = HISTORY.copy()
    older[0, :2] = [13, 14]  # before the longest session
    changed = (np.asarray(serve(older)) != found).any(axis=1)
    # The placebo of a row is the profile of the one half of the batch away.
    seen = dict(inferred=[0, 0, 0], none=[0, 0, 0], oracle=[1, 0, 0], placebo=[0, 1, 0])
    assert changed.tolist() == [bool(x) for x in seen[inference]]
    newest = HISTORY.copy()
    newest[0, 4] = 14
    assert (np.asarray(serve(newest)) != found)[0].any()


def test_a_session_is_ranked_the_same_wherever_it_stands():
    """Alone, and in each row of a batch: diffusion draws no noise of the place."""
    method, state = scores_of("inferred", 40)
    rows = np.broadcast_to(HISTORY[:1], (4, 5))
    length = np.broadcast_to(LENGTH[:1], 4)
    found = np.asarray(method.scores(state, rows, length, length))
    alone = np.asarray(method.scores(state, rows[:1], length[:1], length[:1]))
    for row in found:
        np.testing.assert_allclose(row, alone[0], rtol=1e-6)


def test_the_placebo_is_of_another_row_that_is_there():
    x = jnp.arange(6.0)
    assert profile.another(x).tolist() == [3, 4, 5, 0, 1, 2]
    # Two of the six are padding.
    assert profile.another(x, jnp.int32(4))[:4].tolist() == [2, 3, 0, 1]
    assert profile.another(x, jnp.int32(3))[:3].tolist() == [1, 2, 0]
    with pytest.raises(UserError, match="set batch_size and eval.batch_size to 2"):
        profile.another(x[:1])


def test_at_first_all_sources_rank_as_the_session_alone():
    plain, start = scores_of("none", 0)
    want = plain.scores(start, HISTORY, LENGTH, LENGTH)
    for inference in ("inferred", "oracle", "placebo"):
        method, state = scores_of(inference, 0)
        network = start.params["network"]
        state = state.replace(params=dict(state.params, network=network))
        found = method.scores(state, HISTORY, LENGTH, LENGTH)
        np.testing.assert_array_equal(found, want)


def test_the_stage_that_infers_is_left_alone():
    """Its parameters, averages and codec are those that it ended with, bit for bit."""
    _, _, before = toy()
    _, state = scores_of("inferred", 3)
    frozen = state.extra["params"], state.extra["codec"]
    wanted = before.target_params, before.extra
    for x, y in zip(jax.tree.leaves(frozen), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_held_out_ranks_by_hand():
    """hr and ndcg of `eval_step` against ranks of `scores` of the longest session."""
    data, _, _ = toy()
    method, state = scores_of("none")
    batch = next(held_out.batches(data, "valid", 16))
    sums = jit(method.eval_step)(state, batch, jax.random.key(0))
    size = batch["item"].shape[1]
    ranks = []
    for row in range(16):
        kept = batch["item"][row][:-1][batch["mask"][row][:-1]]
        items = np.zeros((1, size - 1), np.int32)
        items[0, : len(kept)] = kept
        n = np.array([len(kept)])
        y = np.asarray(method.scores(state, items, n, n))[0]
        ranks.append(1 + (y > y[batch["item"][row, -1]]).sum())
    ranks = np.array(ranks)
    assert sums["count"] == 16
    assert sums["L3/hr@10"] == (ranks <= 10).sum()
    want = (1 / np.log2(1 + ranks[ranks <= 10])).sum()
    np.testing.assert_allclose(sums["L3/ndcg@10"], want, rtol=1e-5)
    assert sums["L1/ndcg@10"] != sums["L3/ndcg@10"]


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(inference="true"), ["'true'", "oracle"]),
        (dict(stage="world"), ["'world'", "method profile"]),
        (dict(observe=(1, 2)), ["(1, 2)", "(1, 3)", "'inference'"]),
    ],
)
def test_bad_settings(changes, words):
    data, config, _ = toy()
    with pytest.raises(UserError) as error:
        ranker(data, config, **changes)
    assert all(word in str(error.value) for word in words)


def test_steps_of_what_is_no_diffusion():
    data = toy_sessions.dataset(60)
    _, config = stage_of(data, **{"generator.kind": "regressor"})
    with pytest.raises(UserError, match="sampler_steps=1.*no diffusion model"):
        ranker(data, config, sampler_steps=1)


def two_types(num, seed):
    """Sessions of 8 events of one of two disjoint halves, but the seventh is item 1.

    So what is seen by L = 1 before the eighth is ambiguous, by more it is not.
    """
    generator = np.random.default_rng(seed)
    kind = generator.integers(2, size=num)
    items = (
        2
        + 9 * kind[:, None]
        + generator.permuted(np.tile(np.arange(9), (num, 1)), axis=1)
    )
    items[:, 6] = 1
    flat = items[:, :8].reshape(-1).astype(np.int32)
    step = np.tile(np.arange(8), num).astype(np.int32)
    last = step == 7
    following = np.where(last, 0, np.roll(flat, -1)).astype(np.int32)
    zeros = np.zeros(len(flat), np.float32)
    return dict(
        item=flat,
        timestep=step,
        remaining=step[::-1].copy(),
        kind=zeros.astype(np.int32),
        reward=zeros,
        next_item=following,
        done=last.astype(np.float32),
        reward_to_go=zeros,
    )


def ambiguous():
    train, valid = two_types(400, 0), two_types(60, 1)
    toy_info = toy_sessions.dataset(60).info
    count = np.bincount(train["item"], minlength=128).astype(np.float64)
    info = toy_info | dict(item_count=count, train=train, seq_len=7)
    # The last event is predicted: seven are the profile, each row of a whole session.
    drawn = {
        name: np.flatnonzero(rows["timestep"] == 7).astype(np.int32)
        for name, rows in dict(train=train, valid=valid).items()
    }
    return Dataset(train, {"valid": valid}, info, 8, drawn=drawn)


def task_a(data, kind, observe):
    """Held-out metrics of the profile stage, its method and its state."""
    changes = {"generator.kind": kind, "observe": observe, "samples": 8, "dims": 4}
    method, _ = stage_of(data, **changes, **{"width": 64, "optim.lr": 3e-3})
    state = train(method, data, 1_500, batch_size=64)
    batch = next(held_out.batches(data, "valid", 60))
    sums = jit(method.eval_step)(state, batch, jax.random.key(0))
    return {k: float(v / sums["count"]) for k, v in sums.items()}


@pytest.mark.slow
def test_two_types_of_users():
    """The last event tells nothing: samples of diffusion are of a type each, so their
    spread is that of the types, where the regressor gives the mean; two events tell
    the type, and both are alike. Recall is bounded by the oracle's everywhere."""
    data = ambiguous()
    found = {kind: task_a(data, kind, (1, 3)) for kind in ("diffusion", "regressor")}
    diffusion, regressor = found["diffusion"], found["regressor"]
    for metrics in found.values():
        for keep in (1, 3):
            best = metrics[f"L{keep}/oracle_recall@10"]
            assert metrics[f"L{keep}/recall@10"] <= best + 0.02
        assert metrics["L3/recall@10"] > metrics["L1/recall@10"] + 0.1
        assert metrics["L3/recall@10"] > metrics["L3/placebo_recall@10"] + 0.1
    assert regressor["L1/spread"] < 1e-5 < 0.3 < diffusion["L1/spread"]
    assert diffusion["L3/spread"] < diffusion["L1/spread"] / 1.5
    assert diffusion["L1/energy_error"] < regressor["L1/energy_error"] - 0.05
    assert abs(diffusion["L3/recall@10"] - regressor["L3/recall@10"]) < 0.1
