"""Flat rows of a file as Trajectories: episode ends, time limits, next observations.

Files differ in what they leave out (timeouts, next observations, the end of the last
episode) and in what they mistake (a time limit marked as a death). The readers of
formats hand over what they found; the rules are here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data import trajectories as trajectories_lib
from jaxrec.data.trajectories import Trajectories
from jaxrec.types import UserError


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
    is a timeout (some collectors mark the limit as a death). `clip_actions` clips to
    [-1, 1], right for files that kept what the policy wanted where the simulator
    clipped it.

    Without `next_observation` it is the observation of the next row. The last row of
    an episode then has none: after a terminal it is kept with valid_next False (a TD
    target masks s'); a row before a timeout is dropped, because a TD target would
    bootstrap from it (as in D4RL's `qlearning_dataset`).
    """
    observation = np.asarray(observation, np.float32)
    rows = len(observation)
    action = np.asarray(action, np.float32)
    if clip_actions:
        action = np.clip(action, -1, 1)
    reward = np.asarray(reward, np.float32).reshape(-1)
    terminal = np.array(terminal, bool).reshape(-1)
    timeout = (
        np.zeros(rows, bool) if timeout is None else np.array(timeout, bool).reshape(-1)
    )
    extras = {name: np.asarray(array) for name, array in (extras or {}).items()}
    trajectories_lib.check_lengths(
        dict(observation=observation, action=action, reward=reward, terminal=terminal)
        | dict(timeout=timeout)
        | extras
    )
    if rows == 0:
        raise UserError("no episodes: the data have no rows")
    timeout &= ~terminal
    timeout[-1] = not terminal[-1]
    if time_limit > 0:
        _limit(terminal, timeout, time_limit)
    if next_observation is not None:
        next_observation = np.asarray(next_observation, np.float32)
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
        info=dict(info or {}),
    )
    if (timeout & ~valid_next).any():
        return _drop_cut_rows(trajectories)
    return trajectories


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
