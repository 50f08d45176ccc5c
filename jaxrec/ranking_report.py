"""The recommenders' table: `python -m jaxrec.ranking_report RUN...`.

One row an experiment, in the layout of the SQN and SNQN papers: HR and NDCG at 5, 10
and 20 of purchases, then of clicks, at the step that validation chose (else the last),
mean and 95% Student t interval over the seeds; coverage, and what simulated users gave
where there were some. With `--against=NAME` also the difference of each experiment from
that one, event by event, as mean over all events and 95% interval of a bootstrap over
sessions, and the p-value of a sign-flip test, from the ranks that the runs kept; of the
users' reward the difference by seed, its Student t interval and p. --out=DIR keeps
them as ranking.md and ranking.csv. No JAX is imported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import logs, report, runs, statistics
from jaxrec.errors import UserError, fail
from jaxrec.plots import write

KINDS = ("purchase", "click")
KS = (5, 10, 20)
METRICS = tuple(f"{name}@{k}" for k in KS for name in ("hr", "ndcg"))
REWARD = "users/reward"


def selected(part: dict[str, Any], metric: str) -> np.ndarray:
    """float[S]: the values at the selected step, or the last where none was."""
    chosen = part.get("selected") or part["last"]
    return np.array(runs.numbers(chosen.get(metric, [])))


def ranked(label: str, group: list[runs.Run], which: str) -> dict[str, str]:
    """The stages of an experiment that rank the set: name of the row -> stage."""
    parts = group[0].summary["stages"].items()
    stages = [stage for stage, part in parts if f"{which}/ndcg@10" in part["last"]]
    return {label if len(stages) == 1 else f"{label} {s}": s for s in stages}


def rows_of(groups: dict[str, list[runs.Run]], which: str) -> list[dict[str, Any]]:
    """The rows of the table; cells of a kind that no held-out event has are empty."""
    rows = []
    for label, group in groups.items():
        for name, stage in ranked(label, group, which).items():
            found = [run.summary["stages"][stage] for run in group]
            row: dict[str, Any] = {"": name}
            names = {f"{k} {m}": f"{which}/{k}/{m}" for k in KINDS for m in METRICS}
            names |= {"all ndcg@10": f"{which}/ndcg@10"}
            names |= {"coverage@10": f"{which}/coverage@10", "reward": REWARD}
            for column, metric in names.items():
                values = np.concatenate([selected(part, metric) for part in found])
                row[column] = statistics.estimate(values)
            row["seeds"] = sum(len(selected(p, f"{which}/ndcg@10")) for p in found)
            rows.append(row)
    if not rows:
        raise UserError(f"no run ranks a {which} set: its evals lack `ranking`")
    for column in ("coverage@10", "reward"):  # not of all runs, and not the papers'
        if all(np.isnan(row[column][0]) for row in rows):
            rows = [{k: v for k, v in row.items() if k != column} for row in rows]
    return rows


def rewards(group: list[runs.Run], stage: str) -> dict[int, float]:
    """seed -> what simulated users gave."""
    found = {}
    for run in group:
        values = selected(run.summary["stages"][stage], REWARD)
        found |= {(run.config.get("seed") or 0) + n: v for n, v in enumerate(values)}
    return found


def reward_cells(x: dict[int, float], y: dict[int, float]) -> dict[str, Any]:
    """The difference over the seeds that both have, its interval, and p."""
    seeds = sorted(set(x) & set(y))
    mean = low = high = p = np.nan
    if seeds:
        pair = (np.array([values[seed] for seed in seeds]) for values in (x, y))
        mean, low, high, p = statistics.paired_t(*pair)
    told = f"{p:.4f}" if np.isfinite(p) else "-"
    return {"reward": (mean, low, high), "reward p": told}


def paired_rows(
    groups: dict[str, list[runs.Run]], against: str, which: str
) -> list[dict[str, Any]]:
    """Difference in NDCG@10 from the experiment `against` on the same events.

    And in the users' reward, where both have it of two seeds or more.
    """
    flat, given = {}, {}
    for label, group in groups.items():
        for name, stage in ranked(label, group, which).items():
            flat[name] = [runs.gains(run, stage, which) for run in group]
            given[name] = rewards(group, stage)
    if against not in flat:
        raise UserError(f"--against={against!r}: one of {', '.join(flat)}")
    _, kind, session = flat[against][0]
    means = {}
    for name, found in flat.items():
        if not all(np.array_equal(own, session) for *_, own in found):
            raise UserError(f"{name} and {against} rank different events: compare runs")
        means[name] = np.concatenate([values for values, *_ in found]).mean(0)
    base = means.pop(against)
    rows = []
    for name, ours in means.items():
        row: dict[str, Any] = {f"ndcg@10 less {against}": name}
        for column, chosen in (
            ("all", np.ones(len(kind), bool)),
            ("purchase", kind == 1),
            ("click", kind == 0),
        ):
            if chosen.any():
                x, y, s = ours[chosen], base[chosen], session[chosen]
                row[column] = statistics.paired_bootstrap(x, y, s)
                row[f"{column} p"] = f"{statistics.permutation_test(x, y, s):.4f}"
        if any(given.values()):
            row |= reward_cells(given[name], given[against])
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables, and writes ranking.md and ranking.csv to --out if given."""
    parser = argparse.ArgumentParser(
        "jaxrec",
        usage="python -m jaxrec.ranking_report RUN... [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", default="", help="folder for the tables")
    parser.add_argument("--against", default="", help="the experiment to compare with")
    parser.add_argument("--set", default="test", help="valid or test")
    flags = parser.parse_args(argv)
    try:
        found = runs.read_runs(flags.runs)
        for run in found:
            if not run.done:
                runs.warn(f"{run.path}: unfinished, left out")
        done = runs.distinct_seeds(run for run in found if run.done)
        groups = runs.experiments(done)
        rows = rows_of(groups, flags.set)
        text = report.aligned(rows) + "\n\nMean [95% Student t interval] over seeds.\n"
        if flags.against:
            paired = paired_rows(groups, flags.against, flags.set)
            text += f"\n{report.aligned(paired)}\n"
            text += "\nMean [95% bootstrap interval over sessions], p of sign flips;"
            text += " of the reward Student's t over seeds.\n"
        if flags.out:
            write(Path(flags.out) / "ranking.md", text.encode())
            write(Path(flags.out) / "ranking.csv", report.to_csv(rows).encode())
            logs.say(f"written to {flags.out}")
    except UserError as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error}; choose another --out")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
