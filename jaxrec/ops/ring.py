"""A ring buffer as pure functions: C rows in a pytree of arrays [n, C / n, ...].

n rows come at a time, each to its own place: where the mesh splits places, none moves.
Where the next rows go and how many there are are functions of how often rows were
added, which a learner knows from its step: nothing is stored but the rows, and under
`vmap` over seeds the slot stays one number, so that a row is written where it is.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.types import Array, UserError


def check(name: str, capacity: int, rows: int) -> None:
    """Raises UserError unless a ring of `capacity` takes `rows` at a time."""
    if capacity < rows or capacity % rows:
        raise UserError(
            f"{name}={capacity}: it must be a multiple of the {rows} rows that come "
            "at a time"
        )


def empty(rows: Any, capacity: int) -> Any:
    """Zeros [n, C / n, ...] for rows like these [n, ...] (arrays or their shapes)."""

    def one(x: Any) -> Array:
        num = x.shape[0]
        return jnp.zeros((num, capacity // num, *x.shape[1:]), x.dtype)

    return jax.tree.map(one, rows)


def put(ring: Any, rows: Any, times: Array) -> Any:
    """The ring after `rows` [n, ...] came in; int32[] `times` is how often before.

    The oldest rows are overwritten.
    """

    def one(old: Array, new: Array) -> Array:
        slot = times % old.shape[1]
        return jax.lax.dynamic_update_index_in_dim(old, new, slot, 1)

    return jax.tree.map(one, ring, rows)


def filled(capacity: int, rows: int, times: Array) -> Array:
    """int32[], rows that the ring holds after it was put `rows` `times` times."""
    return jnp.minimum(times, capacity // rows) * rows


def draw(ring: Any, key: Array, size: Array, batch: int) -> Any:
    """`batch` of the `size` rows that are held, each as likely, with repetition.

    Places and rows drawn are dealt into as many groups as divide both, and each group
    of rows is drawn from one of places: a mesh that splits both moves no row.
    """
    num = len(jax.tree.leaves(ring)[0])
    groups = math.gcd(num, batch)
    key_place, key_slot = jax.random.split(key)
    shape = groups, batch // groups
    place = jax.random.randint(key_place, shape, 0, num // groups)
    slot = jax.random.randint(key_slot, shape, 0, size // num)

    def one(x: Array) -> Array:
        parts = x.reshape(groups, num // groups, *x.shape[1:])
        found = jax.vmap(lambda part, i, j: part[i, j])(parts, place, slot)
        return found.reshape(batch, *x.shape[2:])

    return jax.tree.map(one, ring)
