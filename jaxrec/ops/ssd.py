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


IMPLEMENTATIONS: dict[str, Core] = {"sequential": sequential}


def choose(backend: str, length: int) -> str:
    """The implementation behind impl="auto"."""
    return "sequential"


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
