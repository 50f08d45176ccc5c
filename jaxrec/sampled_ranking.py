"""Ranks among 1,000 drawn items: the protocol of RecMamba's code, for comparison alone.

What it tells depends on how the negatives are drawn, and orders of methods by it differ
from those of the full ranking (Krichene & Rendle 2020): `ranking` is the one to report.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import held_out, metrics
from jaxrec.methods import windows
from jaxrec.types import Array, Batch, Dataset, Method, TrainState

NEGATIVES = 1_000  # RecMamba's code
FOLD = 0x5A  # of the key that draws them: the same at every evaluation, ours


def candidates(key: Array, target: Array, seen: Array, num_items: int) -> Array:
    """int32[B, 1 + n], the target first; 0 where there are fewer other items.

    Uniform, without repeats, none of `seen` int32[B, L] (0 = nothing) and not the
    target int32[B].
    """
    draw = jax.random.uniform(key, (len(target), num_items + 1))
    row = jnp.arange(len(target))[:, None]
    barred = jnp.concatenate([target[:, None], seen, 0 * target[:, None]], axis=1)
    draw = draw.at[row, barred].set(-1.0)
    value, item = jax.lax.top_k(draw, min(NEGATIVES, num_items))
    item = jnp.where(value >= 0, item, 0).astype(jnp.int32)
    return jnp.concatenate([target[:, None], item], axis=1)


def evaluator(
    config: Any, method: Method, dataset: Dataset
) -> Callable[..., dict[str, float]]:
    """`<set>/sampled_1000/hr@10`, `ndcg@10`, ... of the held-out events.

    Negatives are none of the history's items, with `mask_seen` of all of it, else as
    far as it is encoded; the code bars those of the training set, which the item before
    the target in the test is not.
    """
    num_items = dataset.info["num_items"]

    @jax.jit
    def step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        event = windows.transition(batch)
        scores = method.scores(state, *event.history)
        seen = batch.get("seen", event.items)
        items = candidates(key, event.action, seen, num_items)
        found = jnp.take_along_axis(scores, items, axis=1)
        found = jnp.where(items > 0, found, -jnp.inf)
        ranks = metrics.rank(found, jnp.zeros_like(event.action))
        sums = dict(count=jnp.sum(batch["weight"]))
        for k in metrics.KS:
            hit = batch["weight"] * (ranks <= k)
            sums[f"hr@{k}"] = jnp.sum(hit)
            sums[f"ndcg@{k}"] = jnp.sum(hit / jnp.log2(ranks + 1.0))
        return sums

    def evaluate(state: TrainState, key: Array) -> dict[str, float]:
        def one(number: int, batch: Batch) -> dict[str, Array]:
            own = jax.random.fold_in(jax.random.key(FOLD), number)
            return step(state, batch, own)

        found = {}
        for name in dataset.evals:
            sums: dict[str, Any] = {}
            for new in held_out.each(one, dataset, name, config.eval.batch_size):
                sums = {k: sums.get(k, 0.0) + v for k, v in new.items()}
            sums = jax.device_get(sums)
            count = sums.pop("count")
            for metric, value in sums.items():
                found[f"{name}/sampled_1000/{metric}"] = float(value / count)
        return found

    return evaluate
