"""A linear system with known answers, for tests and first steps; needs no simulator.

Two damped point masses with a weak coupling, s = (x1, x2, v1, v2), pushed by forces
a in [-1, 1]: s' = A s + B a + noise, reward -(s.s + ACTION_COST a.a). The exact states
over any horizon, the exact reward and the optimal gain are known. All numbers ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec.data import rows
from jaxrec.data.trajectories import Trajectories
from jaxrec.types import UserError

A = np.array(
    [[0.98, 0, 0.1, 0], [0, 0.98, 0, 0.1], [0, 0.02, 0.9, 0], [-0.02, 0, 0, 0.9]],
    np.float32,
)  # spectral radius 0.96
B = np.array([[0, 0], [0, 0], [0.2, 0], [0, 0.2]], np.float32)
ACTION_COST = 0.1
NOISE = 0.01  # std of the noise on the next state
START = 0.5  # std of the first state; the optimal action then seldom saturates
EPISODE_LENGTH = 50  # steps; always a cut, never a death


def step(state: Any, action: Any) -> tuple[Any, Any]:
    """state[B, 4], action[B, 2] -> (mean next state[B, 4], reward[B]); numpy or JAX."""
    reward = -(state**2).sum(-1) - ACTION_COST * (action**2).sum(-1)
    return state @ A.T + action @ B.T, reward


def optimal_gain(discount: float = 0.99) -> np.ndarray:
    """K: float64[2, 4] of the optimal action -K s, where it does not saturate.

    The discounted Riccati equation, iterated to its fixed point.
    """
    a, b = A.astype(float), B.astype(float)
    value = np.eye(4)
    for _ in range(2000):
        cross = discount * b.T @ value
        gain = np.linalg.solve(ACTION_COST * np.eye(2) + cross @ b, cross @ a)
        value = np.eye(4) + discount * a.T @ value @ (a - b @ gain)
    return gain


def returns(
    act: Callable[[np.ndarray], Any], num_episodes: int = 64, seed: int = 0
) -> np.ndarray:
    """Undiscounted returns of a policy, observation[B, 4] -> action[B, 2]: [B]."""
    generator = np.random.default_rng([seed, 1])
    state = generator.normal(0, START, (num_episodes, 4)).astype(np.float32)
    total = np.zeros(num_episodes)
    for _ in range(EPISODE_LENGTH):
        state, reward = step(state, np.clip(np.asarray(act(state)), -1, 1))
        state = (state + generator.normal(0, NOISE, state.shape)).astype(np.float32)
        total += reward
    return total


def load(config: Any) -> Trajectories:
    """`config.rows` rows (0 = 5000) of noisy controllers, drawn with `config.seed`.

    Each episode follows a share of the optimal gain, from slightly wrong to full, with
    noise: a spread of returns as in a replay buffer. The last episode may be cut.
    """
    if config.rows < 0:
        raise UserError(f"data.rows={config.rows}: it must be 0 (default) or more")
    num_rows = config.rows or 5000
    num_episodes = -(-num_rows // EPISODE_LENGTH)
    generator = np.random.default_rng([config.seed, 0])
    share = generator.uniform(-0.25, 1, (num_episodes, 1))
    noise = generator.uniform(0.05, 0.8, (num_episodes, 1))
    gain = optimal_gain()
    state = generator.normal(0, START, (num_episodes, 4)).astype(np.float32)
    parts = dict(observation=[], action=[], reward=[], next_observation=[])
    for _ in range(EPISODE_LENGTH):
        action = -share * (state @ gain.T) + noise * generator.normal(
            size=(num_episodes, 2)
        )
        action = np.clip(action, -1, 1).astype(np.float32)
        following, reward = step(state, action)
        following = following + generator.normal(0, NOISE, state.shape)
        following = following.astype(np.float32)
        for part, value in zip(parts.values(), (state, action, reward, following)):
            part.append(value)
        state = following
    columns = {
        name: np.stack(part, 1).reshape(num_episodes * EPISODE_LENGTH, -1)[:num_rows]
        for name, part in parts.items()
    }
    timeout = np.arange(1, num_rows + 1) % EPISODE_LENGTH == 0
    return rows.from_arrays(
        **columns,
        terminal=np.zeros(num_rows, bool),
        timeout=timeout,
        info=dict(name="toy/linear", env_id="", version="1"),
    )
