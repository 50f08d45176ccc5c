"""What ranks items, of a run or of an export, and what is known of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxrec.index import Index
from jaxrec.types import Array


class Recommender(NamedTuple):
    """What ranks, and what is known of the items; numbers 1 to num_items are items.

    `scores(weights, items int32[B, L], length int32[B], timestep int32[B])` ->
    float32[B, V], see `types.Method`; hashable, as it is compiled for.
    """

    scores: Callable[..., Array]
    weights: Any
    ids: Sequence[Any]  # [num_items + 1], that of padding first
    numbers: Mapping[Any, int]  # of the ids
    titles: Sequence[str] | None  # [num_items + 1]
    popularity: np.ndarray  # float32[V], the scores of an empty history
    seq_len: int  # L
    mask_seen: bool  # whether the data's protocol leaves out items of the history
    index: Index | None = None  # that proposes items, None = all are scored
    mesh: Mesh | None = None  # that the weights are split over


def make(
    scores: Callable[..., Array], weights: Any, facts: Mapping[str, Any]
) -> Recommender:
    """A Recommender of data with these facts: `Dataset.info`, or what an export keeps.

    Until the first event everyone gets what is popular, as in on-line evaluation.
    """
    ids = np.asarray(facts["item_ids"]).tolist()
    popularity = np.full(facts["vocab"], -np.inf, np.float32)
    popularity[1 : len(ids)] = np.log1p(facts["item_count"][1 : len(ids)])
    return Recommender(
        scores=scores,
        weights=weights,
        ids=ids,
        numbers={item: number for number, item in enumerate(ids) if number},
        titles=facts["titles"],
        popularity=popularity,
        seq_len=facts["seq_len"],
        mask_seen=bool(facts["mask_seen"]),
    )
