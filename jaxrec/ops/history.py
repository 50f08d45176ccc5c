"""Histories of fixed size: int32[B, L] items from the left, zeros behind them."""

import jax.numpy as jnp

from jaxrec.types import Array


def align_left(items: Array, exists: Array) -> tuple[Array, Array]:
    """What windows [B, L] that end at the right hold: from the left, and how many.

    `exists`: bool[B, L], False before the start of the session.
    """
    size = items.shape[1]
    length = jnp.sum(exists, axis=1).astype(jnp.int32)
    place = jnp.arange(size)[None, :]
    index = jnp.minimum(place + (size - length)[:, None], size - 1)
    moved = jnp.take_along_axis(items, index, axis=1)
    return jnp.where(place < length[:, None], moved, 0), length


def append(
    items: Array, length: Array, item: Array, where: Array | bool = True
) -> tuple[Array, Array]:
    """Histories and lengths int32[B] with int32[B] items more, where bool[B] says so.

    A full history loses its oldest item.
    """
    where = jnp.broadcast_to(where, length.shape)
    size = items.shape[1]
    full = (length == size)[:, None]
    longer = jnp.where(full, jnp.roll(items, -1, axis=1), items)
    place = jnp.minimum(length, size - 1)
    longer = longer.at[jnp.arange(len(items)), place].set(item)
    items = jnp.where(where[:, None], longer, items)
    return items, jnp.minimum(length + where, size)
