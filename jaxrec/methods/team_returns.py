"""What a policy gradient learns from in a chunk: advantages, targets, their scale."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.losses import teams as losses
from jaxrec.types import Array


def mean(x: Array, weight: Array) -> Array:
    return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1.0)


def returns(chunk: Any, value: Array, gamma: float, lam: float) -> tuple[Array, Array]:
    """Advantages and lambda returns [T, B, J] by values [T + 1, B, J]."""

    def one(reward: Array, done: Array, cut: Array, v: Array) -> Array:
        return losses.advantages(reward, done, cut, v, gamma, lam)

    over_values = jax.vmap(one, (None, None, None, 1), 1)
    found = jax.vmap(over_values, (1, 1, 1, 1), 1)(
        chunk.reward, chunk.done, chunk.cut, value
    )
    return found, found + value[:-1]


def standardised(advantage: Array, weight: Array) -> Array:
    """Mean 0 and deviation 1 where the weight is 1."""
    weight = jnp.broadcast_to(weight, advantage.shape)
    centre = mean(advantage, weight)
    deviation = jnp.sqrt(mean(jnp.square(advantage - centre), weight))
    return (advantage - centre) / (deviation + 1e-5)


def renewed(moments: Array, target: Array, weight: Array, decay: float) -> Array:
    """The running moments after these returns came in."""
    weight = jnp.broadcast_to(weight, target.shape)
    new = jnp.stack([mean(target, weight), mean(jnp.square(target), weight), 1.0])
    return decay * moments + (1 - decay) * new


def centre_and_scale(moments: Array) -> tuple[Array, Array]:
    """Mean and deviation of returns, 0 and 1 before the first."""
    weight = jnp.maximum(moments[2], 1e-8)
    centre, square = moments[0] / weight, moments[1] / weight
    deviation = jnp.sqrt(jnp.maximum(square - jnp.square(centre), 1e-2))
    return centre, jnp.where(moments[2] > 0, deviation, 1.0)
