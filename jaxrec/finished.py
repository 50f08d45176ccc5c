"""A finished stage of a run, read again to be used: served, asked or exported."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import experiment, rules, seeds, settings, train
from jaxrec import workdir as workdir_lib
from jaxrec.errors import UserError, first_line
from jaxrec.program import Stage
from jaxrec.types import Method, TrainState

# Of the config of any run; newer fields are not asked for.
FIELDS = ("stages", "data", "eval", "mesh", "rules", "select", "seed", "num_seeds")
FIELDS += ("device_data_limit", "headline")


def parser(
    prog: str, description: str, run: str, one_seed: bool = True
) -> argparse.ArgumentParser:
    """One with the flags that name a finished stage, or one seed of it.

    `run` says what --run may be.
    """
    flags = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    flags.add_argument("--run", required=True, help=run)
    flags.add_argument("--stage", default="", help="of the run; default: its last")
    if one_seed:
        flags.add_argument(
            "--seed_number", type=int, default=0, help="of its num_seeds"
        )
    return flags


def find(
    run: str | Path, stage: str = "", number: int = 0
) -> tuple[FrozenConfigDict, str]:
    """(config, name of the stage; "": the last); nothing is read but small files.

    `number`: which of its `num_seeds`. Raises UserError where that is not there.
    """
    workdir = Path(run)
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{str(run) or '--run='} holds no run (config.json): give a run's --workdir"
        )
    given = workdir_lib.read_json(workdir / "config.json")
    no_run = f"config.json of {run} is no run's (%s): give a run's --workdir"
    if lacking := [name for name in FIELDS if name not in given]:
        raise UserError(no_run % f"no {lacking[0]}")
    try:
        config = settings.resolve(ConfigDict(given))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(no_run % first_line(error)) from error
    stage = stage or config.stages[-1]
    if stage not in config.stages:
        known = ", ".join(config.stages)
        raise UserError(f"{run} has no stage {stage!r}: name one of {known}")
    if not (workdir / stage / "done.json").is_file():
        raise UserError(
            f"stage {stage} of {run} is not finished: give the command that trains it "
            "again, then use it"
        )
    if not 0 <= number < config.num_seeds:
        raise UserError(
            f"seed number {number}: {run} has {config.num_seeds}, counted from 0"
        )
    return config, stage


def restore(
    config: FrozenConfigDict, run: str | Path, stage: str, number: int = 0
) -> tuple[Stage, TrainState]:
    """The stage and the state that one seed of it ended with; see `restore_all`."""
    found, state = restore_all(config, run, stage)
    return found, seeds.pick(state, number, config.num_seeds)


def restore_all(
    config: FrozenConfigDict, run: str | Path, stage: str
) -> tuple[Stage, TrainState]:
    """The stage and the state of all seeds that it ended with.

    The data must be where they were, or cached. Batches, games and time are not split
    as they were in training, nor is anything else where there are too few devices; what
    the config's rules split over `data` is, over as many as there are.
    """
    config = ConfigDict(config.to_dict())
    splits = any("data" in rule.named for rule in rules.parse(config.rules))
    config.mesh.update(data=-1 if splits else 1, time=1)
    if config.mesh.model > jax.device_count():
        config.mesh.model, config.rules = 1, ()
    config = FrozenConfigDict(config)
    stages, _ = experiment.prepare(config, Path(run))
    return stages[stage], _state(stages, stage, Path(run))


def _state(stages: dict[str, Stage], name: str, workdir: Path) -> TrainState:
    """The state that a stage ended with; those it used give the shapes of its own."""
    earlier = {used: _state(stages, used, workdir) for used in stages[name].config.uses}
    return train.restore(stages[name], workdir / name, earlier)


class Policy(NamedTuple):
    """What a finished stage knows how to do."""

    method: Method
    state: TrainState
    info: dict[str, Any]  # of its data
    stage: str
    mesh: Mesh | None = None  # that the state is split over, None = on one device


def policy(
    run: str | Path,
    stage: str = "",
    number: int = 0,
    acting: bool = False,
    split: bool = False,
) -> Policy:
    """A finished stage that ranks items.

    `acting`: or acts on one observation. `split`: a catalogue that was split in
    training stays so if there are devices for it; else the state is on one device.
    Raises UserError for a stage that can do neither.
    """
    config, name = find(run, stage, number)
    found, state = restore(config, run, name, number)
    method, info = found.method, found.dataset.info
    acts = (
        method.act is not None and method.memory is None and "observation_size" in info
    )
    if method.scores is None and not (acting and acts):
        what = "ranks no items" + " and has no policy of one observation" * acting
        raise UserError(
            f"method {config[name].method} of stage {name} of {run} {what}: give "
            f"--stage ({', '.join(config.stages)}) or another run"
        )
    if split and found.mesh.shape["model"] > 1:
        return Policy(method, state, info, name, found.mesh)
    return Policy(method, jax.tree.map(_local, state), info, name)


def _local(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jnp.asarray(np.asarray(leaf))
