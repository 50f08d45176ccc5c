"""Tables and plots from run folders: `python -m jaxrec.report RUN... --out=DIR`.

Runs with the same config up to the seed are one experiment; the seeds of its runs
(and of runs with `num_seeds`) are pooled: mean and 95% Student t interval. `--iqm`
adds, per method over the tasks of `--task`, the interquartile mean with a stratified
bootstrap interval and the probability of improvement (Agarwal et al. 2021, "Deep RL
at the edge of the statistical precipice", section 4). No JAX is imported.
"""

import argparse
import csv
import difflib
import glob
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxrec import logs
from jaxrec.errors import UserError

HEADLINE = "eval/normalized_score"
RESAMPLES = 10_000  # ours; rliable's examples take 2,000 to 50,000
BINS = 200  # ours; a longer curve is averaged in this many bins before drawing
PANELS = 9  # ours; plots in one picture of `plot_run`


class Run(NamedTuple):
    path: Path
    config: dict[str, Any]  # flat: "policy.optim.lr" -> value
    summary: dict[str, Any]  # of an unfinished run: the last lines of its curves
    curves: dict[str, dict[str, dict[int, list[float]]]]  # stage, metric, step: [S]
    done: bool


def warn(message: str) -> None:
    print(f"jaxrec: warning: {message}", file=sys.stderr)


def _numbers(value: Any) -> list[float]:
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
            if numbers := _numbers(row[name]):
                curves.setdefault(name, {})[int(row["step"])] = numbers
    return curves


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def read_run(path: Path) -> Run:
    """Raises UserError when the folder holds no readable run."""
    try:
        config = json.loads((path / "config.json").read_text())
        file = path / "summary.json"
        summary = json.loads(file.read_text()) if file.is_file() else {}
        stages = list(config.get("stages") or summary["stages"])
        curves = {s: read_metrics(path / s / "metrics.jsonl") for s in stages}
        seen = summary.setdefault("stages", {})
        done = all(isinstance(seen.get(s, {}).get("last"), dict) for s in stages)
        for stage in stages if not done else ():
            last = {m: list(points.items())[-1] for m, points in curves[stage].items()}
            steps = max((step for step, _ in last.values()), default=0)
            seen[stage] = {"last": {m: v for m, (_, v) in last.items()}, "steps": steps}
        return Run(path, _flat(config), summary, curves, done)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: broken run ({error!r}), left out") from error


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
    """The config without what leaves an experiment the same: seeds and folders."""
    drop = ("seed", "num_seeds", *ignore)
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


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float[S, ...] -> (mean, half width of the 95% Student t interval over S).

    The half width is NaN for S = 1.
    """
    count = len(values)
    if count < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    quantile = special.stdtrit(count - 1, 0.975)
    return values.mean(0), quantile * values.std(0, ddof=1) / np.sqrt(count)


def iqm(scores: np.ndarray) -> np.ndarray:
    """float[..., n] -> mean without the lowest and highest floor(n / 4) values."""
    cut = scores.shape[-1] // 4
    return np.sort(scores, -1)[..., cut : scores.shape[-1] - cut].mean(-1)


def _bootstrap(
    statistic: Callable[..., np.ndarray], *strata: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """statistic(*strata) and its 95% percentile interval over resampled seeds.

    Each stratum, scores float[S_i] of one method on one task, is drawn from with
    replacement by itself. NaN bounds where one has a single seed: no spread is known.
    """
    generator = np.random.default_rng(0)
    drawn = [
        [x[generator.integers(len(x), size=(RESAMPLES, len(x)))] for x in xs]
        for xs in strata
    ]
    low, high = np.percentile(statistic(*drawn), [2.5, 97.5])
    if min(len(x) for xs in strata for x in xs) < 2:
        low = high = np.nan
    return float(statistic(*strata)), float(low), float(high)


def bootstrap_iqm(tasks: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Interquartile mean over the scores [S_i] of all tasks, lower, upper bound."""
    return _bootstrap(lambda xs: iqm(np.concatenate(xs, -1)), tasks)


def improvement(
    xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """P(a run of x scores above one of y), mean over tasks, lower, upper bound.

    Per task the Mann-Whitney U over all n m pairs, ties counted one half.
    """

    def probability(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
        signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(xs, ys)]
        return np.mean([0.5 + 0.5 * s.mean((-2, -1)) for s in signs], axis=0)

    return _bootstrap(probability, xs, ys)


def choose(names: Iterable[str], wanted: Sequence[str] = ()) -> list[str]:
    """The metrics to show of those there: wanted ones, else the headline, else all
    held-out ones and the loss."""
    names = sorted(set(names))
    held_out = [n for n in names if re.match(r"(eval|valid|test)/|train/loss$", n)]
    if wanted:
        return [n for n in wanted if n in names]
    return [HEADLINE] if HEADLINE in names else held_out or names


def scores(runs: Iterable[Run], stage: str, which: str, metric: str) -> np.ndarray:
    """float[S]: the "last" or "best" value of every seed, NaN where not finite."""
    parts = [run.summary["stages"].get(stage, {}).get(which) or {} for run in runs]
    return np.array([v for part in parts for v in _numbers(part.get(metric, []))])


def estimate(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of the finite values, 95% lower and upper bound; NaN where unknown."""
    values = values[np.isfinite(values)]
    mean, half = interval(values) if len(values) else (np.nan, np.nan)
    return float(mean), float(mean - half), float(mean + half)


def metric_rows(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[dict]:
    """Rows of the main table: one per experiment, stage and metric."""
    rows = []
    for label, group in experiments(runs).items():
        parts = {k: v for r in group for k, v in r.summary["stages"].items()}
        metrics = choose([m for p in parts.values() for m in p["last"]], wanted)
        data = {_data(run.summary) for run in group} - {""}
        if len(data) > 1:
            warn(f"{label}: runs on different data pooled: {', '.join(sorted(data))}")
        for stage, metric in itertools.product(parts, metrics):
            last = scores(group, stage, "last", metric)
            if not len(last):
                continue
            if lost := int(np.sum(~np.isfinite(last))):
                warn(f"{label}: {metric} of {lost} seeds is not finite, left out")
            row = dict(experiment=label, stage=stage, metric=metric)
            row |= dict(data=", ".join(sorted(data)), steps=parts[stage].get("steps"))
            row |= dict(seeds=len(last) - lost, last=estimate(last))
            row |= dict(best=estimate(scores(group, stage, "best", metric)))
            rows.append(row)
    return rows


def _data(summary: Mapping[str, Any]) -> str:
    """The data set, its version and environment, as far as the summary tells."""
    data = summary.get("data") or {}
    return " ".join(str(data[k]) for k in ("name", "version", "env_id") if data.get(k))


def task_scores(
    runs: Sequence[Run], metric: str, task: str
) -> dict[str, dict[str, list[np.ndarray]]]:
    """ "last" and "best" -> method -> finite scores [S] on each task all methods have.

    A method is a config without the field `task`; a run scores in its last stage
    that has the metric. "best" only where all runs tell it. Raises UserError when
    nothing can be compared.
    """
    fields = sorted({f for r in runs for f in r.config})
    if task not in fields:
        raise UserError(f"--task={task} is no config field{_nearest(task, fields)}")
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, group in group_runs((r for r in runs if r.done), (task,)).items():
        for run in group:
            place = table.setdefault(method, {}).setdefault(str(run.config[task]), {})
            parts = run.summary["stages"]
            for stage in [s for s in parts if metric in parts[s]["last"]][-1:]:
                for which in ("last", "best"):
                    values = scores([run], stage, which, metric)
                    place.setdefault(which, []).extend(values[np.isfinite(values)])
    have = [{t for t, p in tasks.items() if p.get("last")} for tasks in table.values()]
    common = sorted(set.intersection(*have)) if have else []
    if not common:
        raise UserError(f"--iqm={metric}: no {task} on which all methods have scores")
    if left := sorted(set().union(*have) - set(common)):
        warn(f"--iqm: not of every method, left out: {', '.join(left)}")
    counts = {len(tasks[t]["last"]) for tasks in table.values() for t in common}
    if len(counts) > 1:
        warn(f"--iqm: a task weighs by its seeds, which differ: {sorted(counts)}")
    result = {
        which: {m: [np.array(x[t][which]) for t in common] for m, x in table.items()}
        for which in ("last", "best")
    }
    whole = all(len(x) for xs in result["best"].values() for x in xs)
    return result if whole else {"last": result["last"]}


def comparison_rows(
    runs: Sequence[Run], metric: str, task: str
) -> tuple[list[dict], list[dict]]:
    """Rows of the table of interquartile means and of that of improvement."""
    tables = task_scores(runs, metric, task)
    means, pairs = [], []
    for method, tasks in tables["last"].items():
        row = dict(method=method, metric=metric, tasks=len(tasks))
        row["seeds"] = sum(map(len, tasks))
        row |= {f"{w} IQM": bootstrap_iqm(t[method]) for w, t in tables.items()}
        means.append(row)
    for x, y in itertools.combinations(tables["last"], 2):
        row = dict(x=x, y=y, metric=metric)
        row |= {f"{w} P(x > y)": improvement(t[x], t[y]) for w, t in tables.items()}
        pairs.append(row)
    return means, pairs


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 3, 0.4)
    return f"; nearest: {', '.join(near)}" if near else ""


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        middle, low, high = map(_text, value)
        return middle if low == "-" else f"{middle} [{low}, {high}]"
    if isinstance(value, float):
        text = f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
        return text if np.isfinite(value) else "-"
    return str(value)


def aligned(rows: Sequence[Mapping[str, Any]], markdown: bool = True) -> str:
    """Rows of equal keys as a table; a tuple is (middle, lower, upper bound)."""
    cells = [list(rows[0]), *([_text(v) for v in row.values()] for row in rows)]
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [[c.ljust(w) for c, w in zip(line, widths)] for line in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; (middle, lower, upper) fill NAME, NAME_low, NAME_high."""
    flat = []
    for row in rows:
        out: dict[str, Any] = {}
        for name, value in row.items():
            ends = ("", "_low", "_high") if isinstance(value, tuple) else ("",)
            values = value if isinstance(value, tuple) else (value,)
            for end, v in zip(ends, values):
                out[name + end] = "" if isinstance(v, float) and np.isnan(v) else v
        flat.append(out)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def final_table(summary: Mapping[str, Any]) -> str:
    """A small plain-text table of a finished run's summary, for the terminal."""
    rows, notes = [], []
    for stage, part in summary["stages"].items():
        last, best = part.get("last") or {}, part.get("best") or {}
        rest = choose(last.keys() - {HEADLINE})
        for name in [HEADLINE, *rest] if HEADLINE in last else rest:
            row = {"stage": stage, "metric": name}
            for which, values in (("last", last), ("best", best)):
                row[which] = estimate(np.array(_numbers(values.get(name, []))))
            rows.append(row)
        facts = [f"{part.get('steps', '?')} steps"]
        for key, unit in (("seconds", "s"), ("steps_per_second", "steps/s")):
            facts += [f"{part[key]:.4g} {unit}"] if part.get(key) is not None else []
        if part.get("parameters"):
            facts.append(f"{part['parameters']:,} parameters")
        notes.append(f"{stage}: {', '.join(facts)}")
    if summary.get("num_seeds", 1) > 1:
        notes.append(f"mean [95% interval] over {summary['num_seeds']} seeds")
    facts = [_data(summary), summary.get("device")]
    notes.append(", ".join(str(fact) for fact in facts if fact))
    return "\n".join([aligned(rows, markdown=False) if rows else "", *notes]).strip()


def curve(
    runs: Iterable[Run], stage: str, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(steps [P], mean [P], half width of the 95% interval [P]) over all seeds.

    Over the steps that all seeds cover, interpolated where their log steps differ;
    None when there are none.
    """
    seeds = []
    for run in runs:
        points = run.curves.get(stage, {}).get(metric, {})
        values = list(itertools.zip_longest(*points.values(), fillvalue=np.nan))
        seeds += [(list(points), column) for column in values]
    if not seeds:
        return None
    first, last = max(s[0] for s, _ in seeds), min(s[-1] for s, _ in seeds)
    union = sorted({step for s, _ in seeds for step in s if first <= step <= last})
    if not union:
        return None
    values = np.stack([np.interp(union, s, column) for s, column in seeds])
    bins = np.array_split(np.arange(len(union)), min(len(union), BINS))
    steps = np.array([np.mean(np.take(union, b)) for b in bins])
    return steps, *interval(np.stack([values[:, b].mean(1) for b in bins], 1))


def draw(panels: Mapping[str, Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Panel title -> line label -> `curve`, as a PNG of 1200x800 pixels."""
    from matplotlib import colormaps, ticker
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = colormaps["tab10"].colors
    columns = int(np.ceil(np.sqrt(len(panels))))
    figure = Figure((12, 8), dpi=100, layout="constrained")
    rows = -(-len(panels) // columns)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (panel, lines) in zip(grid, panels.items()):
        for name, (steps, mean, half) in lines.items():
            n = names.index(name)
            style = dict(color=colours[n % 10], linestyle=("-", "--", ":")[n // 10 % 3])
            marker = "o" if len(steps) < 15 else None
            axes.plot(steps, mean, label=name, marker=marker, lw=2, ms=4, **style)
            axes.fill_between(
                steps, mean - half, mean + half, color=style["color"], alpha=0.15, lw=0
            )
        means = np.concatenate([mean for _, mean, _ in lines.values()])
        means = means[np.isfinite(means)]
        loss = "loss" in f"{panel} {title}"
        if loss and len(means) and 0 < 100 * means.min() < means.max():
            axes.set_yscale("log", nonpositive="clip")
        axes.set_title(panel, fontsize=11)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    seeds = any(np.isfinite(h).any() for p in panels.values() for _, _, h in p.values())
    figure.suptitle(f"{title} (mean, 95% interval over seeds)" if seeds else title)
    if names != [""]:
        handles = {}
        for axes in figure.axes:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels())))
        wide = max(map(len, names))
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=max(1, min(len(names), 150 // (wide + 6))),
            frameon=False,
        )
    content = io.BytesIO()
    figure.savefig(content, format="png")
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.rename(path)


def _file_name(metric: str) -> str:
    return re.sub(r"[^\w.@=+-]+", "_", metric) + ".png"


def plot_run(workdir: str | os.PathLike) -> list[Path]:
    """Curves of one run, with a band over its seeds: WORKDIR/plots/<stage>.png.

    Held-out metrics first, then the rest; beyond nine panels <stage>-2.png and so on.
    """
    run, paths = read_run(Path(workdir)), []
    for stage, metrics in run.curves.items():
        names = choose(metrics.keys() - {HEADLINE})
        names = [n for n in (HEADLINE, *names, *sorted(metrics)) if n in metrics]
        lines = {n: curve([run], stage, n) for n in dict.fromkeys(names)}
        drawn = [(n, {"": line}) for n, line in lines.items() if line is not None]
        for page, start in enumerate(range(0, len(drawn), PANELS), 1):
            name = f"{stage}.png" if page == 1 else f"{stage}-{page}.png"
            paths.append(run.path / "plots" / name)
            title = f"{run.config.get('name', '')} {stage} {_data(run.summary)}".strip()
            draw(dict(drawn[start : start + PANELS]), paths[-1], title)
    return paths


def plot_metric(runs: Sequence[Run], metric: str, task: str, path: Path) -> None:
    """Learning curves, a line an experiment; a panel a task and stage if several."""
    several = len({str(run.config.get(task)) for run in runs}) > 1
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for label, group in experiments(runs, (task,) if several else ()).items():
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in group:
            for stage in run.curves:
                name = str(run.config.get(task)) if several else ""
                cells.setdefault((name, stage), []).append(run)
        for cell, members in cells.items():
            if (line := curve(members, cell[1], metric)) is not None:
                lines.setdefault(cell, {})[label] = line
    stages = {stage for _, stage in lines}
    titles = {c: f"{c[0]} {c[1] if len(stages) > 1 else ''}".strip() for c in lines}
    if lines:
        cells = sorted(lines, key=lambda cell: cell[0])  # stages keep their order
        draw({titles[cell]: lines[cell] for cell in cells}, path, metric)


def report(
    arguments: Sequence[str],
    out: str | os.PathLike,
    metrics: Sequence[str] = (),
    iqm_metric: str = "",
    task: str = "data.name",
    unfinished: bool = False,
) -> str:
    """Write tables and curves into `out`; returns the markdown.

    Raises UserError for folders without runs and for unknown metrics or fields.
    """
    runs, out = [], Path(out)
    for path in find_runs(arguments):
        try:
            run = read_run(path)
        except UserError as error:
            warn(str(error))
            continue
        if not (run.done or unfinished):
            warn(f"{path}: unfinished, left out; --unfinished shows it")
        else:
            runs.append(run)
    if not (runs := distinct_seeds(runs)):
        raise UserError("no run left to report on; see the warnings above")
    parts = [part for run in runs for part in run.summary["stages"].values()]
    known = {name for part in parts for name in part["last"]}
    for name in [*metrics, *([iqm_metric] if iqm_metric else [])]:
        if name not in known:
            raise UserError(f"no run has the metric {name}{_nearest(name, known)}")
    rows = metric_rows(runs, metrics)
    if not rows:
        raise UserError("the runs have no metrics yet: train longer")
    text = aligned(rows) + "\n\nMean [95% Student t interval] over seeds.\n"
    _write(out / "table.csv", to_csv(rows).encode())
    if iqm_metric:
        for more in comparison_rows(runs, iqm_metric, task):
            text += f"\n{aligned(more)}\n" if more else ""
        text += "\n[95% stratified bootstrap interval]\n"
    _write(out / "table.md", text.encode())
    for metric in dict.fromkeys(row["metric"] for row in rows):
        plot_metric(runs, metric, task, out / _file_name(metric))
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "jaxrec",
        usage="python -m jaxrec.report RUN... --out=DIR [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="work directories, patterns, or folders searched for runs",
    )
    parser.add_argument("--out", required=True, help="folder for tables and plots")
    parser.add_argument(
        "--metrics",
        default="",
        help="comma-separated; default "
        f"{HEADLINE}, else eval/*, valid/*, test/* and train/loss",
    )
    parser.add_argument(
        "--iqm",
        default="",
        metavar="METRIC",
        help="compare methods over tasks; higher must be better",
    )
    parser.add_argument(
        "--task",
        default="data.name",
        metavar="FIELD",
        help="the config field that tells tasks apart: %(default)s",
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="show unfinished runs too, at their last step",
    )
    flags = parser.parse_args(argv)
    metrics = [name for name in flags.metrics.split(",") if name]
    try:
        print(
            report(
                flags.runs, flags.out, metrics, flags.iqm, flags.task, flags.unfinished
            ),
            end="",
        )
    except UserError as error:
        print(f"jaxrec: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jaxrec: error: {error}; choose another --out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
