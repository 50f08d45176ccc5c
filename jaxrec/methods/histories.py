"""Rows of whole histories, of which every event is predicted from those before it."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxrec.ops import history
from jaxrec.types import Array, Batch


class Examples(NamedTuple):
    """B rows of T events from the left, and what is to be predicted after each."""

    items: Array  # int32[B, T]
    length: Array  # int32[B]
    target: Array  # int32[B, T], 0 for none
    reset: Array | None  # bool[B, T], the first events of histories; None: windows
    gap: Array | None  # float32[B, T], seconds before each event; None: not known


def examples(batch: Batch, packed: bool) -> Examples:
    """Of packed rows (see data.packing) or of windows [B, L + 1] with their mask."""
    if packed:
        real = batch["segment"] > 0
        length = jnp.sum(real, axis=1).astype(jnp.int32)
        reset = real & (batch["position"] == 0)
        gap = batch.get("gap")
        return Examples(batch["item"], length, batch["next_item"], reset, gap)
    items, length = history.align_left(batch["item"], batch["mask"])
    gap = None
    if "gap" in batch:
        gap = history.align_left(batch["gap"], batch["mask"])[0][:, :-1]
    length = jnp.maximum(length - 1, 0)
    return Examples(items[:, :-1], length, items[:, 1:], None, gap)


def segments(rows: Examples) -> Array:
    """int32[B, T]: a number for each history; 0 where there is no event."""
    real = jnp.arange(rows.items.shape[1])[None] < rows.length[:, None]
    if rows.reset is None:
        return real.astype(jnp.int32)
    number = 1 + jnp.cumsum(rows.reset, axis=1, dtype=jnp.int32)
    return jnp.where(real, number, 0)
