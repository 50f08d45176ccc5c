"""Items that a user does not have, drawn uniformly without rejection. Ours."""

import jax
import jax.numpy as jnp

from jaxrec.types import Array


def outside(
    key: Array, items: Array, target: Array, segment: Array, num_items: int
) -> Array:
    """For each event one of the items 1 .. num_items that its segment has not.

    items, target, segment: int32[B, T], the events of a row, what follows each (0 for
    nothing) and whose they are; a segment has the items of its events and its targets.
    One that has all items gets any but the event's target. -> int32[B, T].

    A rank among the items that are left is drawn, and the item of that rank found by
    bisection of the segment's own: with e_0 < e_1 < ... these, e_i - 1 - i others are
    below e_i. O(T log T) a row, no list of a user and nothing of the catalogue's size.
    """
    key_rank, key_any = jax.random.split(key)
    # What follows nothing has no target: the event itself stands for it.
    target_or_own = jnp.where(target > 0, target, items)
    own = jnp.concatenate([items, target_or_own], axis=1)
    whose = jnp.concatenate([segment, segment], axis=1)
    whose, own = jax.lax.sort((whose, own), dimension=1, num_keys=2)
    first = jnp.diff(whose, axis=1, prepend=whose[:, :1] - 1) != 0
    new = first | (jnp.diff(own, axis=1, prepend=own[:, :1]) != 0)
    total = jnp.cumsum(new, axis=1) - 1
    start = jax.lax.cummax(jnp.where(first, total, 0), axis=1)
    place = total - start  # i of e_i, the same for repeats
    below = own - 1 - place

    def smaller(rank: Array) -> Array:
        """How many of the segment's own have at most `rank` others below."""
        end = _bisect(whose, below, segment, rank) - 1
        at = jnp.maximum(end, 0)
        same = jnp.take_along_axis(whose, at, axis=1) == segment
        found = jnp.take_along_axis(place, at, axis=1) + 1
        return jnp.where(same & (end >= 0), found, 0)

    left = num_items - smaller(jnp.full_like(segment, num_items))
    rank = jax.random.randint(key_rank, segment.shape, 0, jnp.maximum(left, 1))
    other = jax.random.randint(key_any, segment.shape, 1, num_items)
    other = other + (other >= target_or_own)
    return jnp.where(left > 0, rank + 1 + smaller(rank), other)


def _bisect(high: Array, low: Array, of_high: Array, of_low: Array) -> Array:
    """Pairs at most (of_high, of_low) among sorted ones: int32[B, T] in 0 .. S.

    high, low: int32[B, S]; of_high, of_low: int32[B, T].
    """
    size = high.shape[1]

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = jnp.minimum((left + right) // 2, size - 1)
        h = jnp.take_along_axis(high, middle, axis=1)
        lo = jnp.take_along_axis(low, middle, axis=1)
        under = (h < of_high) | ((h == of_high) & (lo <= of_low))
        open_ = left < right
        left = jnp.where(open_ & under, middle + 1, left)
        return left, jnp.where(open_ & ~under, middle, right)

    ends = jnp.zeros_like(of_high), jnp.full_like(of_high, size)
    return jax.lax.fori_loop(0, size.bit_length(), halve, ends)[0]
