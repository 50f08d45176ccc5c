"""Ranking metrics of recommenders as sums over batches, divided once at the end.

The rank of the target is counted, not sorted: 1 + the number of items that score
higher, and by the tie rule some of those that score the same. Everything is ranked:
the whole catalogue, no sampled negatives. HR, NDCG and cumulative reward as in SQN
(SIGIR 2020, arXiv 2006.05779), coverage and repetitiveness as in SMORL (WSDM 2022,
arXiv 2110.15097), corrected NDCG as in SA2C (WSDM 2022, arXiv 2111.03474).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.losses import softmax
from jaxrec.ops import catalogue
from jaxrec.types import Array, Batch

KS = (5, 10, 20)
# Share of the items, by count in train, that are not "less popular". Ours; the cut of
# the SMORL code is not known to us.
POPULAR = 0.1
TIES = ("mean", "optimistic", "pessimistic")


def _place(greater: Array, equal: Array, ties: str) -> Array:
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}: use one of {', '.join(TIES)}")
    share = dict(mean=0.5, optimistic=0.0, pessimistic=1.0)[ties]
    return 1.0 + greater + share * equal


def _beats(y: Array, own: Array, other: Array) -> tuple[Array, Array]:
    """How many of y[B, n] are above own[B] and how many equal, where `other`."""
    # "Not below" instead of ">": a target that scores NaN ranks last, not first.
    greater = jnp.sum(other & ~(y <= own[:, None]), axis=1)
    equal = jnp.sum(other & (y == own[:, None]), axis=1)
    return greater.astype(jnp.float32), equal.astype(jnp.float32)


def rank(scores: Array, target: Array, ties: str = "mean") -> Array:
    """Place of the target, from 1: float[B, V], int32[B] -> float32[B].

    Of the items that tie with the target none (`optimistic`), all (`pessimistic`) or
    half (`mean`, so that a constant score ranks in the middle) stand before it.
    """
    own = jnp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    other = jnp.arange(scores.shape[1])[None, :] != target[:, None]
    return _place(*_beats(scores, own, other), ties)


def top_k(scores: Array, k: int) -> Array:
    """int32[B, k], best first, the first of equals; 0 where only -inf is left."""
    value, item = catalogue.top_k(scores, k)
    return jnp.where(value == -jnp.inf, 0, item).astype(jnp.int32)


def rank_chunked(
    x: Array,
    table: Array,
    bias: Array | None,
    target: Array,
    size: int,
    num_items: int,
    k: int = max(KS),
    ties: str = "mean",
    seen: Array | None = None,
) -> tuple[Array, Array]:
    """rank and top_k of x W^T + b over items 1 .. num_items without a [B, V] array.

    x: float[B, D]; table: float[V, D]; bias: float[V]; at most `size` items at a time.
    `seen`: int32[B, L], items that score -inf. Returns float32[B] and int32[B, k].
    Scores that differ by rounding alone may tie here and not in `rank`.
    """
    if bias is None:
        bias = jnp.zeros(table.shape[0], table.dtype)
    # The diagonal of a product and not a sum of products, so that on accelerators the
    # target's score is rounded (TF32, bfloat16) like those that it is compared with.
    own = jnp.diagonal(x @ table[target].T) + bias[target]
    own = jnp.where((target > 0) & (target <= num_items), own, -jnp.inf)
    if seen is not None:
        own = jnp.where((seen == target[:, None]).any(axis=1), -jnp.inf, own)
    own = own.astype(jnp.float32)
    args = (table, bias), (x, target, own, seen)
    part = functools.partial(_rank_part, size=size, num_items=num_items, k=k)

    def split(items: Any, others: Any, start: Array) -> tuple[Array, ...]:
        greater, equal, value, best = part(items, others, start)
        counts = jax.lax.psum((greater, equal), catalogue.AXIS)
        return *counts, *catalogue.best_of_all(value, best, k)

    greater, equal, value, best = (
        catalogue.own_items(split, *args, (catalogue.WHOLE,) * 4)
        if catalogue.is_split(len(table))
        else part(*args, 0)
    )
    return _place(greater, equal, ties), jnp.where(value == -jnp.inf, 0, best)


def _rank_part(items, others, start, size, num_items, k):
    """How many items of a part beat the target and tie with it, and the top k."""
    (table, bias), (x, target, own, seen) = items, others
    size = softmax.chunk_size(len(table), size)
    row = jnp.arange(x.shape[0])[:, None]

    def body(carry: Any, piece: Any) -> tuple[Any, None]:
        (greater, equal), best, value = carry
        rows, b, exists, first = piece
        item = first + jnp.arange(size)
        y = (x @ rows.T + b[None]).astype(jnp.float32)
        y = jnp.where(exists[None], y, -jnp.inf)
        if seen is not None:
            # Negative places would count from the end: send them past it, to be lost.
            place = jnp.where(seen >= first, seen - first, size)
            y = y.at[row, place].set(-jnp.inf, mode="drop")
        other = (item[None, :] != target[:, None]) & (item < start + len(table))[None]
        more, same = _beats(y, own, other)
        new, here = jax.lax.top_k(y, min(k, size))
        # Carried items come first: they have the lower numbers, which win ties.
        value, order = jax.lax.top_k(jnp.concatenate([value, new], axis=1), k)
        best = jnp.concatenate([best, item[here]], axis=1)
        best = jnp.take_along_axis(best, order, axis=1)
        return ((greater + more, equal + same), best, value), None

    none = jnp.full((x.shape[0], k), -jnp.inf)
    begin = (jnp.zeros_like(own),) * 2, jnp.zeros(none.shape, jnp.int32), none
    pieces = softmax.chunks(table, bias, size, num_items, start)
    ((greater, equal), best, value), _ = jax.lax.scan(body, begin, pieces)
    return greater, equal, value, best


def facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What `ranking_sums` needs to know of the items, from the data's `info`.

    surprise: float32[V], -log2 of the item's share of the events of train;
    inverse: float32[V], 1 / beta, beta that share; attributes: bool[V, A] if any.
    An item unseen in train counts as seen once (ours): its share would be 0.
    """
    count = np.asarray(info["item_count"], np.float64)
    share = np.maximum(count, 1.0) / max(count.sum(), 1.0)
    found = dict(
        surprise=-np.log2(share).astype(np.float32),
        inverse=(1.0 / share).astype(np.float32),
    )
    if info.get("attributes") is not None:
        found["attributes"] = np.asarray(info["attributes"], bool)
    return found


def _diversity(topk: Array, attributes: Array) -> tuple[Array, Array]:
    """1 - mean cosine of the pairs of the first k, for each k, and whether one exists.

    int32[B, K], bool[V, A] -> float32[B, K], float32[B, K]. Items without attributes
    have no direction and make no pairs.
    """
    e = attributes[topk].astype(jnp.float32)
    squares = jnp.sum(e, axis=2)
    known = (squares > 0) & (topk > 0)
    e = e * (known / jnp.sqrt(jnp.maximum(squares, 1.0)))[:, :, None]
    n = jnp.cumsum(known.astype(jnp.float32), axis=1)
    pairs = n * (n - 1) / 2
    total = jnp.sum(jnp.square(jnp.cumsum(e, axis=1)), axis=2)
    cosine = (total - n) / 2 / jnp.maximum(pairs, 1.0)
    return jnp.where(pairs > 0, 1.0 - cosine, 0.0), (pairs > 0).astype(jnp.float32)


def ranking_sums(
    ranks: Array,
    topk: Array,
    batch: Batch,
    facts: Mapping[str, Array],
    ks: Sequence[int] = KS,
    num_kinds: int = 2,
) -> dict[str, Array]:
    """Sums over a batch of events; add them over batches, then `finish`.

    ranks: float[B]; topk: int32[B, >= max(ks)], 0 for none; batch: target int32[B],
    kind int32[B], reward float[B], and weight float[B], 0.0 for rows that only fill the
    batch. NDCG = 1 / log2(rank + 1) and MRR = 1 / rank where rank <= k, else 0; of a
    mean rank of 1.5 they are taken at 1.5.
    In the result the axis G is all events, then each kind; `recommended` float[ks, V].
    """
    facts = jax.tree.map(jnp.asarray, dict(facts))
    weight = batch["weight"].astype(jnp.float32)
    kind = batch["kind"][None, :] == jnp.arange(num_kinds)[:, None]
    group = jnp.concatenate([weight[None], weight[None] * kind])  # [G, B]
    hit = (ranks[None, :] <= jnp.asarray(ks)[:, None]).astype(jnp.float32)
    gain = 1.0 / jnp.log2(ranks + 1.0)
    inverse = facts["inverse"][batch["target"]]

    def total(values: Array) -> Array:
        # A sum and not a product: products are rounded to fewer bits on accelerators.
        return jnp.sum(group[:, None] * values[None], axis=-1)  # [G, ks]

    topk = topk[:, : max(ks)]
    exists = (topk > 0).astype(jnp.float32)
    novelty = jnp.cumsum(exists * facts["surprise"][topk], axis=1)
    novelty = novelty / jnp.maximum(jnp.cumsum(exists, axis=1), 1.0)
    column = jnp.asarray(ks) - 1
    shown = jnp.arange(topk.shape[1])[None, :] <= column[:, None]  # [ks, K]
    amount = shown[:, None] * (exists * weight[:, None])[None]  # [ks, B, K]
    recommended = jnp.zeros((len(ks), facts["inverse"].shape[0]))
    found = dict(
        count=jnp.sum(group, axis=1),
        hr=total(hit),
        ndcg=total(hit * gain[None]),
        mrr=total(hit / ranks[None]),
        corrected=total(hit * (gain * inverse)[None]),
        inverse=jnp.sum(group * inverse[None], axis=1),
        reward=jnp.sum(hit * (weight * batch["reward"])[None], axis=1),
        novelty=jnp.sum(weight[:, None] * novelty, axis=0)[column],
        recommended=recommended.at[:, topk].add(amount),
    )
    if "attributes" in facts:
        value, known = _diversity(topk, facts["attributes"])
        found["diversity"] = jnp.sum(weight[:, None] * value, axis=0)[column]
        found["diverse"] = jnp.sum(weight[:, None] * known, axis=0)[column]
    return found


def repetition_sums(
    topk: np.ndarray, session: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, np.ndarray]:
    """Items recommended again within a session, on the host: repeats [ks], sessions [].

    Sums over sessions of (#recommended - #unique) at k. What is unique depends on all
    events of a session, so the evaluator keeps the items of every event and calls this
    once, or for groups of WHOLE sessions, whose sums add. topk: int32[N, K]; session:
    int[N], any number of the session (row - timestep of the event is one).
    """
    _, session = np.unique(session, return_inverse=True)
    repeats = []
    for k in ks:
        pair = session[:, None] * (int(topk.max(initial=0)) + 1) + topk[:, :k]
        pair = pair[topk[:, :k] > 0]
        repeats.append(pair.size - np.unique(pair).size)
    number = session.max(initial=-1) + 1
    return dict(repeats=np.array(repeats, float), sessions=np.array(number, float))


def gini(count: np.ndarray) -> float:
    """Of float[n] >= 0: 0 where all are equal, towards 1 where one has everything."""
    count = np.sort(np.asarray(count, np.float64))
    place = np.arange(1, len(count) + 1)
    lean = ((2 * place - len(count) - 1) * count).sum()
    return float(lean / len(count) / count.sum())


def tail_items(item_count: np.ndarray, num_items: int) -> np.ndarray:
    """bool[num_items + 1]: all but the POPULAR share of the items; 0 is no item."""
    order = np.argsort(-np.asarray(item_count)[1 : num_items + 1], kind="stable") + 1
    tail = np.zeros(num_items + 1, bool)
    tail[order[int(np.ceil(POPULAR * num_items)) :]] = True
    return tail


def finish(
    sums: Mapping[str, Any], info: Mapping[str, Any], ks: Sequence[int] = KS
) -> dict[str, float]:
    """Sums of all batches -> metrics, such as "ndcg@10" and "purchase/hr@5".

    A class without events gives none. `reward@k` is the papers' cumulative reward, the
    SUM of the rewards of the hits; the others are means over events (repetitiveness:
    over sessions) or shares of the catalogue (coverage). With one relevant item an
    event's recall is its hit.
    """
    sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    found: dict[str, float] = {}
    for g, kind in enumerate(("", *(f"{name}/" for name in info["kinds"]))):
        count = sums["count"][g]
        if count == 0:
            continue
        found[f"{kind}count"] = count
        for i, k in enumerate(ks):
            for name in ("hr", "ndcg", "mrr"):
                found[f"{kind}{name}@{k}"] = sums[name][g, i] / count
            found[f"{kind}recall@{k}"] = found[f"{kind}hr@{k}"]
            corrected = sums["corrected"][g, i] / sums["inverse"][g]
            found[f"{kind}corrected_ndcg@{k}"] = corrected
    if not found:
        return {}
    size = info["num_items"]
    tail = tail_items(info["item_count"], size)
    for i, k in enumerate(ks):
        shown = sums["recommended"][i, : size + 1]
        found[f"reward@{k}"] = sums["reward"][i]
        found[f"novelty@{k}"] = sums["novelty"][i] / sums["count"][0]
        found[f"coverage@{k}"] = (shown[1:] > 0).mean()
        if tail.any():
            found[f"tail_coverage@{k}"] = (shown[tail] > 0).mean()
        if shown[1:].sum() > 0:
            found[f"gini@{k}"] = gini(shown[1:])
        if sums.get("sessions", 0) > 0:
            found[f"repetitiveness@{k}"] = sums["repeats"][i] / sums["sessions"]
        if "diverse" in sums and sums["diverse"][i] > 0:
            found[f"diversity@{k}"] = sums["diversity"][i] / sums["diverse"][i]
    return {name: float(value) for name, value in found.items()}
