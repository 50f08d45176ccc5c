"""What the selective scans share: arguments, result, chunks of time, affine maps.

A stretch of time maps the state that enters it affinely: h_out = P h_in + h_local with
P = exp(A sum dt) elementwise, or h_out = h_local where the stretch contains a reset.
Chunks that run side by side and devices that hold a part of time each are both joined
by this one fact (`entry_states`).

Letters here: T time, B batch, D channels, N size of the state of a channel.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.types import Array


class Steps(NamedTuple):
    """The sequences that a scan reads, time first.

    u: float[T, B, D], or of heads (`ssd`) [T, B, H, P]. dt: float[T, B, D] or
    [T, B, H], >= 0; dt = 0 leaves the state alone (padding). B, C: float[T, B, N].
    reset: bool[T, B], True where a step forgets all that came before it; None: nowhere.

    Chunks of them have the axis of chunks before T, a single step has no T.
    """

    u: Array
    dt: Array
    B: Array
    C: Array
    reset: Array | None = None

    def astype(self, dtype: Any) -> "Steps":
        """The numbers in `dtype`; resets stay what they are."""
        return Steps(*(x.astype(dtype) for x in self[:4]), self.reset)


# An implementation: (steps, A, h0, chunk) -> (y, h_last), all of one dtype but the
# steps, which may be narrower. A: float[D, N], or float[H] of heads; h0: float[B, D, N]
# or [B, H, P, N]; chunk: the steps that are kept, or multiplied, together.
Core = Callable[[Steps, Array, Array, int], tuple[Array, Array]]


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


def scan(
    cores: Mapping[str, Core],
    impl: str,
    steps: Steps,
    A: Array,
    h0: Array | None,
    chunk: int,
) -> Scan:
    """`cores[impl]` on arguments as they come, and the decay.

    Raises ValueError for an unknown impl and for shapes that do not fit.
    """
    if impl not in cores:
        raise ValueError(f"impl={impl!r}: one of {', '.join(cores)}, or auto")
    check_shapes(steps)
    dtype = working_dtype(A, *steps[:4])
    if h0 is None:
        h0 = no_state(steps, dtype)
    if steps.reset is not None:
        steps = steps._replace(reset=steps.reset.astype(bool))
    chunk = even_chunk(len(steps.u), chunk)
    y, h_last = cores[impl](steps, A, h0.astype(dtype), chunk)
    return Scan(y, h_last, decay_of(steps, dtype))


def check_shapes(steps: Steps) -> None:
    """Raises ValueError where axes differ: those of size 1 would be broadcast."""
    shapes = {name: x.shape for name, x in steps._asdict().items() if x is not None}
    lead, u, dt = shapes["u"][:2], shapes["u"], shapes["dt"]
    alike = [u[: len(dt)] == dt, shapes["B"] == shapes["C"], shapes["B"][:2] == lead]
    if len(dt) < 3 or not all(alike) or shapes.get("reset", lead) != lead:
        raise ValueError(f"shapes of a scan that do not fit each other: {shapes}")


def no_state(steps: Steps, dtype: Any) -> Array:
    """The state before the first step where none is given, of N numbers a channel."""
    return jnp.zeros((*steps.u.shape[1:], steps.B.shape[-1]), dtype)


def decay_of(steps: Steps, dtype: Any) -> Decay:
    """The decay of a stretch."""
    total = jnp.sum(steps.dt.astype(dtype), axis=0)
    if steps.reset is None:
        return Decay(total, jnp.ones(steps.dt.shape[1], dtype))
    return Decay(total, 1 - jnp.any(steps.reset, axis=0).astype(dtype))


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
