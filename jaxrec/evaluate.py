"""python -m jaxrec.evaluate --run=RUN --evals=ranking,users: measure a trained stage.

By any evaluators (`jaxrec.evaluators.EVALS`), at the step the stage ended with: a table
of means and 95% intervals over the seeds, and with --out a JSON file of all values.
Nothing of the run is changed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import evaluators, finished, logs, statistics, tables, train
from jaxrec.errors import UserError, fail
from jaxrec.settings import choose


def evaluate(
    run: str | Path, stage: str = "", evals: Sequence[str] = ()
) -> dict[str, Any]:
    """name -> float, or with several seeds float[S], of a finished stage of a run.

    stage: "" = the last; evals: those of its config where none is named. What they give
    as arrays, such as ranks, is left out. Raises UserError for an unknown evaluator and
    where no such stage is finished.
    """
    config, name = finished.find(run, stage)
    names = tuple(evals) or tuple(config[name].evals)
    for one in names:
        choose("evaluator", one, evaluators.EVALS)
    found, state = finished.restore_all(config, run, name)
    measure = {
        one: evaluators.make(one, config, found.method, found.dataset) for one in names
    }
    values = train.evaluate(found, measure, state)
    axes = int(config.num_seeds > 1)
    return {k: logs.plain(v) for k, v in values.items() if np.ndim(v) <= axes}


def table(found: dict[str, Any]) -> str:
    """Plain text, the usual cut-offs alone: `tables.brief`."""
    rows = [
        dict(metric=name, value=statistics.estimate(np.array(found[name], float)))
        for name in tables.brief(sorted(found))
    ]
    return tables.aligned(rows, markdown=False) if rows else "nothing was measured"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status: 0, or 2 for a fault of the input."""
    about = "Measure a trained stage.", "folder of a finished run"
    flags = finished.parser("jaxrec.evaluate", *about, one_seed=False)
    known = ", ".join(evaluators.EVALS)
    flags.add_argument("--evals", default="", help=f"with commas between: {known}")
    flags.add_argument("--out", default="", help="a JSON file of all values")
    given = flags.parse_args(argv)
    try:
        names = tuple(filter(None, given.evals.split(",")))
        found = evaluate(given.run, given.stage, names)
    except UserError as error:
        return fail(error)
    print(table(found))
    try:
        if given.out:
            logs.write_json(Path(given.out), found)
    except OSError as error:
        reason = f"({error.strerror}): choose another --out"
        return fail(f"cannot write {given.out} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
