"""The selective scan step after step: by autodiff, and with its adjoint by hand.

`custom_vjp` is what the CUDA and TPU kernels compute: the forward pass keeps the states
at the edges of chunks only, the backward pass recomputes those inside one chunk at a
time. With G_t the cotangent of h_t, and s_t = 1 - reset_t:

    G_t  = dy_t C_t + s_{t+1} a_{t+1} G_{t+1}            with a_t = exp(dt_t A)
    E_t  = s_t a_t G_t h_{t-1}
    dC_t = sum_d dy_t h_t           dB_t    = sum_d G_t dt_t u_t
    du_t = dt_t sum_n G_t B_t       d(dt_t) = u_t sum_n G_t B_t + sum_n E_t A
    dA   = sum_{b,t} E_t dt_t       dh0     = s_1 a_1 G_1

Nothing is divided by a_t, and no exponent is positive: nothing overflows. s_t chooses
instead of multiplying, so that a NaN before a reset stays there.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrec.ops import recurrence
from jaxrec.ops.recurrence import Steps
from jaxrec.types import Array


def transition(A: Array, h: Array, x: Steps) -> Array:
    """h_{t-1} -> h_t, [B, D, N], by one step."""
    h = recurrence.forget(x.reset, h)
    added = (x.dt * x.u)[:, :, None] * x.B[:, None, :]
    return jnp.exp(x.dt[:, :, None] * A[None]) * h + added


def run(steps: Steps, A: Array, h: Array) -> tuple[Array, Array]:
    """y [T, B, D] and the last state, in the dtype of h."""

    def step(h: Array, x: Steps) -> tuple[Array, Array]:
        x = x.astype(h.dtype)  # here, so that what is saved stays narrow
        h = transition(A, h, x)
        return h, jnp.einsum("bdn,bn->bd", h, x.C)

    h_last, y = jax.lax.scan(step, h, steps)
    return y, h_last


def reference(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """One `lax.scan`; its autodiff saves about three states a step."""
    return run(steps, A.astype(h0.dtype), h0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def custom_vjp(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """One state saved a chunk, those of one chunk alive in the backward pass.

    Without a gradient nothing is saved and there are no chunks: a loop in a loop would
    copy the steps of each chunk before it reads them.
    """
    return reference(steps, A, h0, chunk)


def forward(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple:
    def one(h: Array, steps: Steps) -> tuple[Array, tuple[Array, Array]]:
        y, h_last = run(steps, A.astype(h.dtype), h)
        return h_last, (y, h)

    h_last, (y, entries) = jax.lax.scan(one, h0, recurrence.split(steps, chunk))
    return (recurrence.merge(y, len(steps.u)), h_last), (steps, A, entries)


def backward(chunk: int, saved: tuple, cotangents: tuple[Array, Array]) -> tuple:
    steps, A, entries = saved
    dy, dh_last = cotangents
    wide = A.astype(dh_last.dtype)

    def one(carry: tuple, x: tuple) -> tuple:
        steps, h, dy = x
        h_last, before = jax.lax.scan(functools.partial(rebuild, wide), h, steps)
        (g, dA, _), grads = jax.lax.scan(
            functools.partial(adjoint, wide),
            (*carry, h_last),
            (steps, dy, before),
            reverse=True,
        )
        return (g, dA), grads

    chunks, dy = recurrence.split((steps, dy), chunk)
    (dh0, dA), grads = jax.lax.scan(
        one, (dh_last, jnp.zeros_like(wide)), (chunks, entries, dy), reverse=True
    )
    grads = recurrence.merge(grads, len(steps.u))
    narrow = [g.astype(x.dtype) for g, x in zip(grads, steps)]
    return Steps(*narrow), dA.astype(A.dtype), dh0


def rebuild(A: Array, h: Array, x: Steps) -> tuple[Array, Array]:
    """Emits h_{t-1}."""
    return transition(A, h, x.astype(h.dtype)), h


def adjoint(A: Array, carry: tuple, x: tuple) -> tuple:
    """One step of the equations at the top; carries s_t a_t G_t, dA and h_t."""
    g, dA, h = carry
    one, dy, before = x
    u, dt, B, C, reset = one.astype(g.dtype)
    G = g + dy[:, :, None] * C[:, None, :]
    aG = recurrence.forget(reset, jnp.exp(dt[:, :, None] * A[None]) * G)
    E = aG * recurrence.forget(reset, before)
    GB = jnp.einsum("bdn,bn->bd", G, B)
    ddt = GB * u + jnp.einsum("bdn,dn->bd", E, A)
    dB = jnp.einsum("bdn,bd->bn", G, dt * u)
    dC = jnp.einsum("bd,bdn->bn", dy, h)
    dA = dA + jnp.einsum("bdn,bd->dn", E, dt)
    return (aG, dA, before), (GB * dt, ddt, dB, dC)


custom_vjp.defvjp(forward, backward)
