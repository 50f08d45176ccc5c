"""The Decision Transformer: causality, padding, its loss, acting from a memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.losses import world as losses
from jaxrec.methods import dt
from jaxrec.models.world import DecisionTransformer
from jaxrec.types import UserError

OD, AD, B, K = 4, 2, 16, 5
INFO = dict(
    observation_size=OD,
    action_size=AD,
    observation_mean=np.full(OD, 0.5, np.float32),
    observation_std=np.full(OD, 2.0, np.float32),
    return_max=17.0,
    env_id="",
    window=K,
)
SMALL = dict(width=16, num_layers=1, num_heads=2, max_timestep=50, return_scale=10.0)


def make(info=INFO, **overrides):
    settings = dt.HPARAMS | SMALL | dict(steps=1000, batch_size=B) | overrides
    settings = ConfigDict(settings)
    settings.optim.update(lr=3e-3, warmup=0)
    return dt.make(FrozenConfigDict(settings), info)


def batch_of(seed=0):
    draw = np.random.default_rng(seed)
    length = draw.integers(1, K + 1, size=B)  # steps that are not padding
    arrays = dict(
        observation=draw.normal(size=(B, K, OD)),
        action=draw.uniform(-0.9, 0.9, size=(B, K, AD)),
        reward=draw.normal(size=(B, K)),
        return_to_go=draw.normal(size=(B, K)) * 10,
        weight=np.ones(B),
    )
    batch = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    slot = np.arange(K)[None, :]
    batch["mask"] = jnp.asarray(slot >= K - length[:, None])
    batch["timestep"] = jnp.asarray(np.maximum(slot - (K - length[:, None]), 0))
    return batch


@functools.cache
def started():
    method = make()
    state = jax.jit(method.init)(jax.random.key(0), batch_of(), {})
    return method, state, jax.jit(method.train_step)


def actions(batch, train=False, dropout=0.0):
    """The network's answers at every step, with the parameters of `started`."""
    network = DecisionTransformer(AD, 16, 1, 2, dropout, 50)
    s = (batch["observation"] - 0.5) / 2.001
    parts = (batch["return_to_go"] / 10, s, batch["action"], batch["timestep"])
    return network.apply(started()[1].params, *parts, batch["mask"], train)


def full(batch):
    return dict(batch, mask=jnp.ones((B, K), bool))


@pytest.mark.parametrize("name", ("observation", "action", "return_to_go"))
@pytest.mark.parametrize("t", range(K))
def test_causal(name, t):
    """An action sees R_t, s_t and all before, not a_t nor anything later."""
    batch = full(batch_of())
    changed = dict(batch)
    changed[name] = batch[name].at[:, t].add(1.0)
    before, after = actions(batch), actions(changed)
    first = t + (name == "action")
    np.testing.assert_array_equal(before[:, :first], after[:, :first])
    for later in range(first, K):
        assert not np.allclose(before[:, later], after[:, later], atol=1e-6)


def test_padding_is_ignored_in_actions_and_gradients():
    batch = batch_of()
    assert not bool(batch["mask"].all())
    changed = dict(batch)
    for name in ("observation", "action", "return_to_go", "timestep"):
        mask = batch["mask"].reshape(B, K, *(1,) * (batch[name].ndim - 2))
        changed[name] = jnp.where(mask, batch[name], batch[name] + 7)
    seen = np.asarray(batch["mask"])
    np.testing.assert_array_equal(actions(batch)[seen], actions(changed)[seen])
    _, state, step = started()
    a = step(state, batch, jax.random.key(1))[0].params
    b = step(state, changed, jax.random.key(1))[0].params
    chex.assert_trees_all_equal(a, b)


def test_loss_is_of_the_actions_alone_and_by_hand():
    method = make(dropout=0.0)
    batch = batch_of()
    step, state = jax.jit(method.train_step), started()[1]
    _, metrics = step(state, batch, jax.random.key(1))
    seen = np.asarray(batch["mask"])
    want = np.square(actions(batch)[seen] - batch["action"][seen]).mean()
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    # Rewards are no input and no target.
    other = dict(batch, reward=batch["reward"] + 5)
    _, same = step(state, other, jax.random.key(2))
    np.testing.assert_array_equal(metrics["loss"], same["loss"])


def test_action_error_by_hand():
    a, target = jnp.array([[1.0, 0.0], [9.0, 9.0]]), jnp.array([[0.0, 2.0], [0.0, 0.0]])
    total, count = losses.action_error(a, target, jnp.array([1.0, 0.0]))
    assert (total, count) == (5.0, 2.0)


def test_dropout_acts_in_training_only():
    _, state, step = started()
    losses = [step(state, batch_of(), jax.random.key(n))[1]["loss"] for n in (1, 2)]
    assert losses[0] != losses[1]
    np.testing.assert_array_equal(actions(batch_of()), actions(batch_of(), False, 0.9))


def test_ten_steps_are_finite_and_the_loss_falls():
    method, state, step = started()
    batch, found = batch_of(), []
    for number in range(60):
        state, metrics = step(state, batch, jax.random.key(number))
        chex.assert_tree_all_finite(metrics)
        found.append(float(metrics["loss"]))
    assert int(state.step) == 60
    assert np.mean(found[-10:]) < 0.7 * np.mean(found[:5])
    before = method.eval_step(started()[1], batch, jax.random.key(0))
    after = method.eval_step(state, batch, jax.random.key(0))
    assert after["bc_distance"] < before["bc_distance"]
    assert after["count"] == B


def test_eval_step_counts_the_newest_step_by_weight():
    method, state, _ = started()
    batch = batch_of()
    batch["weight"] = batch["weight"].at[3:].set(0.0)
    sums = method.eval_step(state, batch, jax.random.key(0))
    error = np.square(actions(batch)[:3, -1] - batch["action"][:3, -1]).mean(-1).sum()
    np.testing.assert_allclose(sums["bc_distance"], error, rtol=1e-5)
    assert sums["count"] == 3


def test_acting_with_memory_equals_a_fresh_forward_on_the_same_history():
    """Past K steps too, where the window rolls and the positions do not start at 0."""
    method, state, _ = started()
    act, num, steps = jax.jit(method.act), 3, 2 * K + 1
    draw = np.random.default_rng(1)
    seen = draw.normal(size=(steps, num, OD)).astype(np.float32)
    rewards = draw.normal(size=(steps, num)).astype(np.float32)
    rewards[0] = 0.0  # nothing precedes the first action
    memory, taken = method.memory(num), []
    to_go = 17.0 - np.cumsum(rewards, axis=0)
    for t in range(steps):
        memory, a = act(state, (memory, seen[t], rewards[t]), jax.random.key(0))
        past = slice(max(0, t - K + 1), t + 1)
        size = past.stop - past.start
        actions_now = np.stack([*taken[past], np.zeros((num, AD))]).astype(np.float32)

        def window(x, size=size):
            rows = np.moveaxis(x, 0, 1)
            pad = ((0, 0), (K - size, 0), *((0, 0),) * (rows.ndim - 2))
            return jnp.asarray(np.pad(rows, pad, constant_values=3))

        time = np.repeat(np.arange(past.start, past.stop)[:, None], num, axis=1)
        fresh = actions(
            dict(
                observation=window(seen[past]),
                action=window(actions_now),
                return_to_go=window(to_go[past].astype(np.float32)),
                timestep=window(time),
                mask=jnp.broadcast_to(jnp.arange(K)[None, :] >= K - size, (num, K)),
            )
        )[:, -1]
        np.testing.assert_allclose(a, fresh, atol=1e-5)
        assert np.abs(a).max() <= 1
        taken.append(np.asarray(a))


def test_a_recorded_episode_is_seen_as_in_training():
    """The window that acting builds is the one that the loader gives."""
    method, state, _ = started()
    draw = np.random.default_rng(2)
    seen = draw.normal(size=(4, 1, OD)).astype(np.float32)
    reward = np.array([1.0, 2.0, 14.0], np.float32)
    memory = method.memory(1)
    for t in range(4):
        got = jnp.full(1, reward[t - 1] if t else 0.0)
        memory, _ = method.act(state, (memory, seen[t], got), jax.random.key(0))
    np.testing.assert_allclose(memory["to_go"][0, 1:], [1.7, 1.6, 1.4, 0.0], atol=1e-6)
    np.testing.assert_array_equal(memory["timestep"][0, 1:], [0, 1, 2, 3])
    np.testing.assert_array_equal(memory["mask"][0], [False, True, True, True, True])


@pytest.mark.parametrize(
    "env_id, asked, want",
    [
        ("Hopper-v4", 0.0, 3600.0),
        ("HalfCheetah-v4", 0.0, 12000.0),
        ("walker2d-medium-v2", 0.0, 5000.0),
        ("Ant-v4", 0.0, 17.0),
        ("", 0.0, 17.0),
        ("Hopper-v4", 1234.0, 1234.0),
    ],
)
def test_target_returns(env_id, asked, want):
    memory = make(INFO | dict(env_id=env_id), target_return=asked).memory(2)
    np.testing.assert_allclose(memory["to_go"], want / 10.0)


def test_transitions_are_refused():
    with pytest.raises(UserError, match=r"set data\.window"):
        make(INFO | dict(window=0))
