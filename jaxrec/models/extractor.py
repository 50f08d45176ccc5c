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
        shape = samples.shape[len(lead) + 1 :]
        num = samples.shape[len(lead)]
        flat = samples.astype(jnp.float32).reshape(-1, *shape)
        tokens = nn.Dense(self.width, name="embed")(as_tokens(flat, self.patch))
        places = tokens.shape[-2]
        small = nn.initializers.normal(0.02)
        tokens = tokens.reshape(-1, num, places, self.width)
        place = self.param("place", small, (places, self.width))[None, None]
        which = self.param("sample", small, (num, self.width))[None, :, None]
        tokens = tokens + jnp.broadcast_to(place, tokens.shape)
        tokens = tokens + jnp.broadcast_to(which, tokens.shape)
        q = nn.Dense(self.width, name="query")(query).reshape(-1, 1, self.width)
        tokens = tokens.reshape(-1, num * places, self.width) + q
        everyone = jnp.ones(tokens.shape[:2], bool)
        for layer in range(self.num_layers):
            tokens = Block(self.num_heads, name=f"block_{layer}")(tokens, everyone)
        tokens = nn.LayerNorm(name="norm")(tokens)
        k, v = jnp.split(nn.Dense(2 * self.width, name="key_value")(tokens), 2, axis=-1)
        score = jnp.einsum("bqd,bkd->bqk", q, k) * self.width**-0.5
        found = q + jnp.einsum("bqk,bkd->bqd", nn.softmax(score, axis=-1), v)
        h = nn.Dense(2 * self.width, name="up")(nn.LayerNorm(name="norm_found")(found))
        found = found + nn.Dense(self.width, name="down")(nn.silu(h))
        z = nn.Dense(self.size, name="out")(found[:, 0])
        return z.reshape(*lead, self.size)


def as_tokens(x: Array, patch: int) -> Array:
    """[B, P, F] as it is; [B, H, W, C] in patches; [B, d] in slices; zeros behind."""
    if x.ndim == 3:
        return x
    if x.ndim == 2:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % SLICE)))
        return x.reshape(x.shape[0], -1, SLICE)
    batch, height, width, channels = x.shape
    margin = ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0))
    x = jnp.pad(x, margin)
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, patch * patch * channels)
