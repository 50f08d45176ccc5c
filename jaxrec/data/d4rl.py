"""D4RL: through tensorflow-datasets (source "d4rl") and raw files (source "hdf5").

D4RL (Fu et al. 2020, arXiv 2004.07219). The builders of tensorflow-datasets (4.9.10)
append to every episode the next observation of the last row of the *whole file*, not
of the episode. A critic that masks s' at the end of an episode does not notice; a
dynamics model learns it as truth. The appended observation is therefore never used:
the row before it goes when the episode was only cut, and is kept with valid_next
False when it ended in a death. Raw files with next_observations lose nothing.

TensorFlow is needed once, to prepare and convert; the result is cached. Data that were
prepared with file_format="array_record" are read without TensorFlow.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxrec.data import builders, cache, rows, trajectories
from jaxrec.data.files import absolute, check_file
from jaxrec.data.trajectories import Trajectories
from jaxrec.types import UserError

CONVERSION = 1  # raise when `from_rlds` changes, so that caches are made anew
EXAMPLE = "d4rl_mujoco_hopper/v2-medium"
# The closest simulators that still run; D4RL itself used gym's v2 environments.
ENV_IDS = dict(
    hopper="Hopper-v4",
    halfcheetah="HalfCheetah-v4",
    walker2d="Walker2d-v4",
    ant="Ant-v4",
)
# Of the builders of those simulators; v0 calls medium-replay mixed.
LEVELS = ("random", "medium", "medium-replay", "full-replay", "medium-expert", "expert")
CONFIGS = ("v0-random", "v0-medium", "v0-mixed", "v0-medium-expert", "v0-expert")
CONFIGS += tuple(f"{version}-{level}" for version in ("v2", "v1") for level in LEVELS)
# (rows, mean return) of the v2 sets, from the logs of Decision Transformer: files of
# noise and of other authors go under the same names.
KNOWN = {
    ("hopper", "medium"): (999_906, 1422),
    ("hopper", "medium-replay"): (402_000, 467),
    ("hopper", "medium-expert"): (1_999_906, 2090),
    ("halfcheetah", "medium"): (1_000_000, 4770),
    ("halfcheetah", "medium-replay"): (202_000, 3093),
    ("halfcheetah", "medium-expert"): (2_000_000, 7713),
    ("walker2d", "medium"): (999_995, 2852),
    ("walker2d", "medium-replay"): (302_000, 683),
}
TOLERANCE = 0.1  # of both, ours: readers differ in the rows at the ends of episodes


def load(config: Any) -> Trajectories:
    """A builder of tensorflow-datasets, say "d4rl_mujoco_hopper/v2-medium".

    `config.name`: builder/config. `config.path`: the directory of tensorflow-datasets,
    "" for its default. Converted rows are cached under `config.data_dir`.
    """
    builder, _, level = config.name.partition("/")
    if not re.fullmatch(r"d4rl_\w+", builder) or not re.fullmatch(r"v\d-[\w-]+", level):
        raise UserError(
            f"data.name={config.name!r}: name the builder and its config, as in "
            f"{EXAMPLE!r} (without a config tensorflow-datasets takes v0-expert)"
        )
    env = builder.removeprefix("d4rl_mujoco_")
    if env != builder and env not in ENV_IDS:
        near = difflib.get_close_matches(env, ENV_IDS, 3, 0.5) or list(ENV_IDS)
        raise UserError(
            f"unknown data set {config.name!r}: did you mean "
            f"{', '.join(f'd4rl_mujoco_{name}' for name in near)}?"
        )
    if env in ENV_IDS and level not in CONFIGS:
        near = difflib.get_close_matches(level, CONFIGS, 3, 0.5) or CONFIGS
        raise UserError(
            f"unknown data set {config.name!r}: did you mean "
            f"{', '.join(f'{builder}/{name}' for name in near)}?"
        )
    arrays, manifest = cache.cached(
        cache.directory(config.data_dir),
        config.name,
        dict(name=config.name, path=config.path, conversion=CONVERSION),
        lambda: _convert(config.name, config.path),
    )
    version, _, level = level.partition("-")
    info = dict(
        name=config.name,
        env_id=ENV_IDS.get(env, ""),
        version=version,
        builder_version=manifest["facts"]["builder_version"],
    )
    result = trajectories.unflatten(arrays, info)
    _check_known(result, env, level, version)
    return result


def from_rlds(
    episodes: Iterable[Mapping[str, Any]], info: Mapping[str, Any] | None = None
) -> Trajectories:
    """RLDS episodes as Trajectories, without the transitions that the builders spoil.

    `episodes`: dicts with "steps", either a dict of arrays [T, ...] or an iterable of
        one dict a step, with observation, action, reward, is_terminal and perhaps
        infos {qpos, qvel}. The last step is a real one, or one that the builder
        appended, with action and reward 0.
    """
    columns = dict(observation=[], action=[], reward=[], terminal=[], timeout=[])
    extras = dict(qpos=[], qvel=[])
    for episode in episodes:
        steps = _stack(episode["steps"])
        action, reward = np.asarray(steps["action"]), np.asarray(steps["reward"])
        died = bool(steps["is_terminal"][-1])
        appended = died or not (np.any(action[-1]) or np.any(reward[-1]))
        length = len(action) - appended
        if length == 0:
            continue
        end = np.arange(length) == length - 1
        columns["observation"].append(steps["observation"][:length])
        columns["action"].append(action[:length])
        columns["reward"].append(reward[:length].reshape(length))
        columns["terminal"].append(end & died)
        columns["timeout"].append(end & (not died))
        for name, parts in extras.items():
            if name in steps.get("infos", {}):
                parts.append(np.asarray(steps["infos"][name])[:length])
    if not columns["reward"]:
        raise UserError("no episodes: the data set is empty")
    num = len(columns["reward"])
    # Next observations are left out: `from_arrays` takes those within the episode.
    return rows.from_arrays(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        extras={k: np.concatenate(v) for k, v in extras.items() if len(v) == num},
        info=info,
    )


def load_hdf5(config: Any) -> Trajectories:
    """A raw D4RL file at `config.path`, with or without next_observations, timeouts.

    `config.time_limit` ends episodes of a file without timeouts; 0 is that of the
    MuJoCo task in the file's name. The name names the data in tables; the version is
    the one in it, else a fingerprint of the rows.
    """
    path = absolute(config.path)
    check_file(path, "an HDF5 file such as D4RL's hopper_medium-v2.hdf5")
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "reading HDF5 needs h5py: pip install 'jaxrec[data]'"
        ) from error
    wanted = ("observations", "actions", "rewards", "terminals")
    optional = ("timeouts", "next_observations", "infos/qpos", "infos/qvel")
    try:
        with h5py.File(path, "r") as file:
            present = [
                key
                for key in (*wanted, *optional)
                if isinstance(file.get(key), h5py.Dataset)  # not a group of that name
            ]
            missing = [key for key in wanted if key not in present]
            if missing:
                raise UserError(
                    f"{path} lacks {', '.join(missing)}; found {', '.join(file)}"
                )
            found = {key: file[key][()] for key in present}
    except (OSError, RuntimeError, KeyError) as error:
        # RuntimeError and KeyError are how h5py reports damage inside of the file.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no readable HDF5 file ({reason}): fetch it again"
        ) from error
    env, level, version = _parse(path.stem)
    result = rows.from_arrays(
        observation=found["observations"],
        action=found["actions"],
        reward=found["rewards"],
        terminal=found["terminals"],
        timeout=found.get("timeouts"),
        next_observation=found.get("next_observations"),
        extras={k[6:]: v for k, v in found.items() if k.startswith("infos/")},
        info=dict(
            name=path.stem,
            env_id=config.get("env_id", "") or ENV_IDS.get(env, ""),
            version=version or rows.fingerprint(found),
        ),
        time_limit=config.time_limit,
        clip_actions=config.get("clip_actions", False),
    )
    _check_known(result, env, level, version)
    return result


def _convert(name, path):
    """Arrays and facts of a builder, by way of TensorFlow unless not needed."""
    result, version = builders.read(
        name,
        path,
        from_rlds,
        _whole_episodes,
        "read the HDF5 file with data.source=hdf5",
    )
    return trajectories.flatten(result), dict(builder_version=version)


def _whole_episodes(dataset):
    """Episodes as dicts of arrays; one by one, steps would take minutes."""

    def whole(episode):
        return dict(steps=episode["steps"].batch(1 << 20).get_single_element())

    return dataset.map(whole)


def _stack(steps):
    if isinstance(steps, Mapping):
        return steps
    steps = list(steps)
    names = ("observation", "action", "reward", "is_terminal")
    stacked = {name: np.stack([step[name] for step in steps]) for name in names}
    infos = steps[0].get("infos", {})
    stacked["infos"] = {
        k: np.stack([step["infos"][k] for step in steps]) for k in infos
    }
    return stacked


def _parse(stem):
    """("hopper", "medium-replay", "v2") of hopper_medium_replay-v2, else blanks."""
    match = re.fullmatch(rf"({'|'.join(ENV_IDS)})[-_](\w[\w-]*?)(?:-(v\d))?", stem)
    if not match:
        return "", "", ""
    env, level, version = match.groups()
    return env, level.replace("_", "-"), version or ""


def _check_known(result, env, level, version):
    expected = KNOWN.get((env, level)) if version == "v2" else None
    if expected is None:
        return
    found = len(result.reward), trajectories.returns(result).mean()
    for what, got, wanted in zip(("rows", "mean return"), found, expected):
        if abs(got - wanted) > TOLERANCE * wanted:
            raise UserError(
                f"{result.info['name']} has {what} {got:.0f}, D4RL's {env}-{level}-v2 "
                f"has {wanted}: it is another file; if it is your own, rename it"
            )
