"""From inferred states to the features that an agent acts on.

Tokens of the state (an entity each, patches of a grid, or slices of a vector), encoder
blocks, and cross-attention from the agent's own query, which every token has been told
before: what a tank means depends on where the agent is. Several samples of the state
stand side by side, each marked, so that a belief of two modes stays one: a mean would
be of neither. That SIDIFF's extractor is a vision transformer is known from others'
summaries alone; all sizes are ours (DiffRec-like tokens of a user's profile work too).
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models.denoiser import Block
from jaxrec.types import Array

SLICE = 32  # numbers of a vector that make a token


class StateExtractor(nn.Module):
    """(samples float[..., S, *shape], query float[..., D]) -> z float[..., size].

    shape: [P, F] of P entities, [H, W, C] of a grid, or [d] of a vector.
    """

    size: int = 64
    width: int = 64
    num_layers: int = 1
    num_heads: int = 4
    patch: int = 4  # cells a side, of grids

    @nn.compact
    def __call__(self, samples: Array, query: Array) -> Array:
        lead = query.shape[:-1]
        num, rank = samples.shape[len(lead)], samples.ndim - len(lead) - 1
        tokens = as_tokens(samples.astype(jnp.float32), rank, self.patch)
        tokens = nn.Dense(self.width, name="embed")(tokens)  # [..., S, P, width]
        places = tokens.shape[-2]
        small = nn.initializers.normal(0.02)
        place = self.param("place", small, (places, self.width))
        which = self.param("sample", small, (num, self.width))
        mark = place[None] + which[:, None]
        tokens = tokens + jnp.broadcast_to(mark, tokens.shape)
        tokens = tokens.reshape(*lead, num * places, self.width)
        q = nn.Dense(self.width, name="query")(query)[..., None, :]
        tokens = tokens + q
        everyone = jnp.ones(tokens.shape[:-1], bool)
        for layer in range(self.num_layers):
            tokens = Block(self.num_heads, name=f"block_{layer}")(tokens, everyone)
        tokens = nn.LayerNorm(name="norm")(tokens)
        k, v = jnp.split(nn.Dense(2 * self.width, name="key_value")(tokens), 2, axis=-1)
        score = jnp.einsum("...qd,...kd->...qk", q, k) * self.width**-0.5
        found = q + jnp.einsum("...qk,...kd->...qd", nn.softmax(score, axis=-1), v)
        h = nn.Dense(2 * self.width, name="up")(nn.LayerNorm(name="norm_found")(found))
        found = found + nn.Dense(self.width, name="down")(nn.silu(h))
        return nn.Dense(self.size, name="out")(found[..., 0, :])


def as_tokens(x: Array, rank: int, patch: int) -> Array:
    """States of `rank` dimensions as tokens, float[..., P, F].

    [P, F] as it is; [H, W, C] in patches; [d] in slices; with zeros behind.
    """
    if rank == 2:
        return x
    lead = x.shape[:-rank]
    free = ((0, 0),) * len(lead)
    if rank == 1:
        x = jnp.pad(x, (*free, (0, -x.shape[-1] % SLICE)))
        return x.reshape(*lead, -1, SLICE)
    height, width, channels = x.shape[-3:]
    x = jnp.pad(x, (*free, (0, -height % patch), (0, -width % patch), (0, 0)))
    rows, columns = x.shape[-3] // patch, x.shape[-2] // patch
    x = x.reshape(*lead, rows, patch, columns, patch, channels).swapaxes(-4, -3)
    return x.reshape(*lead, rows * columns, patch * patch * channels)
