"""Arrays on disk: folders of .npy files with a manifest, never half-written.

A folder is written under a temporary name beside its place and renamed when complete,
so a reader sees all of it or nothing, whenever the writer is killed. Arrays come back
memory-mapped and read-only. `cached` keys such folders by the settings that made
them; `write_arrays` and `read_arrays` are the same format for artefacts of stages.
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.types import UserError

FORMAT = 1  # raise when the layout of a folder changes
CHECKSUM_LIMIT = 256 * 2**20  # bytes in total; larger folders are checked by size only
STALE_SECONDS = 24 * 3600  # temporary folders of killed writers go after a day


def directory(config_data_dir: str = "") -> Path:
    """Where data are cached: the argument, else $JAXREC_DATA, else ~/.cache/jaxrec."""
    chosen = config_data_dir or os.environ.get("JAXREC_DATA") or "~/.cache/jaxrec"
    return Path(chosen).expanduser()


def cached(
    root: Path | str,
    name: str,
    settings: Mapping[str, Any],
    build: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays that `build` makes, from the disk if they were made before.

    `settings`: everything the arrays depend on, JSON values; another value gives
        another folder. Put a version number of the building code in it.
    `build()`: -> (dict of arrays, dict of JSON facts about them).
    Returns (name -> read-only memory-mapped array, manifest); the manifest has
        "settings", "facts" and "arrays" (file, shape, dtype, bytes, sha256).
    Raises UserError for a damaged folder or when the disk refuses.
    """
    settings = json.loads(json.dumps(dict(settings)))  # tuples come back as lists
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = Path(root) / f"{_file_name(name)}-{digest[:12]}"
    if not _exists(path):
        _try_writing(path)  # building may take hours
        arrays, facts = build()
        # Two processes may build at once: the first to finish stays, and both read it.
        _write(path, arrays, facts, settings, replace=False)
    arrays, manifest = read_arrays(path)
    if manifest["settings"] != settings:
        raise UserError(f"{path} was made with other settings: delete that folder")
    return arrays, manifest


def write_arrays(
    path: Path | str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes `arrays` as the folder `path`, in place of what was there before.

    `facts`: JSON values kept in the manifest. Raises UserError when the disk refuses.
    """
    _write(Path(path), arrays, facts or {}, {}, replace=True)


def read_arrays(
    path: Path | str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The folder `path` as (name -> memory-mapped array, manifest).

    Sizes, shapes and dtypes are always checked, checksums up to CHECKSUM_LIMIT.
    Raises UserError naming the damaged file.
    """
    path = Path(path)
    remedy = f"delete the folder {path} and run again"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version, _ = manifest["format"], manifest["settings"]
        fields = ("file", "shape", "dtype", "bytes", "sha256")
        entries = {
            name: tuple(entry[field] for field in fields)
            for name, entry in manifest["arrays"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {path / 'manifest.json'} ({_short(error)}): {remedy}"
        ) from error
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, this version reads {FORMAT}: {remedy}"
        )
    checksums = sum(size for *_, size, _ in entries.values()) <= CHECKSUM_LIMIT
    arrays = {}
    for name, (file, shape, dtype, size, sha256) in entries.items():
        file = path / file
        try:
            found = file.stat().st_size
            if found != size:
                raise ValueError(f"{found} bytes where {size} were written")
            if checksums and _sha256(file) != sha256:
                raise ValueError("its checksum differs from the manifest")
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if list(array.shape) != shape or str(array.dtype) != dtype:
                raise ValueError("its shape or dtype differs from the manifest")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({_short(error)}): {remedy}") from error
        arrays[name] = array
    return arrays, manifest


def fingerprint(trees: Iterable[Mapping[str, Any]], rows: int = 64) -> int:
    """A uint32 that tells apart sets of arrays by names, shapes and a few rows."""
    value = 0
    for tree in trees:
        for name, array in sorted(tree.items()):
            shape = (name, np.shape(array), str(array.dtype))
            value = zlib.crc32(repr(shape).encode(), value)
            some = array[:: max(len(array) // rows, 1)] if np.ndim(array) else array
            value = zlib.crc32(np.ascontiguousarray(some).tobytes(), value)
    return value


def _try_writing(path):
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        temporary.rmdir()
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path, error):
    return UserError(
        f"cannot write {path}: {_short(error)}; free some space there, or choose "
        "another directory (config.data_dir or $JAXREC_DATA, or --workdir)"
    )


def _write(path, arrays, facts, settings, replace):
    """A temporary folder beside `path`, filled, then renamed to `path`."""
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    entries = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
        for name, array in arrays.items():
            file = temporary / f"{_file_name(name)}.npy"
            if file.exists():
                raise ValueError(f"two arrays would share the file {file.name}")
            array = np.asarray(array)
            np.save(file, array, allow_pickle=False)
            entries[name] = dict(
                file=file.name,
                shape=list(array.shape),
                dtype=str(array.dtype),
                bytes=file.stat().st_size,
                sha256=_sha256(file),
            )
        manifest = dict(
            format=FORMAT, settings=settings, facts=dict(facts), arrays=entries
        )
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _publish(temporary, path, replace)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary, path, replace):
    """Renames; a folder cannot be renamed over one with files, so that one moves."""
    for _ in range(100):
        try:
            os.rename(temporary, path)
            return
        except OSError:
            if not path.is_dir():
                raise
        if not replace:
            return
        aside = temporary.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            continue  # another writer moved it first
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError("other processes keep writing there")


def _sweep(path):
    for old in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        except FileNotFoundError:
            pass  # its writer finished meanwhile


def _exists(path):
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(
            f"cannot look into {path.parent}: {_short(error)}; choose another "
            "directory with config.data_dir or $JAXREC_DATA"
        ) from error


def _sha256(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_name(name):
    return re.sub(r"[^\w.-]+", "-", name)


def _short(error):
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
