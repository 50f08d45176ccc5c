"""A transformer of sessions: what users do with an item they are shown."""

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models.recommender import NOT_AN_ITEM
from jaxrec.models.world import Trunk
from jaxrec.types import Array

KINDS = 3  # 0 = click, 1 = purchase, 2 = ignored
OUTCOMES = 2 * KINDS  # kind + KINDS where the user leaves after it


class SessionWorld(nn.Module):
    """Items shown with their kinds, then two heads on the state between two of them.

    A token for each item shown, and one before the first; positions are counted from
    the beginning of the session, so `length` is the longest session. Causal: what comes
    after an item does not move the states before. The rows of both heads are those of
    the item table.
    """

    vocab: int
    num_items: int
    width: int
    num_layers: int
    num_heads: int
    length: int
    dropout: float = 0.0

    def setup(self) -> None:
        small = nn.initializers.normal(0.02)
        self.item_table = nn.Embed(self.vocab, self.width, embedding_init=small)
        self.kind_table = nn.Embed(KINDS, self.width, embedding_init=small)
        self.start = self.param("start", small, (self.width,))
        self.position = self.param("position", small, (self.length + 1, self.width))
        self.trunk = Trunk(self.num_layers, self.num_heads, self.dropout)
        self.ask = nn.Dense(OUTCOMES * self.width)
        self.ask_bias = self.param(
            "outcome_bias", nn.initializers.zeros, (OUTCOMES, self.vocab)
        )
        self.propose = nn.Dense(self.width)
        self.propose_bias = self.param(
            "shown_bias", nn.initializers.zeros, (self.vocab,)
        )

    def __call__(self, items: Array, kinds: Array) -> tuple[Array, Array]:
        """Touches every parameter: for `init`."""
        x = self.states(items, kinds)
        return self.outcomes(x[:, 0]), self.shown(x[:, 0])

    def states(self, items: Array, kinds: Array, train: bool = False) -> Array:
        """int32[B, T] each, T <= length -> float[B, T + 1, D], before item 0, 1, ...

        Sessions stand at the left; what a shorter one holds after its end moves no
        state up to there.
        """
        x = self.item_table(items) + self.kind_table(kinds)
        start = jnp.broadcast_to(self.start[None, None], (len(items), 1, self.width))
        x = jnp.concatenate([start, x], axis=1)
        x = x + self.position[None, : x.shape[1]]
        return self.trunk(x, jnp.ones(x.shape[:2], bool), train=train)

    def outcomes(self, x: Array) -> Array:
        """Logits of what happens to each item: float[B, D] -> float[B, OUTCOMES, V]."""
        query = self.ask(x).reshape(-1, OUTCOMES, self.width)
        y = jnp.einsum("bkd,vd->bkv", query, self.item_table.embedding)
        return y + self.ask_bias[None]

    def outcomes_at(self, x: Array, item: Array) -> Array:
        """Those of one item each: float[N, D], int32[N] -> float[N, OUTCOMES]."""
        query = self.ask(x).reshape(-1, OUTCOMES, self.width)
        y = jnp.einsum("nkd,nd->nk", query, self.item_table(item))
        return y + self.ask_bias.T[item]

    def shown(self, x: Array) -> Array:
        """Logits of the item shown next: float[N, D] -> float[N, V]."""
        y = self.propose(x) @ self.item_table.embedding.T + self.propose_bias[None]
        item = jnp.arange(self.vocab)
        exists = (item > 0) & (item <= self.num_items)
        return jnp.where(exists[None], y, NOT_AN_ITEM)
