"""Item-kNN: the items most often in the same sessions as the last ones.

The baseline of Hidasi et al., "Session-based Recommendations with Recurrent Neural
Networks" (2016). "code" below is the public session-rec. Only the nearest items of each
are kept, in two tables [V, neighbours]; nothing is as large as V x V.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy import sparse  # comes with JAX

from jaxrec.methods import popularity
from jaxrec.types import Array, Method, UserError

HPARAMS = dict(
    neighbours=100,  # kept for each item, code
    damping=20.0,  # of rare items, code; 0 = the plain cosine
    alpha=0.5,  # 0.5 = cosine, 1.0 = confidence of association rules, code
    history=1,  # last events of the session that count; code: the last one
)


@struct.dataclass
class ItemTables:
    popularity: Array  # float32[V]
    neighbours: Array  # int32[V, N], 0 where there are fewer than N
    weights: Array  # float32[V, N], 0.0 likewise


def item_tables(config: Any, info: dict[str, Any], chunk: int = 1024) -> ItemTables:
    """The most similar items of each item, `chunk` items at a time."""
    session, item, num_sessions = popularity.pairs(info)
    vocab, size = info["vocab"], min(config.neighbours, info["vocab"])
    ones = np.ones(len(item), np.float64)
    by_item = sparse.csr_matrix((ones, (item, session)), (vocab, num_sessions))
    by_session = by_item.T.tocsr()
    support = np.bincount(item, minlength=vocab) + float(config.damping)
    left, right = support**config.alpha, support ** (1.0 - config.alpha)
    neighbours = np.zeros((vocab, size), np.int32)
    weights = np.zeros((vocab, size), np.float32)
    for start in range(0, vocab, chunk):
        both = (by_item[start : start + chunk] @ by_session).tocoo()
        row, column, together = both.row, both.col, both.data
        keep = row + start != column
        row, column, together = row[keep], column[keep], together[keep]
        similarity = together / (left[row + start] * right[column])
        order = np.lexsort((column, -similarity, row))
        row, column, similarity = row[order], column[order], similarity[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        near = rank < size
        place = (row[near] + start, rank[near])
        neighbours[place], weights[place] = column[near], similarity[near]
    return ItemTables(
        popularity.popularity(info), jnp.asarray(neighbours), jnp.asarray(weights)
    )


def make(config: Any, info: dict[str, Any]) -> Method:
    """Item-kNN, the baseline of Hidasi et al. (2016), as session-rec regularises it.

        sim(i, j) = |S_i & S_j| / (n_i^alpha n_j^(1 - alpha)),  n_i = |S_i| + damping

    S_i: training sessions with item i (code: events, so that repeats count). The score
    of j is the sum of sim(i, j) over the last `history` events i, divided by the
    largest; only the `neighbours` nearest of each i are kept.
    """
    if config.neighbours < 1 or config.history < 1:
        raise UserError(
            f"item_knn has neighbours={config.neighbours} and history="
            f"{config.history}: both must be at least 1"
        )

    def score(tables: ItemTables, items: Array, length: Array) -> Array:
        place = jnp.arange(items.shape[1])[None]
        recent = place >= length[:, None] - config.history
        known = jnp.where(recent & (place < length[:, None]), items, 0)
        flat = (items.shape[0], items.shape[1] * tables.weights.shape[1])
        near, weight = tables.neighbours[known], tables.weights[known]
        y = popularity.scatter_add(
            near.reshape(flat), weight.reshape(flat), info["vocab"]
        )
        return popularity.normalise(y)

    return popularity.counted(item_tables(config, info), info, score)
