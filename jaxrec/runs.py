"""Run folders read and grouped into experiments, for reports. No JAX is imported."""

import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec import logs
from jaxrec.errors import UserError, first_line

HEADLINE = "eval/normalized_score"
# Fields that make no other experiment, and may differ between a run and its
# continuation: they change no result.
FREE_FIELDS = ("data.data_dir", "device_data_limit", "headline", "profile.steps")
# Change the order of sums, and with mesh.time the draws of dropout, alone: a checkpoint
# is restored on any mesh.
FREE_FIELDS += ("mesh.data", "mesh.model", "mesh.time", "rules")


class Run(NamedTuple):
    path: Path
    config: dict[str, Any]  # flat: "policy.optim.lr" -> value
    summary: dict[str, Any]  # of an unfinished run: the last lines of its curves
    curves: dict[str, dict[str, dict[int, list[float]]]]  # stage, metric, step: [S]
    done: bool


def warn(message: str) -> None:
    print(f"jaxrec: warning: {message}", file=sys.stderr)


def numbers(value: Any) -> list[float]:
    """A metric's value, a number or one per seed, as a list; [] when it is neither."""
    values = value if isinstance(value, list) else [value]
    if not all(v is None or isinstance(v, (int, float)) for v in values):
        return []
    return [np.nan if v is None else float(v) for v in values]


def read_metrics(path: Path) -> dict[str, dict[int, list[float]]]:
    """metric -> step -> values [S] of a metrics.jsonl; a torn last line is ignored."""
    curves: dict[str, dict[int, list[float]]] = {}
    for row in logs.read(path):
        for name in row.keys() - {"step", "wall"}:
            if found := numbers(row[name]):
                curves.setdefault(name, {})[int(row["step"])] = found
    return curves


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"policy.steps": 1000, ...}"""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def read_run(path: Path) -> Run:
    """Raises UserError when the folder holds no readable run."""
    config = read_object(path / "config.json")
    file = path / "summary.json"
    summary = read_object(file) if file.exists() else {}
    try:
        stages = list(config.get("stages") or summary["stages"])
        curves = {s: read_metrics(path / s / "metrics.jsonl") for s in stages}
        seen = summary.setdefault("stages", {})
        done = all(isinstance(seen.get(s, {}).get("last"), dict) for s in stages)
        for stage in stages if not done else ():
            last = {m: list(points.items())[-1] for m, points in curves[stage].items()}
            steps = max((step for step, _ in last.values()), default=0)
            seen[stage] = {"last": {m: v for m, (_, v) in last.items()}, "steps": steps}
        return Run(path, flat(config), summary, curves, done)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path}: its files are not as a run writes them, run it again"
        ) from error


def read_runs(arguments: Iterable[str]) -> list[Run]:
    """The runs of `find_runs` that can be read; warns of the others.

    And of means of runs (`jaxrec.average`), which are of no seed and have no curves.
    """
    found = []
    for path in find_runs(arguments):
        try:
            run = read_run(path)
        except UserError as error:
            warn(f"{error}; left out")
            continue
        parts = run.summary["stages"].values()
        if any("averaged" in part for part in parts if isinstance(part, dict)):
            warn(f"{path}: a mean, left out; python -m jaxrec.evaluate measures it")
        else:
            found.append(run)
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; UserError names the file and what is wrong with it."""
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is cut off or no JSON: run it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no object of fields: run it again")
    return found


def find_runs(arguments: Iterable[str]) -> list[Path]:
    """Run folders named by, matched by or lying below the arguments, each once."""
    found: dict[Path, None] = {}
    for argument in arguments:
        folders = [f for f in glob.glob(argument) if os.path.isdir(f)]
        folders = [argument] if os.path.isdir(argument) else folders
        if not folders:
            raise UserError(f"no such folder: {argument}; give a run's --workdir")
        for root, below, files in (entry for f in folders for entry in os.walk(f)):
            below.sort()
            if "config.json" in files or "summary.json" in files:
                found[Path(root).resolve()] = None
                below.clear()  # a run holds no other runs
    if not found:
        raise UserError(f"no runs (config.json) below {' '.join(arguments)}")
    return list(found)


def _identity(config: Mapping[str, Any], ignore: Sequence[str] = ()) -> dict[str, str]:
    """The config without what leaves an experiment the same: seeds, FREE_FIELDS."""
    drop = ("seed", "num_seeds", *FREE_FIELDS, *ignore)
    kept = {k: v for k, v in config.items() if k not in drop and not k.endswith("dir")}
    return {k: json.dumps(v, sort_keys=True) for k, v in sorted(kept.items())}


def config_hash(config: Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
    """Eight hex digits that runs of the same experiment share."""
    return hashlib.sha256(repr(_identity(config, ignore)).encode()).hexdigest()[:8]


def labels(configs: Sequence[dict[str, str]]) -> list[str]:
    """Each config's name and the fields that differ among configs of that name.

    Of more than three such fields only those that split the configs further.
    """
    result = []
    for config in configs:
        name = config.get("name", "run")
        same = [c for c in configs if c.get("name", "run") == name]
        fields = [f for c in same for f in c if len({c.get(f) for c in same}) > 1]
        fields = list(dict.fromkeys(fields))
        # Fields that only some methods have say less than those all have.
        rare = {f: any(f not in c for c in same) for f in fields}
        fields.sort(key=lambda f: (rare[f], not f.endswith(("method", "name")), f))
        split = [
            len({tuple(c.get(f) for f in fields[:n]) for c in same})
            for n in range(len(fields) + 1)
        ]
        if len(fields) > 3:
            fields = [f for n, f in enumerate(fields) if split[n + 1] > split[n]]
        parts = [f"{f}={config[f].strip(chr(34))}" for f in fields if f in config]
        result.append(" ".join([name.strip('"'), *parts]))
    return result


def group_runs(runs: Iterable[Run], ignore: Sequence[str] = ()) -> dict[str, list[Run]]:
    """label -> runs of one config up to the seed and the fields in `ignore`."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(config_hash(run.config, ignore), []).append(run)
    names = labels([_identity(g[0].config, ignore) for g in groups.values()])
    names = [n if names.count(n) == 1 else f"{n} {k}" for n, k in zip(names, groups)]
    return dict(sorted(zip(names, groups.values())))


def distinct_seeds(runs: Iterable[Run]) -> list[Run]:
    """Without runs that repeat an experiment's seeds: pooled, they would count twice.

    Finished runs come first. `num_seeds` S of seed s is s, s + 1, ..., s + S - 1.
    """
    result: list[Run] = []
    owners: dict[tuple[str, int], Run] = {}
    for run in sorted(runs, key=lambda run: not run.done):
        first, count = run.config.get("seed") or 0, run.config.get("num_seeds") or 1
        keys = [(config_hash(run.config), s) for s in range(first, first + count)]
        twins = [owners[key].path for key in keys if key in owners]
        if twins:
            warn(f"{run.path} left out: its config and a seed are in {twins[0]} too")
            continue
        owners |= dict.fromkeys(keys, run)
        result.append(run)
    return result


def experiments(
    runs: Sequence[Run], ignore: Sequence[str] = ()
) -> dict[str, list[Run]]:
    """`group_runs`, with unfinished runs apart, whose last values would mislead."""
    result: dict[str, list[Run]] = {}
    for label, group in group_runs(runs, ignore).items():
        for run in group:
            seed = "" if run.done else f" seed={run.config.get('seed')} (unfinished)"
            result.setdefault(label + seed, []).append(run)
    return result


def choose(names: Iterable[str], wanted: Sequence[str] = ()) -> list[str]:
    """The metrics to show of those there: wanted ones, else the headline, else all
    held-out ones and the loss."""
    names = sorted(set(names))
    held_out = re.compile(r"(eval|valid|test|world)/|train/loss$")
    rest = [n for n in sorted(names, key=in_order) if held_out.match(n)]
    if wanted:
        return [n for n in wanted if n in names]
    return [HEADLINE] if HEADLINE in names else rest or names


def in_order(name: str) -> list[str | int]:
    """Sorts rmse@5 before rmse@10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def data_text(summary: Mapping[str, Any]) -> str:
    """The data set, its version and environment, as far as the summary tells."""
    data = summary.get("data") or {}
    return " ".join(str(data[k]) for k in ("name", "version", "env_id") if data.get(k))


def rank_files(run: Run, stage: str) -> list[Path]:
    """Where the ranks of each seed are: at the selected step, else at the last."""
    part = run.summary["stages"][stage]
    steps = numbers((part.get("selected") or {}).get("step", part.get("steps")))
    return [run.path / stage / "arrays" / f"{step:.0f}.npz" for step in steps]


def gains(run: Run, stage: str, which: str) -> tuple[np.ndarray, ...]:
    """NDCG@10 float[S, N] of held-out events by seed; their kind and session int[N].

    Raises UserError for a file that is missing or damaged.
    """
    found, files = [], rank_files(run, stage)
    for seed, path in enumerate(files):
        if not path.is_file():
            raise UserError(f"{path} is missing: --against needs the ranks of a run")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = (f"{which}/{name}" for name in ("rank", "kind", "session"))
                rank, kind, session = (np.atleast_2d(arrays[name]) for name in names)
        except Exception as error:  # zip, zlib and numpy raise many types
            raise UserError(
                f"{path} is damaged ({first_line(error)}): delete {run.path / stage} "
                f"and {run.path}/summary.json and give the command that trains the run "
                "again"
            ) from error
        rank = rank[seed : seed + 1] if len(files) > 1 else rank
        found.extend(np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0))
    # The same events for every seed: those of the first stand for all.
    kind, session = kind[0], session[0]
    return np.array(found), kind, session
