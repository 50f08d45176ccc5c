"""Baselines that only count: popularity, popularity in the session, the last items.

Nothing is trained by gradient: a TrainState has no `params` ({}) and no optimiser
(`opt_state` None); `extra` holds tables counted once, on the host, from the training
events, so that a checkpoint can score without its data. An update only counts itself.

Popular items are hard to beat on skewed catalogues, and the items just seen are hard to
beat where people come back to them (purchases): a learned method has to do better.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS: dict[str, Any] = {}  # of all three: nothing to choose

TIE = 1e-6  # what popularity adds at most to scores of size 1, ours


@struct.dataclass
class Counts:
    popularity: Array  # float32[V], training events of the item / of the first item


def pairs(info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """Distinct (session, item), int64[P] each, by session; the number of sessions.

    A session starts where `timestep` does not go on counting. Raises UserError where
    the training events are not those that `item_count` counts: pieces of sessions come
    with their histories again, which would be sessions of their own.
    """
    item = np.asarray(info["train"]["item"], np.int64)
    if not np.array_equal(np.bincount(item, minlength=info["vocab"]), _count(info)):
        raise UserError(
            f"counting pairs takes whole sessions: of the {len(item)} training "
            f"events of {info.get('name', 'the data')} {_count(info).sum():.0f} count, "
            "the others are histories again; give whole sessions (of ready buffers "
            "sampled_train.df), or leave item_knn, sknn and vsknn out of the stages"
        )
    timestep = np.asarray(info["train"]["timestep"])
    starts = np.ones(len(item), bool)
    starts[1:] = timestep[1:] != timestep[:-1] + 1
    session = np.cumsum(starts) - 1
    vocab = info["vocab"]
    unique = np.unique(session * vocab + item)
    return unique // vocab, unique % vocab, int(starts.sum())


def _count(info: dict[str, Any]) -> np.ndarray:
    return np.asarray(info["item_count"], np.float64)


def popularity(info: dict[str, Any]) -> Array:
    """float32[V] in [0, 1]; 1.0 for the item with the most training events."""
    count = _count(info)
    return jnp.asarray(count / max(count.max(), 1), jnp.float32)


def counted(
    tables: Any, info: dict[str, Any], score: Callable[[Any, Array, Array], Array]
) -> Method:
    """A Method of counted tables with a field `popularity`.

    `score(tables, items int32[B, L], length int32[B]) -> float32[B, V]`, 0 to 1 and 0
    where it knows nothing. Popularity breaks ties: it adds at most TIE, so it can only
    turn the order of scores that differ by less, and beside a score near 1, where
    float32 has steps of 6e-8, it tells apart about 16 degrees of popularity. What is no
    item gets -inf.
    """
    item = np.arange(info["vocab"])
    exists = jnp.asarray((item > 0) & (item <= info["num_items"]))

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        # Copies, because training donates the state.
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params={},
            opt_state=None,
            extra=jax.tree.map(jnp.copy, tables),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        return state.replace(step=state.step + 1), dict(loss=jnp.zeros(()))

    def scores(
        state: TrainState, items: Array, length: Array, timestep: Array
    ) -> Array:
        y = score(state.extra, items, length)
        y = y + TIE * state.extra.popularity[None]
        return jnp.where(exists[None], y, -jnp.inf)

    return Method(init, train_step, scores=scores)


def scatter_add(items: Array, values: Array, vocab: int) -> Array:
    """float32[B, V]: sums of values float[B, M] over items int32[B, M]."""
    row = jnp.arange(items.shape[0])[:, None]
    zeros = jnp.zeros((items.shape[0], vocab), jnp.float32)
    return zeros.at[row, items].add(values)


def normalise(y: Array) -> Array:
    """float[B, V], each row divided by its largest value unless all are 0."""
    top = jnp.max(y, axis=1, keepdims=True)
    return y / jnp.where(top > 0, top, 1.0)


def make_pop(config: Any, info: dict[str, Any]) -> Method:
    """POP: the number of training events of an item, whatever the session."""

    def score(tables: Counts, items: Array, length: Array) -> Array:
        return jnp.zeros((items.shape[0], info["vocab"]), jnp.float32)

    return counted(Counts(popularity(info)), info, score)


def make_session_pop(config: Any, info: dict[str, Any]) -> Method:
    """S-POP (Hidasi et al., "Session-based Recommendations with Recurrent Neural
    Networks", 2016): the share of an item in the last L events of the session; ties,
    and items not among them, by POP."""

    def score(tables: Counts, items: Array, length: Array) -> Array:
        exists = jnp.arange(items.shape[1])[None] < length[:, None]
        share = exists / jnp.maximum(length, 1)[:, None]
        return scatter_add(items, share, info["vocab"])

    return counted(Counts(popularity(info)), info, score)


def make_last_item(config: Any, info: dict[str, Any]) -> Method:
    """Repeat: the items of the session, the most recent first; then POP.

    The score of an item last seen t events ago (t = 0: the last) is 1 - t / L.
    """

    def score(tables: Counts, items: Array, length: Array) -> Array:
        batch, size = items.shape
        place = jnp.arange(size)[None]
        recency = 1.0 - (length[:, None] - 1 - place) / size
        recency = jnp.where(place < length[:, None], recency, 0.0)
        zeros = jnp.zeros((batch, info["vocab"]), jnp.float32)
        return zeros.at[jnp.arange(batch)[:, None], items].max(recency)

    return counted(Counts(popularity(info)), info, score)
