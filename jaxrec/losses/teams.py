"""Losses of learners that play: lambda returns, advantages, the clipped objectives.

For one sequence of T steps, or one step; the caller maps them over games and agents.

A sequence may hold several episodes, one behind the other, as the games of a roll-out
do. `done[t]`: the episode ended with step t, and what follows belongs to the next.
`cut[t]`: it was ended by a limit of steps, so its value goes on, but the state it went
on in was replaced by a fresh one. Then step t is given up: the return from there is the
value of its own state, and its weight is zero (ours; one step in an episode).
"""

import jax
import jax.numpy as jnp

from jaxrec.types import Array


def lambda_returns(
    reward: Array, done: Array, cut: Array, value: Array, gamma: float, lam: float
) -> Array:
    """G_t = r_t + gamma (1 - done_t) [(1 - lam) V_{t+1} + lam G_{t+1}], constants.

    (Sutton 1988; the backward form of PyMARL2.) reward: float32[T]; done, cut: bool[T];
    value: float32[T + 1], by the target network; G_T = V_T. Where cut, G_t = V_t.
    """

    def back(after: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        r, ended, lost, v, v_next = now
        ahead = (1.0 - lam) * v_next + lam * after
        g = r + gamma * jnp.where(ended, 0.0, ahead)
        g = jnp.where(lost, v, g)
        return g, g

    steps = (reward, done, cut, value[:-1], value[1:])
    returns = jax.lax.scan(back, value[-1], steps, reverse=True)[1]
    return jax.lax.stop_gradient(returns)


def td(q: Array, target: Array, weight: Array) -> Array:
    """sum_t w_t (Q_t - G_t)^2 / sum_t w_t. float32[T] each."""
    total = jnp.sum(weight * jnp.square(q - target))
    return total / jnp.maximum(jnp.sum(weight), 1.0)


def advantages(
    reward: Array, done: Array, cut: Array, value: Array, gamma: float, lam: float
) -> Array:
    """A_t = delta_t + gamma lam (1 - done_t) A_{t+1} (Schulman et al. 2016, eq. 16).

    Shapes as in `lambda_returns`; the value of the policy that played. Where cut, A_t =
    0. A_t + V_t is the lambda return.
    """
    returns = lambda_returns(reward, done, cut, value, gamma, lam)
    return returns - jax.lax.stop_gradient(value[:-1])


def clipped_policy(
    log_prob: Array, old_log_prob: Array, advantage: Array, clip: float
) -> Array:
    """-min(rho A, clip(rho, 1 - e, 1 + e) A) (Schulman et al. 2017, eq. 7).

    rho = exp(log_prob - old_log_prob). float32[] each.
    """
    rho = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(rho, 1.0 - clip, 1.0 + clip)
    return -jnp.minimum(rho * advantage, clipped * advantage)


def clipped_value(
    value: Array, old_value: Array, target: Array, clip: float, delta: float
) -> Array:
    """max of the Huber losses of V and of V kept within `clip` of the old value.

    As the official MAPPO (Yu et al. 2022), in units of the normalised return.
    float32[] each.
    """
    kept = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(huber(value - target, delta), huber(kept - target, delta))


def huber(error: Array, delta: float) -> Array:
    """e^2 / 2 up to `delta`, then delta (|e| - delta / 2)."""
    size = jnp.abs(error)
    return jnp.where(
        size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta)
    )


def entropy(logits: Array) -> Array:
    """-sum_a p_a log p_a of float32[n]; -inf marks what is not allowed."""
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0))
