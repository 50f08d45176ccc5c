"""Held-out rows, batch by batch; of several processes each takes its share of them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxrec import hosts, logs
from jaxrec.data import loader
from jaxrec.types import Array, Batch, Dataset, Method, TrainState


def each(
    step: Callable[[int, Batch], Any], dataset: Dataset, name: str, batch_size: int
) -> Iterable[Any]:
    """step(number, batch) of every batch of `dataset.evals[name]`, in order.

    Batches are those of `loader.eval_batches`; see `hosts.each` for the results.
    """

    def one(number: int) -> Any:
        return step(number, loader.eval_batch(dataset, name, batch_size, number))

    return hosts.each(one, loader.num_eval_batches(dataset, name, batch_size))


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
