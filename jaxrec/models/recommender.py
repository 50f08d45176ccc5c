"""The network of a sequential recommender: item table, encoder, heads over the items.

Every method of the family reads a user's state from the same encoder and puts one or
more linear heads on it. A head is a table with a row for each item, so that the value
of a few items costs a gather of rows and not a product with the whole catalogue.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models import encoders
from jaxrec.types import Array

NOT_AN_ITEM = -1e9  # logit and value of padding: finite, so that no 0 * inf arises


class ItemHead(nn.Module):
    """x -> x W_i + b_i for every item i, Glorot-uniform W and zero b as the TF1 code.

    `num_heads` 0: one head, float[B, V]; K > 0: float[B, K, V]. Row 0 (padding) and the
    rows after `num_items` give NOT_AN_ITEM.
    """

    vocab: int
    num_items: int
    width: int
    num_heads: int = 0

    def setup(self) -> None:
        lead = (self.num_heads,) if self.num_heads else ()
        init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=-1, out_axis=-2, batch_axis=()
        )
        if self.num_heads:
            init = nn.initializers.variance_scaling(
                1.0, "fan_avg", "uniform", in_axis=-1, out_axis=-2, batch_axis=0
            )
        self.table = self.param("table", init, (*lead, self.vocab, self.width))
        self.bias = self.param("bias", nn.initializers.zeros, (*lead, self.vocab))

    def __call__(self, x: Array) -> Array:
        """float[B, D'] -> float32[B, V] or [B, K, V]."""
        item = jnp.arange(self.vocab)
        exists = (item > 0) & (item <= self.num_items)
        if self.num_heads:
            y = jnp.einsum("bd,kvd->bkv", x, self.table) + self.bias[None]
            return jnp.where(exists[None, None], y, NOT_AN_ITEM)
        y = x @ self.table.T + self.bias[None]
        return jnp.where(exists[None], y, NOT_AN_ITEM)

    def at(self, x: Array, item: Array) -> Array:
        """Of some items alone: float[B, D'], int32[B] or [B, n] -> [B] or [B, n].

        With K heads: [B, K] or [B, K, n].
        """
        if self.num_heads:
            rows = jnp.moveaxis(self.table[:, item], 0, 1)  # [B, K, (n,) D']
            bias = jnp.moveaxis(self.bias[:, item], 0, 1)
            x = x[:, None] if item.ndim == 1 else x[:, None, None]
        else:
            rows, bias = self.table[item], self.bias[item]
            x = x if item.ndim == 1 else x[:, None]
        return jnp.sum(rows * x, axis=-1) + bias


class Prompt(nn.Module):
    """PRL's head: the state, a token of the step and one of the return, mixed by
    attention (one head, no mask, no norm) and a learned weight of each, then ReLU.

    x: float[B, D'], timestep: int32[B], reward_to_go: float[B] -> float[B, D'].
    """

    max_step: int = 50
    dropout: float = 0.3

    @nn.compact
    def __call__(
        self, x: Array, timestep: Array, reward_to_go: Array, train: bool = False
    ) -> Array:
        width, small = x.shape[-1], nn.initializers.normal(0.01)
        steps = nn.Embed(self.max_step, width, embedding_init=small, name="step")
        row = self.param("return", small, (width,))
        z = jnp.stack(
            [
                x,
                steps(jnp.minimum(timestep, self.max_step - 1)),
                reward_to_go[:, None] * row[None],
            ],
            axis=1,
        )
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        query, key, value = (
            nn.Dense(width, name=name)(z) for name in ("query", "key", "value")
        )
        score = jnp.einsum("bqd,bkd->bqk", query, key) / width**0.5
        z = z + nn.softmax(score) @ value
        glorot = nn.initializers.xavier_uniform()
        weight = self.param("tokens", glorot, (3, 1))
        bias = self.param("bias", nn.initializers.zeros, ())
        return nn.relu(jnp.einsum("btd,t->bd", z, weight[:, 0]) + bias)


class Recommender(nn.Module):
    """Item table [V, D], encoder, a softmax head and `q_heads` value heads.

    `q_heads`: None for no value head, 0 for one, K for K (see ItemHead). `tied`: the
    softmax head's rows are those of the item table (a bias of its own); otherwise as in
    the SQN code a table of its own. `temperature`: above 0, logits of a tied head are
    cosines of state and item over it.
    """

    vocab: int
    num_items: int
    width: int
    encoder: nn.Module
    out_width: int
    q_heads: int | None = None
    tied: bool = False
    temperature: float = 0.0

    def setup(self) -> None:
        # N(0, 0.01) as the SQN code.
        self.item_table = nn.Embed(
            self.vocab, self.width, embedding_init=nn.initializers.normal(0.01)
        )
        if self.tied:
            zeros = nn.initializers.zeros
            self.ce_bias = self.param("ce_bias", zeros, (self.vocab,))
        else:
            self.ce_head = ItemHead(self.vocab, self.num_items, self.out_width)
        if self.q_heads is not None:
            self.q_head = ItemHead(
                self.vocab, self.num_items, self.out_width, self.q_heads
            )

    def __call__(self, items: Array, length: Array, gap: Array | None = None) -> Any:
        """Touches every parameter: for `init`."""
        x = self.state(items, length, gap=gap)
        q = None if self.q_heads is None else self.q(x)
        return self.logits(x), q

    def states(self, items: Array, length: Array, train: bool = False) -> Array:
        """int32[B, T], int32[B] -> float[B, T, D'], out[b, t] after events 0..t."""
        return self.encoder(self.item_table(items), length, train)

    def state(
        self,
        items: Array,
        length: Array,
        train: bool = False,
        gap: Array | None = None,
    ) -> Array:
        """int32[B, L] from the left, int32[B] -> float[B, D'], after the last event.

        gap: float[B, L], for encoders that read the times between events.
        """
        return encoders.last(self.encoder, self.item_table(items), length, train, gap)

    def ce_table(self) -> tuple[Array, Array]:
        """Rows float[V, D'] and bias float[V] of the softmax head."""
        if self.tied:
            table = self.item_table.embedding
            return (_unit(table) if self.temperature else table), self.ce_bias
        return self.ce_head.table, self.ce_head.bias

    def logits(self, x: Array) -> Array:
        """float[B, D'] -> float[B, V]."""
        if not self.tied:
            return self.ce_head(x)
        item = jnp.arange(self.vocab)
        table, bias = self.ce_table()
        if self.temperature:
            x = _unit(x) / self.temperature
        y = x @ table.T + bias[None]
        exists = (item > 0) & (item <= self.num_items)
        return jnp.where(exists[None], y, NOT_AN_ITEM)

    def q(self, x: Array) -> Array:
        """float[B, D'] -> float[B, V] or [B, K, V]."""
        return self.q_head(x)

    def q_table(self) -> tuple[Array, Array]:
        """Rows float[V, D'] and bias float[V] of the one value head."""
        return self.q_head.table, self.q_head.bias

    def q_mixed_table(self, weights: Array) -> tuple[Array, Array]:
        """Those of sum_k weights_k Q_k: K heads are mixed before the product."""
        table = jnp.tensordot(weights, self.q_head.table, 1)
        return table, weights @ self.q_head.bias

    def q_at(self, x: Array, item: Array) -> Array:
        """Values of some items, see ItemHead.at."""
        return self.q_head.at(x, item)


def make(config: Any, info: dict[str, Any], q_heads: int | None = None) -> Recommender:
    """From `config.encoder` (see encoders.SPEC), `config.tied` and the data's sizes."""
    encoder = encoders.make(config.encoder, info["seq_len"])
    return Recommender(
        vocab=info["vocab"],
        num_items=info["num_items"],
        width=config.encoder.width,
        encoder=encoder,
        out_width=encoders.out_width(config.encoder),
        q_heads=q_heads,
        tied=config.tied,
        temperature=getattr(config, "temperature", 0.0),
    )


def _unit(x: Array) -> Array:
    """float[N, D] over its L2 norms, as `losses.sampled_softmax.unit`."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
