"""A run: stages one after the other, each resumable, and what it leaves behind.

WORKDIR/config.json                 the resolved config
WORKDIR/<stage>/metrics.jsonl       one JSON object a line
WORKDIR/<stage>/checkpoints/        the last two
WORKDIR/<stage>/artefact/           what the stage produced for later ones
WORKDIR/<stage>/done.json           its part of the summary, when it is finished
WORKDIR/summary.json, plots/        when all are
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import evaluators, logs, report, seeds, sharding, statistics, train
from jaxrec import workdir as workdir_lib
from jaxrec.data import cache
from jaxrec.data.sources import SOURCES
from jaxrec.errors import Interrupted, UserError
from jaxrec.methods import METHODS
from jaxrec.program import Stage, streams
from jaxrec.types import Dataset, Mix, TrainState


def run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Do, or finish, the run in `workdir`; returns its summary.

    Raises UserError for faults of the config, the data or the environment, and
    Interrupted on SIGTERM or SIGINT, after saving.
    """
    config = resolve(config)
    workdir = Path(workdir)
    with workdir_lib.locked(workdir), workdir_lib.stop_signals() as asked_to_stop:
        workdir_lib.settle_config(workdir, config)
        if (workdir / "summary.json").exists():
            logs.say(f"{workdir} is finished: nothing to train")
            return json.loads((workdir / "summary.json").read_text())
        mesh = sharding.make_mesh(**config.mesh)
        finished: dict[str, tuple[Stage, TrainState | None]] = {}
        summary: dict[str, Any] = {}
        for name in config.stages:
            stage = build(config, name, workdir, mesh, finished)
            summary[name], state = run_stage(
                config, stage, workdir / name, finished, asked_to_stop
            )
            finished[name] = (stage, state)
        summary = {
            "name": config.name,
            "stages": summary,
            "data": data_facts(finished[config.stages[-1]][0].dataset),
            "seed": config.seed,
            "num_seeds": config.num_seeds,
            **workdir_lib.provenance(),
        }
        report.plot_run(workdir)
        logs.write_json(workdir / "summary.json", summary)
    return summary


def run_stage(
    config: FrozenConfigDict,
    stage: Stage,
    folder: Path,
    finished: dict[str, tuple[Stage, TrainState | None]],
    asked_to_stop: Callable[[], int],
) -> tuple[dict[str, Any], TrainState | None]:
    """Train and produce, or read what was done: (summary, state if anyone needs it)."""
    earlier = {name: finished[name][1] for name in stage.config.uses}
    needed = any(stage.name in config[later].uses for later in config.stages)
    done = folder / "done.json"
    if done.exists():
        state = train.restore(stage, folder, earlier) if needed else None
        return json.loads(done.read_text()), state
    evals = {
        name: evaluators.EVALS[name](config, stage.method, stage.dataset)
        for name in stage.config.evals
    }
    state, facts = train.train(stage, folder, evals, earlier, asked_to_stop)
    if stage.method.produce is not None:
        arrays = produce(stage, state)
        cache.write_arrays(folder / "artefact", arrays, {"stage": stage.name})
    lines = logs.read(folder / "metrics.jsonl")
    facts = (
        metrics_summary(lines, config.select) | {"steps": stage.config.steps} | facts
    )
    facts["seconds"] = lines[-1]["wall"]
    logs.write_json(done, facts)
    if asked_to_stop():
        raise Interrupted(f"{stage.name}: finished and saved", asked_to_stop())
    return facts, state


def produce(stage: Stage, state: TrainState) -> dict[str, np.ndarray]:
    """The artefact; with several seeds each array has a leading axis S."""
    logs.say(f"{stage.name}: producing")
    key = seeds.fold(streams(stage)[2], stage.config.steps + 1)
    arrays = [
        stage.method.produce(
            seeds.pick(state, number, stage.num_seeds),
            stage.dataset,
            seeds.pick(key, number, stage.num_seeds),
        )
        for number in range(stage.num_seeds)
    ]
    if stage.num_seeds == 1:
        return arrays[0]
    # Seeds may produce unequal numbers of rows; the shortest sets the length.
    rows = min(len(next(iter(a.values()))) for a in arrays)
    return {name: np.stack([a[name][:rows] for a in arrays]) for name in arrays[0]}


def build(
    config: FrozenConfigDict,
    name: str,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    finished: dict[str, tuple[Stage, TrainState | None]],
) -> Stage:
    """Data and method of a stage."""
    section = config[name]
    source = choose("data source", config.data.source, SOURCES)
    view = ConfigDict(config.data.to_dict() | section.data.to_dict())
    dataset: Dataset = source(view)
    static = {k: (done.config, done.method) for k, (done, _) in finished.items()}
    dataset.info["stages"] = static
    if section.mix.stage and section.mix.fraction:
        path = workdir / section.mix.stage / "artefact"
        arrays, _ = cache.read_arrays(path)
        blend = Mix(arrays, section.mix.fraction, config.num_seeds > 1)
        dataset = dataset._replace(mix=(blend,))
    hparams = section[section.method].to_dict() | {
        "steps": section.steps,
        "batch_size": section.batch_size,
    }
    method = METHODS[section.method](FrozenConfigDict(hparams), dataset.info)
    return Stage(
        name=name,
        config=section,
        method=method,
        dataset=dataset,
        seed=config.seed,
        num_seeds=config.num_seeds,
        mesh=mesh,
        rules=tuple((pattern, tuple(axes)) for pattern, axes in config.rules),
        device_data_limit=config.device_data_limit,
        headline=config.headline,
    )


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """Check names, drop the sections of methods that are not chosen, freeze."""
    config = ConfigDict(config.to_dict())
    for name in config.stages:
        if name not in config:
            raise UserError(f"stage {name!r} has no section in the config")
        section = config[name]
        choose("method", section.method, METHODS)
        if section.method not in section:
            allowed = sorted(set(section) & set(METHODS))
            raise UserError(
                f"stage {name} of {config.name} has no settings for method "
                f"{section.method!r}: it takes {', '.join(allowed)}"
            )
        for other in set(section) & set(METHODS) - {section.method}:
            del section[other]
        for evaluator in section.evals:
            choose("evaluator", evaluator, evaluators.EVALS)
        before = config.stages[: config.stages.index(name)]
        for needed in (*section.uses, *filter(None, [section.mix.stage])):
            if needed not in before:
                raise UserError(f"stage {name} needs stage {needed!r} before it")
        for field in ("steps", "batch_size", "log_every", "steps_per_call"):
            if section[field] < 1:
                raise UserError(f"{name}.{field} is {section[field]}: must be positive")
    if config.num_seeds < 1:
        raise UserError(f"num_seeds is {config.num_seeds}: must be positive")
    return FrozenConfigDict(config)


def choose(what: str, name: str, table: dict[str, Any]) -> Any:
    """table[name], or a UserError with the nearest names."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table) or sorted(table)
    raise UserError(f"{what} {name!r} is unknown; did you mean {', '.join(near)}?")


def metrics_summary(lines: list[dict[str, Any]], select: str = "") -> dict[str, Any]:
    """Last and best value (per seed) of every metric of a stage.

    `best` leaves out the training loss and what tests: a best of `test/` or `users/`
    would be chosen by the test. With `select`, the name of a metric of the validation
    set, also `selected`: all metrics at the step where that one was best, chosen for
    each seed, and the step.
    """
    last: dict[str, Any] = {}
    best: dict[str, Any] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("step", "wall"):
                continue
            last[name] = value  # null where it was not finite: a reader must see it
            if value is not None and not name.startswith(("train/", "test/", "users/")):
                choice = np.fmin if falls(name) else np.fmax  # a number over no number
                old = best.get(name, value)
                both = choice(np.asarray(value, float), np.asarray(old, float))
                best[name] = logs.plain(both)
    found = {"last": last, "best": best}
    chosen = [line for line in lines if line.get(select) is not None]
    if chosen:
        found["selected"] = select_lines(chosen, select)
    elif select:
        near = difflib.get_close_matches(select, last, 3, 0.4) or sorted(last)[:3]
        logs.say(
            f"select={select!r} was never measured here, so no step is selected; "
            f"measured: {', '.join(near) or 'nothing'}"
        )
    # Mean and 95% Student t interval over the seeds: [middle, low, high].
    for group, source in (("interval", last), ("selected_interval", "selected")):
        values = found.get(source, {}) if isinstance(source, str) else source
        several = {name: x for name, x in values.items() if isinstance(x, list)}
        if several:
            found[group] = {
                name: logs.plain(statistics.estimate(np.array(value, float)))
                for name, value in several.items()
            }
    return found


def select_lines(lines: list[dict[str, Any]], select: str) -> dict[str, Any]:
    """The metrics of the line where `select` is best; seed by seed where it is a list.

    Only metrics that were measured at every one of the lines. What is not finite is
    never best: a seed without one finite value gets null for everything.
    """
    table = np.array([line[select] for line in lines], float)  # [lines] or [lines, S]
    table = -table if falls(select) else table
    place = np.argmax(np.where(np.isfinite(table), table, -np.inf), axis=0)
    some = np.isfinite(table).any(axis=0)
    names = set(lines[0]).intersection(*lines[1:]) - {"wall"}
    found = {}
    for name in sorted(names):
        values = [line[name] for line in lines]
        if place.ndim == 0:
            found[name] = values[place]
        elif name == "step":
            found[name] = [values[i] if ok else None for i, ok in zip(place, some)]
        elif all(isinstance(value, list) for value in values):
            found[name] = [
                values[i][seed] if some[seed] else None for seed, i in enumerate(place)
            ]
    return found


def falls(name: str) -> bool:
    """Whether smaller is better, by the words in the metric's name."""
    words = ("loss", "nll", "rmse", "mae", "error", "gini", "repetitiveness")
    return any(word in name for word in words)


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """The part of `info` that identifies a result: name, version, simulator, sizes."""
    names = ("name", "version", "env_id", "num_rows", "num_episodes", "num_items")
    return {name: dataset.info[name] for name in names if name in dataset.info}
