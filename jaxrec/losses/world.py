"""Losses of world models and of sequence policies, each for one window.

Each returns (sum over the steps that count, their number); the caller adds both over
the batch and divides once, so that short windows weigh no more than long ones.
Symbols: K steps; weight = 1.0 where a step counts (not padding, and for the state not
without a true next one).
"""

import jax.numpy as jnp
import optax

from jaxrec.types import Array


def gaussian_nll(
    mean: Array, log_var: Array, target: Array, weight: Array
) -> tuple[Array, Array]:
    """sum_t w_t sum_d (d_t - mu_t)^2 exp(-lv_t) + lv_t (PETS; MOPO, app. B).

    mean, log_var, target: float32[K, od]; weight: float32[K].
    """
    error = jnp.square(target - mean) * jnp.exp(-log_var) + log_var
    return _total(jnp.sum(error, axis=-1), weight)


def squared_error(mean: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """sum_t w_t ||d_t - mu_t||^2. float32[K, n], weight float32[K]."""
    return _total(jnp.sum(jnp.square(target - mean), axis=-1), weight)


def reward_error(reward: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """sum_t w_t (r_t - r^_t)^2. float32[K] each."""
    return _total(jnp.square(target - reward), weight)


def terminal_bce(logit: Array, terminal: Array, weight: Array) -> tuple[Array, Array]:
    """Cross-entropy of the termination flags. float32[K] each."""
    return _total(optax.sigmoid_binary_cross_entropy(logit, terminal), weight)


def action_error(action: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """sum_t w_t sum_d (a_t - a^_t)^2, counting numbers, not steps.

    The mean over all dimensions of the unmasked steps is the loss of the Decision
    Transformer's code. float32[K, ad], weight float32[K].
    """
    total, count = squared_error(action, target, weight)
    return total, count * action.shape[-1]


def _total(error: Array, weight: Array) -> tuple[Array, Array]:
    # `where`, not a product alone: a masked step may hold infinities.
    error = jnp.where(weight > 0, error, 0.0)
    return jnp.sum(error * weight), jnp.sum(weight)
