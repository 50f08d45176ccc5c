"""HSTU-style attention: pointwise, gated, with a bias of the distance.

Zhai et al., "Actions Speak Louder than Words" (ICML 2024), arXiv 2402.17152.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models import attention
from jaxrec.types import Array


class HSTU(nn.Module):
    """`num_layers` blocks, with n = LN(x) and SiLU after the first product:

        u, v, q, k = split(SiLU(W_1 n)),   a_ts = SiLU(q_t k_s + bias_{t - s}) / max_len
        x' = x + W_2 (LN(sum_{s <= t} a_ts v_s) * u)

    Simplified: no bias of the time between events (the batches have no times), one
    width for queries, keys and values, no action embeddings. As in the authors' code
    learned positions are added to sqrt(D) x and weights are divided by the largest
    length, not by the row's. A layer norm at the end, ours.
    `attention`: "full" or "blockwise", the same numbers in memory linear in T.
    """

    width: int = 64
    num_layers: int = 1
    num_heads: int = 1
    attention: str = "full"
    max_len: int = 10
    dropout: float = 0.2  # of the input and of each block's output, code

    @property
    def out_width(self) -> int:
        return self.width

    @nn.compact
    def __call__(
        self, x: Array, length: Array, train: bool = False, only_last: bool = False
    ) -> Array:
        if x.shape[1] > self.max_len:
            raise ValueError(
                f"{x.shape[1]} events, but max_len is {self.max_len}: raise it"
            )
        time = jnp.arange(x.shape[1])[None]
        exists = (time < length[:, None])[..., None]
        last = jnp.maximum(length - 1, 0)[:, None]
        table = self.param(
            "positions_table", nn.initializers.normal(0.02), (self.max_len, self.width)
        )
        x = self._drop(self.width**0.5 * x + table[time], train)
        x = jnp.where(exists, x, 0)
        for layer in range(self.num_layers):
            asks, asks_exist, at = x, exists, time
            if only_last and layer == self.num_layers - 1:  # one query, all keys
                asks = jnp.take_along_axis(x, last[..., None], axis=1)
                asks_exist, at = (length > 0)[:, None, None], last
            y = self._block(asks, x, at, length, str(layer))
            x = jnp.where(asks_exist, asks + self._drop(y, train), 0)
        x = _norm("norm_out")(x)
        return x[:, 0] if only_last else x

    def _drop(self, x: Array, train: bool) -> Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _block(self, asks: Array, x: Array, at: Array, length: Array, i: str) -> Array:
        H, D = self.num_heads, self.width
        norm, first = _norm(f"norm_in_{i}"), nn.Dense(4 * D, name=f"first_{i}")
        u, _, q, _ = jnp.split(nn.silu(first(norm(asks))), 4, axis=-1)
        _, v, _, k = jnp.split(nn.silu(first(norm(x))), 4, axis=-1)
        bias = self.param(
            f"distance_{i}", nn.initializers.normal(0.02), (self.max_len, H)
        )

        def weigh(score: Array, seen: Array, at: Array) -> Array:
            time = jnp.arange(score.shape[-1])[None, None]
            near = jnp.moveaxis(bias[jnp.maximum(at[:, :, None] - time, 0)], 3, 1)
            weight = nn.silu(score + near.astype(score.dtype))
            return jnp.where(seen, weight / self.max_len, 0)

        q, k, v = (y.reshape(*y.shape[:2], H, D // H) for y in (q, k, v))
        if self.attention == "blockwise" and asks.shape[1] > 1:
            y = attention.blockwise(q, k, v, length, weigh)
        else:
            y = attention.attend(q, k, v, at, length, weigh)
        y = _norm(f"norm_attention_{i}")(y.reshape(asks.shape))
        return nn.Dense(D, name=f"second_{i}")(y * u)


def _norm(name: str) -> nn.LayerNorm:
    # Two-pass variance: pointwise weights over max_len make small numbers.
    return nn.LayerNorm(epsilon=1e-8, use_fast_variance=False, name=name)
