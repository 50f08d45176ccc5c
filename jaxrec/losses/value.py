"""Losses of value-based offline reinforcement learning, each for one example.

Symbols: q = Q(s, a), v = V(s), y the regression target, pi = an action of the policy,
log_pi its log-density. The caller maps them over the batch with `vmap`. Shapes are
checked where a forgotten `vmap` or a column [B, 1] would broadcast without a word.
"""

import math

import chex
import jax
import jax.numpy as jnp

from jaxrec.types import Array

LOG_2PI = math.log(2 * math.pi)


def bellman_target(
    reward: Array, terminal: Array, next_v: Array, gamma: float
) -> Array:
    """y = r + gamma (1 - terminal) V(s'), a constant.

    All float32[]. `terminal` is 1.0 only where the environment truly ended: at a time
    limit the value goes on.
    """
    chex.assert_equal_shape([reward, terminal, next_v])
    return jax.lax.stop_gradient(reward + gamma * (1.0 - terminal) * next_v)


def critic(q: Array, y: Array) -> Array:
    """sum_j (Q_j - y)^2. q: float32[2], y: float32[]."""
    chex.assert_rank([q, y], [1, 0])
    return jnp.sum(jnp.square(q - y[None]))


def td3bc_lambda(q: Array, alpha: float) -> Array:
    """lambda = alpha / mean |Q(s, pi(s))|, a constant (Fujimoto & Gu 2021, eq. 5).

    The one quantity here that needs the batch. q: float32[B].
    """
    return jax.lax.stop_gradient(alpha / jnp.mean(jnp.abs(q)))


def td3bc_actor(q: Array, pi: Array, action: Array, lam: Array) -> Array:
    """-lambda Q(s, pi) + mean_d (pi - a)^2 (Fujimoto & Gu 2021, eq. 3).

    q, lam: float32[]; pi, action: float32[ad]. The mean over dimensions is the
    official code's; the paper writes a sum.
    """
    chex.assert_rank([q, lam], 0)
    return -lam * q + behaviour_cloning(pi, action)


def behaviour_cloning(pi: Array, action: Array) -> Array:
    """mean_d (pi - a)^2. float32[ad] each."""
    chex.assert_rank([pi, action], 1)
    chex.assert_equal_shape([pi, action])
    return jnp.mean(jnp.square(pi - action))


def expectile(u: Array, tau: float) -> Array:
    """|tau - 1(u < 0)| u^2 (Kostrikov et al. 2022, eq. 5). u: float32[]."""
    return jnp.where(u < 0, 1.0 - tau, tau) * jnp.square(u)


def advantage_weight(q: Array, v: Array, beta: float, cap: float = 100.0) -> Array:
    """min(exp(beta (Q - V)), cap), a constant (Kostrikov et al. 2022, eq. 7).

    The cap is the official code's. All float32[].
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(beta * (q - v)), cap))


def gaussian_log_prob(x: Array, mean: Array, log_std: Array) -> Array:
    """log N(x; mean, exp(log_std)^2), summed over dimensions. float32[ad] -> []."""
    chex.assert_equal_shape([x, mean, log_std])
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * LOG_2PI)


def tanh_gaussian(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """An action a = tanh(u), u = mean + std noise, and its log-density.

    float32[ad] each -> float32[ad], float32[]. log(1 - tanh(u)^2) is written as
    2 (log 2 - u - softplus(-2 u)), which is exact where tanh(u) rounds to 1, so no
    action has to be clipped for it.
    """
    chex.assert_equal_shape([mean, log_std, noise])
    u = mean + jnp.exp(log_std) * noise
    log_det = 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    log_density = -0.5 * jnp.square(noise) - log_std - 0.5 * LOG_2PI
    return jnp.tanh(u), jnp.sum(log_density - log_det)


def sac_actor(q: Array, log_pi: Array, alpha: Array) -> Array:
    """alpha log pi - min_j Q_j (Haarnoja et al. 2018, eq. 7). q: float32[2]."""
    return alpha * log_pi - jnp.min(q)


def entropy_temperature(log_alpha: Array, log_pi: Array, target: float) -> Array:
    """-log_alpha (log pi + target entropy), as the reference implementations do.

    (Haarnoja et al. 2018, eq. 18, with log alpha in place of alpha.) float32[].
    """
    return -log_alpha * jax.lax.stop_gradient(log_pi + target)


def cql_regulariser(
    q: Array, log_density: Array, q_data: Array, temperature: float = 1.0
) -> Array:
    """T logsumexp_k((Q_k - log mu_k) / T) - Q(s, a) (Kumar et al. 2020, eq. 4, app. F).

    q, log_density: float32[K], values of sampled actions and the log-densities they
    were drawn with (the importance weights); -inf in place of a value leaves that
    action out. q_data: float32[].
    """
    chex.assert_rank([q, log_density, q_data], [1, 1, 0])
    z = (q - jax.lax.stop_gradient(log_density)) / temperature
    return temperature * jax.nn.logsumexp(z) - q_data


def mcq_target(q: Array) -> Array:
    """min_j max_n Q_j(s, a_n), a constant (Lyu et al. 2022, eq. 10). float32[2, N]."""
    return jax.lax.stop_gradient(jnp.min(jnp.max(q, axis=1)))


def mcq_critic(
    q: Array, y: Array, q_ood: Array, y_ood: Array, weight: Array, lam: float
) -> Array:
    """lam sum_j (Q_j - y)^2 + (1 - lam) sum_i w_i sum_j (Q_j(s_i, pi) - y_i)^2.

    (Lyu et al. 2022, eq. 9.) q: float32[2]; y: []; q_ood: float32[2, n]; y_ood, weight:
    float32[n], over the n states of S_in that belong to this example. Weights of 1/n
    make the batch mean the mean over S_in; 0 leaves a state out.
    """
    chex.assert_rank([q_ood, y_ood, weight], [2, 1, 1])
    errors = jnp.sum(jnp.square(q_ood - y_ood[None, :]), axis=0)
    return lam * critic(q, y) + (1.0 - lam) * jnp.sum(weight * errors)


def vae(reconstruction: Array, action: Array, mean: Array, log_std: Array) -> Array:
    """sum_d (a^ - a)^2 + KL(N(mean, std^2) || N(0, 1)), summed over dimensions.

    reconstruction, action: float32[ad]; mean, log_std: float32[2 ad]. The official MCQ.
    """
    kl = 0.5 * jnp.square(mean) + 0.5 * jnp.exp(2.0 * log_std) - log_std - 0.5
    return jnp.sum(jnp.square(reconstruction - action)) + jnp.sum(kl)
