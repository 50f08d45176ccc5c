"""Attention over a user's history: whole, in blocks of queries, linear, pointwise.

Baselines of the encoders whose cost is linear in the length. All are causal and blind
to the slots from `length` on, and never mix the rows of a batch.

    q: float[B, R, H, P]; k, v: float[B, T, H, P]; length: int32[B], 0 to T
    at: int32[1 or B, R], the slot of each query; it sees the keys at slots 0 .. at
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array

BLOCK = 128  # queries whose scores are alive at a time, ours
GROUPS = 4  # of blocks; each sees the keys up to its own end, ours; see `blockwise`
CHUNK = 128  # events between two states of the linear form, ours

Weigh = Callable[[Array, Array, Array], Array]


def attend(
    q: Array, k: Array, v: Array, at: Array, length: Array, weigh: Weigh
) -> Array:
    """sum_t weight[r, t] v_t: float[B, R, H, P], all scores [B, H, R, T] at once.

    `weigh(score, seen, at)`: products [B, H, R, T], bool[B, 1, R, T] and `at` ->
    weights, zero where `seen` is False.
    """
    time = jnp.arange(k.shape[1])[None, None]
    seen = (time < length[:, None, None]) & (time <= at[:, :, None])
    score = jnp.einsum("brhd,bthd->bhrt", q, k)
    return jnp.einsum("bhrt,bthd->brhd", weigh(score, seen[:, None], at), v)


def softmax(score: Array, seen: Array, at: Array) -> Array:
    """Weights that sum to one; all zero where nothing is seen."""
    # Finite, then zeroed: a row that sees nothing must give zeros and no NaN.
    weight = nn.softmax(jnp.where(seen, score, -1e9), axis=-1)
    return jnp.where(seen, weight, 0)


def blockwise(q: Array, k: Array, v: Array, length: Array, weigh: Weigh) -> Array:
    """`attend` of all T queries, BLOCK at a time, scores recomputed backward.

    Memory is linear in T. Keys after the end of a group of blocks, masked for all of
    its queries, are not multiplied: with GROUPS 4 that is 37% of the products, 8 save
    another 6% for 40% more memory (a gradient of k and v for each group).
    """
    size = q.shape[1]
    block = min(BLOCK, size)
    count = -(-size // block)
    q = jnp.pad(q, ((0, 0), (0, count * block - size), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(q.reshape(q.shape[0], count, block, *q.shape[2:]), 1, 0)
    group, parts = -(-count // GROUPS), []
    for first in range(0, count, group):
        chosen = blocks[first : first + group]
        end = min((first + len(chosen)) * block, size)

        k_seen, v_seen = k[:, :end], v[:, :end]

        @jax.checkpoint
        def body(number: Array, x: Array, k: Array, v: Array) -> Array:
            at = (number * block + jnp.arange(block))[None]
            return attend(x, k, v, at, length, weigh)

        def step(_: None, x: tuple) -> tuple[None, Array]:
            return None, body(*x, k_seen, v_seen)  # noqa: B023, used in this round

        numbers = first + jnp.arange(len(chosen))
        parts.append(jax.lax.scan(step, None, (numbers, chosen))[1])
    out = jnp.moveaxis(jnp.concatenate(parts), 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :size]


def linear(q: Array, k: Array, v: Array, length: Array) -> Array:
    """LinRec's attention of all T queries, or with R = 1 of the last event's alone.

    Liu et al., SIGIR 2023: with elu the activation, rows of elu(Q) over their L2 norm
    and columns of elu(K) over theirs, Q' (K'^T V) / sqrt(P). The norm of a column and
    K^T V run over the keys so far (the paper's: over all, so it sees the future):

        y_t = sum_d q'_td / c_td (sum_{s <= t} elu(k_sd) v_s) / sqrt(P),
        c_td = sqrt(sum_{s <= t} elu(k_sd)^2),

    which for the last event of a history is the paper's output. Nothing is T x T.
    """
    exists = jnp.arange(k.shape[1])[None] < length[:, None]
    k = jnp.where(exists[..., None, None], nn.elu(k), 0)
    q = nn.elu(q)
    q = q * jax.lax.rsqrt(jnp.sum(q * q, -1, keepdims=True) + 1e-12)
    q = q * q.shape[-1] ** -0.5
    if q.shape[1] == 1:
        square = jnp.sum(k * k, axis=1, keepdims=True)
        state = jnp.einsum("bthd,bthe->bhde", k, v)
        return jnp.einsum("brhd,bhde->brhe", q * jax.lax.rsqrt(square + 1e-12), state)
    size = q.shape[1]
    chunk = min(CHUNK, size)
    count = -(-size // chunk)

    def split(x: Array) -> Array:  # [count, B, chunk, H, P]
        x = jnp.pad(x, ((0, 0), (0, count * chunk - size), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    before = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None]

    @jax.checkpoint
    def body(carry: tuple[Array, Array], x: tuple) -> tuple[tuple, Array]:
        state, square = carry
        q, k, v = x
        squares = square[:, None] + jnp.cumsum(k * k, axis=1)
        q = q * jax.lax.rsqrt(squares + 1e-12)
        score = jnp.where(before, jnp.einsum("brhd,bthd->bhrt", q, k), 0)
        y = jnp.einsum("bhrt,bthe->brhe", score, v)
        y = y + jnp.einsum("brhd,bhde->brhe", q, state)
        return (state + jnp.einsum("bthd,bthe->bhde", k, v), squares[:, -1]), y

    B, _, H, P = q.shape
    start = (jnp.zeros((B, H, P, P), v.dtype), jnp.zeros((B, H, P), k.dtype))
    y = jax.lax.scan(body, start, (split(q), split(k), split(v)))[1]
    return jnp.moveaxis(y, 0, 1).reshape(B, -1, H, P)[:, :size]


def dropout(module: nn.Module, rate: float) -> Callable[[Array, Array], Array]:
    """(weights [B, H, R, T], at) -> weights, of a key for each block of queries.

    The draws are those of no other form: a block's come from its first slot.
    """
    if rate == 0.0:
        return lambda weight, at: weight
    key = module.make_rng("dropout")

    def drop(weight: Array, at: Array) -> Array:
        kept = jax.random.bernoulli(
            jax.random.fold_in(key, at[0, 0]), 1 - rate, weight.shape
        )
        return jnp.where(kept, weight / (1 - rate), 0)

    return drop
