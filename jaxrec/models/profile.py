"""Networks of a recommender that imagines a user's profile from a short session."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models import encoders
from jaxrec.models.extractor import StateExtractor
from jaxrec.types import Array


class SessionEncoder(nn.Module):
    """Item table and encoder: int32[B, L] from the left, int32[B] -> float[B, D']."""

    vocab: int
    width: int
    encoder: nn.Module

    @nn.compact
    def __call__(self, items: Array, length: Array, train: bool = False) -> Array:
        small = nn.initializers.normal(0.01)
        table = nn.Embed(
            self.vocab, self.width, embedding_init=small, name="item_table"
        )
        return encoders.last(self.encoder, table(items), length, train)


class Fusion(nn.Module):
    """e + sigmoid(g(e)) W z, z what the session asks of the imagined profiles.

    samples: float[B, M, d]; e: float[B, D] -> float[B, D]. W starts at zero, so that
    the first states are those without a profile, bit for bit; the gate at
    sigmoid(`gate_bias`), .119.
    """

    size: int = 64
    num_heads: int = 4
    gate_bias: float = -2.0

    @nn.compact
    def __call__(self, samples: Array, e: Array) -> Array:
        extractor = StateExtractor(
            self.size, self.size, num_heads=self.num_heads, name="extractor"
        )
        bias = nn.initializers.constant(self.gate_bias)
        gate = jax.nn.sigmoid(nn.Dense(1, bias_init=bias, name="gate")(e))
        project = nn.Dense(
            e.shape[-1],
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            name="project",
        )
        z = extractor(jax.lax.stop_gradient(samples), e)
        return e + gate * project(z).astype(jnp.float32)
