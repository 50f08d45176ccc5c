"""Flat rows of a file as Trajectories: episode ends, time limits, next observations.

Files differ in what they leave out (timeouts, next observations, the end of the last
episode) and in what they mistake (a time limit marked as a death). The readers of
formats hand over what they found; the rules are here.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec import logs
from jaxrec.data import trajectories as trajectories_lib
from jaxrec.data.trajectories import Trajectories
from jaxrec.types import UserError

MUJOCO = re.compile(r"(Hopper|HalfCheetah|Walker2d|Ant)-v\d")
MUJOCO_LIMIT = 1000  # steps after which gym cuts an episode of these
SAME = 1e-4  # relative difference up to which two observations are one, ours
SAMPLED = 1 << 26  # bytes of an array that its fingerprint reads, ours


def from_arrays(
    observation: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    timeout: np.ndarray | None = None,
    next_observation: np.ndarray | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
    info: Mapping[str, Any] | None = None,
    time_limit: int = 0,
    clip_actions: bool = False,
) -> Trajectories:
    """Rows of a file as Trajectories, whatever the file leaves out.

    The last episode is kept when nothing ends it, and ends with a timeout. With
    `time_limit` > 0 an episode is cut at that length, and a terminal exactly there
    is a timeout (some collectors mark the limit as a death); 0 is the limit of the
    simulator `info["env_id"]` where it is known and there is no `timeout`. An episode
    is cut, too, where `next_observation` is not the next row's. Where nothing of all
    this tells resets apart the data are refused: a transition across one is no truth.
    `clip_actions` clips to [-1, 1], right for files that kept what the policy wanted
    where the simulator clipped it.

    Without `next_observation` it is the observation of the next row. The last row of
    an episode then has none: after a terminal it is kept with valid_next False (a TD
    target masks s'); a row before a timeout is dropped, because a TD target would
    bootstrap from it (as in D4RL's `qlearning_dataset`).
    """
    info = dict(info or {})
    name = info.get("name") or "the data"
    observation = _floats("observation", observation, name)
    rows = len(observation)
    action = _floats("action", action, name)
    if clip_actions:
        action = np.clip(action, -1, 1)
    reward = _numbers("reward", reward, name)
    terminal = _flags("terminal", terminal, name)
    told = timeout is not None
    timeout = _flags("timeout", timeout, name) if told else np.zeros(rows, bool)
    if next_observation is not None:
        next_observation = _floats("next_observation", next_observation, name)
    extras = {k: np.atleast_1d(array) for k, array in (extras or {}).items()}
    trajectories_lib.check_lengths(
        dict(observation=observation, action=action, reward=reward, terminal=terminal)
        | dict(timeout=timeout)
        | extras,
        f"{name}: ",
    )
    if rows == 0:
        raise UserError(f"{name}: no episodes: the data have no rows")
    time_limit = time_limit or limit(info.get("env_id", ""), told)
    if not (told or time_limit) and next_observation is None:
        raise UserError(
            f"{name}: neither timeouts nor next observations tell where episodes are "
            f"cut: set data.time_limit ({MUJOCO_LIMIT} in MuJoCo tasks)"
        )
    timeout &= ~terminal
    if next_observation is not None:
        resets = _resets(observation, next_observation) & ~(terminal | timeout)
        if resets.any():
            logs.say(
                f"{name}: cut at {resets.sum():,} rows more, whose next observation is "
                "not that of the next row"
            )
        timeout |= resets
    timeout[-1] = not terminal[-1]
    if time_limit > 0:
        _limit(terminal, timeout, time_limit)
    if next_observation is not None:
        valid_next = np.ones(rows, bool)
    else:
        ends = terminal | timeout
        next_observation = observation.copy()
        next_observation[:-1][~ends[:-1]] = observation[1:][~ends[:-1]]
        valid_next = ~ends
    trajectories = Trajectories(
        observation=observation,
        action=action,
        reward=reward,
        next_observation=next_observation,
        terminal=terminal,
        timeout=timeout,
        valid_next=valid_next,
        extras=extras,
        info=info,
    )
    if (timeout & ~valid_next).any():
        return _drop_cut_rows(trajectories)
    return trajectories


def limit(env_id: str, told: bool) -> int:
    """The simulator's time limit, if known, where no timeouts are told; else 0."""
    return MUJOCO_LIMIT if not told and MUJOCO.fullmatch(env_id) else 0


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """Eight hex digits of the arrays' contents, in the place of a version.

    Of large arrays evenly spaced rows, the last among them, stand for all.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.atleast_1d(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        step = max(1, -(-array.nbytes // SAMPLED))
        digest.update(np.ascontiguousarray(array[::-step]).tobytes())
    return digest.hexdigest()[:8]


def _floats(column, array, name):
    """float32, of numbers only."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: {column} is {array.dtype}, it must be numbers")
    if not array.ndim:
        raise UserError(f"{name}: {column} is a single number, it must be one a row")
    return array.astype(np.float32, copy=False)


def _numbers(column, array, name):
    """float32[rows] of a column [rows], [rows, 1] or [1, rows]."""
    array = _floats(column, array, name)
    if array.size > max(array.shape, default=1):
        raise UserError(
            f"{name}: {column} has shape {array.shape}, it must be one number a row"
        )
    return array.reshape(-1)


def _flags(column, array, name):
    """bool[rows] of a column that says yes or no, in whatever type: a copy."""
    found = _numbers(column, array, name)
    odd = (found != 0) & (found != 1)  # a NaN too, which bool() takes for a yes
    if odd.any():
        row = int(odd.argmax())
        raise UserError(
            f"{name}: {column} of row {row} is {found[row]:g}: it must be 0 or 1"
        )
    return found == 1


def _resets(observation, following):
    """bool[N]: the next observation is not that of the next row; False at the last."""
    resets = np.zeros(len(observation), bool)
    if observation.ndim != 2 or observation.shape != following.shape:
        return resets  # `validate` tells what is wrong
    for start in range(0, len(observation) - 1, trajectories_lib.CHUNK):
        new = observation[start + 1 : start + 1 + trajectories_lib.CHUNK]
        away = np.abs(following[start : start + len(new)] - new)
        resets[start : start + len(new)] = (away > SAME * (1 + np.abs(new))).any(-1)
    return resets


def _limit(terminal, timeout, time_limit):
    """Cuts episodes at the time limit, in place: there it is never a death."""
    start = 0
    for end in np.flatnonzero(terminal | timeout):
        cuts = np.arange(start + time_limit - 1, end + 1, time_limit)
        terminal[cuts], timeout[cuts] = False, True
        start = end + 1


def _drop_cut_rows(trajectories):
    """Without rows whose next observation is unknown and whose value goes on."""
    t = trajectories
    drop = t.timeout & ~t.valid_next
    ends = t.terminal | t.timeout
    # The row before a dropped one becomes the end, unless it ended another episode.
    timeout = t.timeout.copy()
    timeout[:-1] |= drop[1:] & ~ends[:-1]
    if drop.all():
        raise UserError(
            "no transition has a known next observation: every episode is one row long"
        )
    return trajectories_lib.take(t._replace(timeout=timeout), np.flatnonzero(~drop))
