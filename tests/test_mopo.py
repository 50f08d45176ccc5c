"""MOPO and COMBO: what training does with rollouts, and what the critics learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from toy_rollouts import (
    MODULES,
    PENALTY,
    B,
    H,
    batch_of,
    data,
    init,
    make,
    settings,
    started,
    world,
)

from jaxrec.data import toy
from jaxrec.losses import value
from jaxrec.methods import world_buffer
from jaxrec.models import control
from jaxrec.types import UserError


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_steps_are_finite_and_the_loss_falls(name):
    method, state, step = started(name)
    losses = []
    for number in range(80):
        state, metrics = step(state, batch_of(), jax.random.key(number))
        assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 80
    assert np.mean(losses[-10:]) < np.mean(losses[:5])
    batch = batch_of() | dict(weight=jnp.ones(B))
    sums = method.eval_step(state, batch, jax.random.key(0))
    assert sums["count"] == B
    assert all(x.shape == () and np.isfinite(x) for x in sums.values())
    s = batch_of()["observation"]
    a = method.act(state, s, jax.random.key(1))
    assert a.shape == batch_of()["action"].shape and np.abs(a).max() <= 1
    np.testing.assert_array_equal(a, method.act(state, s, jax.random.key(2)))


@pytest.mark.parametrize("name", MODULES)
def test_penalty_is_mopos_alone(name):
    """COMBO's rewards are the model's; MOPO's lower by the penalty it reports."""
    _, state, step = started(name)
    state, metrics = step(state, batch_of(), jax.random.key(1))
    rows = jax.tree.map(lambda x: x[0], state.extra.buffer.rows)
    _, reward = toy.step(rows["observation"], rows["action"])
    penalty = dict(mopo=PENALTY, combo=0.0)[name]
    assert PENALTY * rows["uncertainty"].mean() > 1.0
    np.testing.assert_allclose(
        rows["reward"], reward - penalty * rows["uncertainty"], atol=0.05
    )
    if name == "mopo":  # draws from rows whose u is the same
        np.testing.assert_allclose(
            metrics["penalty"], PENALTY * rows["uncertainty"].mean(), rtol=1e-3
        )


ONE = ("mopo", pytest.param("combo", marks=pytest.mark.slow))


@pytest.mark.parametrize("name", ONE)
def test_training_fills_rounds_in_turn_with_the_present_policy(name):
    method = make(name, rollout_every=2, rounds=3)
    state, step = init(method), jax.jit(method.train_step)
    counts, batches = [], [batch_of(number) for number in range(5)]
    for number, batch in enumerate(batches):
        state, _ = step(state, batch, jax.random.key(number))
        counts.append(state.extra.buffer.count.tolist())
    full = H * B
    assert counts[0] == counts[1] == [full, 0, 0]
    assert counts[3] == [full, full, 0] and counts[4] == [full, full, full]
    starts = state.extra.buffer.rows["observation"][:, :B]
    for slot in range(3):
        np.testing.assert_array_equal(starts[slot], batches[2 * slot]["observation"])


@pytest.mark.parametrize("name", MODULES)
def test_real_rows_are_the_batchs_first(name):
    """The rest of the batch is there to start from: between rounds it is not read."""
    _, state, step = started(name)
    state, _ = step(state, batch_of(), jax.random.key(0))
    ratio = MODULES[name].HPARAMS["real_ratio"]
    num_real = B - world_buffer.model_rows(ratio, B)

    def changed(slot):
        reward = batch_of()["reward"].at[slot].add(3.0)
        return step(state, batch_of() | dict(reward=reward), jax.random.key(1))

    base = step(state, batch_of(), jax.random.key(1))[0].params
    unread = changed(slice(num_real, None))[0].params
    jax.tree.map(np.testing.assert_array_equal, base, unread)
    read = changed(slice(num_real))[0].params
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, base, read)))


@pytest.mark.parametrize(
    "push_down", ("model", pytest.param("mix", marks=pytest.mark.slow))
)
def test_combo_pushes_the_models_rows_down_and_the_datas_up(push_down):
    """With the regulariser alone in charge the gap falls below its start."""
    method = make("combo", weight=100.0, push_down=push_down, widths=(32, 32))
    state, step = init(method), jax.jit(method.train_step)
    gaps = []
    for number in range(60):
        state, metrics = step(state, batch_of(), jax.random.key(number))
        gaps.append(float(metrics["gap"]))
    assert np.mean(gaps[-10:]) < np.mean(gaps[:3]) - 1.0
    pushed = state.extra.buffer.rows["observation"][0, B : 2 * B]
    a = jax.random.uniform(jax.random.key(9), (B, 2), minval=-1.0)
    q = functools.partial(q_of, state)
    assert q(batch_of()["observation"], batch_of()["action"])[:16].mean() > (
        q(pushed, a).mean()
    )


def q_of(state, s, a):
    return control.Critics((32, 32)).apply(state.params["critic"], s, a)[0]


def test_combos_regulariser_ignores_a_constant_in_q():
    """logsumexp(Q + c) - (Q + c) with the data's part apart, as in the critic loss."""
    q, density = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.1, 0.2, 0.3])
    parts = [
        value.cql_regulariser(q + c, density, jnp.zeros(())) - (0.7 + c)
        for c in (0.0, 5.0)
    ]
    np.testing.assert_allclose(*parts, rtol=1e-5)
    whole = value.cql_regulariser(q, density, jnp.array(0.7))
    np.testing.assert_allclose(parts[0], whole, rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_the_world_model_is_needed_and_not_trained(name):
    _, state, step = started(name)
    before = jax.tree.map(np.asarray, state.extra.world)
    state, _ = step(state, batch_of(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, state.extra.world)
    info = data().info | dict(stages={})
    with pytest.raises(UserError, match="no earlier stage with a world model"):
        MODULES[name].make(settings(name), info)
    with pytest.raises(UserError, match="in `uses` too"):
        make(name).init(jax.random.key(0), batch_of(), {})
    head = world()[0]._replace(config=FrozenConfigDict(dict(head="deterministic")))
    with pytest.raises(UserError, match="head=gaussian"):
        make(name, head)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="termination 'leraned' is unknown"):
        make("mopo", termination="leraned")
    with pytest.raises(UserError, match="no termination head"):
        make("combo", termination="learned")
    with pytest.raises(UserError, match="horizon=0"):
        make("mopo", horizon=0)
    with pytest.raises(UserError, match="model or mix"):
        make("combo", push_down="data")
