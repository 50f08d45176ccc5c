"""The linear system: its equations, its optimal gain, NumPy and JAX alike."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import toy, trajectories
from jaxrec.types import UserError


def config(**changes):
    fields = dict(name="", path="", rows=0, seed=0, data_dir="", time_limit=0)
    fields |= dict(valid_fraction=0.0, top=1.0, window=0)
    return ConfigDict(fields | changes)


def test_toy_rows_obey_the_equations():
    found = toy.load(config(rows=2015, seed=1))
    assert len(found.reward) == 2015
    assert trajectories.lengths(found).tolist() == [50] * 40 + [15]
    assert not found.terminal.any() and found.valid_next.all()
    state = found.observation.astype(float)
    noise = found.next_observation - state @ toy.A.T - found.action @ toy.B.T
    assert noise.std() == pytest.approx(toy.NOISE, rel=0.05)
    assert abs(noise.mean()) < 1e-3
    cost = (state**2).sum(1) + toy.ACTION_COST * (found.action**2).sum(1)
    np.testing.assert_allclose(found.reward, -cost, rtol=1e-5)
    inner = np.flatnonzero(~found.timeout)
    np.testing.assert_array_equal(
        found.observation[inner + 1], found.next_observation[inner]
    )
    same, other = toy.load(config(rows=2015, seed=1)), toy.load(config(rows=50, seed=2))
    np.testing.assert_array_equal(same.observation, found.observation)
    assert not np.array_equal(other.observation, found.observation[:50])
    assert len(toy.load(config()).reward) == 5000
    with pytest.raises(UserError, match="data.rows=-1"):
        toy.load(config(rows=-1))


def test_toy_is_stable_and_its_gain_optimal():
    assert np.abs(np.linalg.eigvals(toy.A)).max() < 1
    gain = toy.optimal_gain()
    # The fixed point satisfies the Bellman equation: V(s) = s.s + c a.a + d V(s').
    closed = toy.A - toy.B @ gain
    value, discount = np.zeros((4, 4)), 0.99
    for _ in range(3000):
        value = (
            np.eye(4)
            + toy.ACTION_COST * gain.T @ gain
            + discount * closed.T @ value @ closed
        )
    cross = discount * toy.B.T @ value
    wanted = np.linalg.solve(toy.ACTION_COST * np.eye(2) + cross @ toy.B, cross @ toy.A)
    np.testing.assert_allclose(gain, wanted, atol=1e-6)
    best = toy.returns(lambda state: -state @ gain.T).mean()
    for share in (0.0, 0.5, 2.0):
        assert best > toy.returns(lambda s: -share * s @ gain.T).mean()  # noqa: B023
    behaviour = trajectories.returns(toy.load(config(seed=3))).mean()
    assert best > behaviour + 5


def test_toy_step_is_the_same_in_jax():
    import jax
    import jax.numpy as jnp

    state = np.array([[1.0, 0, -1, 2]], np.float32)
    action = np.array([[0.5, -1]], np.float32)
    # By hand: x1 = 0.98 - 0.1, x2 = 0.2, v1 = -0.9 + 0.1, v2 = -0.02 + 1.8 - 0.2.
    wanted = [[0.88, 0.2, -0.8, 1.58]]
    for following, reward in (
        toy.step(state, action),
        jax.jit(toy.step)(jnp.asarray(state), jnp.asarray(action)),
    ):
        np.testing.assert_allclose(following, wanted, atol=1e-6)
        np.testing.assert_allclose(reward, [-6.125], atol=1e-6)
