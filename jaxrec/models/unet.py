"""A small U-Net for grids: the rest of the map painted around what is seen of it.

The condition is literal outpainting: the agent's window stands at its place on an
empty canvas (`envs.battle_city`'s `canvas` does that), and the network reads [noisy
grid, canvas, what is seen] as channels: 16 + 16 + 1 on Battle City. That SIDIFF's
generator is a U-Net is known from others' summaries alone; widths and form are ours.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models.denoiser import NOTHING, Block, Condition, situation
from jaxrec.types import Array


class ResBlock(nn.Module):
    """GroupNorm scaled and shifted by the situation, SiLU, 3x3 convolution, twice.

    x: float[B, H, W, C], about: float[B, n] -> float[B, H, W, width].
    """

    width: int

    @nn.compact
    def __call__(self, x: Array, about: Array) -> Array:
        h = nn.Conv(self.width, (3, 3), name="conv_in")(nn.silu(_norm(x, "norm_in")))
        change = nn.Dense(2 * self.width, name="situation")(about)[:, None, None]
        scale, shift = jnp.split(change, 2, axis=-1)
        h = nn.silu(_norm(h, "norm_out") * (1 + scale) + shift)
        h = nn.Conv(self.width, (3, 3), name="conv_out")(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="skip")(x)
        return x + h


def _norm(x: Array, name: str) -> Array:
    channels = x.shape[-1]
    groups = next(n for n in (8, 4, 2, 1) if channels % n == 0)
    return nn.GroupNorm(groups, name=name)(x)


class UNet(nn.Module):
    """float[..., H, W, C] for any H and W; called as the networks of `denoiser`.

    Reads `canvas` (with `seen`) and `vector`. A level of half the size for every width
    after the first, attention at the smallest; inside, the grid stands in the corner of
    one whose sides divide, with a channel that tells it from the margin.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    num_heads: int = 4

    @nn.compact
    def __call__(
        self,
        x: Array,
        level: Array,
        condition: Condition = NOTHING,
        given: Array | float = 1.0,
    ) -> Array:
        lead, (height, width, channels) = x.shape[:-3], x.shape[-3:]
        about = situation(level, condition.vector, given, lead)
        about = nn.Dense(self.widths[-1], name="about")(about)
        about = nn.silu(about).reshape(-1, self.widths[-1])
        parts = [x, jnp.ones((*x.shape[:-1], 1), x.dtype)]
        if condition.canvas is not None:
            given = jnp.broadcast_to(jnp.asarray(given, x.dtype), lead)
            given = given[..., None, None, None]
            seen = jnp.max(condition.seen.astype(x.dtype), axis=-1, keepdims=True)
            parts += [condition.canvas * given, seen * given]
        h = jnp.concatenate(parts, axis=-1).reshape(-1, height, width, sum_of(parts))
        times = 2 ** (len(self.widths) - 1)
        margin = ((0, 0), (0, -height % times), (0, -width % times), (0, 0))
        h = nn.Conv(self.widths[0], (3, 3), name="in")(jnp.pad(h, margin))
        skips = []
        for depth, size in enumerate(self.widths):
            if depth:
                h = nn.avg_pool(h, (2, 2), strides=(2, 2))
            h = ResBlock(size, name=f"down_{depth}")(h, about)
            skips.append(h)
        batch, rows, columns, size = h.shape
        tokens = h.reshape(batch, rows * columns, size)
        tokens = Block(self.num_heads, name="attention")(
            tokens, jnp.ones(tokens.shape[:2], bool)
        )
        h = tokens.reshape(h.shape)
        for depth in reversed(range(len(self.widths) - 1)):
            old = skips[depth]
            h = jax.image.resize(h, (*old.shape[:3], h.shape[-1]), "nearest")
            h = jnp.concatenate([h, old], axis=-1)
            h = ResBlock(self.widths[depth], name=f"up_{depth}")(h, about)
        h = nn.silu(_norm(h, "norm"))[:, :height, :width]
        zeros = nn.initializers.zeros
        h = nn.Conv(channels, (3, 3), kernel_init=zeros, name="out")(h)
        return h.reshape(x.shape)


def sum_of(parts: list[Array]) -> int:
    """Channels of all parts together."""
    return sum(part.shape[-1] for part in parts)
