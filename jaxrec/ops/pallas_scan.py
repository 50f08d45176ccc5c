"""The selective scan as a Pallas kernel for TPUs. Unmeasured on a device.

Checked against a float64 loop in Pallas's interpreter, and lowered to Mosaic without a
TPU; off unless asked for by impl="pallas". Not for GPUs: it relies on the last axis of
the grid running in order.

The grid is (batch, tile of channels, tile of time). A tile of u and dt lies in VMEM and
the state [N, channels] in an output block that all tiles of time revisit: channels on
the lanes, states on the sublanes. The forward pass writes the state that enters each
tile of time; the backward pass runs the tiles in reverse, rebuilds the states of one in
VMEM, and goes back through it by the equations of `sequential_scan`. dB, dC and dA are
sums over tiles of channels or rows of the batch: each tile writes its own part and XLA
adds them, in the same order every time.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrec.ops.recurrence import Steps
from jaxrec.types import Array

LANES, SUBLANES = 128, 8


def pallas(steps: Steps, A: Array, h0: Array, chunk: int) -> tuple[Array, Array]:
    """See `recurrence.Core`; interpreted where there is no TPU.

    chunk: the tile of time. 64 states of 16 x 128 float32 are 512 KiB of VMEM. Narrow
    inputs are widened outside the kernel, at the price of a copy.
    """
    u, dt, B, C, reset = steps
    length, batch, channels = u.shape
    dtype = h0.dtype
    tile = -(-chunk // SUBLANES) * SUBLANES
    pad_time, pad_lanes = -length % tile, -channels % LANES

    def rows(x: Array, lanes: int = 0) -> Array:
        """[T, B, X] -> [B, T, X], padded with zeros, which leave the state alone."""
        x = jnp.pad(x.astype(dtype), ((0, pad_time), (0, 0), (0, lanes)))
        return jnp.swapaxes(x, 0, 1)

    def states(x: Array) -> Array:
        """[..., D, N] -> [..., N, D], padded."""
        pad = [(0, 0)] * (x.ndim - 1) + [(0, pad_lanes)]
        return jnp.pad(jnp.swapaxes(x.astype(dtype), -1, -2), pad)

    if reset is None:
        reset = jnp.zeros((length, batch), bool)
    y, h_last = scan(
        tile,
        jax.default_backend() != "tpu",
        rows(u, pad_lanes),
        rows(dt, pad_lanes),
        states(A),
        rows(B),
        rows(C),
        states(h0),
        1 - rows(reset[:, :, None]),
    )
    y = jnp.swapaxes(y, 0, 1)[:length, :, :channels]
    return y, jnp.swapaxes(h_last, -1, -2)[:, :channels]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(tile: int, interpret: bool, *inputs: Array) -> tuple[Array, Array]:
    """u, dt [B, T, D], A [N, D], B, C [B, T, N], h0 [B, N, D], keep [B, T, 1].

    keep is 1.0, or 0.0 at a reset. T is a multiple of `tile`, D one of 128.
    """
    return scan_forward(tile, interpret, *inputs)[0]


def scan_forward(tile: int, interpret: bool, *inputs: Array) -> tuple:
    u, _, A, *_ = inputs
    batch, length, channels = u.shape
    blocks = make_blocks(tile, A.shape[0], lambda t: t)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=u.dtype)
    state = (batch, A.shape[0], channels)
    y, h_last, entries = pl.pallas_call(
        functools.partial(forward_kernel, tile),
        grid=(batch, channels // LANES, length // tile),
        in_specs=blocks.inputs(),
        out_specs=[blocks.channels, blocks.state, blocks.entries],
        out_shape=[
            shape(u.shape),
            shape(state),
            shape((batch, length // tile, *state[1:])),
        ],
        compiler_params=IN_ORDER,
        interpret=interpret,
    )(*inputs)
    return (y, h_last), (inputs, entries)


def scan_backward(tile: int, interpret: bool, saved: tuple, cotangents: tuple) -> tuple:
    inputs, entries = saved
    dy, dh_last = cotangents
    u, _, A, B, *_, keep = inputs
    batch, length, channels = u.shape
    tiles, size = length // tile, A.shape[0]
    blocks = make_blocks(tile, size, lambda t: tiles - 1 - t)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=u.dtype)
    parts = shape((channels // LANES, *B.shape))
    state = shape(dh_last.shape)
    du, ddt, dA, dB, dC, dh0 = pl.pallas_call(
        functools.partial(backward_kernel, tile),
        grid=(batch, channels // LANES, tiles),
        in_specs=[*blocks.inputs(), blocks.entries, blocks.channels, blocks.state],
        out_specs=[
            blocks.channels,
            blocks.channels,
            blocks.state,
            blocks.parts,
            blocks.parts,
            blocks.state,
        ],
        out_shape=[shape(u.shape), shape(u.shape), state, parts, parts, state],
        scratch_shapes=[pltpu.VMEM((tile + 1, size, LANES), u.dtype)],
        compiler_params=IN_ORDER,
        interpret=interpret,
    )(*inputs, entries, dy, dh_last)
    # keep comes from a mask: its cotangent is asked for by nobody.
    sums = dA.sum(0), dB.sum(0), dC.sum(0)
    return du, ddt, *sums, dh0, jnp.zeros_like(keep)


scan.defvjp(scan_forward, scan_backward)

IN_ORDER = pltpu.CompilerParams(
    dimension_semantics=("parallel", "parallel", "arbitrary")
)


class Blocks(NamedTuple):
    """Which block of each array a point of the grid works on; None drops an axis."""

    channels: pl.BlockSpec  # u, dt, y and their gradients
    shared: pl.BlockSpec  # B, C
    keep: pl.BlockSpec
    rates: pl.BlockSpec  # A
    state: pl.BlockSpec  # one for all tiles of time
    entries: pl.BlockSpec  # one for each
    parts: pl.BlockSpec  # of dB and dC, one for each tile of channels

    def inputs(self) -> list[pl.BlockSpec]:
        u = self.channels
        return [u, u, self.rates, self.shared, self.shared, self.state, self.keep]


def make_blocks(tile: int, size: int, at: Callable[[int], int]) -> Blocks:
    """`at` turns the third index of the grid into a tile of time."""
    spec = pl.BlockSpec
    return Blocks(
        channels=spec((None, tile, LANES), lambda b, d, t: (b, at(t), d)),
        shared=spec((None, tile, size), lambda b, d, t: (b, at(t), 0)),
        keep=spec((None, tile, 1), lambda b, d, t: (b, at(t), 0)),
        rates=spec((size, LANES), lambda b, d, t: (0, d)),
        state=spec((None, size, LANES), lambda b, d, t: (b, 0, d)),
        entries=spec((None, None, size, LANES), lambda b, d, t: (b, at(t), 0, d)),
        parts=spec((None, None, tile, size), lambda b, d, t: (d, b, at(t), 0)),
    )


def product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """x y over one axis of each, in full precision."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision=jax.lax.Precision.HIGHEST)


def kept(keep: Array, x: Array) -> Array:
    """x [N, D], or zeros, also for a NaN, where keep [1, 1] is zero."""
    return jnp.where(jnp.broadcast_to(keep, x.shape) > 0, x, 0)


def forward_kernel(
    tile, u_ref, dt_ref, A_ref, B_ref, C_ref, h0_ref, keep_ref, y_ref, h_ref, entry_ref
):
    """h_ref is the state: what a tile of time leaves in it, the next one finds."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        h_ref[...] = h0_ref[...]

    entry_ref[...] = h_ref[...]

    def step(t, h):
        at = pl.ds(t, 1)
        dt = dt_ref[at, :]
        h = jnp.exp(dt * A_ref[...]) * kept(keep_ref[at, :], h)
        h = h + product(B_ref[at, :], dt * u_ref[at, :], (0, 0))
        y_ref[at, :] = product(C_ref[at, :], h, (1, 0))
        return h

    h_ref[...] = jax.lax.fori_loop(0, tile, step, h_ref[...])


def backward_kernel(
    tile,
    u_ref,
    dt_ref,
    A_ref,
    B_ref,
    C_ref,
    h0_ref,
    keep_ref,
    entry_ref,
    dy_ref,
    dh_last_ref,
    du_ref,
    ddt_ref,
    dA_ref,
    dB_ref,
    dC_ref,
    g_ref,
    h_ref,
):
    """g_ref carries s a G from tile to tile and ends as dh0; h_ref[t] is h_{t-1}."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        g_ref[...] = dh_last_ref[...]
        dA_ref[...] = jnp.zeros_like(dA_ref)

    A = A_ref[...]
    h_ref[0] = entry_ref[...]

    def rebuild(t, h):
        at = pl.ds(t, 1)
        dt = dt_ref[at, :]
        h = jnp.exp(dt * A) * kept(keep_ref[at, :], h)
        h = h + product(B_ref[at, :], dt * u_ref[at, :], (0, 0))
        h_ref[t + 1] = h
        return h

    jax.lax.fori_loop(0, tile, rebuild, entry_ref[...])

    def adjoint(i, carry):
        g, dA = carry
        t = tile - 1 - i
        at = pl.ds(t, 1)
        u, dt, dy = u_ref[at, :], dt_ref[at, :], dy_ref[at, :]
        G = g + product(C_ref[at, :], dy, (0, 0))
        keep = keep_ref[at, :]
        aG = kept(keep, jnp.exp(dt * A) * G)
        E = aG * kept(keep, h_ref[t])
        GB = product(B_ref[at, :], G, (1, 0))
        du_ref[at, :] = GB * dt
        ddt_ref[at, :] = GB * u + jnp.sum(E * A, axis=0, keepdims=True)
        dB_ref[at, :] = product(dt * u, G, (1, 1))
        dC_ref[at, :] = product(dy, h_ref[t + 1], (1, 1))
        return aG, dA + E * dt

    g, dA = jax.lax.fori_loop(0, tile, adjoint, (g_ref[...], dA_ref[...]))
    g_ref[...] = g
    dA_ref[...] = dA
