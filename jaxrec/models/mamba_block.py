"""Mamba's block as pure functions of a chunk of time: training and streaming alike.

Gu & Dao, "Mamba" (arXiv 2312.00752) and, with one decay a head, Dao & Gu,
"Transformers are SSMs" (arXiv 2405.21060). Chunks are time-major, [T, B, ...]. What
precedes a chunk is in its Cache, so that chunked training, the prefill of a history,
its continuation and a single step are one function, and equal by construction.

    valid: bool[T, B], True for events; False from some row on in each column
    reset: bool[T, B] or None, True where another user's events begin
    gap: int32[T, B] or None, `gap_bucket` of the time since the user's event before
    cache: Cache of B rows; one that says "nothing yet" is zeros
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxrec.ops.recurrence import Decay
from jaxrec.ops.selective_scan import selective_scan
from jaxrec.ops.ssd import ssd_scan
from jaxrec.types import Array

Params = Mapping[str, Array]


@struct.dataclass
class Cache:
    """What one layer remembers of B users, float32; rows of users are the first axis.

    `tail`: [B, k - 1, D], the last inputs of the convolution; `state`: [B, D, N] of
    Mamba-1, [B, H, P, N] of Mamba-2.
    """

    tail: Array
    state: Array


def mixer(
    p: Params,
    x: Array,
    valid: Array,
    reset: Array | None,
    cache: Cache,
    head_dim: int = 0,
    impl: str = "auto",
    gap: Array | None = None,
) -> tuple[Array, Cache, Decay]:
    """x: float32[T, B, d] -> (float32[T, B, d], Cache after the last event, decay).

    [u, z] = x W_in; u = SiLU(causal depthwise convolution); [r, B, C] = u W_x;
    dt = softplus(r W_dt + b); y = scan(u, dt, A, B, C) + D u; out = (y SiLU(z)) W_out.
    `head_dim` 0: Mamba-1, A: [D, N]; P > 0: one A for each of D / P heads, on the shell
    of Mamba-1 (ours; Mamba-2's own also projects B, C and dt from x). With `gap` dt is
    multiplied by exp(p["gap"][gap]): what came before fades by the time since it.
    Padding has dt = 0, the identity of the scan; its outputs mean nothing.
    """
    time, rows, width = *x.shape[:2], p["conv"].shape[1]
    u, z = jnp.split(x @ p["in_proj"], 2, axis=-1)
    if reset is not None:
        reset = reset & valid  # padding must not clear the state
    u, tail = _convolution(p, u, valid, reset, cache.tail)
    rank, size = p["dt_proj"].shape[0], cache.state.shape[-1]
    r, b, c = jnp.split(u @ p["x_proj"], [rank, rank + size], axis=-1)
    dt = nn.softplus(r @ p["dt_proj"] + p["dt_bias"][None, None])
    if gap is not None:
        dt = dt * jnp.exp(p["gap"][gap])
    dt = jnp.where(valid[..., None], dt, 0)
    decay = -jnp.exp(p["A_log"])
    settings = dict(h0=cache.state, reset=reset, impl=impl, chunk=min(64, time))
    if head_dim:
        heads = u.reshape(time, rows, width // head_dim, head_dim)
        scan = ssd_scan(heads, dt, decay, b, c, **settings)
    else:
        scan = selective_scan(u, dt, decay, b, c, **settings)
    y = scan.y.reshape(u.shape) + p["skip"][None, None] * u
    return (y * nn.silu(z)) @ p["out_proj"], Cache(tail, scan.h_last), scan.decay


def conv_input(p: Params, x: Array) -> Array:
    """u before the convolution: float32[T, B, d] -> float32[T, B, D]."""
    return x @ p["in_proj"][:, : p["conv"].shape[1]]


def _convolution(
    p: Params, u: Array, valid: Array, reset: Array | None, tail: Array
) -> tuple[Array, Array]:
    """SiLU(sum_j w_j u_{t-(k-1)+j} + b) within the user's events, and the next tail."""
    time, taps = len(u), len(p["conv"])
    known = jnp.concatenate([tail.swapaxes(0, 1), u])  # [k - 1 + T, B, D]
    y = p["conv_bias"][None, None]
    if reset is None:
        owner = None
        for j in range(taps):
            y = y + known[j : j + time] * p["conv"][j][None, None]
    else:
        segment = jnp.cumsum(reset.astype(jnp.int32), axis=0)
        # The tail is of the segment that the chunk begins in, number 0.
        owner = jnp.pad(segment, ((taps - 1, 0), (0, 0)))
        for j in range(taps):
            same = (owner[j : j + time] == segment)[..., None]
            y = y + jnp.where(same, known[j : j + time], 0) * p["conv"][j][None, None]
    # The tail after the last event, not after the padding; of its segment alone.
    rows = jnp.sum(valid, axis=0)[None] + jnp.arange(taps - 1)[:, None]
    tail = jnp.take_along_axis(known, rows[..., None], axis=0)
    if owner is not None:
        owner = jnp.take_along_axis(owner, rows, axis=0)
        tail = jnp.where((owner == owner[-1:])[..., None], tail, 0)
    return nn.silu(y), tail.swapaxes(0, 1)


def norm(p: Params, name: str, x: Array) -> Array:
    """Layer norm; two passes, as one loses all digits of embeddings of size 0.01."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)
    return x * p[f"{name}_scale"][None, None] + p[f"{name}_bias"][None, None]


def feed_forward(p: Params, x: Array) -> Array:
    """d -> 4 d, GELU, -> d."""
    h = nn.gelu(x @ p["up"] + p["up_bias"][None, None])
    return h @ p["down"] + p["down_bias"][None, None]


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros a share `rate` of the numbers and scales the rest; no key: x."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def gap_bucket(seconds: Array, count: int) -> Array:
    """floor(log2(1 + seconds)), at most `count` - 1: float[...] -> int32[...]."""
    bucket = jnp.floor(jnp.log2(1 + jnp.maximum(seconds, 0)))
    return jnp.minimum(bucket, count - 1).astype(jnp.int32)
