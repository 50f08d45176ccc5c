"""Many updates of a stage as one program, and the data that it is fed."""

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxrec import seeds, sharding
from jaxrec.data import loader
from jaxrec.types import Batch, Dataset, Method, TrainState


class Stage(NamedTuple):
    """What the loop needs to know of a stage; see `experiment` for who builds it."""

    name: str
    config: Any  # steps, batch_size, log_every, eval_every, ...
    method: Method
    dataset: Dataset
    seed: int
    num_seeds: int
    mesh: jax.sharding.Mesh
    rules: tuple[Any, ...] = ()  # see `rules`
    device_data_limit: int = 1 << 30  # bytes; larger sets are streamed from the host
    headline: str = ""
    profile_steps: int = 0  # see `profiling`
    # From a fresh state to the one of step 0; None = the same.
    begin: Callable[[TrainState], TrainState] | None = None


def streams(stage: Stage) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys (of each seed) for init, training and evaluation, apart in each stage."""
    key = seeds.keys(stage.seed, stage.num_seeds)
    key = seeds.fold(key, zlib.crc32(stage.name.encode()))
    return seeds.fold(key, 0), seeds.fold(key, 1), seeds.fold(key, 2)


def steps_per_call(config: Any) -> int:
    """The largest divisor of all cadences that does not exceed the config's.

    The last call of a stage makes the steps that are left, see `call_size`.
    """
    cadences = (config.log_every, config.eval_every, config.checkpoint_every)
    common = math.gcd(*(every for every in cadences if every < config.steps))
    most = min(config.steps_per_call, config.steps)
    return max(n for n in range(1, most + 1) if common % n == 0)


def call_size(config: Any, step: int) -> int:
    """Updates of the call that begins at `step`; up to a multiple of all calls' size.

    So the calls of a resumed run are those of the undisturbed one.
    """
    size = steps_per_call(config)
    return min(size - step % size, config.steps - step)


def multi_step(stage: Stage, streamed: bool, size: int = 0) -> Callable:
    """(state, data) -> (state, metrics [n, ...]): n updates in one program.

    `data` is the whole set on the device, n being `size` (0 = `steps_per_call`), or
    with `streamed` n stacked batches.
    """
    config, dataset = stage.config, stage.dataset
    many = stage.num_seeds > 1
    train_key = streams(stage)[1]
    order = seeds.numbers(stage.seed, stage.num_seeds)
    found = loader.parts(dataset, config.batch_size)
    step_fn = seeds.vmap_step(stage.method.train_step, stage.num_seeds)

    def draw(trees: Any, seed: Any, step: Any) -> Batch:
        placed = [
            part._replace(arrays=arrays, drawn=drawn)
            for part, (arrays, drawn) in zip(found, trees)
        ]
        return loader.draw(placed, seed, step, dataset.window)

    if many:
        axes = [(0 if part.per_seed else None,) * 2 for part in found]
        draw = jax.vmap(draw, in_axes=(axes, 0, None))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        batch = sharding.split_batch(stage.mesh, batch, int(many))
        with sharding.in_use(stage.mesh, batches=True):
            return step_fn(state, batch, seeds.fold(train_key, state.step))

    size = size or steps_per_call(config)

    def from_device(state: TrainState, arrays: Any) -> tuple[TrainState, dict]:
        def body(state: TrainState, _: None) -> tuple[TrainState, dict]:
            return update(state, draw(arrays, order, state.step))

        return jax.lax.scan(body, state, length=size)

    def from_host(state: TrainState, batches: Batch) -> tuple[TrainState, dict]:
        return jax.lax.scan(update, state, batches)

    return from_host if streamed else from_device


def feed(stage: Stage, start: int, streamed: bool) -> Iterator[Any]:
    """The data argument of each call of `multi_step`."""
    config, mesh = stage.config, stage.mesh
    rows = sharding.own_rows(mesh, config.batch_size)
    if not streamed:
        found = loader.parts(stage.dataset, config.batch_size)
        trees = [(part.arrays, part.drawn) for part in found]
        arrays = sharding.put(mesh, trees)
        while True:
            yield arrays
    order = seeds.numbers(stage.seed, stage.num_seeds)
    size = steps_per_call(config)
    for batches in loader.stream(
        stage.dataset, config.batch_size, order, start, config.steps, size, only=rows
    ):
        leading = 1 + int(stage.num_seeds > 1)
        yield sharding.put_rows(mesh, batches, config.batch_size, leading)
