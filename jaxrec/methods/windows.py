"""From windows of a log to transitions: what the sequential recommenders learn from.

A window holds L + 1 events of a session and ends at the one to predict. A method learns
from that event alone, as the code of the SQN papers draws them, or from all events of
the window in one pass of the encoder, which costs little more and gives up to L times
the transitions; the losses are the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrec.ops.history import align_left
from jaxrec.types import Array, Batch, UserError


class Transition(NamedTuple):
    """N events of B sessions, with the histories before them and with them.

    Either the last event of each window (N = B), or all P events of each (N = B P, in
    the order of the windows), whose states one pass of a causal encoder gives: P = L,
    or L + 1 where the first event of a session is predicted from the empty history.
    Histories stand from the left, zeros behind them.
    """

    items: Array  # int32[B, L], the last L events before the window's last
    length: Array  # int32[B], how many of them exist, 0 to L
    next_items: Array  # int32[B, L], the last L events with the window's last
    next_length: Array  # int32[B], 1 to L
    next_place: Array | None  # int32[B, P], where among those each event stands
    action: Array  # int32[N], the item
    previous: Array  # int32[N], the item before, 0 where there is none
    reward: Array  # float32[N]
    kind: Array  # int32[N], 0 = click, 1 = purchase
    done: Array  # float32[N], 1.0 at the last event of the session
    timestep: Array  # int32[N], index in the session
    reward_to_go: Array  # float32[N]
    remaining: Array  # int32[N], events after this one
    next_action: Array  # int32[N], the next item, 0 at the last event
    weight: Array  # float32[N], 0.0 where the window has no event
    gap: Array | None = None  # float32[B, L], seconds before each of `items`, if known

    @property
    def history(self) -> tuple[Array, ...]:
        """What `Method.scores` reads of it."""
        known = self.items, self.length, self.timestep
        return known if self.gap is None else (*known, self.gap)

    def mean(self, x: Array) -> Array:
        """Over the events that exist: [N] -> []."""
        x = jnp.where(self.weight > 0, x, 0.0)
        return jnp.sum(x) / jnp.maximum(jnp.sum(self.weight), 1.0)


# Columns of the windows that transitions keep, under the names of Transition.
COLUMNS = dict(
    action="item",
    reward="reward",
    kind="kind",
    done="done",
    timestep="timestep",
    reward_to_go="reward_to_go",
    remaining="remaining",
    next_action="next_item",
)


def transition(batch: Batch) -> Transition:
    """Windows [B, L + 1] of events, which end at the event to predict."""
    item, mask = batch["item"], batch["mask"]
    items, length = align_left(item[:, :-1], mask[:, :-1])
    next_items, next_length = align_left(item[:, 1:], mask[:, 1:])
    newest = jnp.maximum(length - 1, 0)[:, None]
    gap = align_left(batch["gap"][:, :-1], mask[:, :-1])[0] if "gap" in batch else None
    return Transition(
        items=items,
        length=length,
        next_items=next_items,
        next_length=next_length,
        next_place=None,
        previous=jnp.take_along_axis(items, newest, axis=1)[:, 0],
        weight=jnp.ones(len(item)),
        gap=gap,
        **{name: batch[column][:, -1] for name, column in COLUMNS.items()},
    )


def transitions(batch: Batch, first_too: bool = False) -> Transition:
    """As `transition`, of every event of the windows; see Transition.

    The first event of a window has no history there. `first_too`: it counts where it
    is the first of its session, but in full windows, whose next state has lost it.

    Over an epoch, whose windows end at every event, the event that is k-th from the end
    of its session counts min(k, L) times: the last ones seldom. Weights that even it
    out were no better on MovieLens-100K (GRU by CE, NDCG@10 0.075 against 0.083).
    """
    last = transition(batch)
    item, mask = batch["item"], batch["mask"]
    size = item.shape[1]
    count = jnp.sum(mask, axis=1).astype(jnp.int32)[:, None]
    full = count == size
    place = jnp.arange(0 if first_too else 1, size)[None]  # [1, P] among the events
    column = jnp.minimum(place + size - count, size - 1)  # [B, P]

    def at(column: Array, x: Array) -> Array:
        return jnp.take_along_axis(x, column, axis=1).reshape(-1)

    exists = place < count
    if first_too:
        starts = jnp.take_along_axis(batch["timestep"], column, axis=1) == 0
        exists = exists & ((place > 0) | (starts & ~full))
    before = at(jnp.maximum(column - 1, 0), item)
    return last._replace(
        next_place=jnp.clip(place - full, 0, size - 2),
        previous=jnp.where((exists & (place > 0)).reshape(-1), before, 0),
        weight=exists.reshape(-1).astype(jnp.float32),
        **{
            name: jnp.where(exists.reshape(-1), at(column, batch[source]), 0)
            for name, source in COLUMNS.items()
        },
    )


def make_reader(config: Any, info: dict[str, Any]) -> Callable[[Batch], Transition]:
    """What a method learns from a batch, by `config.positions`.

    Raises UserError for an unknown choice.
    """
    if config.positions not in ("last", "all"):
        raise UserError(f"positions {config.positions!r} is unknown: use last or all")
    if config.positions == "last":
        return transition
    first_too = bool(info.get("protocol", {}).get("score_first_event", False))
    return lambda batch: transitions(batch, first_too)
