"""What the simulator truly answers to the actions of simulations.

With these rows in the place of the simulated ones a study tells an error of the world
model from a poor choice of states and actions: the actions are the same, the answers
are the truth (ours).
"""

from typing import Any

import numpy as np

from jaxrec.envs import gym
from jaxrec.methods.world_sources import episodes
from jaxrec.types import Batch, Dataset, UserError


def check(info: dict[str, Any]) -> None:
    """Raises UserError where the data have no simulator here, or no state to start it.

    info: that of the data set; known before anything is trained.
    """
    states = {"qpos", "qvel"} <= set(info["trajectories"].extras)
    if not states or not info["env_id"]:
        raise UserError(
            "replay: the data have no simulator, or no qpos and qvel to start it at"
        )
    gym.check_id(info["env_id"])


def rows(dataset: Dataset) -> dict[str, np.ndarray]:
    """The simulated transitions of `dataset.mix`, answered by the true simulator.

    `dataset` has the view of the stage that simulated, so that its columns source and
    start name the same states, and trajectories with qpos and qvel. Each simulation
    begins at its true state and takes its own actions until it or the true episode
    ends. `claimed` is the reward that the world model gave.

    Raises UserError where nothing is mixed in, without a simulator, and for another
    view.
    """
    if len(dataset.mix) != 1:
        raise UserError("replay: name the stage that simulates as mix.stage, alone")
    info, simulated = dataset.info, dataset.mix[0].arrays
    if not {"source", "start"} <= set(simulated):
        raise UserError("replay: mix.stage simulates nothing, name a world model")
    check(info)
    data = info["trajectories"]
    first, length, padded = stretches(simulated["timestep"])
    source, start = (np.asarray(simulated[k])[first] for k in ("source", "start"))
    row = episodes(dataset.train)["first"][source] + start
    observation = np.asarray(dataset.train["observation"][row])
    if not np.array_equal(observation, np.asarray(simulated["observation"])[first]):
        raise UserError(
            "replay: data.top, data.valid_fraction or the data are not those of the "
            "stage that simulated, or it dropped rows: make them equal, and use no "
            "correction=drop there"
        )
    stored = stored_rows(info)[row]
    qpos, qvel = (np.asarray(data.extras[k][stored]) for k in ("qpos", "qvel"))
    action = np.asarray(simulated["action"])[padded]  # [N, H, ad]
    after, reward, terminal = gym.replay(info["env_id"], qpos, qvel, action)
    ended = np.cumsum(terminal, axis=1) - terminal > 0
    kept = (np.arange(action.shape[1])[None] < length[:, None]) & ~ended
    before = np.concatenate([observation[:, None], after[:, :-1]], axis=1)
    found = {name: np.asarray(x)[padded] for name, x in simulated.items()}
    found |= dict(
        claimed=found["reward"],
        observation=before,
        next_observation=after,
        reward=reward,
        terminal=terminal.astype(np.float32),
    )
    return {name: array[kept] for name, array in found.items()}


def stretches(timestep: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First rows int64[N], lengths int64[N] and rows int64[N, H] of the simulations.

    Rows after the end of a simulation repeat its last one.
    """
    first = np.flatnonzero(np.asarray(timestep) == 0)
    length = np.diff(first, append=len(timestep))
    step = np.arange(length.max())[None]
    return first, length, first[:, None] + np.minimum(step, length[:, None] - 1)


def stored_rows(info: dict) -> np.ndarray:
    """The rows of `info["trajectories"]` behind the training rows: int64[N]."""
    rows = np.arange(len(info["trajectories"].reward))
    return rows if info["valid_rows"] is None else np.delete(rows, info["valid_rows"])


def facts(arrays: dict[str, np.ndarray], info: dict) -> dict[str, float]:
    """Rewards a step that the world model claims and that are true; true deaths."""
    return dict(
        rows=float(len(arrays["reward"])),
        claimed=float(np.mean(arrays["claimed"])),
        reward=float(np.mean(arrays["reward"])),
        terminal=float(np.mean(arrays["terminal"])),
    )
