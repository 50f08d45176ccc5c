"""The one training loop, for every method.

Many updates run in one call on the device: the batch is drawn there (or arrives from a
reading thread), the key is folded from the step, and nothing is fetched but the metrics
of the call before. A checkpoint holds the state and the metrics not yet written, so a
run that was killed writes the same lines and ends in the same state.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import checkpoint, hosts, logs, profiling, seeds, sharding, speed
from jaxrec import program as program_lib
from jaxrec.data import loader
from jaxrec.errors import Interrupted, UserError
from jaxrec.program import Stage, streams
from jaxrec.types import TrainState

Evaluator = Callable[[TrainState, jax.Array], dict[str, Any]]


def abstract_state(stage: Stage, earlier: dict[str, TrainState]) -> TrainState:
    """Shapes, dtypes and shardings of the stage's state; nothing is computed.

    Raises UserError, with the stage's name, for a rule that `sharding.place` refuses.
    """
    init = seeds.vmap_init(stage.method.init, stage.num_seeds)
    batch = loader.host_batch(
        stage.dataset, stage.config.batch_size, np.uint32(stage.seed), 0
    )
    shapes = jax.eval_shape(init, streams(stage)[0], batch, earlier)
    leading = int(stage.num_seeds > 1)
    try:
        placed = sharding.place(stage.mesh, shapes, stage.rules, leading)
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}") from error
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
    )


def initial_state(stage: Stage, earlier: dict[str, TrainState]) -> TrainState:
    """The state at step 0, born where the rules place it."""
    init = seeds.vmap_init(stage.method.init, stage.num_seeds)
    batch = loader.host_batch(
        stage.dataset, stage.config.batch_size, np.uint32(stage.seed), 0
    )
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(stage, earlier))
    state = jax.jit(init, out_shardings=placed)(streams(stage)[0], batch, earlier)
    return state if stage.begin is None else stage.begin(state)


def restore(stage: Stage, folder: Path, earlier: dict[str, TrainState]) -> TrainState:
    """The last checkpoint of a finished stage."""
    with checkpoint.opened(folder / "checkpoints") as saved:
        if (step := latest_step(saved)) is None:
            raise UserError(
                f"{folder} has no checkpoint although its stage is marked done: delete "
                f"{folder} to train it again"
            )
        return checkpoint.restore(saved, step, abstract_state(stage, earlier))[0]


def latest_step(saved: Any) -> int | None:
    """The step of the last checkpoint that the leader sees, None if there is none."""
    return hosts.lead(lambda: checkpoint.latest_step(saved))


def evaluate(
    stage: Stage, evaluators: dict[str, Evaluator], state: TrainState
) -> dict[str, Any]:
    """Every evaluator on every seed: name -> float, or float[S].

    Of several processes each evaluates on its own devices, and gathers for it what is
    split between them: not the moments, which nothing measured reads.
    """
    if jax.process_count() > 1:
        state = state.replace(opt_state=None)
    state = sharding.local(stage.mesh, state)
    step = int(state.step)
    key = seeds.fold(streams(stage)[2], step)
    results = []
    for number in range(stage.num_seeds):
        one = seeds.pick(state, number, stage.num_seeds)
        found: dict[str, Any] = {}
        for place, evaluator in enumerate(evaluators.values()):
            key_of = seeds.fold(seeds.pick(key, number, stage.num_seeds), place)
            with sharding.in_use(stage.mesh.local_mesh):
                found |= evaluator(one, key_of)
        results.append(found)
    if stage.num_seeds == 1:
        return results[0]
    return {name: np.stack([r[name] for r in results]) for name in results[0]}


def measured(
    stage: Stage,
    folder: Path,
    evaluators: dict[str, Evaluator],
    state: TrainState,
    log: Any,
    step: int,
) -> dict[str, Any]:
    """What the evaluators find, for a line of metrics; arrays go to files."""
    found = evaluate(stage, evaluators, state)
    many = stage.num_seeds > 1  # an axis of the seeds makes no array
    arrays = {name: x for name, x in found.items() if np.ndim(x) > many}
    if arrays and hosts.is_lead():
        logs.write_arrays(folder / "arrays" / f"{step}.npz", arrays)
        log.histograms(step, arrays)
    return {name: x for name, x in found.items() if name not in arrays}


def train(
    stage: Stage,
    folder: Path,
    evaluators: dict[str, Evaluator],
    earlier: dict[str, TrainState],
    asked_to_stop: Callable[[], int],
) -> tuple[TrainState, dict[str, Any]]:
    """Run the stage to its end, from its last checkpoint if there is one.

    Returns the final state and facts for the summary. Raises Interrupted, after saving,
    when `asked_to_stop()` gives a signal number, and UserError at a non-finite loss.
    """
    config = stage.config
    streamed = loader.num_bytes(stage.dataset) > stage.device_data_limit
    say_data(stage, streamed)
    folder.mkdir(parents=True, exist_ok=True)
    asked_to_stop = hosts.agreed(asked_to_stop, stage.mesh)
    with (
        checkpoint.opened(folder / "checkpoints") as saved,
        profiling.tracer(stage.profile_steps, folder / "profile") as trace,
    ):
        start = latest_step(saved) or 0
        if start:
            abstract = abstract_state(stage, earlier)
            state, pending = checkpoint.restore(saved, start, abstract)
            logs.say(f"{stage.name}: resuming at step {start}")
        else:
            state, pending = initial_state(stage, earlier), {}
        hosts.lead(lambda: check_lines(folder, start, config))
        log = logs.MetricsFile(folder, start) if hosts.is_lead() else logs.Nowhere()
        means = logs.Means(pending)
        facts = {"parameters": count(state.params) // stage.num_seeds}
        if start >= config.steps:
            log.close()
            return state, facts
        batches = program_lib.feed(stage, start, streamed)
        data = next(batches)
        programs: dict[int, Any] = {}  # two sizes of call where the last is shorter
        progress = logs.Progress(stage.name, config.steps, start)
        meter = speed.Meter(stage.name, stage.mesh, start)
        shown, waiting, saving, step = "", None, None, start
        while step < config.steps:
            trace(step, state)
            size = program_lib.call_size(config, step)
            if size not in programs:
                pause = time.monotonic()
                work = traced(stage, streamed, size, state, data)
                programs[size] = meter.compiled(work, size, pause)
                progress.pause(time.monotonic() - pause)
            state, metrics = programs[size](state, data)
            step += size
            if waiting is not None:
                means.add(*waiting)
            waiting = (metrics, step)
            signal_number = asked_to_stop()
            log_now = step % config.log_every == 0 or step == config.steps
            eval_now = due(step, config.eval_every, config.steps) and evaluators
            save_now = due(step, config.checkpoint_every, config.steps)
            if log_now or eval_now or save_now or signal_number:
                means.add(*waiting)
                waiting = None
            line = means.flush() if log_now else {}
            clocks = meter.lap(step) if log_now else {}
            if eval_now:
                pause = time.monotonic()
                line |= measured(stage, folder, evaluators, state, log, step)
                meter.pause(time.monotonic() - pause)
                progress.pause(time.monotonic() - pause)
            if line:
                log.write(step, line, clocks)
                shown = headline(stage, line, shown)
            if save_now or signal_number:
                log.sync()
                if saving is not None:
                    saving.result()
                saving = checkpoint.save(saved, step, state, means.pending())
            if signal_number and step < config.steps:
                saving.result()
                log.close()
                raise Interrupted(
                    f"{stage.name}: saved at step {step} of {config.steps}; the same "
                    "command goes on from there",
                    signal_number,
                )
            progress.update(step, f"{shown}  {meter.shown}")
            if step < config.steps and streamed:
                data = next(batches)
        saving.result()
        log.close()
        batches.close()
        facts |= meter.facts(step)
    return state, facts


def traced(
    stage: Stage, streamed: bool, size: int, state: TrainState, data: Any
) -> jax.stages.Traced:
    """The call of `size` updates, for states and data placed like these."""
    placed = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(
        program_lib.multi_step(stage, streamed, size),
        donate_argnums=0,
        out_shardings=(placed, sharding.replicated(stage.mesh)),
    )
    return program.trace(state, data)


def compiled(
    stage: Stage, streamed: bool, size: int, state: TrainState, data: Any
) -> Callable:
    """The program of that call."""
    return traced(stage, streamed, size, state, data).lower().compile()


def check_lines(folder: Path, start: int, config: Any) -> None:
    """Raises UserError where lines from before the checkpoint at `start` are lost.

    They were on the disk before it was saved; the summary would lack them.
    """
    lines = logs.read(folder / "metrics.jsonl")
    last = max((line["step"] for line in lines), default=0)
    due = start if start == config.steps else start - start % config.log_every
    if last < due:
        raise UserError(
            f"{folder}/metrics.jsonl ends at step {last}, its lines up to step {due} "
            f"are lost: put the file back, or delete {folder} to train it again"
        )


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0 = never) and at the last."""
    return step == last or bool(every and step % every == 0)


def headline(stage: Stage, line: dict[str, Any], shown: str = "") -> str:
    """What to show beside the bar after `line`, when `shown` was there.

    The headline's last value; until it was measured, the loss.
    """
    for name in (stage.headline, "train/loss"):
        if name in line:
            return f"{name} {np.mean(line[name]):.4g}"
        if name and shown.startswith(f"{name} "):
            return shown
    return shown


def count(params: Any) -> int:
    """Numbers in a pytree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))


def say_data(stage: Stage, streamed: bool) -> None:
    """One line: how many rows, how many bytes, where they are."""
    total = loader.num_bytes(stage.dataset)
    rows = len(next(iter(stage.dataset.train.values())))
    where = "streamed from the host" if streamed else "on the device"
    mixed = sum(
        len(np.atleast_1d(next(iter(blend.arrays.values()))))
        for blend in stage.dataset.mix
        if not blend.per_seed
    )
    extra = f" + {mixed:,} mixed in" if mixed else ""
    logs.say(
        f"{stage.name}: {stage.dataset.info.get('name', 'data')}: {rows:,} rows{extra},"
        f" {total / 1e6:,.1f} MB {where}"
    )
