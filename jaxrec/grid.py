"""Runs of a grid of settings and seeds: which there are, in which folders."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jaxrec.errors import UserError

MOST = 10_000  # seeds of a range


class Point(NamedTuple):
    """One run: its folder and the flags of jaxrec.main."""

    name: str
    workdir: Path
    flags: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return (self.workdir / "summary.json").exists()


def values(text: str) -> list[str]:
    """The parts between commas; those inside brackets or quotes do not count."""
    parts, depth, quoted = [""], 0, ""
    for letter in text:
        if quoted or letter in "'\"":
            quoted = "" if letter == quoted else quoted or letter
        depth += (letter in "([{") - (letter in ")]}") if not quoted else 0
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def seeds(text: str) -> list[int]:
    """0-2,7 -> [0, 1, 2, 7]. Raises UserError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        if not re.fullmatch("[0-9]{1,10}(-[0-9]{1,10})?", part):
            found = []
            break
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if numbers.stop > 2**32 or len(numbers) > MOST:
            raise UserError(f"--seeds={text}: at most {MOST:,} of them, below 2^32")
        found += numbers
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds={text}: give numbers and ranges such as 0-2,7")
    return found


def number_or_text(text: str) -> float | str:
    """1 and 1.0 are one value."""
    try:
        return float(text)
    except ValueError:
        return text


def parse(settings: Sequence[str]) -> dict[str, list[str]]:
    """field -> values, from FIELD=VALUE,VALUE,...; UserError for what is not that."""
    found: dict[str, list[str]] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        field = field.removeprefix("config.")
        options = values(text)
        if not re.fullmatch(r"\w+(\.\w+)*", field) or not equals or "" in options:
            raise UserError(f"--grid={setting}: give FIELD=VALUE,VALUE,...")
        if field in found or len(set(map(number_or_text, options))) < len(options):
            raise UserError(f"--grid={setting}: the field or a value comes twice")
        if field == "seed":
            raise UserError(f"--grid={setting}: seeds are given by --seeds")
        found[field] = options
    return found


def points(
    config: str,
    out: Path,
    settings: dict[str, list[str]],
    numbers: Sequence[int],
    more: Sequence[str],
) -> list[Point]:
    """All runs; in folders that are named by the last words of the fields."""
    last = [field.rpartition(".")[2] for field in settings]
    short = {
        field: word if last.count(word) == 1 else field
        for field, word in zip(settings, last)
    }
    found = []
    for chosen in itertools.product(*settings.values()):
        pairs = list(zip(settings, chosen))
        name = ",".join(f"{short[f]}={quote(v, safe='')}" for f, v in pairs)
        for number in numbers:
            workdir = out / name / f"seed={number}"
            flags = (f"--config={config}", *more)
            flags += tuple(f"--config.{field}={value}" for field, value in pairs)
            flags += (f"--config.seed={number}", f"--workdir={workdir}")
            found.append(Point(str(workdir.relative_to(out)), workdir, flags))
    return found
