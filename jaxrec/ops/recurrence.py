"""What the selective scans share: their result, chunks of time, and affine maps.

A stretch of time maps the state that enters it affinely: h_out = P h_in + h_local with
P = exp(A sum dt) elementwise, or h_out = h_local where the stretch contains a reset.
Chunks that run side by side and devices that hold a part of time each are both joined
by this one fact (`entry_states`).

Letters here: T time, B batch, D channels, N size of the state of a channel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.types import Array


class Decay(NamedTuple):
    """How a stretch of time shrinks what enters it: exp(A total) alive.

    total: float32[B, D] (or [B, H]), the sum of dt. alive: float32[B], 1.0 unless a
    reset occurred. Both are small; the [B, D, N] factor is formed only where needed.
    """

    total: Array
    alive: Array


class Scan(NamedTuple):
    """y: float32[T, B, ...], the state after the last step, and the decay of all T."""

    y: Array
    h_last: Array
    decay: Decay


class Stretch(NamedTuple):
    """A stretch of time as a map of the state that enters it, see `across`.

    factor: float[B, ...], P, of the rank of a state (axes of size 1 where P is shared);
    finite, also where nothing passes. local: float[B, ...], the state that it ends with
    when it starts from zero. cut: bool[B], True where a reset lets nothing through;
    None = nowhere.
    """

    factor: Array
    local: Array
    cut: Array | None

    def across(self, h: Array) -> Array:
        """The state that leaves, of the state `h` that enters."""
        return self.factor * forget(self.cut, h) + self.local


def forget(reset: Array | None, h: Array) -> Array:
    """h float[B, ...] with zeros in the rows of bool[B] `reset`; None: h.

    A choice, not a product with zero: that would keep a NaN, and so would its gradient.
    """
    if reset is None:
        return h
    return jnp.where(reset.reshape(-1, *(1,) * (h.ndim - 1)), 0, h)


def working_dtype(*arrays: Array) -> Any:
    """float32, or float64 where an input has it: states are never narrower."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*arrays))


def decay_of(dt: Array, reset: Array | None, dtype: Any) -> Decay:
    """The decay of a stretch: dt float[T, B, ...], reset bool[T, B]."""
    total = jnp.sum(dt.astype(dtype), axis=0)
    if reset is None:
        return Decay(total, jnp.ones(dt.shape[1], dtype))
    return Decay(total, 1 - jnp.any(reset, axis=0).astype(dtype))


def even_chunk(length: int, chunk: int) -> int:
    """The chunk, at most `chunk`, that covers `length` steps with the least padding."""
    if length < 1 or chunk < 1:
        raise ValueError(
            f"a scan of {length} steps in chunks of {chunk}: both must be positive"
        )
    return -(-length // -(-length // chunk))


def split(tree: Any, chunk: int) -> Any:
    """[T, ...] -> [T / chunk, chunk, ...], behind the last step padded with zeros.

    Zeros are the identity of a scan: dt = 0 neither decays the state nor adds to it,
    so the state after the padding is the state after the last real step.
    """

    def cut(x: Array) -> Array:
        pad = -x.shape[0] % chunk
        if pad:
            x = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    return jax.tree.map(cut, tree)


def merge(tree: Any, length: int) -> Any:
    """Undoes `split`: [T / chunk, chunk, ...] -> [length, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], tree)


def entry_states(stretches: Stretch, h0: Array) -> tuple[Array, Array]:
    """The state that enters each of n stretches of time, and the one that leaves last.

    stretches: with a leading axis of n. h0: float[B, ...] enters the first.
    """
    last, entries = jax.lax.scan(lambda h, s: (s.across(h), h), h0, stretches)
    return entries, last
