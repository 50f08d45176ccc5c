"""Tables, plots and pages from run folders: `python -m jaxrec.report RUN... --out=DIR`.

Into DIR: table.md, table.csv, curves of each metric (PNG), and of each experiment a
page that needs no other file (HTML).

Runs with the same config up to the seed are one experiment; the seeds of its runs
(and of runs with `num_seeds`) are pooled: mean and 95% Student t interval. `--iqm`
adds, per method over the tasks of `--task`, the interquartile mean with a stratified
bootstrap interval and the probability of improvement (Agarwal et al. 2021, "Deep RL
at the edge of the statistical precipice", section 4). No JAX is imported.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxrec import page
from jaxrec.errors import UserError, fail
from jaxrec.plots import file_name, plot_metric, plot_run, write
from jaxrec.runs import (
    HEADLINE,
    Run,
    choose,
    data_text,
    distinct_seeds,
    experiments,
    group_runs,
    numbers,
    read_runs,
    warn,
)
from jaxrec.statistics import bootstrap_iqm, estimate, improvement
from jaxrec.tables import aligned, final_table, to_csv

__all__ = ["final_table", "main", "plot_run", "report"]


def scores(runs: Iterable[Run], stage: str, which: str, metric: str) -> np.ndarray:
    """float[S]: the "last" or "best" value of every seed, NaN where not finite."""
    parts = [run.summary["stages"].get(stage, {}).get(which) or {} for run in runs]
    return np.array([v for part in parts for v in numbers(part.get(metric, []))])


def metric_rows(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[dict]:
    """Rows of the main table: one per experiment, stage and metric."""
    rows = []
    for label, group in experiments(runs).items():
        parts = {k: v for r in group for k, v in r.summary["stages"].items()}
        metrics = choose([m for p in parts.values() for m in p["last"]], wanted)
        data = {data_text(run.summary) for run in group} - {""}
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


def task_scores(
    runs: Sequence[Run], metric: str, task: str
) -> dict[str, dict[str, list[np.ndarray]]]:
    """ "last" and "best" -> method -> finite scores [S] on each task all methods have.

    A method is a config without the field `task`, or a stage of it where several have
    the metric. "best" only where all runs tell it. Raises UserError when nothing can
    be compared.
    """
    fields = sorted({f for r in runs for f in r.config})
    if task not in fields:
        raise UserError(f"--task={task} is no config field{_nearest(task, fields)}")
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    groups = group_runs((r for r in runs if r.done), (task,))
    for label, group in groups.items():
        for run in group:
            parts = run.summary["stages"]
            stages = [s for s in parts if metric in parts[s]["last"]]
            for stage in stages:
                method = label if len(stages) == 1 else f"{label} {stage}"
                if len(groups) == 1 < len(stages):
                    method = stage
                tasks = table.setdefault(method, {})
                place = tasks.setdefault(str(run.config[task]), {})
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


def report(
    arguments: Sequence[str],
    out: str | os.PathLike,
    metrics: Sequence[str] = (),
    iqm_metric: str = "",
    task: str = "data.name",
    unfinished: bool = False,
) -> str:
    """Write tables, curves and pages into `out`; returns the markdown.

    Raises UserError for folders without runs and for unknown metrics or fields.
    """
    runs, out = [], Path(out)
    for run in read_runs(arguments):
        if not (run.done or unfinished):
            warn(f"{run.path}: unfinished, left out; --unfinished shows it")
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
    write(out / "table.csv", to_csv(rows).encode())
    compared = comparison_rows(runs, iqm_metric, task) if iqm_metric else ()
    if compared:
        for more in compared:
            text += f"\n{aligned(more)}\n" if more else ""
        text += "\n[95% stratified bootstrap interval]\n"
    write(out / "table.md", text.encode())
    page.write_pages(experiments(runs), rows, out, compared)
    for metric in dict.fromkeys(row["metric"] for row in rows):  # may be many: last
        plot_metric(runs, metric, task, out / file_name(metric))
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
        f"{HEADLINE}, else eval/*, valid/*, test/*, world/* and train/loss",
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
        return fail(error)
    except OSError as error:
        return fail(f"{error}; choose another --out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
