"""The selective scan with one decay a head: state space duality, SSD.

Dao and Gu 2024 (Mamba-2, arXiv 2405.21060), Section 6:

    h_t = (1 - reset_t) exp(dt_t A) h_{t-1} + dt_t u_t B_t^T      h [B, H, P, N]
    y_t = h_t C_t

A is one number a head of P channels, so the decay leaves the sums over the state and a
chunk of time becomes matrix products. It is another model than `selective_scan`, not
another implementation of it. B and C are shared by the heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.ops import recurrence
from jaxrec.ops.recurrence import Core, Scan, Steps, Stretch
from jaxrec.types import Array


def sequential(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """Step after step: the oracle, and the form for a single step."""

    def step(h: Array, x: Steps) -> tuple[Array, Array]:
        u, dt, B, C, reset = x.astype(h.dtype)
        h = recurrence.forget(reset, h)
        a = jnp.exp(dt * A.astype(h.dtype)[None])
        added = (dt[:, :, None] * u)[..., None] * B[:, None, None, :]
        h = a[:, :, None, None] * h + added
        return h, jnp.einsum("bhpn,bn->bhp", h, C)

    h_last, y = jax.lax.scan(step, h0, steps)
    return y, h_last


class Chunk(NamedTuple):
    """Q steps with time behind batch and head, as the matrix products want them.

    x: dt u, [B, H, Q, P]. B, C: [B, 1, Q, N], one for all heads. since: the sum of dt A
    up to and with each step, [B, H, Q], <= 0. segment: int32[B, 1, Q], the resets up to
    and with each step, or None where there are none.
    """

    x: Array
    B: Array
    C: Array
    since: Array
    segment: Array | None


def prepare(A: Array, steps: Steps) -> Chunk:
    """The Q steps of a chunk in the dtype of A."""
    u, dt, B, C, reset = steps.astype(A.dtype)
    return Chunk(
        x=(dt[..., None] * u).transpose(1, 2, 0, 3),
        B=B.transpose(1, 0, 2)[:, None],
        C=C.transpose(1, 0, 2)[:, None],
        since=jnp.cumsum((dt * A[None, None]).transpose(1, 2, 0), axis=-1),
        segment=None if reset is None else jnp.cumsum(reset.T[:, None], axis=-1),
    )


def within(c: Chunk) -> Array:
    """What the steps of a chunk say to each other: [B, H, Q, P]."""
    seen = jnp.tri(c.x.shape[2], dtype=bool)[None, None]
    if c.segment is not None:
        seen = seen & (c.segment[..., :, None] == c.segment[..., None, :])
    # Masked before the exponential too: what is masked out could overflow, and the
    # gradient of a masked infinity is NaN.
    log_decay = jnp.where(seen, c.since[..., :, None] - c.since[..., None, :], 0)
    decay = jnp.where(seen, jnp.exp(log_decay), 0)
    return (c.C @ c.B.mT * decay) @ c.x


def carried(c: Chunk, h: Array) -> Array:
    """What the state that enters a chunk adds to its y, until the first reset."""
    decay = jnp.exp(c.since)[..., None]
    if c.segment is None:
        return c.C @ h.mT * decay
    # A state that is no number must not reach y behind the reset, and neither by the
    # products of the backward pass: C there, the decay there, and what comes out.
    reached = (c.segment == 0)[..., None]
    decay = jnp.where(reached, decay, 0)
    return jnp.where(reached, jnp.where(reached, c.C, 0) @ h.mT * decay, 0)


def summary(c: Chunk) -> Stretch:
    """A chunk as a map of the state: factor [B, H, 1, 1], local [B, H, P, N].

    Only steps behind the chunk's last reset reach the state that leaves it.
    """
    total, cut = c.since[..., -1:], None
    decay = jnp.exp(total - c.since)
    if c.segment is not None:
        last = c.segment[..., -1:]
        decay, cut = jnp.where(c.segment == last, decay, 0), last[:, 0, 0] > 0
    local = (c.x * decay[..., None]).mT @ c.B
    return Stretch(jnp.exp(total)[..., None], local, cut)


def chunked(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """Chunk after chunk, each recomputed in the backward pass: the least memory."""

    @jax.checkpoint
    def one(h: Array, steps: Steps) -> tuple[Array, Array]:
        c = prepare(A.astype(h.dtype), steps)
        y = within(c) + carried(c, h)
        return summary(c).across(h), y.transpose(2, 0, 1, 3)

    h_last, y = jax.lax.scan(one, h0, recurrence.split(steps, chunk))
    return recurrence.merge(y, len(steps.u)), h_last


def all_chunks(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """All chunks side by side, only their summaries in turn: the most parallel."""
    chunks = recurrence.split(steps, chunk)
    c = jax.vmap(prepare, in_axes=(None, 0))(A.astype(h0.dtype), chunks)
    entries, h_last = recurrence.entry_states(jax.vmap(summary)(c), h0)
    y = jax.vmap(within)(c) + jax.vmap(carried)(c, entries)
    return recurrence.merge(y.transpose(0, 3, 1, 2, 4), len(steps.u)), h_last


IMPLEMENTATIONS: dict[str, Core] = {
    "sequential": sequential,
    "chunked": chunked,
    "all_chunks": all_chunks,
}


def choose(backend: str, length: int) -> str:
    """The implementation behind impl="auto": the same on every backend so far."""
    return "sequential" if length == 1 else "chunked"


def ssd_scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    h0: Array | None = None,
    reset: Array | None = None,
    impl: str = "auto",
    chunk: int = 64,
) -> Scan:
    """The scan above, over T steps, differentiable in u, dt, A, B, C and h0.

    u: float[T, B, H, P]. dt: float[T, B, H], >= 0; dt = 0 leaves the state alone
    (padding). A: float[H], negative. B, C: float[T, B, N]. h0: float32[B, H, P, N],
    zeros by default. reset: bool[T, B], True where step t forgets all before it.
    impl: a key of `IMPLEMENTATIONS`, or "auto". chunk: steps in one matrix product
    (64 is best on a CPU; others report 128 to 512 on accelerators).

    Returns y float32[T, B, H, P], h_last float32[B, H, P, N] and the decay, with total
    float32[B, H]; float64 where an input is float64. All inside is float32.

    Raises ValueError for an unknown impl.
    """
    if impl == "auto":
        impl = choose(jax.default_backend(), len(u))
    steps = Steps(u, dt, B, C, reset)
    return recurrence.scan(IMPLEMENTATIONS, impl, steps, A, h0, chunk)
