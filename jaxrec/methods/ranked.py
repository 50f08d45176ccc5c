"""What a trained network of a recommender gives: the rest of its Method.

Scores of all items by one of its heads, the same as factors for an index, values of the
items taken, and the held-out loss.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxrec.methods import windows
from jaxrec.methods.recommender import apply, state_of
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Factors, Method, TrainState, UserError


def method(
    network: networks.Recommender,
    info: dict[str, Any],
    init: Callable[..., TrainState],
    train_step: Callable[..., Any],
    head: str = "logits",
    values: bool = False,
) -> Method:
    """One that ranks by a head of the network in `state.params`: "logits" or "q".

    `values`: its value head tells what actions are worth. Raises UserError for another
    head.
    """
    scores = make_scores(network, info, head)
    return Method(
        init,
        train_step,
        make_eval_step(scores),
        scores=scores,
        values=make_values(network) if values else None,
        factors=make_factors(network, info, head),
        splits_time=getattr(network.encoder, "splits_time", False),
    )


def make_scores(
    network: networks.Recommender, info: dict[str, Any], head: str = "logits"
) -> Callable[..., Array]:
    """Method.scores by a head of the network, from `state.params`: "logits" or "q".

    Raises UserError for another head.
    """
    if head not in ("logits", "q"):
        raise UserError(f"rank_by={head!r} is unknown: use logits or q")

    def scores(
        state: TrainState,
        items: Array,
        length: Array,
        timestep: Array,
        gap: Array | None = None,
    ) -> Array:
        x = apply(network, state.params, "state", items, length, False, gap)
        return only_items(apply(network, state.params, head, x), info)

    return scores


def make_factors(
    network: networks.Recommender, info: dict[str, Any], head: str = "logits"
) -> Factors | None:
    """Those of `make_scores`.

    None where logits are cosines over a temperature, and of data with gaps: an index is
    asked without times.
    """
    if network.temperature or info.get("gaps"):
        return None
    table = dict(logits="ce_table", q="q_table")[head]

    def query(state: TrainState, items: Array, length: Array, timestep: Array) -> Array:
        return state_of(network, state.params, items, length)

    def rows(state: TrainState) -> tuple[Array, Array]:
        return apply(network, state.params, table)

    return Factors(query, rows)


def only_items(y: Array, info: dict[str, Any]) -> Array:
    """float[B, V] with -inf for what is no item."""
    item = jnp.arange(info["vocab"])
    exists = (item > 0) & (item <= info["num_items"])
    return jnp.where(exists[None], y.astype(jnp.float32), -jnp.inf)


def make_eval_step(scores: Callable[..., Array]) -> Callable[..., dict[str, Array]]:
    """Held-out cross entropy of the softmax of some `Method.scores`."""

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        event = windows.transition(batch)
        y = scores(state, *event.history)
        loss = optax.softmax_cross_entropy_with_integer_labels(y, event.action)
        weight = batch["weight"]
        return dict(loss=jnp.sum(weight * loss), count=jnp.sum(weight))

    return eval_step


def make_values(network: networks.Recommender) -> Callable[..., dict[str, Array]]:
    """Method.values of a network with one value head, from `state.params`."""

    def values(state: TrainState, batch: Batch) -> dict[str, Array]:
        event = windows.transition(batch)
        x = state_of(network, state.params, event.items, event.length)
        return dict(q_data=apply(network, state.params, "q_at", x, event.action))

    return values
