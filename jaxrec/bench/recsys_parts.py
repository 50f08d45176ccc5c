"""Parts of `recsys`: softmaxes of large catalogues, SASRec's epoch, full ranking."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrec import metrics, recommender_evaluators
from jaxrec.bench import timing
from jaxrec.losses import sampled_softmax, softmax
from jaxrec.types import Dataset, Method

BESIDE = Path(__file__).parents[3] / "shared" / "data"  # where the checkout has it
USERS, ITEMS, LENGTH = 943, 1_682, 50  # ML-100K, and the last events that are read


def _problem(vocab: int, width: int, batch_size: int) -> list[jax.ShapeDtypeStruct]:
    shapes = [(batch_size, width), (vocab, width), (vocab,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return [*args, jax.ShapeDtypeStruct((batch_size,), jnp.int32)]


def _gradients(loss: Callable[..., Any]) -> Any:
    """loss(x, table, bias, target, ...) -> jitted value and gradients of the first."""
    return jax.jit(
        lambda *args: jax.value_and_grad(
            lambda *p: loss(*p, *args[3:]).mean(), argnums=(0, 1, 2)
        )(*args[:3])
    )


def softmax_memory(
    vocab: int, width: int, batch_size: int, size: int
) -> dict[str, Any]:
    """Temporary bytes of cross entropy with gradients, plain and in chunks."""
    size = softmax.chunk_size(vocab, size)

    def temporary(loss: Callable[..., Any]) -> int:
        lowered = _gradients(loss).lower(*_problem(vocab, width, batch_size))
        return timing.memory(lowered.compile())["temporary_bytes"]

    return dict(
        table_bytes=4 * vocab * batch_size,
        plain=temporary(lambda x, t, b, a: softmax.cross_entropy(x @ t.T + b[None], a)),
        chunked=temporary(
            lambda x, t, b, a: softmax.chunked_cross_entropy(x, t, b, a, size, vocab)
        ),
    )


def softmax_times(vocab: int, rounds: int, negatives: int = 256) -> dict[str, float]:
    """CPU-ms of a loss with its gradients (batch 256, width 64): full and sampled."""
    num_items, size = vocab - 1, softmax.chunk_size(vocab, 4_096)
    count = 1e6 / np.arange(1.0, vocab + 1)
    uniform = sampled_softmax.sampler(count, num_items, negatives)
    popular = sampled_softmax.sampler(count, num_items, negatives, 1.0)

    def sampled(found: sampled_softmax.Sampler) -> Callable[..., Any]:
        def loss(x: Any, t: Any, b: Any, a: Any, key: Any) -> Any:
            drawn = found.draw(key)
            return sampled_softmax.sampled_cross_entropy(x, t, b, a, drawn, found.log_q)

        return loss

    losses = dict(
        full=lambda x, t, b, a, key: softmax.chunked_cross_entropy(
            x, t, b, a, size, num_items
        ),
        uniform=sampled(uniform),
        popular=sampled(popular),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    args = (
        jax.random.normal(keys[0], (256, 64)),
        0.1 * jax.random.normal(keys[1], (vocab, 64)),
        jnp.zeros(vocab),
        jax.random.randint(keys[2], (256,), 1, num_items + 1),
        keys[3],
    )
    steps = {name: _gradients(loss) for name, loss in losses.items()}
    rivals = {name: (lambda f=f: f(*args), 1) for name, f in steps.items()}
    found = timing.in_turn(rivals, rounds)
    return {name: round(time.ms(), 1) for name, time in found.items()}


def histories(path: str = "") -> tuple[list[np.ndarray], str]:
    """The users' items in time order without the last two (leave one out).

    From RecBole's `ml-100k.inter` where it is, otherwise made: as many users and items
    and about as many events.
    """
    root = Path(path or os.environ.get("JAXREC_SHARED_DATA") or BESIDE)
    file = root / "ml-100k" / "ml-100k.inter"
    if file.is_file():
        rows = np.loadtxt(file, skiprows=1, delimiter="\t")
        rows = rows[np.lexsort((rows[:, 3], rows[:, 0]))]
        cuts = np.flatnonzero(np.diff(rows[:, 0])) + 1
        found = [u[:-2] for u in np.split(rows[:, 1].astype(np.int32), cuts)]
        return found, "ML-100K"
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.2, 0.95, USERS).astype(int), 18, 700)
    found = [draw.permutation(np.arange(1, ITEMS + 1))[:n] for n in lengths]
    return [items.astype(np.int32) for items in found], "made"


def ranking_times(
    method: Method,
    state: Any,
    dataset: Dataset,
    tables: tuple[Any, Any],
    num_items: int,
    rounds: int,
) -> dict[str, float]:
    """CPU-seconds to rank the set "test" whole, [512, V] scores at a time.

    `evaluator`: all metrics as in training; `whole` and `chunked`: places and best
    items alone, from scores [512, V] or without them, of one batch, for as many rows.
    """
    config = ConfigDict(dict(eval=dict(batch_size=512)))
    evaluate = recommender_evaluators.ranking(config, method, dataset)
    (table, bias), rows = tables, len(dataset.evals["test"]["item"])
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (512, table.shape[1]))
    target = jax.random.randint(keys[1], (512,), 1, num_items + 1)

    @jax.jit
    def whole(x: Any, table: Any, bias: Any) -> Any:
        y = x @ table.T + bias[None]
        return metrics.rank(y, target), metrics.top_k(y, max(metrics.KS))

    @jax.jit
    def chunked(x: Any, table: Any, bias: Any) -> Any:
        return metrics.rank_chunked(x, table, bias, target, 4_096, num_items)

    def run() -> Any:
        return list(evaluate(state, jax.random.key(1)).values())

    batches = rows / 512
    found = timing.in_turn(
        {
            "evaluator": (run, 1),
            "whole": (lambda: whole(x, table, bias), 1 / batches),
            "chunked": (lambda: chunked(x, table, bias), 1 / batches),
        },
        rounds,
    )
    return {name: round(time.ms() / 1e3, 2) for name, time in found.items()}
