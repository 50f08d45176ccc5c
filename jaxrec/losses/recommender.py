"""Losses of the Q-learning recommenders, each for one transition of a log.

Symbols: q = Q(s, a) of the logged item, y a regression target, ce the cross entropy of
the softmax head at the logged item. They take the few values that a loss needs, not
tables over the catalogue: the caller gathers them. `vmap` maps them over the batch.
"""

import jax
import jax.numpy as jnp

from jaxrec.types import Array


def target(reward: Array, done: Array, q_next: Array, gamma: float) -> Array:
    """y = r + gamma (1 - d) Q_target(s', a*), a constant.

    With a* = argmax_a Q_main(s', a) that of SQN (Xin et al. 2020); with a* the item
    that was logged next that of EVAL (Labarca Silva et al. 2024). float32[] each.
    """
    return jax.lax.stop_gradient(reward + gamma * (1.0 - done) * q_next)


def td(q: Array, y: Array, scale: float = 0.5) -> Array:
    """scale (y - q)^2; the authors' code halves the square, the papers do not."""
    return scale * jnp.square(y - q)


def negative_target(
    reward: Array, q_same: Array, gamma: float, done: Array | float = 0.0
) -> Array:
    """y- = r_n + gamma Q_target(s, a~), a constant (SNQN, Xin et al. 2022).

    An item that is not taken leaves the state as it is, so the bootstrap is on s itself
    with a~ = argmax_a Q_main(s, a), and in the code the end of the session does not
    mask it; with `done` (ours) it does. float32[] each.
    """
    return jax.lax.stop_gradient(reward + gamma * (1.0 - done) * q_same)


def negatives(q: Array, y: Array, scale: float = 0.5) -> Array:
    """sum_j scale (y- - Q(s, a-_j))^2: summed, not averaged. q: float32[n], y: []."""
    return jnp.sum(scale * jnp.square(y - q))


def sample_negatives(key: Array, action: Array, num_items: int, count: int) -> Array:
    """Items other than the one taken, uniform, with replacement: int32[count].

    No rejection: an index below `num_items - 1` skips over the item (ours). Items are
    1 .. num_items; action: int32[].
    """
    drawn = jax.random.randint(key, (count,), 1, num_items)
    return drawn + (drawn >= action)


def advantage(q: Array, q_negatives: Array) -> Array:
    """A = Q(s, a) - mean of the values of a and its negatives, a constant (SA2C).

    q: float32[], q_negatives: float32[n].
    """
    count = q_negatives.shape[0] + 1
    return jax.lax.stop_gradient(q - (q + jnp.sum(q_negatives)) / count)


def importance(
    probability: Array, frequency: Array, smooth: float, low: float, high: float
) -> Array:
    """rho = clip(pi(a|s) / beta(a), low, high)^smooth, a constant (SA2C).

    `frequency`: share of the item among the training events. smooth 0 gives 1.
    """
    ratio = jnp.clip(probability / frequency, low, high)
    return jax.lax.stop_gradient(ratio**smooth)


def proxy(q: Array, y: Array, scale: float = 0.5) -> Array:
    """scale (y - q)^2 with a target that is no value (HIST, FUT): a control for SQN.

    y: float32[], the share of past (or future) events of the session.
    """
    return scale * jnp.square(jax.lax.stop_gradient(y) - q)


def vpq_penalty(q_heads: Array, coefficient: float) -> Array:
    """1 / (1 + coefficient std_k Q_k), a constant (VPQ). q_heads: float32[K]."""
    std = jnp.std(jax.lax.stop_gradient(q_heads))
    return 1.0 / (1.0 + coefficient * std)


def convex_weights(key: Array, count: int) -> Array:
    """Random convex weights of K heads: uniform numbers over their sum (REM)."""
    draws = jax.random.uniform(key, (count,), minval=1e-6)
    return draws / jnp.sum(draws)


def smorl(q: Array, y: Array, weights: Array, scale: float = 0.5) -> Array:
    """sum_k w_k scale (y_k - Q_k(s, a))^2 (SMORL). float32[K] each."""
    return jnp.sum(weights * scale * jnp.square(y - q))


def bce(positive: Array, negative: Array) -> Array:
    """softplus(-s+) + softplus(s-): binary cross entropy with one negative.

    SASRec (Kang & McAuley 2018, eq. 7) and RecMamba (arXiv 2403.16371); float32[] each,
    the products of the state with the item that came and with one that did not.
    """
    return jax.nn.softplus(-positive) + jax.nn.softplus(negative)
