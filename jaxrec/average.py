"""python -m jaxrec.average --out=OUT RUN RUN [...]: the mean of trained parameters.

Each RUN is the folder of a finished run, whose newest checkpoint counts, or of one
checkpoint, such as runs/a/train/checkpoints/4000; all of one config but for the seed.
Parameters and their targets are averaged one by one (Wortsman et al. 2022, "Model
soups"), which serves where they are near each other: checkpoints of one run, or runs
with one `warm_start.path`. From unlike beginnings a mean need not be any good.

OUT is a finished run that was not measured: config, the rest of the state and all
other stages are those of the first RUN, and OUT/<stage>/done.json tells what was
averaged. `jaxrec.evaluate`, `recommend`, `export` and `serve` take it as any other;
reports leave it out. The data must be where they were, or cached.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import checkpoint, finished, logs, sharding, train, warm, workdir
from jaxrec.errors import UserError, fail, first_line
from jaxrec.summary import data_facts


class Source(NamedTuple):
    run: Path
    config: FrozenConfigDict
    stage: str
    checkpoint: Path


def source(argument: str, stage: str = "") -> Source:
    """What an argument names; raises UserError where it is no finished stage's."""
    run = given = Path(argument).expanduser()
    if given.name.isdigit() and given.absolute().parent.name == "checkpoints":
        run, of = given.absolute().parents[2], given.absolute().parents[1].name
        if stage not in ("", of):
            raise UserError(f"{given} is of stage {of}, not {stage}: leave one out")
        stage = of
    config, stage = finished.find(run, stage)
    found = checkpoint.find(run / stage if given is run else given)
    return Source(run, config, stage, found)


def sources(arguments: Sequence[str], stage: str = "") -> list[Source]:
    """Of all arguments. Raises UserError where they have no mean."""
    found = [source(argument, stage) for argument in arguments]
    if len({one.checkpoint.resolve() for one in found}) < max(2, len(found)):
        raise UserError(
            f"{', '.join(arguments)}: a mean needs two or more, none of them twice"
        )
    first = found[0]
    for one in found[1:]:
        if one.stage != first.stage:
            raise UserError(
                f"{one.checkpoint} is of stage {one.stage}, {first.checkpoint} of "
                f"{first.stage}: name those of one stage"
            )
        config = ConfigDict(workdir.read_json(one.run / "config.json"))
        config.update(seed=first.config.seed, num_seeds=first.config.num_seeds)
        remedy = "average runs that differ in the seed alone"
        workdir.check_config(first.run, config, remedy)
    return found


def learns_from(section: FrozenConfigDict, stage: str) -> bool:
    """Whether a stage uses the states or the artefact of another."""
    return stage in section.uses or bool(
        section.mix.fraction and section.mix.stage == stage
    )


def replaced(tree: Any, found: Mapping[str, np.ndarray]) -> Any:
    """The tree with the arrays of those paths, placed as its own are."""
    return jax.tree_util.tree_map_with_path(
        lambda at, leaf: sharding.put_like(found[sharding.path_name(at)], leaf), tree
    )


def write(arguments: Sequence[str], out: str | Path, stage: str = "") -> dict[str, Any]:
    """Write the mean as a finished run; returns its summary.

    `stage`: the averaged one; "" = the last, or that of the checkpoints. Raises
    UserError for a folder that is there and for what has no mean.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} is there already: name another --out")
    found = sources(arguments, stage)
    run, config, stage, _ = found[0]
    for other in config.stages:
        finished.find(run, other)
    if (uses := config[stage].uses) and len({one.run.resolve() for one in found}) > 1:
        logs.say(f"{stage} uses {', '.join(uses)}, which stay those of {run}")
    if users := [o for o in config.stages if learns_from(config[o], stage)]:
        raise UserError(
            f"stage {users[0]} of {run} learnt from {stage} as it was: average that one"
        )
    where = [one.checkpoint for one in found]
    if not (mean := warm.mean(where)):
        raise UserError(f"stage {stage} of {run} has no parameters: it has no mean")
    built, state = finished.restore_all(config, run, stage)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with checkpoint.opened(where[0].parent) as saved:
        state, _ = checkpoint.restore(saved, int(where[0].name), shapes)
    state = state.replace(
        params=replaced(state.params, mean),
        target_params=replaced(state.target_params, warm.mean(where, "target_params")),
    )
    step = int(state.step)
    parts = {
        other: workdir.read_json(run / other / "done.json") for other in config.stages
    }
    parts[stage] = dict(
        averaged=[str(path) for path in where],
        last={},
        best={},
        steps=step,
        parameters=train.count(state.params) // config.num_seeds,
    )
    summary = dict(
        name=config.name,
        stages=parts,
        data=data_facts(built.dataset.info),
        seed=config.seed,
        num_seeds=config.num_seeds,
        **workdir.provenance(),
    )
    # Beside it, to be renamed, under a name that nothing of the user's has.
    part, made_it = out.with_name(f".{out.name}.{os.getpid()}.part"), False
    try:
        part.mkdir(parents=True)
        made_it = True
        shutil.copy(run / "config.json", part)
        for other in set(config.stages) - {stage}:
            shutil.copytree(run / other, part / other)
        with checkpoint.opened(part / stage / "checkpoints") as saved:
            checkpoint.save(saved, step, state, {}).result()
        logs.write_json(part / stage / "done.json", parts[stage])
        logs.write_json(part / "summary.json", summary)
        part.rename(out)
    except OSError as error:
        why = error.strerror or first_line(error)
        raise UserError(
            f"cannot write {out} ({why}): free space or name another --out"
        ) from error
    finally:
        if made_it:
            shutil.rmtree(part, ignore_errors=True)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Average; returns the exit status: 0, or 2 for a fault of the input."""
    flags = argparse.ArgumentParser(
        prog="python -m jaxrec.average", description="The mean of trained parameters."
    )
    flags.add_argument(
        "runs", nargs="+", metavar="RUN", help="a finished run's folder, a checkpoint's"
    )
    flags.add_argument("--out", required=True, help="folder of the run to write")
    flags.add_argument("--stage", default="", help="of the runs; default: their last")
    given = flags.parse_args(argv)
    try:
        write(given.runs, given.out, given.stage)
    except UserError as error:
        return fail(error)
    print(f"{given.out}: the mean of {len(given.runs)} checkpoints, not measured yet")
    print(f"python -m jaxrec.evaluate --run={given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
