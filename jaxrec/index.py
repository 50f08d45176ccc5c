"""An approximate index of the items for `jaxrec.recommend`: faiss's HNSW graph.

Scores are products (x, 1) . (w_i, b_i), and the graph's edges are by the product itself
(Morozov and Babenko, NeurIPS 2018). With one more coordinate that gives all items one
length (Bachrach et al., RecSys 2014) distances would do as well in theory: of 10,000
Gaussian rows whose lengths vary by a third that graph found 0.21 to 0.92 of the top 10,
this one 0.99. The graph proposes, exact products order: what an index costs is recall,
never a wrong score. For catalogues where a product with every item is too dear.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrec.errors import UserError

KINDS = ("faiss",)
LINKS, BUILD = 32, 100  # of a node, and candidates while it is built; ours
BEAM = 128  # candidates kept in a search, for 16 items or fewer; ours


class Index(NamedTuple):
    """`query(weights, items, length, timestep)` -> float32[B, D], as `Method.factors`.

    table: float32[V, D], bias: float32[V]; item 0 and those above num_items are none.
    """

    query: Callable[..., Any]
    table: np.ndarray
    bias: np.ndarray
    graph: Any  # of items 1 to num_items, whose numbers there begin at 0


def build(
    query: Callable[..., Any], table: Any, bias: Any, num_items: int, kind: str
) -> Index:
    """The index of a head's rows.

    Raises UserError for another kind and where its package is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"index {kind!r} is unknown: use {', '.join(KINDS)}")
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "index faiss: the package is not installed, pip install 'jaxrec[index]'"
        ) from error
    table, bias = np.asarray(table, np.float32), np.asarray(bias, np.float32)
    rows = np.column_stack([table, bias])[1 : num_items + 1]
    graph = faiss.IndexHNSWFlat(rows.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD
    graph.add(np.ascontiguousarray(rows, np.float32))
    return Index(query, table, bias, graph)


def search(index: Index, x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32[B, count], items int32[B, count]) for states float32[B, D].

    The best first; -inf and item 0 where the graph found fewer.
    """
    import faiss

    x = np.asarray(x, np.float32)
    asked = np.column_stack([x, np.ones(len(x), np.float32)])
    beam = faiss.SearchParametersHNSW(efSearch=max(BEAM, 8 * count))
    asked = np.ascontiguousarray(asked)
    items = 1 + index.graph.search(asked, count, params=beam)[1]  # -1 for none
    scores = np.einsum("bd,bkd->bk", x, index.table[items]) + index.bias[items]
    scores = np.where(items > 0, scores, -np.inf).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    return (
        np.take_along_axis(scores, order, 1),
        np.take_along_axis(items, order, 1).astype(np.int32),
    )


def top(
    index: Index,
    weights: Any,
    items: np.ndarray,
    length: np.ndarray,
    timestep: np.ndarray,
    seen: np.ndarray,
    popularity: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, items) [B, k], best first, of histories without the items `seen`.

    As `recommend` scores all items: empty histories by popularity, and of a row where
    all items are seen none is left out.
    """
    # What is left out may be proposed.
    spare = max((np.count_nonzero(np.unique(row)) for row in seen), default=0)
    count = int(min(k + spare, index.graph.ntotal))  # faiss takes no numpy number
    scores, best = search(index, index.query(weights, items, length, timestep), count)
    popular = np.argsort(-popularity, kind="stable")[:count]
    scores = np.where(length[:, None] == 0, popularity[popular], scores)
    best = np.where(length[:, None] == 0, popular, best)
    fresh = np.where((best[:, :, None] == seen[:, None]).any(2), -np.inf, scores)
    scores = np.where(np.isfinite(fresh).any(1, keepdims=True), fresh, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
