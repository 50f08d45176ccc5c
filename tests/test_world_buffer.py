"""Rollouts in a world model, the penalty, and the buffer that they fill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import FrozenConfigDict
from toy_rollouts import B, H, batch_of, data, settings, world

from jaxrec.data import toy
from jaxrec.methods import world_buffer, world_model
from jaxrec.methods.world_model import Prediction, WorldModel
from jaxrec.types import UserError


def one_round(model=None, policy=None, penalty=0.0, **overrides):
    model, state = model or world()
    info = data().info
    generate = world_buffer.make_round(
        settings("mopo", **overrides), info, model, penalty
    )
    policy = policy or (lambda s, key: jax.random.uniform(key, (len(s), 2)))
    starts = batch_of()["observation"]
    found = jax.jit(lambda key: generate(state, policy, starts, key))
    return jax.device_get(found(jax.random.key(0)))


def test_rollouts_follow_the_model_and_the_policy_from_real_states():
    found = one_round(policy=lambda s, key: 0.3 * jnp.tanh(s[:, :2]))
    rows = found.rows
    assert found.count == H * B
    np.testing.assert_array_equal(rows["observation"][:B], batch_of()["observation"])
    np.testing.assert_array_equal(
        rows["observation"][B:], rows["next_observation"][:-B]
    )
    np.testing.assert_allclose(
        rows["action"], 0.3 * np.tanh(rows["observation"][:, :2]), atol=1e-6
    )
    truth, reward = toy.step(rows["observation"], rows["action"])
    np.testing.assert_allclose(rows["next_observation"], truth, atol=0.02)
    np.testing.assert_allclose(rows["reward"], reward, atol=0.02)
    assert not rows["terminal"].any()


def test_rollouts_are_sampled_with_the_models_deviation():
    rows = one_round(world(sigma=0.5)).rows
    scales = jax.tree.map(np.asarray, world()[1].extra.scales)
    truth, reward = toy.step(rows["observation"], rows["action"])
    noise = (rows["next_observation"] - truth) / scales.delta_std
    np.testing.assert_allclose(noise.std(0), 0.5, rtol=0.35)
    noise = (rows["reward"] - reward) / scales.reward_std
    np.testing.assert_allclose(noise.std(), 0.5, rtol=0.35)


def test_a_member_is_drawn_for_every_row_and_step():
    exact, state = toy_world.linear(data(), spread=(0.0, 1.0, 2.0))

    def predict(state, window):
        found = exact(state, window)
        tiny = jnp.full((*found.reward.shape, found.mean.shape[-1] + 1), -30.0)
        reward = jnp.broadcast_to(jnp.arange(3.0)[:, None], found.reward.shape)
        return Prediction(found.mean * 0, tiny, reward, None)

    model = WorldModel(None, None, predict=predict, config=FrozenConfigDict())
    member = np.round(one_round((model, state)).rows["reward"]).reshape(H, B)
    for h in range(H):
        assert set(member[h]) == {0, 1, 2}
    assert (member[0] != member[1]).any()


def test_penalty_by_hand():
    """c max_e sqrt(sum sigma_e^2) in the data's units: scales 2, 3 and 4 (reward)."""
    prediction = Prediction(
        mean=jnp.zeros((2, 1, 2)),
        log_var=2 * jnp.log(jnp.array([[[1.0, 1.0, 1.0]], [[0.5, 2.0, 0.25]]])),
        reward=jnp.zeros((2, 1)),
        terminal=None,
    )
    scales = world_model.Scales(
        jnp.zeros(2), jnp.ones(2), jnp.array([2.0, 3.0]), jnp.zeros(()), jnp.array(4.0)
    )
    want = max(np.sqrt(4 + 9 + 16), np.sqrt(1 + 36 + 1))
    np.testing.assert_allclose(world_buffer.sigma(prediction, scales), want, rtol=1e-5)
    state_only = prediction._replace(log_var=prediction.log_var[..., :2])
    want = max(np.sqrt(4 + 9), np.sqrt(1 + 36))
    np.testing.assert_allclose(world_buffer.sigma(state_only, scales), want, rtol=1e-5)


def test_penalty_lowers_the_reward_and_nothing_else():
    free, dear = one_round().rows, one_round(penalty=10.0).rows
    assert (free["uncertainty"] > 0).all()
    np.testing.assert_allclose(
        free["reward"] - dear["reward"], 10 * free["uncertainty"], atol=1e-4
    )
    np.testing.assert_array_equal(free["next_observation"], dear["next_observation"])


def test_rollouts_end_with_terminal_states():
    """Terminal above a first action of 0.5: later rows of these do not exist."""
    model = world(terminal=lambda s, a: a[:, 0] - 0.5)
    found = one_round(model, termination="learned")
    rows, count = found.rows, found.count
    assert B < count < H * B
    existing = {name: x[:count] for name, x in rows.items()}
    np.testing.assert_array_equal(
        existing["terminal"] > 0, existing["action"][:, 0] > 0.5
    )
    # Rows that exist come first, in the order of the steps: B, then those left.
    over = existing["terminal"] > 0
    left = B - int(over[:B].sum())
    assert count == B + left + (left - int(over[B : B + left].sum()))
    follow = existing["next_observation"][:B][existing["terminal"][:B] == 0]
    np.testing.assert_array_equal(existing["observation"][B : B + left], follow)


def test_rows_that_are_not_finite_never_enter():
    exact, state = world()

    def predict(state, window):
        found = exact.predict(state, window)
        bad = window["action"][:, -1, 0] > 0.5
        return found._replace(mean=jnp.where(bad[None, :, None], jnp.inf, found.mean))

    found = one_round((exact._replace(predict=predict), state))
    assert 0 < found.count < H * B
    assert (found.rows["action"][: found.count, 0] <= 0.5).all()
    assert all(np.isfinite(x).all() for x in found.rows.values())


def buffer_of(counts, n=5):
    """Rows that hold 10 * round + place; those that do not exist hold -1."""
    place = np.arange(n)[None, :]
    rows = 10 * np.arange(len(counts))[:, None] + place
    rows = np.where(place < np.array(counts)[:, None], rows, -1)
    return world_buffer.Buffer(dict(reward=jnp.asarray(rows)), jnp.asarray(counts))


def test_draw_is_uniform_over_the_rows_that_exist():
    buffer = buffer_of([3, 0, 5, 1])
    got = world_buffer.draw(buffer, jax.random.key(0), 9_000)
    values, counts = np.unique(got["reward"], return_counts=True)
    np.testing.assert_array_equal(values, [0, 1, 2, 20, 21, 22, 23, 24, 30])
    assert np.abs(counts - 1_000).max() < 150  # five deviations
    assert (got["valid_next"] == 1).all()


def test_the_oldest_round_is_replaced_at_the_right_steps():
    buffer = buffer_of([0, 0, 0])
    seen = []
    for step in range(10):
        new = world_buffer.Buffer(
            dict(reward=jnp.full(5, 100 + step)), jnp.asarray(step + 1)
        )
        refresh = functools.partial(world_buffer.refresh, every=2)
        buffer = refresh(buffer, jnp.asarray(step), generate=lambda new=new: new)
        seen.append(buffer.count.tolist())
    want = [[1, 0, 0], [1, 3, 0], [1, 3, 5], [7, 3, 5], [7, 9, 5]]
    assert seen == [row for row in want for _ in range(2)]
    np.testing.assert_array_equal(buffer.rows["reward"][:, 0], [106, 108, 104])


@pytest.mark.parametrize(
    "ratio, size, want", [(0.05, 256, 244), (0.5, 256, 128), (0.5, 5, 3), (0.9, 10, 1)]
)
def test_rows_of_the_model_in_a_batch(ratio, size, want):
    assert world_buffer.model_rows(ratio, size) == want


@pytest.mark.parametrize("ratio", (0.0, 1.0))
def test_both_kinds_of_rows_are_needed(ratio):
    with pytest.raises(UserError, match="both kinds"):
        world_buffer.model_rows(ratio, 256)


def test_a_model_with_a_history_sees_the_rollout_grow():
    """context 3: the mask admits the start alone, then one step more at a time."""
    exact, state = world()

    def predict(state, window):
        found = exact.predict(state, window)
        steps = jnp.sum(window["mask"], axis=1, dtype=jnp.float32)
        assert window["observation"].shape[1] == 3
        return found._replace(reward=jnp.broadcast_to(steps[None], found.reward.shape))

    model = exact._replace(predict=predict, context=3)
    reward = one_round((model, state), horizon=4).rows["reward"].reshape(4, B)
    np.testing.assert_allclose(reward.mean(1), [1, 2, 3, 3], atol=0.02)
