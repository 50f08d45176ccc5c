"""Arrays of small things for many games at once: the games on the last axis.

The rules are written for one game on arrays [cells or tanks, ...], where `...` is
empty or a batch. `jax.vmap` would put the batch first and leave inner loops of six
tanks; `batch_last` gives vmap a rule that puts it last, so that every operation is one
straight loop over games, which a CPU runs eight or sixteen at a time. For the same
reason sums over tanks are unrolled into elementwise operations.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.types import Array


def batch_last(core: Callable[..., Any]) -> Callable[..., Any]:
    """`core`, whose vmap runs it once on arrays with the batch as their last axis."""
    mapped = jax.custom_batching.custom_vmap(core)

    @mapped.def_vmap
    def rule(axis_size, batched, *args):
        def behind(x, is_batched):
            if is_batched:
                return jnp.moveaxis(x, 0, -1)
            return jnp.broadcast_to(x[..., None], (*x.shape, axis_size))

        found = core(*jax.tree.map(behind, args, tuple(batched)))
        found = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), found)
        return found, jax.tree.map(lambda _: True, found)

    return mapped


def where_any(
    active: Array, phase: Callable[[Any], Any], carry: Any, otherwise: Any = None
) -> Any:
    """phase(carry) if any is active in any game, else `otherwise` (or the carry).

    A phase must change nothing where nothing is active. Besides the work saved, this
    is a wall for the compiler, which on a CPU would fuse a whole tick and compute
    early phases again inside each later one, at several times the cost.
    """
    idle = carry if otherwise is None else otherwise
    return jax.lax.cond(jnp.any(active), phase, lambda _: idle, carry)


def anyof(x: Array) -> Array:
    """Whether any along the first axis."""
    return functools.reduce(operator.or_, [x[i] for i in range(len(x))])


def total(x: Array) -> Array:
    """Sum, or union of bits that do not overlap, along the first axis."""
    return functools.reduce(operator.add, [x[i] for i in range(len(x))])


def union(x: Array) -> Array:
    """Union of bits along the first axis."""
    return functools.reduce(operator.or_, [x[i] for i in range(len(x))])


def at(board: Array, cell: Array) -> Array:
    """board[cell] for a flat board [cells, ...] and cells int32[K, ...] inside it."""
    return jnp.take_along_axis(board, cell, axis=0, mode="promise_in_bounds")


def tall(values: Any, like: Array) -> Array:
    """Constants [K] as [K, 1, ...], to stand beside an array [., ...]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def flat(board: Array) -> Array:
    """[H, W, ...] as [cells, ...]."""
    return board.reshape(-1, *board.shape[2:])
