"""The selective scan with one decay a head: state space duality, SSD.

Dao and Gu 2024 (Mamba-2, arXiv 2405.21060), Section 6:

    h_t = (1 - reset_t) exp(dt_t A) h_{t-1} + dt_t u_t B_t^T      h [B, H, P, N]
    y_t = h_t C_t

A is one number a head of P channels, so the decay leaves the sums over the state and a
chunk of time becomes matrix products. It is another model than `selective_scan`, not
another implementation of it. B and C are shared by the heads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrec.ops import recurrence
from jaxrec.ops.recurrence import Scan
from jaxrec.types import Array

Core = Callable[..., tuple[Array, Array]]


def sequential(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    h0: Array,
    reset: Array | None,
    chunk: int,
) -> tuple[Array, Array]:
    """Step after step: the oracle, and the form for a single step."""

    def step(h: Array, x: tuple) -> tuple[Array, Array]:
        u_t, dt_t, B_t, C_t, reset_t = x
        u_t, dt_t, B_t, C_t = (z.astype(h.dtype) for z in (u_t, dt_t, B_t, C_t))
        if reset_t is not None:
            h = jnp.where(reset_t[:, None, None, None], 0, h)
        a = jnp.exp(dt_t * A.astype(h.dtype)[None])
        x_t = dt_t[:, :, None] * u_t
        h = a[:, :, None, None] * h + x_t[..., None] * B_t[:, None, None, :]
        return h, jnp.einsum("bhpn,bn->bhp", h, C_t)

    h_last, y = jax.lax.scan(step, h0, (u, dt, B, C, reset))
    return y, h_last


def within(C: Array, B: Array, x: Array, log_a: Array, segment: Array) -> Array:
    """What the steps of one chunk say to each other: y [Q, B, H, P].

    x: dt u, [Q, B, H, P]; log_a: dt A <= 0, [Q, B, H]; segment: int32[Q, B].
    """
    causal = jnp.tri(len(x), dtype=bool)
    seen = causal[:, :, None] & (segment[:, None] == segment[None])
    since = jnp.cumsum(log_a, axis=0)
    # Masked before the exponential too: what is masked out could overflow, and the
    # gradient of a masked infinity is NaN.
    log_decay = jnp.where(seen[..., None], since[:, None] - since[None], 0)
    decay = jnp.where(seen[..., None], jnp.exp(log_decay), 0)
    match = jnp.einsum("ibn,jbn->ijb", C, B)
    return jnp.einsum("ijbh,jbhp->ibhp", match[..., None] * decay, x)


def carried(C: Array, h: Array, log_a: Array, segment: Array) -> Array:
    """What the state that enters a chunk adds to its y: until the first reset."""
    decay = jnp.where((segment == 0)[..., None], jnp.exp(jnp.cumsum(log_a, 0)), 0)
    return jnp.einsum("ibn,bhpn->ibhp", C, h) * decay[..., None]


def summary(B: Array, x: Array, log_a: Array, segment: Array) -> tuple[Array, Array]:
    """A chunk as an affine map of the state: factor [B, H, 1, 1], addend [B, H, P, N].

    Only steps behind the chunk's last reset reach the state that leaves it.
    """
    since = jnp.cumsum(log_a, axis=0)
    last = (segment == segment[-1:])[..., None]
    decay = jnp.where(last, jnp.exp(since[-1:] - since), 0)
    local = jnp.einsum("jbn,jbhp->bhpn", B, x * decay[..., None])
    factor = jnp.where((segment[-1] == 0)[:, None], jnp.exp(since[-1]), 0)
    return factor[:, :, None, None], local


def in_chunks(
    u: Array, dt: Array, A: Array, B: Array, C: Array, reset: Array | None, chunk: int
) -> tuple[Array, ...]:
    """x = dt u, log a = dt A, B, C and segments counted in each chunk, in chunks."""
    dtype = recurrence.working_dtype(u, dt, A, B, C)
    u, dt, A, B, C = (z.astype(dtype) for z in (u, dt, A, B, C))
    segment = jnp.zeros(dt.shape[:2], jnp.int32)
    if reset is not None:
        segment = reset.astype(jnp.int32)
    chunks = recurrence.split((dt[..., None] * u, dt * A[None, None], B, C), chunk)
    return *chunks, jnp.cumsum(recurrence.split(segment, chunk), axis=1)


def chunked(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    h0: Array,
    reset: Array | None,
    chunk: int,
) -> tuple[Array, Array]:
    """Chunk after chunk, each recomputed in the backward pass: the least memory."""

    @jax.checkpoint
    def one(h: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        x, log_a, B, C, segment = xs
        y = within(C, B, x, log_a, segment) + carried(C, h, log_a, segment)
        factor, local = summary(B, x, log_a, segment)
        return factor * h + local, y

    h_last, y = jax.lax.scan(one, h0, in_chunks(u, dt, A, B, C, reset, chunk))
    return recurrence.merge(y, len(u)), h_last


def all_chunks(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    h0: Array,
    reset: Array | None,
    chunk: int,
) -> tuple[Array, Array]:
    """All chunks side by side, only their summaries in turn: the most parallel."""
    x, log_a, B, C, segment = in_chunks(u, dt, A, B, C, reset, chunk)
    factor, local = jax.vmap(summary)(B, x, log_a, segment)
    entries, h_last = recurrence.entry_states(factor, local, h0)
    y = jax.vmap(within)(C, B, x, log_a, segment)
    y = y + jax.vmap(carried)(C, entries, log_a, segment)
    return recurrence.merge(y, len(u)), h_last


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
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLEMENTATIONS)}, or auto")
    dtype = recurrence.working_dtype(u, dt, A, B, C)
    if h0 is None:
        h0 = jnp.zeros((*u.shape[1:], B.shape[-1]), dtype)
    chunk = recurrence.even_chunk(len(u), chunk)
    if reset is not None:
        reset = reset.astype(bool)
    core = IMPLEMENTATIONS[impl]
    y, h_last = core(u, dt, A, B, C, h0.astype(dtype), reset, chunk)
    return Scan(y, h_last, recurrence.decay_of(dt, reset, dtype))
