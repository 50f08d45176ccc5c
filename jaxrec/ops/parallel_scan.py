"""The selective scan over many stretches of time at once.

`across` joins stretches that run side by side along a named axis. Under `vmap` the axis
is that of chunks on one device (`two_pass`); under `shard_map` it is an axis of the
mesh (`context.py`). Each stretch runs twice: from zero, to learn what it adds, and from
the state that then turns out to enter it. Running it again costs what correcting y by
C exp(A sum dt) h would, and keeps no array of [T, B, D, N] for the backward pass.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.ops import recurrence, sequential_scan
from jaxrec.ops.recurrence import Decay, Steps, Stretch
from jaxrec.types import Array


def across(
    axis: str,
    scan: Callable[[Array], tuple[Any, Array, Decay]],
    A: Array,
    h0: Array,
) -> tuple[Any, Array]:
    """One stretch of time of several, in the order of the named axis.

    scan: h -> (y, h_last, decay) over this stretch. h0: enters the first stretch.
    Returns y of this stretch, and the state that leaves the last one.
    """
    _, local, decay = scan(jnp.zeros_like(h0))
    own = Stretch(factor(A, decay, h0.ndim), local, decay.alive == 0)
    # Tiled: JAX's rule for a vmap of the other kind's gradient names a wrong axis.
    every = jax.tree.map(lambda x: jax.lax.all_gather(x[None], axis, tiled=True), own)
    entries, h_last = recurrence.entry_states(every, h0)
    return scan(entries[jax.lax.axis_index(axis)])[0], h_last


def factor(A: Array, decay: Decay, rank: int) -> Array:
    """exp(A total), of the rank of a state: [B, D, N] or [B, H, 1, 1].

    A: float[D, N] with the total [B, D], or float[H] with the total [B, H].
    """
    total = decay.total.reshape(decay.total.shape + (1,) * (A.ndim - 1))
    shrink = jnp.exp(total * A.astype(total.dtype)[None])
    return shrink.reshape(shrink.shape + (1,) * (rank - shrink.ndim))


def two_pass(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """All chunks side by side: `chunk` steps deep, twice, instead of T."""
    # A chunk is one unit of parallel work; inside it again only every root-th state
    # is kept, or all T states would be.
    inner = recurrence.even_chunk(chunk, math.isqrt(chunk))

    def stretch(steps: Steps) -> tuple[Array, Array]:
        decay = recurrence.decay_of(steps, h0.dtype)

        def scan(h: Array) -> tuple[Array, Array, Decay]:
            return *sequential_scan.custom_vjp(steps, A, h, inner), decay

        return across("chunks", scan, A, h0)

    chunks = recurrence.split(steps, chunk)
    y, h_last = jax.vmap(stretch, axis_name="chunks", out_axes=(0, None))(chunks)
    return recurrence.merge(y, len(steps.u)), h_last


def associative(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """`lax.associative_scan` of the affine steps: log T deep, many [T, B, D, N] large.

    An oracle: beyond small sizes it is slower and larger than the other forms.
    """
    u, dt, B, C, reset = steps.astype(h0.dtype)
    decay = jnp.exp(dt[..., None] * A.astype(h0.dtype)[None, None])
    addend = (dt * u)[..., None] * B[:, :, None, :]
    stretches = Stretch(decay, addend, reset)
    first = jax.tree.map(lambda x: x[0], stretches)
    stretches = stretches._replace(local=addend.at[0].set(first.across(h0)))

    def join(earlier: Stretch, later: Stretch) -> Stretch:
        cut = None if reset is None else earlier.cut | later.cut
        local = jax.vmap(Stretch.across)(later, earlier.local)
        return Stretch(later.factor * earlier.factor, local, cut)

    h = jax.lax.associative_scan(join, stretches).local
    return jnp.einsum("tbdn,tbn->tbd", h, C), h[-1]
