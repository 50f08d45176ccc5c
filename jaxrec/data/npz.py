"""Trajectories from NumPy files, the plainest way to bring one's own data.

A .npz archive, or for sets larger than memory a folder of .npy files, one a key, which
stay on the disk (memory-mapped; float32, next_observation.npy among them, or columns
have to be copied).

Keys, singular or plural: observation, action, reward, terminal, and if known timeout,
next_observation, qpos, qvel. Either one array each, or one an episode with the
episode's number behind (observation_0, observation_1, ...), where an episode that
does not die ends with a timeout.
"""

import contextlib
import re
import zipfile
import zlib
from typing import Any

import numpy as np

from jaxrec.data import rows
from jaxrec.data.files import absolute, check_file
from jaxrec.data.trajectories import Trajectories, check_lengths
from jaxrec.types import UserError

WANTED = ("observation", "action", "reward", "terminal")
OPTIONAL = ("timeout", "next_observation", "qpos", "qvel")


def load(config: Any) -> Trajectories:
    """The archive, or folder of .npy files, at `config.path`.

    `config.time_limit`: a terminal at that step of an episode is the limit, not a
    death; 0 is that of the simulator where it is known and no timeouts are. The file's
    name names the data in tables; an env id in it, such as Hopper-v4, is taken as the
    simulator (or set data.env_id). The version is a fingerprint of the arrays.
    """
    what = "an .npz archive or a folder of .npy files"
    if not str(config.path):
        raise UserError(f"data.path is empty: name {what}")
    path = absolute(config.path)
    if not path.is_dir():
        check_file(path, what)
    found = _read(path)
    columns = _merge(found, path)
    named = rows.MUJOCO.search(path.stem)
    env_id = config.get("env_id", "") or (named.group() if named else "")
    told = any(name == "timeout" for name, _ in found)
    return rows.from_arrays(
        **{key: columns.get(key) for key in (*WANTED, *OPTIONAL[:2])},
        extras={key: columns[key] for key in OPTIONAL[2:] if key in columns},
        info=dict(name=path.stem, env_id=env_id, version=rows.fingerprint(columns)),
        time_limit=config.time_limit or rows.limit(env_id, told),
        clip_actions=config.get("clip_actions", False),
    )


def _read(path):
    """(key, number of the episode or -1) -> array, for the keys that are known."""
    names = "|".join((*WANTED, *OPTIONAL))
    pattern = re.compile(rf"({names})s?(?:_(\d+))?")
    found = {}
    try:
        # Pickles inside an archive run code when opened: they are refused.
        with _open(path) as archive:
            keys = list(archive)
            for key in keys:
                if match := pattern.fullmatch(key):
                    number = -1 if match[2] is None else int(match[2])
                    array = archive[key]
                    if not isinstance(array, np.ndarray):
                        raise ValueError(f"{key} is no array")
                    found[match[1], number] = array
    except (
        OSError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no readable .npz archive of plain arrays ({reason}): save it "
            "again with numpy.savez"
        ) from error
    present = {name for name, _ in found}
    missing = [name for name in WANTED if name not in present]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; found {', '.join(keys)}")
    return found


@contextlib.contextmanager
def _open(path):
    """A mapping of names to arrays; those of a folder are memory-mapped."""
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        yield {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in files}
    else:
        with np.load(path, allow_pickle=False) as archive:
            yield archive


def _merge(found, path):
    """One array a key; the ends of numbered episodes become timeouts."""
    numbers = sorted({number for _, number in found})
    if numbers == [-1]:
        return {name: array for (name, _), array in found.items()}
    names = {name for name, _ in found}
    absent = [
        f"{name}_{number}" if number >= 0 else name
        for name in sorted(names)
        for number in numbers
        if (name, number) not in found
    ]
    if -1 in numbers or absent:
        raise UserError(
            f"{path} mixes whole arrays and numbered episodes, or lacks some: "
            f"{', '.join(absent[:4])}"
        )
    try:
        columns = {
            name: np.concatenate([found[name, number] for number in numbers])
            for name in names
        }
    except ValueError as error:  # numpy tells which sizes differ
        raise UserError(
            f"{path}: the numbered episodes do not fit together ({error})"
        ) from error
    check_lengths(columns, f"{path.stem}: ")
    ends = np.cumsum([len(found["reward", number]) for number in numbers]) - 1
    if "timeout" not in columns:
        columns["timeout"] = np.zeros(len(columns["reward"]), bool)
    # A row that is already terminal stays so: `from_arrays` clears its timeout.
    columns["timeout"] = np.asarray(columns["timeout"], bool).reshape(-1)
    columns["timeout"][ends] = True
    return columns
