"""A run: stages one after the other, each resumable, and what it leaves behind.

WORKDIR/config.json                 the resolved config
WORKDIR/<stage>/metrics.jsonl       one JSON object a line
WORKDIR/<stage>/checkpoints/        the last two
WORKDIR/<stage>/arrays/STEP.npz     arrays that evaluators measured, such as ranks
WORKDIR/<stage>/artefact/           what the stage produced for later ones
WORKDIR/<stage>/done.json           its part of the summary, when it is finished
WORKDIR/summary.json, plots/        when all are
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import (
    boards,
    evaluators,
    hosts,
    logs,
    profiling,
    report,
    rules,
    seeds,
    sharding,
    train,
    warm,
)
from jaxrec import workdir as workdir_lib
from jaxrec.data import cache
from jaxrec.data.sources import SOURCES
from jaxrec.errors import Interrupted, UserError
from jaxrec.methods import METHODS
from jaxrec.program import Stage, streams
from jaxrec.settings import choose, resolve
from jaxrec.summary import data_facts, metrics_summary
from jaxrec.types import Dataset, Mix, TrainState


def run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Do, or finish, the run in `workdir`; returns its summary.

    Several processes give the same folder, on disks that all of them see. Raises
    UserError for faults of the config, the data or the environment, and Interrupted on
    SIGTERM, SIGINT or SIGUSR1, after saving.
    """
    config = resolve(config)
    workdir = Path(workdir)
    with contextlib.ExitStack() as stack:
        asked_to_stop = stack.enter_context(workdir_lib.stop_signals())

        def begin() -> dict[str, Any] | None:
            stack.enter_context(workdir_lib.locked(workdir))
            workdir_lib.settle_config(workdir, config)
            return found_json(workdir / "summary.json")

        if (summary := hosts.lead(begin)) is not None:
            logs.say(f"{workdir} is finished: nothing to train")
            return summary
        stages, evals = hosts.lead_first(lambda: prepare(config, workdir))
        check_same_data(stages)
        states: dict[str, TrainState | None] = {}
        parts: dict[str, Any] = {}
        for name, stage in stages.items():
            parts[name], states[name] = run_stage(
                config, stage, workdir, evals[name], states, asked_to_stop
            )
        summary = {
            "name": config.name,
            "stages": parts,
            "data": data_facts(stages[config.stages[-1]].dataset.info),
            "seed": config.seed,
            "num_seeds": config.num_seeds,
            **workdir_lib.provenance(),
        }

        def end() -> None:
            boards.images(workdir, report.plot_run(workdir))
            logs.write_json(workdir / "summary.json", summary)

        hosts.lead(end)
    return summary


def found_json(path: Path) -> dict[str, Any] | None:
    """What the run wrote there, None when it did not yet."""
    return workdir_lib.read_json(path) if path.exists() else None


def check_same_data(stages: Mapping[str, Stage]) -> None:
    """Raises UserError where processes have read different data."""
    for name, stage in stages.items():
        hosts.check_equal(
            f"data of stage {name}",
            cache.fingerprint([stage.dataset.train, *stage.dataset.evals.values()]),
            "give them the same files, or a config.data.data_dir that all of them see",
        )


def prepare(
    config: FrozenConfigDict, workdir: Path
) -> tuple[dict[str, Stage], dict[str, dict[str, train.Evaluator]]]:
    """Every stage, and its evaluators unless it is done.

    What a later stage would refuse is refused here, before the first one trains.
    """
    mesh = sharding.make_mesh(**config.mesh)
    sharding.tell_idle(mesh, config.rules)
    stages: dict[str, Stage] = {}
    evals: dict[str, dict[str, train.Evaluator]] = {}
    shapes: dict[str, TrainState] = {}
    for name in config.stages:
        stage = stages[name] = build(config, name, mesh, stages)
        finished = (workdir / name / "done.json").exists()
        evals[name] = {
            evaluator: evaluators.make(evaluator, config, stage.method, stage.dataset)
            for evaluator in (() if finished else stage.config.evals)
        }
        if len(config.stages) > 1 and (not finished or is_used(config, name)):
            earlier = {used: shapes[used] for used in stage.config.uses}
            shapes[name] = train.abstract_state(stage, earlier)
    return stages, evals


def build(
    config: FrozenConfigDict,
    name: str,
    mesh: jax.sharding.Mesh,
    before: Mapping[str, Stage],
) -> Stage:
    """Data and method of a stage; rows of an earlier one's artefact come by `mixed`."""
    section = config[name]
    source = choose("data source", config.data.source, SOURCES)
    view = ConfigDict(config.data.to_dict() | section.data.to_dict())
    dataset: Dataset = source(view)
    dataset.info["stages"] = {k: (s.config, s.method) for k, s in before.items()}
    if section.mix.fraction and before[section.mix.stage].method.produce is None:
        producer = before[section.mix.stage]
        raise UserError(
            f"{name}.mix.stage is {producer.name!r}, whose method "
            f"{producer.config.method} produces nothing to mix in: name another stage"
        )
    hparams = section[section.method].to_dict() | {
        "steps": section.steps,
        "batch_size": section.batch_size,
    }
    method = METHODS[section.method](FrozenConfigDict(hparams), dataset.info)
    if mesh.shape["time"] > 1 and not method.splits_time:
        raise UserError(
            f"mesh.time={mesh.shape['time']}: nothing in stage {name} splits time. Use "
            "encoder mamba or mamba2 with a method that ranks by a head, or mesh.time=1"
        )
    return Stage(
        name=name,
        config=section,
        method=method,
        dataset=dataset,
        seed=config.seed,
        num_seeds=config.num_seeds,
        mesh=mesh,
        rules=rules.parse(config.rules) + rules.parse(method.rules),
        device_data_limit=config.device_data_limit,
        headline=config.headline,
        # Runs of before there were traces have no field.
        profile_steps=config.get("profile", profiling.HPARAMS)["steps"],
        begin=warm.beginning(name, section.get("warm_start")),
    )


def run_stage(
    config: FrozenConfigDict,
    stage: Stage,
    workdir: Path,
    evals: Mapping[str, train.Evaluator],
    states: Mapping[str, TrainState | None],
    asked_to_stop: Callable[[], int],
) -> tuple[dict[str, Any], TrainState | None]:
    """Train and produce, or read what was done: (summary, state if anyone needs it)."""
    folder = workdir / stage.name
    done = folder / "done.json"
    earlier = {name: states[name] for name in stage.config.uses}
    if (facts := hosts.lead(lambda: found_json(done))) is not None:
        lost = hosts.lead(
            lambda: (
                is_mixed(config, stage.name, workdir) and not whole(folder / "artefact")
            )
        )
        state = None
        if lost or is_used(config, stage.name):
            state = train.restore(stage, folder, earlier)
        if lost:
            produce(mixed(stage, workdir), state, folder)
        return facts, state
    stage = mixed(stage, workdir)
    state, facts = train.train(stage, folder, evals, earlier, asked_to_stop)
    if stage.method.produce is not None:
        facts["produced"] = produce(stage, state, folder)

    def finish() -> dict[str, Any]:
        lines = logs.read(folder / "metrics.jsonl")
        found = metrics_summary(lines, config.select) | {"steps": stage.config.steps}
        found |= facts | {"seconds": lines[-1]["wall"]}
        logs.write_json(done, found)
        return found

    facts = hosts.lead(finish)
    if signal_number := hosts.most(asked_to_stop()):
        raise Interrupted(f"{stage.name}: finished and saved", signal_number)
    return facts, state


def is_used(config: FrozenConfigDict, name: str) -> bool:
    """Whether another stage needs the state of this one."""
    return any(name in config[other].uses for other in config.stages)


def is_mixed(config: FrozenConfigDict, name: str, workdir: Path) -> bool:
    """Whether a stage that is not done draws from the artefact of this one."""
    return any(
        config[other].mix.fraction and config[other].mix.stage == name
        for other in config.stages
        if not (workdir / other / "done.json").exists()
    )


def mixed(stage: Stage, workdir: Path) -> Stage:
    """The stage with the rows that `mix` names, from the artefact of another."""
    mix = stage.config.mix
    if not mix.fraction:
        return stage
    arrays, _ = cache.read_arrays(workdir / mix.stage / "artefact")
    blend = Mix(arrays, mix.fraction, stage.num_seeds > 1)
    return stage._replace(dataset=stage.dataset._replace(mix=(blend,)))


def own_rows(dataset: Dataset, number: int) -> Dataset:
    """The dataset as one seed sees it: mixed in are its own rows alone."""
    mixes = tuple(
        Mix({k: v[number] for k, v in m.arrays.items()}, m.fraction)
        if m.per_seed
        else m
        for m in dataset.mix
    )
    return dataset._replace(mix=mixes)


def whole(artefact: Path) -> bool:
    """Whether an artefact can be read; says why it cannot."""
    try:
        cache.read_arrays(artefact)
    except UserError as error:
        reason = str(error).partition(": delete")[0]
        logs.say(f"{reason}: it is produced again from the checkpoint")
        return False
    return True


def produce(stage: Stage, state: TrainState, folder: Path) -> dict[str, Any]:
    """Write the artefact, with several seeds each array with a leading axis S.

    Returns the method's facts about it, float or float[S].
    """
    logs.say(f"{stage.name}: producing")
    state = sharding.local(stage.mesh, state)
    key = seeds.fold(streams(stage)[2], stage.config.steps + 1)
    with sharding.in_use(stage.mesh.local_mesh):
        arrays = [
            stage.method.produce(
                seeds.pick(state, number, stage.num_seeds),
                own_rows(stage.dataset, number),
                seeds.pick(key, number, stage.num_seeds),
            )
            for number in range(stage.num_seeds)
        ]
    about_one = stage.method.facts or (lambda arrays, info: {})
    found = [about_one(one, stage.dataset.info) for one in arrays]
    facts = {k: logs.plain([one[k] for one in found]) for k in found[0]}
    together = arrays[0]
    if stage.num_seeds == 1:
        facts = {name: value for name, (value,) in facts.items()}
    else:
        # Seeds may produce unequal numbers of rows; the shortest sets the length.
        rows = min(len(next(iter(a.values()))) for a in arrays)
        together = {k: np.stack([a[k][:rows] for a in arrays]) for k in arrays[0]}
    about = {"stage": stage.name, **facts}
    hosts.lead(lambda: cache.write_arrays(folder / "artefact", together, about))
    if facts:
        means = {name: np.mean(np.array(value, float)) for name, value in facts.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        logs.say(f"{stage.name}: produced {shown}")
    return facts
