"""SASRec, self-attention over a history, and its linear form. See `encoders`.

Kang & McAuley 2018, as in its own code and as in the code of SQN, SAC (Xin et al.
2020), SNQN and SA2C (2022), whose defaults are those of the fields.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models import attention, sequence
from jaxrec.types import Array


class SASRec(nn.Module):
    """Self-attention over the history, learned positions, `num_layers` blocks.

    `prenorm="queries"` is SASRec's own code and the RL code's: with n = LN(x),
    y = n + attention(queries n, keys and values x), m = LN(y), x' = m + FFN(m); no
    projection after the heads. "all" is the usual pre-norm block with a projection:
    y = x + attention(LN(x)), x' = y + FFN(LN(y)). A layer norm at the end of both.

    `positions="left"` counts from the oldest event of the window (the RL code, which
    pads on the right), "recency" from the newest of the history (SASRec's own code,
    which pads on the left): out[b, t] then depends on `length`, not on later events.
    """

    width: int = 64
    num_layers: int = 1
    num_heads: int = 1
    prenorm: str = "queries"
    positions: str = "left"
    scale_embedding: bool = False
    ffn: int = 1
    attention: str = "full"
    max_len: int = 10
    dropout: float = 0.1

    @property
    def out_width(self) -> int:
        return self.width

    @nn.compact
    def __call__(
        self, x: Array, length: Array, train: bool = False, only_last: bool = False
    ) -> Array:
        sequence.check_length(x, self.max_len)
        exists, time = (
            sequence.existing(length, x.shape[1]),
            jnp.arange(x.shape[1])[None],
        )
        table = self.param(
            "positions_table", nn.initializers.normal(0.01), (self.max_len, self.width)
        )
        index = time  # [1, T]
        if self.positions == "recency":
            index = jnp.maximum(length[:, None] - 1 - time, 0)
        scale = self.width**0.5 if self.scale_embedding else 1.0
        x = scale * x + table[index]
        x = self._drop(x, train)
        x = jnp.where(exists, x, 0)
        for layer in range(self.num_layers):
            asks, asks_exist, now = x, exists, time
            if only_last and layer == self.num_layers - 1:  # one query, all keys
                asks, now = (
                    sequence.at_last(x, length)[:, None],
                    jnp.maximum(length - 1, 0),
                )
                asks_exist, now = (length > 0)[:, None, None], now[:, None]
            y = self._block(asks, x, now, length, str(layer), train)
            x = jnp.where(asks_exist, y, 0)
        x = sequence.norm("norm_out")(x)
        return x[:, 0] if only_last else x

    def _drop(self, x: Array, train: bool) -> Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _block(
        self, asks: Array, x: Array, at: Array, length: Array, i: str, train: bool
    ) -> Array:
        """float[B, R, D] at slots int32[., R] attend to float[B, T, D] -> [B, R, D]."""
        D, paper = self.width, self.prenorm == "queries"

        def dense(y: Array, size: int, name: str) -> Array:
            return nn.Dense(size, kernel_init=sequence.glorot, name=f"{name}_{i}")(y)

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.num_heads, D // self.num_heads)

        norm = sequence.norm(f"norm_attention_{i}")
        n = norm(asks)
        keys = x if paper else norm(x)
        q, k, v = dense(n, D, "query"), dense(keys, D, "key"), dense(keys, D, "value")
        y = self._attend(heads(q), heads(k), heads(v), at, length, train)
        y = y.reshape(asks.shape)
        if not paper:
            y = self._drop(dense(y, D, "project"), train)
        y = (n if paper else asks) + y
        m = sequence.norm(f"norm_ffn_{i}")(y)
        h = self._drop(nn.relu(dense(m, self.ffn * D, "up")), train)
        return (m if paper else y) + self._drop(dense(h, D, "down"), train)

    def _attend(
        self, q: Array, k: Array, v: Array, at: Array, length: Array, train: bool
    ) -> Array:
        if self.attention == "linear":
            return attention.linear(q, k, v, length)
        scale = q.shape[-1] ** -0.5
        if self.attention == "full" or q.shape[1] == 1:

            def weigh(score: Array, seen: Array, at: Array) -> Array:
                return self._drop(attention.softmax(score * scale, seen, at), train)

            return attention.attend(q, k, v, at, length, weigh)
        dropped = attention.dropout(self, self.dropout if train else 0.0)

        def weigh_block(score: Array, seen: Array, at: Array) -> Array:
            return dropped(attention.softmax(score * scale, seen, at), at)

        return attention.blockwise(q, k, v, length, weigh_block)
