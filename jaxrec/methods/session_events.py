"""Sessions of what was shown, before and after the session world: arrays in and out.

A session stands at the left of [B, T] arrays: the items shown, their kinds (0 = click,
1 = purchase, 2 = ignored) and, in an outcome, whether the user left after the item.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.models.session_world import KINDS, OUTCOMES
from jaxrec.ops.history import align_left
from jaxrec.types import Array, Batch

IGNORED = KINDS - 1
SMOOTHING = 10.0  # showings of the mean item that counts start from, ours


def sessions(batch: Batch) -> tuple[Array, Array, Array, Array]:
    """Windows that end at the right: items, kinds, outcome int32[B, T], exists."""
    items, length = align_left(batch["item"], batch["mask"])
    kinds, _ = align_left(batch["kind"], batch["mask"])
    left, _ = align_left(batch["done"], batch["mask"])
    outcome = kinds + KINDS * left.astype(jnp.int32)
    return items, kinds, outcome, jnp.arange(items.shape[1])[None] < length[:, None]


def count_outcomes(info: dict[str, Any]) -> Array:
    """Shares of the outcomes of every item in training: float32[V, OUTCOMES]."""
    train = info["train"]
    outcome = np.asarray(train["kind"]) + KINDS * np.asarray(train["done"], np.int64)
    count = np.zeros((info["vocab"], OUTCOMES))
    np.add.at(count, (np.asarray(train["item"]), outcome), 1.0)
    mean = (count.sum(0) + 1.0) / (count.sum() + OUTCOMES)
    count += SMOOTHING * mean[None]
    return jnp.asarray(count / count.sum(1, keepdims=True), jnp.float32)


def auc(score: Array, positive: Array, weight: Array) -> Array:
    """P(score of a positive > that of a negative), ties half: float[], 0.5 without.

    score: float[N]; positive: bool[N]; weight: float[N], 0.0 leaves a row out.
    """
    up, down = weight * positive, weight * ~positive
    order = jnp.argsort(score)
    ordered = score[order]
    below = jnp.pad(jnp.cumsum(down[order]), (1, 0))
    first = below[jnp.searchsorted(ordered, score, side="left")]
    last = below[jnp.searchsorted(ordered, score, side="right")]
    pairs = jnp.sum(up) * jnp.sum(down)
    won = jnp.sum(up * (first + last)) / 2
    return jnp.where(pairs > 0, won / jnp.maximum(pairs, 1.0), 0.5)


def history(
    items: Array, kinds: Array, length: Array, size: int
) -> tuple[Array, Array, Array]:
    """The last events of sessions as a recommender sees them, from the left.

    int32[B, T] twice and int32[B] -> int32[B, size] with zeros behind, how many they
    are int32[B], and the number of all events int32[B].
    """
    slot = jnp.arange(items.shape[1])[None]
    event = (slot < length[:, None]) & (kinds != IGNORED)
    total = jnp.sum(event, axis=1)
    order = jnp.argsort(jnp.where(event, slot, items.shape[1]), axis=1)
    at = jnp.arange(size)[None] + jnp.maximum(total - size, 0)[:, None]
    index = jnp.take_along_axis(order, jnp.minimum(at, items.shape[1] - 1), axis=1)
    seen = jnp.take_along_axis(items, index, axis=1)
    count = jnp.minimum(total, size)
    return jnp.where(jnp.arange(size)[None] < count[:, None], seen, 0), count, total


def beginnings(
    arrays: Batch, first: np.ndarray, length: np.ndarray, window: int
) -> dict[str, np.ndarray]:
    """The `length` rows from `first` on of each session, read on the host.

    int64[B] each -> items, kinds int32[B, window], zero behind, and length int32[B].
    """
    slot = np.arange(window)[None, :]
    exists = slot < length[:, None]
    row = np.where(exists, first[:, None] + slot, first[:, None])
    found = {k: np.where(exists, arrays[k][row], 0) for k in ("item", "kind")}
    return dict(
        items=found["item"].astype(np.int32),
        kinds=found["kind"].astype(np.int32),
        length=length.astype(np.int32),
    )


def columns(
    found: dict[str, np.ndarray], start: np.ndarray, info: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The events of simulated sessions as flat columns of a recommender.

    A session is its logged events before `start`, to look back on, and the imagined
    ones, which are `drawn` (the first of a session only where the protocol scores it).
    A session that was cut, by the horizon or by the evaluator, ends with done 0: its
    target may bootstrap. Sessions without an imagined event are left out.
    """
    items, kinds = found["items"], found["kinds"]
    slot = np.arange(items.shape[1])[None, :]
    event = (slot < found["length"][:, None]) & (kinds != IGNORED)
    imagined = event & (slot >= start[:, None])
    event = event & imagined.any(axis=1, keepdims=True)
    timestep = np.cumsum(event, axis=1) - 1
    remaining = event.sum(axis=1, keepdims=True) - 1 - timestep
    reward = np.array([*info["rewards"], 0.0])[kinds] * event
    to_go = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
    last = remaining == 0
    drawn = imagined & ((timestep > 0) | info["protocol"]["score_first_event"])
    item = items[event]
    return dict(
        item=item.astype(np.int32),
        kind=kinds[event].astype(np.int32),
        reward=reward[event].astype(np.float32),
        timestep=timestep[event].astype(np.int32),
        next_item=np.where(last[event], 0, np.roll(item, -1)).astype(np.int32),
        done=(last & found["left"][:, None])[event].astype(np.float32),
        reward_to_go=to_go[event].astype(np.float32),
        remaining=remaining[event].astype(np.int32),
        drawn=drawn[event],
    )


def facts(rows: Batch, info: dict[str, Any]) -> dict[str, float]:
    """What was imagined, in numbers: `data_...` are those of the logged sessions."""
    drawn = np.asarray(rows["drawn"])
    last = np.asarray(rows["remaining"]) == 0
    train = info["train"]
    event = np.asarray(train["kind"]) != IGNORED
    found = dict(
        sessions=last.sum(),
        events=drawn.sum(),
        purchases=np.mean(np.asarray(rows["kind"])[drawn] == 1),
        data_purchases=np.mean(np.asarray(train["kind"])[event] == 1),
        ended=np.sum(rows["done"]) / last.sum(),
        items=len(np.unique(np.asarray(rows["item"])[drawn])),
    )
    return {name: float(value) for name, value in found.items()}
