"""Files that a user names: checked, found in folders, told apart by fingerprints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec.types import UserError


def check_file(path: Path, what: str) -> None:
    """Raises UserError when there is no file, or only a pointer of Git LFS."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(
            f"data.path={str(path)!r} cannot be read ({error.strerror}): name {what}"
        ) from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the data: fetch it with git lfs pull"
        )


def absolute(path: Path | str) -> Path:
    """`path` with ~ expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user
        raise UserError(f"data.path={str(path)!r}: {error}".rstrip(".")) from error


def named(path: Path | str, *patterns: str, what: str) -> Path:
    """`path` if it is a file; else the file in that folder that fits a pattern first.

    The patterns are tried in order; of several files that fit one, the first by name.
    """
    if not str(path):
        raise UserError(f"data.path is empty: name {what}")
    path = absolute(path)
    if not path.is_dir():
        check_file(path, what)
        return path
    for pattern in patterns:
        if found := sorted(path.glob(pattern)):
            check_file(found[0], what)
            return found[0]
    raise UserError(
        f"data.path={str(path)!r} has no {' or '.join(patterns)}: name {what}"
    )


def optional(path: Path | str, *patterns: str) -> Path | None:
    """As `named`, for a file that may be missing; None too where `path` is a file."""
    path = absolute(path)
    found = [f for p in patterns for f in sorted(path.glob(p))] if path.is_dir() else []
    return found[0] if found else None


def fingerprint(path: Path | str, beside: Sequence[str] = ()) -> list[Any]:
    """(name, bytes, time of change) of a file, or of the files of a folder.

    `beside`: patterns of files that are read where they stand beside the file.
    """
    path = absolute(path)
    if path.is_dir():
        found = sorted(path.iterdir())
    else:
        found = [path, *sorted(f for p in beside for f in path.parent.glob(p))]
    facts = [(f.name, f.stat()) for f in found if f.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in facts]
