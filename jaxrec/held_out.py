"""Held-out rows, batch by batch; of several processes each takes its share of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrec import hosts, logs
from jaxrec.data import loader
from jaxrec.types import Array, Batch, Dataset, Method, TrainState


def num_rows(dataset: Dataset, name: str) -> int:
    """Rows to predict of `dataset.evals[name]`."""
    arrays, drawn = dataset.evals[name], dataset.drawn.get(name)
    return len(next(iter(arrays.values())) if drawn is None else drawn)


def num_batches(dataset: Dataset, name: str, batch_size: int) -> int:
    """How many batches `batches` gives."""
    return -(-num_rows(dataset, name) // batch_size)


def batch_of(dataset: Dataset, name: str, batch_size: int, number: int) -> Batch:
    """Batch `number` of `batches`."""
    drawn, size = dataset.drawn.get(name), num_rows(dataset, name)
    place = np.arange(number * batch_size, (number + 1) * batch_size)
    index = np.minimum(place, size - 1)
    if drawn is not None:
        index = drawn[index]
    batch = loader.gather(dataset.evals[name], index, dataset.window, np)
    if dataset.info.get("mask_seen"):
        batch["seen"] = histories(dataset, name, index)
    return batch | {"weight": (place < size).astype(np.float32)}


def histories(dataset: Dataset, name: str, index: np.ndarray) -> np.ndarray:
    """All items before rows int64[B] of a held-out set, however many windows see.

    int32[B, H], 0 where nothing is; H is the longest history of the set's drawn rows.
    """
    arrays = {k: dataset.evals[name][k] for k in ("item", "timestep")}
    rows = dataset.drawn.get(name, slice(None))
    longest = int(np.max(arrays["timestep"][rows]))
    found = loader.gather(arrays, index, longest + 1, np)
    return np.where(found["mask"], found["item"], 0)[:, :-1]


def batches(dataset: Dataset, name: str, batch_size: int) -> Iterator[Batch]:
    """Held-out rows of `dataset.evals[name]` in order.

    The last batch is filled with rows of weight 0. Numpy arrays [B, ...], or windows
    [B, K, ...] with their `mask`. Data whose `info` says `mask_seen` also give "seen":
    see `histories`.
    """
    for number in range(num_batches(dataset, name, batch_size)):
        yield batch_of(dataset, name, batch_size, number)


def each(
    step: Callable[[int, Batch], Any], dataset: Dataset, name: str, batch_size: int
) -> Iterable[Any]:
    """step(number, batch) of every batch of `dataset.evals[name]`, in order.

    Batches are those of `batches`; see `hosts.each` for the results.
    """

    def one(number: int) -> Any:
        return step(number, batch_of(dataset, name, batch_size, number))

    return hosts.each(one, num_batches(dataset, name, batch_size))


def evaluator(
    config: Any, method: Method, dataset: Dataset
) -> Callable[..., dict[str, Any]]:
    """`method.eval_step` over every held-out set: sums, divided once by the count."""
    batch_size = config.eval.batch_size
    step = jax.jit(method.eval_step)
    if not dataset.evals:
        logs.say("held_out: nothing is held out, set data.valid_fraction")

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, Any]:
        def one(number: int, batch: Batch) -> dict[str, Array]:
            return step(state, batch, jax.random.fold_in(key, number))

        found: dict[str, Any] = {}
        for name in dataset.evals:
            sums: dict[str, Any] = {}
            for new in each(one, dataset, name, batch_size):
                sums = {k: sums.get(k, 0.0) + v for k, v in new.items()}
            sums = jax.device_get(sums)
            count = sums.pop("count")
            found |= {f"{name}/{k}": v / count for k, v in sums.items()}
        return found

    return evaluate
