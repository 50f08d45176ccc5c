"""Minari data sets on this machine, say "mujoco/hopper/medium-v0".

Minari's mujoco sets were collected in v5 environments: their scores are not those of
D4RL, and are taken by the set's own reference scores where it has them. Dict
observations (AntMaze) are joined in the order of the space, as gymnasium's
FlattenObservation does.
"""

from typing import Any

import numpy as np

from jaxrec.data import rows
from jaxrec.data.trajectories import Trajectories
from jaxrec.types import UserError


def load(config: Any) -> Trajectories:
    """The local data set `config.name` of $MINARI_DATASETS_PATH or ~/.minari."""
    try:
        import gymnasium
        import minari
    except ImportError as error:
        raise UserError(
            f"source minari needs a package ({error}): pip install 'jaxrec[data]'"
        ) from error
    name = config.name
    try:
        data = minari.load_dataset(name)
    except FileNotFoundError as error:
        here = ", ".join(minari.list_local_datasets()) or "none"
        raise UserError(
            f"Minari data set {name!r} is not on this machine (here: {here}): run "
            f"minari download {name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Minari cannot read {name!r} ({_short(error)}): it is malformed, a name "
            "looks like 'mujoco/hopper/medium-v0'"
        ) from error
    space = data.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not (
        np.all(space.low == -1) and np.all(space.high == 1)
    ):
        raise UserError(f"{name}: actions must be a Box in [-1, 1], they are {space}")
    try:
        episodes = [_columns(episode, data) for episode in data.iterate_episodes()]
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"Minari data set {name!r} is damaged ({_short(error)}): run minari delete "
            f"{name} and minari download {name}"
        ) from error
    if not episodes:
        raise UserError(f"{name}: no episodes")
    shared = set.intersection(*(set(episode) for episode in episodes))
    columns = {k: np.concatenate([e[k] for e in episodes]) for k in sorted(shared)}
    extras = {k: columns.pop(k) for k in ("qpos", "qvel") if k in columns}
    info = dict(
        name=name,
        env_id=data.env_spec.id if data.env_spec else "",
        version=name.rpartition("-")[2],
    )
    for key in ("ref_min_score", "ref_max_score"):
        if data.storage.metadata.get(key) is not None:
            info[key] = float(data.storage.metadata[key])
    return rows.from_arrays(
        **columns,
        extras=extras,
        info=info,
        time_limit=config.time_limit,
        clip_actions=config.get("clip_actions", False),
    )


def _columns(episode, data):
    """Rows of an episode; observations have one more, the last next observation."""
    observation = _flat(episode.observations, data.observation_space, data.id)
    length = len(episode.rewards)
    timeout = np.zeros(length, bool)
    timeout[-1] = True  # unless terminal, also where the record simply stops
    columns = dict(
        observation=observation[:-1],
        next_observation=observation[1:],
        action=episode.actions,
        reward=episode.rewards,
        terminal=episode.terminations,
        timeout=timeout,
    )
    for key in ("qpos", "qvel"):
        if key in (episode.infos or {}):
            columns[key] = np.asarray(episode.infos[key])[:length]
    return columns


def _flat(values, space, name):
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        parts = [_flat(values[key], space[key], name) for key in space]
        return np.concatenate(parts, axis=1)
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"{name}: observations must be vectors, they are {space}")
    return np.asarray(values, np.float32)


def _short(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
