"""What Mamba's parameters are at the start: of Mamba's code or of RecMamba's.

Initialisers by name, with shapes; see `mamba.Mamba` for the settings that they read.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array

FFN = 4  # width of the hidden layer over d, ours


NORM = dict(scale=nn.initializers.ones, bias=nn.initializers.zeros)


def xavier(fan_in: int, fan_out: int) -> nn.initializers.Initializer:
    return nn.initializers.normal((2 / (fan_in + fan_out)) ** 0.5)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def _step_bias(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """softplus of it is log-uniform from 0.001 to 0.1, not below 0.0001."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    dt = jnp.maximum(dt, 1e-4)
    return dt + jnp.log(-jnp.expm1(-dt))


def _counted(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A = -1, -2, ..., -N in each channel."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


def _ones(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A = -1."""
    del key
    return jnp.zeros(shape, dtype)


def _spread(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """softplus of it goes from 0.003 to 0.3 in equal ratios."""
    del key
    dt = jnp.exp(jnp.linspace(jnp.log(3e-3), jnp.log(0.3), shape[-1], dtype=dtype))
    return dt + jnp.log(-jnp.expm1(-dt))


def _loud(rank: int) -> nn.initializers.Initializer:
    """Mamba's x_proj with B and C five times as large.

    A product of C and B is then about 1. Mamba's is 0.05 on this shell: what the state
    says drowns in the skip path, and thousands of updates pass before it is used.
    """

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        weight = _uniform(shape[0] ** -0.5)(key, shape, dtype)
        return weight.at[:, rank:].multiply(5.0)

    return draw


def _drawn(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """-A uniform from 1 to 16 in each head, as Mamba-2's code."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def mixer(m: Any) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
    """name -> (initialiser, shape) of a mixer's parameters."""
    d, inner, n, k = m.width, m.expand * m.width, m.state, m.conv
    rank = m.dt_rank or -(-d // 16)
    channels = inner // m.heads if m.heads else inner
    linear = dict(
        in_proj=(d, 2 * inner),
        x_proj=(inner, rank + 2 * n),
        out_proj=(inner, d),
    )
    scheme = m.init_scheme or ("recmamba_xavier" if m.block == "paper" else "mamba")
    found = dict(
        conv_bias=(_uniform(k**-0.5), (inner,)),
        dt_bias=(_step_bias, (channels,)),
        skip=(nn.initializers.ones, (inner,)),
    )
    decay = (channels,) if m.heads else (inner, n)
    if m.gaps:  # factors of 1
        found["gap"] = (nn.initializers.zeros, (m.gaps, channels))
    if scheme in ("mamba", "selective"):
        found |= {name: (_uniform(s[0] ** -0.5), s) for name, s in linear.items()}
        found["conv"] = (_uniform(k**-0.5), (k, inner))
        found["dt_proj"] = (_uniform(rank**-0.5), (rank, channels))
        found["A_log"] = (_drawn if m.heads else _counted, decay)
        if scheme == "selective":
            found |= dict(A_log=(_ones, decay), dt_bias=(_spread, (channels,)))
            found["x_proj"] = (_loud(rank), linear["x_proj"])
        return found
    linear["dt_proj"] = (rank, channels)
    found |= {name: (xavier(*shape), shape) for name, shape in linear.items()}
    found["conv"] = (xavier(k, k * inner), (k, inner))  # fans of PyTorch's [D, 1, k]
    found["A_log"] = (_drawn if m.heads else xavier(*decay), decay)
    return found


def rest(d: int) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
    """Of the norms and the feed-forward network of a recommended block."""
    glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
    found = dict(
        up=(glorot, (d, FFN * d)),
        up_bias=(zeros, (FFN * d,)),
        down=(glorot, (FFN * d, d)),
        down_bias=(zeros, (d,)),
    )
    for name in ("norm_mixer", "norm_ffn"):
        found |= {f"{name}_{part}": (init, (d,)) for part, init in NORM.items()}
    return found
