"""Conditional denoisers: a multilayer perceptron and a transformer of entities.

All are called as `network.apply(params, x, level, condition, given)`:

    x: float[..., *S], the noisy state; level: float[] or float[...], the noise level
    (see `losses.diffusion`); condition: a `Condition`; given: float[] or float[...],
    1.0 = the condition counts, 0.0 = it is dropped (classifier-free guidance)
    -> float[..., *S], zeros at the start of training.

The leading axes may be none: one example. A dropped condition cannot be told from
another. `models.unet` holds the one for grids. Sizes are ours; that SIDIFF's generator
is a U-Net is only known from others' summaries.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrec.types import Array

TIME = 32  # features of the noise level


class Condition(NamedTuple):
    """What is seen. Each network says which parts it reads; others may be None.

    `vector`: float[..., C]: observation, history, features of any kind.
    `tokens`: float[..., P, C'] with `mask` bool[..., P], False where there is none.
    `canvas`: float[..., H, W, C], what is seen of the grid at its place, with `seen`
    float or bool[..., H, W, C or 1], 1 where it is.
    """

    vector: Array | None = None
    tokens: Array | None = None
    mask: Array | None = None
    canvas: Array | None = None
    seen: Array | None = None


NOTHING = Condition()


def time_features(level: Array) -> Array:
    """cos and sin at 16 frequencies from 1/4 to 16 a unit: float[...] -> [..., 32]."""
    rate = 2 * np.pi * np.geomspace(0.25, 16.0, TIME // 2).astype(np.float32)
    angle = level[..., None] * rate.reshape((1,) * level.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def situation(
    level: Array, vector: Array | None, given: Array, lead: tuple[int, ...]
) -> Array:
    """Noise level, condition vector and whether it was given: float[*lead, n]."""
    level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), lead)
    given = jnp.broadcast_to(jnp.asarray(given, jnp.float32), lead)[..., None]
    parts = [time_features(level), given]
    if vector is not None:
        parts.append(vector * given)
    return jnp.concatenate(parts, axis=-1)


class MLP(nn.Module):
    """`num_layers` residual layers with LayerNorm and SiLU: float[..., S], one axis.

    Reads `vector`.
    """

    width: int = 256
    num_layers: int = 3

    @nn.compact
    def __call__(
        self,
        x: Array,
        level: Array,
        condition: Condition = NOTHING,
        given: Array | float = 1.0,
    ) -> Array:
        lead = x.shape[:-1]
        about = situation(level, condition.vector, given, lead)
        h = nn.Dense(self.width, name="in")(jnp.concatenate([x, about], axis=-1))
        for layer in range(1, self.num_layers):
            h = h + nn.Dense(self.width, name=f"layer_{layer}")(
                nn.silu(nn.LayerNorm(name=f"norm_{layer}")(h))
            )
        h = nn.silu(nn.LayerNorm(name="norm")(h))
        zeros = nn.initializers.zeros
        return nn.Dense(x.shape[-1], kernel_init=zeros, name="out")(h)


class EntityTransformer(nn.Module):
    """Tokens of entities (units, chunks of a latent): float[..., P, d].

    Reads `vector` and `tokens`. `aligned`: token j of the condition is what is seen of
    entity j and is joined to its features, else condition tokens are a set beside the
    entities and attended to. `slots`: entities have learned names; without them the
    network commutes with permutations of the entities.
    """

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    aligned: bool = True
    slots: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        level: Array,
        condition: Condition = NOTHING,
        given: Array | float = 1.0,
    ) -> Array:
        lead, (num, size) = x.shape[:-2], x.shape[-2:]
        about = situation(level, condition.vector, given, lead)
        about = nn.Dense(self.width, name="situation")(about)[..., None, :]
        seen, tokens = self._seen(condition, given, lead)
        parts = [x]
        if tokens is not None and self.aligned:
            parts += [tokens, seen[..., None].astype(x.dtype)]
        h = nn.Dense(self.width, name="in")(jnp.concatenate(parts, axis=-1)) + about
        if self.slots:
            small = nn.initializers.normal(0.02)
            name = self.param("slots", small, (num, self.width))
            h = h + jnp.broadcast_to(name, h.shape)
        mask = jnp.ones((*lead, num), bool)
        if tokens is not None and not self.aligned:
            beside = nn.Dense(self.width, name="condition")(tokens) + about
            h = jnp.concatenate([h, beside], axis=-2)
            mask = jnp.concatenate([mask, seen], axis=-1)
        for layer in range(self.num_layers):
            h = Block(self.num_heads, name=f"block_{layer}")(h, mask)
        h = nn.LayerNorm(name="norm")(h[..., :num, :])
        return nn.Dense(size, kernel_init=nn.initializers.zeros, name="out")(h)

    def _seen(
        self, condition: Condition, given: Array, lead: tuple[int, ...]
    ) -> tuple[Array | None, Array | None]:
        """(mask bool[*lead, P], tokens with zeros where nothing is seen), or Nones."""
        tokens, mask = condition.tokens, condition.mask
        if tokens is None:
            return None, None
        if mask is None:
            mask = jnp.ones(tokens.shape[:-1], bool)
        given = jnp.broadcast_to(jnp.asarray(given, jnp.float32), lead)[..., None]
        mask = mask & (given > 0)
        return mask, jnp.where(mask[..., None], tokens, 0.0)


class Block(nn.Module):
    """Pre-norm attention of all to all and an MLP of twice the width: [..., P, D].

    `mask`: bool[..., P], False for tokens that nobody attends to.
    """

    num_heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        width = x.shape[-1]
        h = nn.LayerNorm(name="norm_in")(x)
        qkv = nn.Dense(3 * width, name="query_key_value")(h)
        q, k, v = (
            y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)
            for y in jnp.split(qkv, 3, axis=-1)
        )
        score = jnp.einsum("...qhd,...khd->...hqk", q, k) * q.shape[-1] ** -0.5
        allowed = jnp.broadcast_to(mask[..., None, None, :], score.shape)
        weight = nn.softmax(jnp.where(allowed, score, -1e9), axis=-1)
        out = jnp.einsum("...hqk,...khd->...qhd", weight, v).reshape(x.shape)
        x = x + nn.Dense(width, name="attended")(out)
        h = nn.silu(nn.Dense(2 * width, name="up")(nn.LayerNorm(name="norm_out")(x)))
        return x + nn.Dense(width, name="down")(h)
