"""How well a world model simulates, against the true system under the same actions.

Held-out states are given back to the simulator as (qpos, qvel), which then follows the
data's actions with the noise that simulations have; the model simulates beside it. For
the toy system the truth is its own formula. Errors at several horizons, whether the
uncertainty knows where the errors are, and how far simulated states lie from the data.
The choice of measures is ours (OTTO's paper reports returns).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec import logs
from jaxrec.data import toy
from jaxrec.envs import gym
from jaxrec.methods import imagination, world_evaluator, world_rollout
from jaxrec.methods.world_sources import spaced, windows
from jaxrec.types import Dataset, TrainState, UserError

HORIZONS = (1, 5, 10, 20, 50)
STARTS = 64  # simulations an evaluation, ours
TABLE = 50_000  # training states that coverage is measured against, at most, ours
QUERIES = 1_024  # states whose distance to them is measured, at most, ours
WORST = 0.1  # share of the steps that ought to be caught, ours

Evaluate = Callable[[TrainState, jax.Array], dict[str, float]]


class Truth(NamedTuple):
    """What the true system does from N held-out states in H steps."""

    window: dict[str, np.ndarray]  # [N, K, ...], ends with the start
    action: np.ndarray  # float32[N, H, ad], perturbed
    observation: np.ndarray  # float32[N, H, od], after each action
    reward: np.ndarray  # float32[N, H]
    alive: np.ndarray  # bool[N, H], no terminal state before this step
    real: np.ndarray  # float32[N, H, od], the data's own next states


def make(config: Any, method: Any, dataset: Dataset) -> Evaluate:
    """(state, key) -> metrics of a `WorldModel`, {} where there is no truth.

    `world/rmse@h`: of standardised states after h steps, h = 1, 5, 10, 20, 50 as far as
    held-out episodes reach; `world/reward_mae@h`: of the reward of step h;
    `world/alive@h`: share of the starts that count, whose true system has not ended
    before; `world/spearman`: of u and the true error over all steps; `world/caught`:
    share of the worst tenth of the steps with u > theta, `world/theta`;
    `world/coverage`: mean distance of simulated states to the nearest training state,
    standardised, and `world/coverage_real` of the held-out states at the same steps.
    """
    if getattr(method, "predict", None) is None:
        return nothing("the method is no world model")
    try:
        truth = find(dataset, method.context, method.config.sigma, config.eval.seed)
    except UserError as error:
        return nothing(str(error))
    settings = method.config
    evaluator = world_evaluator.make(settings)._replace(corrections=frozenset())
    train = dataset.train["observation"]
    table = np.asarray(train[spaced(np.arange(len(train)), TABLE)])

    @jax.jit
    def uncertainty(state, window):
        return evaluator.uncertainty(method.predict(state, window))

    @jax.jit
    def simulate(state, window, action, key):
        return world_rollout.rollout(
            method.predict,
            state,
            state.extra.scales,
            window,
            action,
            key,
            evaluator=evaluator,
            member=settings.rollout_member,
        )

    @jax.jit
    def distance(scales, query, table):
        near = world_evaluator.nearest_distance
        return near(scales.standardise(query), scales.standardise(table))

    def mean_distance(scales, states):
        states = states[spaced(np.arange(len(states)), QUERIES)]
        blocks = np.array_split(states, -(-len(states) // 256))
        return np.concatenate([distance(scales, block, table) for block in blocks])

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, float]:
        found = jax.device_get(simulate(state, truth.window, truth.action, key))
        scales = state.extra.scales
        theta = imagination.threshold(
            uncertainty, state, dataset, method.context, settings.quantile
        )
        std = np.asarray(scales.observation_std)
        metrics = compare(truth, found, std, theta)
        counts = truth.alive & found["keep"]
        simulated, real = found["next_observation"][counts], truth.real[counts]
        if counts.any():
            metrics["coverage"] = mean_distance(scales, simulated).mean()
            metrics["coverage_real"] = mean_distance(scales, real).mean()
        return {f"world/{name}": float(value) for name, value in metrics.items()}

    return evaluate


def compare(
    truth: Truth, found: dict[str, np.ndarray], std: np.ndarray, theta: float
) -> dict[str, float]:
    """Errors of a simulation `found` (see world_rollout.rollout), without coverage.

    A step whose simulation is not finite makes the errors from there on NaN.
    """
    error = (found["next_observation"] - truth.observation) / std
    square = np.where(found["keep"], np.mean(error**2, axis=-1), np.nan)
    reward = np.where(found["keep"], np.abs(found["reward"] - truth.reward), np.nan)
    metrics: dict[str, float] = {}
    for h in HORIZONS:
        alive = truth.alive[:, h - 1] if h <= truth.action.shape[1] else []
        if not np.any(alive):
            break
        metrics[f"rmse@{h}"] = np.sqrt(square[alive, h - 1].mean())
        metrics[f"reward_mae@{h}"] = reward[alive, h - 1].mean()
        metrics[f"alive@{h}"] = alive.mean()
    counts = truth.alive & found["keep"]
    size, u = np.sqrt(square[counts]), found["uncertainty"][counts]
    if len(u):
        worst = size >= np.quantile(size, 1 - WORST)
        metrics["spearman"] = spearman(u, size)
        metrics["caught"] = np.mean(u[worst] > theta)
    return metrics | {"theta": theta}


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of the ranks (ties share theirs), 0.0 for a constant. [N] each."""
    x, y = ranks(x), ranks(y)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def ranks(x: np.ndarray) -> np.ndarray:
    """1 for the smallest, ties share their mean rank: float64[N]."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def find(dataset: Dataset, context: int, sigma: float, seed: int) -> Truth:
    """Starts in held-out episodes and what truly follows; the same at every call.

    Starts have H rows of their episode left, so that there are actions to perturb; H is
    the longest of HORIZONS that a held-out episode reaches. Raises UserError where
    nothing is held out, or there is no true system.
    """
    info = dataset.info
    if "valid" not in dataset.evals:
        raise UserError("nothing is held out, set the stage's data.valid_fraction")
    held_out, data = dataset.evals["valid"], info["trajectories"]
    timestep = np.asarray(held_out["timestep"])
    first = np.flatnonzero(timestep == 0)
    length = np.diff(first, append=len(timestep))
    left = np.repeat(length, length) - timestep
    horizon = max(h for h in HORIZONS if h <= left.max())
    random = np.random.default_rng([seed, 2])
    rows = np.flatnonzero(left >= horizon)
    rows = np.sort(random.choice(rows, min(STARTS, len(rows)), replace=False))
    index = rows[:, None] + np.arange(horizon)[None, :]
    action = np.asarray(held_out["action"][index])
    action = action + sigma * random.standard_normal(action.shape)
    action = np.clip(action, -1, 1).astype(np.float32)
    start = np.asarray(held_out["observation"][rows])
    if info["name"].startswith("toy/"):
        observation, reward = linear(start, action)
        terminal = np.zeros(reward.shape, bool)
    elif {"qpos", "qvel"} <= set(data.extras) and info["env_id"]:
        stored = info["valid_rows"][rows]
        qpos, qvel = (np.asarray(data.extras[k][stored]) for k in ("qpos", "qvel"))
        observation, reward, terminal = gym.replay(info["env_id"], qpos, qvel, action)
    else:
        raise UserError(
            "the data have no simulator, or no qpos and qvel to start it at"
        )
    return Truth(
        window=windows(held_out, rows, context),
        action=action,
        observation=observation,
        reward=reward,
        alive=np.cumsum(terminal, axis=1) - terminal == 0,
        real=np.asarray(held_out["next_observation"][index]),
    )


def linear(start: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The toy system without its noise: start[N, 4], action[N, H, 2] -> as `replay`."""
    states, rewards, state = [], [], start
    for h in range(action.shape[1]):
        state, reward = toy.step(state, action[:, h])
        states.append(state)
        rewards.append(reward)
    return np.stack(states, 1), np.stack(rewards, 1)


def nothing(why: str) -> Evaluate:
    """Says why once; the metrics are empty."""
    logs.say(f"world_accuracy: {why}; no numbers")
    return lambda state, key: {}
