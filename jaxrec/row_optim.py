"""Adam on the rows of a table that a batch touches: a step costs rows, not the table.

With 32M items of 64 numbers the table has 8 GB and dense Adam moves four times that in
every step. Here the rows of a batch are gathered, the loss is differentiated with
respect to them, and rows and their moments are scattered back. The moments of other
rows stay as they are ("lazy" Adam, as in TensorFlow's addons), where dense Adam would
decay them and move those rows on.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.types import Array


@struct.dataclass
class Moments:
    """float32[V, D] each: of the gradients of the table and of their squares."""

    mean: Array
    square: Array


def init(table: Array) -> Moments:
    """Zeros of the table's shape."""
    return Moments(jnp.zeros(table.shape), jnp.zeros(table.shape))


def distinct(ids: Any, num_rows: int) -> tuple[Array, Any]:
    """(int32[M], ids as indices into it) of a pytree of int32 arrays.

    M is min(number of ids, V), whatever the batch holds: places that are left over have
    the number V, which `gather` clips and `update` drops.
    """
    leaves, tree = jax.tree.flatten(ids)
    flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
    rows, inverse = jnp.unique(
        flat,
        return_inverse=True,
        size=min(len(flat), num_rows),
        fill_value=num_rows,
    )
    parts, first = [], 0
    for leaf in leaves:
        part = inverse.reshape(-1)[first : first + leaf.size]
        parts.append(part.reshape(leaf.shape))
        first += leaf.size
    return rows, jax.tree.unflatten(tree, parts)


def gather(table: Array, rows: Array) -> Array:
    """float[M, D] of int32[M] from `distinct`."""
    return table.at[rows].get(mode="clip")


def update(
    grads: Array,
    rows: Array,
    table: Array,
    moments: Moments,
    step: Array,
    rate: Array | float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Array, Moments]:
    """One step of Adam (Kingma & Ba 2015) on the rows: (new table, new moments).

    grads: float[M, D] with respect to `gather(table, rows)`; step: int32[], updates
    done before, of the table and not of the row.
    """
    mean = b1 * gather(moments.mean, rows) + (1 - b1) * grads
    square = b2 * gather(moments.square, rows) + (1 - b2) * grads**2
    count = (step + 1).astype(jnp.float32)
    down = (mean / (1 - b1**count)) / (jnp.sqrt(square / (1 - b2**count)) + eps)

    def put(whole: Array, part: Array) -> Array:
        return whole.at[rows].set(part.astype(whole.dtype), mode="drop")

    table = put(table, gather(table, rows) - rate * down)
    return table, Moments(put(moments.mean, mean), put(moments.square, square))
