"""The one training loop, for every method.

Many updates run in one call on the device: the batch is drawn there (or arrives from a
reading thread), the key is folded from the step, and nothing is fetched but the metrics
of the call before. A checkpoint holds the state and the metrics not yet written, so a
run that was killed writes the same lines and ends in the same state.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec import checkpoint, logs, seeds, sharding
from jaxrec.data import loader
from jaxrec.errors import Interrupted, UserError
from jaxrec.types import Batch, Dataset, Method, TrainState

Evaluator = Callable[[TrainState, jax.Array], dict[str, Any]]


class Stage(NamedTuple):
    """What the loop needs to know of a stage; see `experiment` for who builds it."""

    name: str
    config: Any  # steps, batch_size, log_every, eval_every, ...
    method: Method
    dataset: Dataset
    seed: int
    num_seeds: int
    mesh: jax.sharding.Mesh
    rules: tuple[sharding.Rule, ...] = ()
    device_data_limit: int = 2 << 30  # bytes; larger sets are streamed from the host
    headline: str = ""


def streams(stage: Stage) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys (of each seed) for init, training and evaluation, apart in each stage."""
    key = seeds.keys(stage.seed, stage.num_seeds)
    key = seeds.fold(key, zlib.crc32(stage.name.encode()))
    return seeds.fold(key, 0), seeds.fold(key, 1), seeds.fold(key, 2)


def abstract_state(stage: Stage, earlier: dict[str, TrainState]) -> TrainState:
    """Shapes, dtypes and shardings of the stage's state; nothing is computed."""
    init = seeds.vmap_init(stage.method.init, stage.num_seeds)
    batch = loader.host_batch(
        stage.dataset, stage.config.batch_size, np.uint32(stage.seed), 0
    )
    shapes = jax.eval_shape(init, streams(stage)[0], batch, earlier)
    leading = int(stage.num_seeds > 1)
    placed = sharding.place(stage.mesh, shapes, stage.rules, leading)
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
    return jax.jit(init, out_shardings=placed)(streams(stage)[0], batch, earlier)


def restore(stage: Stage, folder: Path, earlier: dict[str, TrainState]) -> TrainState:
    """The last checkpoint of a finished stage."""
    with checkpoint.open_folder(folder / "checkpoints") as saved:
        if checkpoint.latest_step(saved) is None:
            raise UserError(
                f"{folder} has no checkpoint although its stage is marked done: delete "
                f"{folder} to train it again"
            )
        return checkpoint.restore(saved, abstract_state(stage, earlier))[0]


def steps_per_call(config: Any) -> int:
    """The largest divisor of all cadences that does not exceed the config's."""
    common = math.gcd(
        config.steps, config.log_every, config.eval_every, config.checkpoint_every
    )
    return max(n for n in range(1, config.steps_per_call + 1) if common % n == 0)


def multi_step(stage: Stage, streamed: bool) -> Callable:
    """(state, data) -> (state, metrics [n, ...]): n updates in one program.

    `data` is the whole set on the device, or with `streamed` n stacked batches.
    """
    config, dataset = stage.config, stage.dataset
    many = stage.num_seeds > 1
    train_key = streams(stage)[1]
    order = seeds.numbers(stage.seed, stage.num_seeds)
    found = loader.parts(dataset, config.batch_size)
    counts = [count for count, _, _ in found]
    step_fn = seeds.vmap_step(stage.method.train_step, stage.num_seeds)

    def draw(arrays: Any, seed: Any, step: Any) -> Batch:
        return loader.draw(arrays, counts, seed, step, dataset.window)

    if many:
        axes = [0 if per_seed else None for _, _, per_seed in found]
        draw = jax.vmap(draw, in_axes=(axes, 0, None))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        batch = sharding.split_batch(stage.mesh, batch, int(many))
        return step_fn(state, batch, seeds.fold(train_key, state.step))

    size = steps_per_call(config)

    def from_device(state: TrainState, arrays: Any) -> tuple[TrainState, dict]:
        def body(state: TrainState, _: None) -> tuple[TrainState, dict]:
            return update(state, draw(arrays, order, state.step))

        return jax.lax.scan(body, state, length=size)

    def from_host(state: TrainState, batches: Batch) -> tuple[TrainState, dict]:
        return jax.lax.scan(update, state, batches)

    return from_host if streamed else from_device


def feed(stage: Stage, start: int, streamed: bool) -> Iterator[Any]:
    """The data argument of each call of `multi_step`."""
    config, whole = stage.config, sharding.replicated(stage.mesh)
    if not streamed:
        found = loader.parts(stage.dataset, config.batch_size)
        arrays = jax.device_put([dict(arrays) for _, arrays, _ in found], whole)
        while True:
            yield arrays
    order = seeds.numbers(stage.seed, stage.num_seeds)
    size = steps_per_call(config)
    for batches in loader.stream(
        stage.dataset, config.batch_size, order, start, config.steps, size
    ):
        yield jax.device_put(batches, whole)


class Window:
    """Sums of the training metrics since the last line of the log."""

    def __init__(self, pending: dict[str, Any]) -> None:
        self.count = pending.get("count", 0)
        self.sums = {k: np.asarray(v) for k, v in pending.get("sums", {}).items()}

    def add(self, metrics: dict[str, Any], last_step: int) -> None:
        """Add the metrics [n, ...] of one call; stop at a loss that is not finite."""
        metrics = jax.device_get(metrics)
        size = len(metrics["loss"])
        finite = np.isfinite(metrics["loss"]).reshape(size, -1).all(-1)
        if not finite.all():
            step = last_step - size + int(np.argmin(finite)) + 1
            raise UserError(
                f"loss is not finite at step {step}: the last checkpoint is kept; "
                "lower the learning rate or look at the data near that step"
            )
        for name, value in metrics.items():
            total = value.astype(np.float64).sum(0)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += size

    def flush(self) -> dict[str, Any]:
        """Means since the last flush, as `train/<name>`."""
        means = {f"train/{k}": v / self.count for k, v in self.sums.items()}
        self.count, self.sums = 0, {}
        return means

    def pending(self) -> dict[str, Any]:
        """JSON form, exact, for the checkpoint."""
        return {
            "count": self.count,
            "sums": {name: value.tolist() for name, value in self.sums.items()},
        }


def evaluate(
    stage: Stage, evaluators: dict[str, Evaluator], state: TrainState
) -> dict[str, Any]:
    """Every evaluator on every seed: name -> float, or float[S]."""
    step = int(state.step)
    key = seeds.fold(streams(stage)[2], step)
    results = []
    for number in range(stage.num_seeds):
        one = seeds.pick(state, number, stage.num_seeds)
        found: dict[str, Any] = {}
        for place, evaluator in enumerate(evaluators.values()):
            key_of = seeds.fold(seeds.pick(key, number, stage.num_seeds), place)
            found |= evaluator(one, key_of)
        results.append(found)
    if stage.num_seeds == 1:
        return results[0]
    return {name: np.stack([r[name] for r in results]) for name in results[0]}


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
    size = steps_per_call(config)
    streamed = loader.num_bytes(stage.dataset) > stage.device_data_limit
    say_data(stage, streamed)
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.open_folder(folder / "checkpoints") as saved:
        start = checkpoint.latest_step(saved) or 0
        if start:
            state, pending = checkpoint.restore(saved, abstract_state(stage, earlier))
            logs.say(f"{stage.name}: resuming at step {start}")
        else:
            state, pending = initial_state(stage, earlier), {}
        log = logs.MetricsFile(folder, start)
        window = Window(pending)
        facts = {"parameters": count(state.params) // stage.num_seeds}
        if start >= config.steps:
            log.close()
            return state, facts
        batches = feed(stage, start, streamed)
        data = next(batches)
        begun = time.monotonic()
        placed = jax.tree.map(lambda x: x.sharding, state)
        program = jax.jit(
            multi_step(stage, streamed),
            donate_argnums=0,
            out_shardings=(placed, sharding.replicated(stage.mesh)),
        )
        program = program.lower(state, data).compile()
        facts |= {
            "compile_seconds": round(time.monotonic() - begun, 2),
            "temporary_bytes": temporary_bytes(program),
        }
        progress = logs.Progress(stage.name, config.steps, start)
        shown, waiting, saving, paused = "", None, None, 0.0
        begun = time.monotonic()
        for step in range(start + size, config.steps + 1, size):
            state, metrics = program(state, data)
            if waiting is not None:
                window.add(*waiting)
            waiting = (metrics, step)
            signal_number = asked_to_stop()
            log_now = step % config.log_every == 0 or step == config.steps
            eval_now = due(step, config.eval_every, config.steps) and evaluators
            save_now = due(step, config.checkpoint_every, config.steps)
            if log_now or eval_now or save_now or signal_number:
                window.add(*waiting)
                waiting = None
            line = window.flush() if log_now else {}
            if eval_now:
                pause = time.monotonic()
                line |= evaluate(stage, evaluators, state)
                paused += time.monotonic() - pause
                progress.pause(time.monotonic() - pause)
            if line:
                log.write(step, line)
                shown = headline(stage, line) or shown
            if save_now or signal_number:
                log.sync()
                if saving is not None:
                    saving.result()
                saving = checkpoint.save(saved, step, state, window.pending())
            if signal_number and step < config.steps:
                saving.result()
                log.close()
                raise Interrupted(
                    f"{stage.name}: saved at step {step} of {config.steps}; the same "
                    "command goes on from there",
                    signal_number,
                )
            progress.update(step, shown)
            if step < config.steps and streamed:
                data = next(batches)
        saving.result()
        log.close()
        batches.close()
        seconds = time.monotonic() - begun - paused
        facts["steps_per_second"] = round((config.steps - start) / seconds, 1)
    return state, facts


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0 = never) and at the last."""
    return step == last or bool(every and step % every == 0)


def headline(stage: Stage, line: dict[str, Any]) -> str:
    """The metric to show beside the bar."""
    name = stage.headline if stage.headline in line else "train/loss"
    if name not in line or (name == "train/loss" and stage.headline in line):
        return ""
    return f"{name} {np.mean(line[name]):.4g}"


def count(params: Any) -> int:
    """Numbers in a pytree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))


def temporary_bytes(program: Any) -> int | None:
    """Scratch memory of the compiled program, where the backend tells."""
    analysis = program.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


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
