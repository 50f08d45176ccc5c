"""Diffusion: schedules, forward processes and losses, each for one example.

A state x0 is completed from what is seen of it by a network that removes noise. Three
forms, chosen by the sampler (see `jaxrec.samplers`):

    ddpm, ddim         x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) e, k = 1 .. K; the
                       network predicts x0 (Ho et al. 2020; Song et al. 2021)
    euler, heun        x = x0 + sigma e, preconditioned (EDM, Karras et al. 2022)
    consistency        a network that maps x at any sigma to its end (Song et al. 2023)

A `Network` is (x: float[*S], level: float[]) -> float[*S] with its condition closed
over; `level` tells it the noise: k / K, or ln(sigma) / 4. x0-prediction is the default
because its error does not blow up at high noise and clipping is legal; which schedule,
steps and sizes SIDIFF (arXiv 2408.09501) uses is not known to us, so that every default
here is ours unless another source is named.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array, UserError

Network = Callable[[Array, Array], Array]

SPEC = dict(
    sampler="ddim",  # ddpm, ddim, euler, heun, consistency
    steps=5,  # K of acting; 1 is a regression to the mean
    train_steps=100,  # ddpm, ddim
    schedule="cosine",  # ddpm, ddim; or "linear"
    eta=0.0,  # ddim: share of the posterior's noise, 0 = same noise, same state
    weighting="none",  # ddpm, ddim; "snr_difference": DiffRec's SNR(k-1) - SNR(k)
    sigma_data=0.5,  # euler, heun, consistency: std of the normalised states, EDM
    sigma_min=0.002,  # EDM
    sigma_max=5.0,  # where sampling starts; DIAMOND (EDM, for images: 80)
    rho=7.0,  # EDM
    log_sigma_mean=-0.4,  # of training; DIAMOND (EDM: -1.2)
    log_sigma_std=1.2,  # EDM
    levels=18,  # consistency: of the grid it is distilled on, EDM's
    clip=1.0,  # states are within +-clip, 0 = unbounded
)
VP, VE = ("ddpm", "ddim"), ("euler", "heun", "consistency")


def check(config: Any) -> None:
    """Raises UserError for fields of SPEC that do not fit together."""
    for field, known in (
        ("sampler", VP + VE),
        ("schedule", ("cosine", "linear")),
        ("weighting", ("none", "snr_difference")),
    ):
        if config[field] not in known:
            raise UserError(
                f"{field} {config[field]!r} is unknown: use one of {', '.join(known)}"
            )
    most = config.train_steps if config.sampler in VP else 10_000
    if not 1 <= config.steps <= most:
        raise UserError(f"steps={config.steps} of {config.sampler}: from 1 to {most}")
    if not 0 < config.sigma_min < config.sigma_max:
        raise UserError(
            f"sigma_min={config.sigma_min} and sigma_max={config.sigma_max}: the first "
            "must be above 0 and below the second"
        )
    if not config.sigma_data > 0:
        raise UserError(f"sigma_data={config.sigma_data}: a std of states, above 0")
    if not 0 <= config.eta <= 1 or config.levels < 2:
        raise UserError(
            f"eta={config.eta}, levels={config.levels}: eta is from 0 to 1, levels at "
            "least 2"
        )


def schedule(config: Any) -> np.ndarray:
    """abar of `config.schedule`: float32[K + 1], abar[0] = 1."""
    return (cosine if config.schedule == "cosine" else linear)(config.train_steps)


def cosine(steps: int) -> np.ndarray:
    """abar(k) = cos^2((k/K + .008) / 1.008 pi/2), beta at most .999: float32[K + 1].

    Nichol & Dhariwal 2021, eq. 17.
    """
    t = np.arange(steps + 1) / steps
    bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1 - beta)]).astype(np.float32)


def linear(steps: int) -> np.ndarray:
    """Betas from 1e-4 to .02, times 1000 / K: float32[K + 1] (Ho et al. 2020).

    They are tuned for K = 1000; without the factor 100 of them end at abar = .36, which
    is no noise (the factor as in DiffuRec's code).
    """
    beta = np.minimum(np.linspace(1e-4, 0.02, steps) * 1000 / steps, 0.999)
    return np.concatenate([[1.0], np.cumprod(1 - beta)]).astype(np.float32)


def diffuse(x0: Array, noise: Array, abar: Array) -> Array:
    """x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) e. float[*S] twice, abar float[]."""
    return jnp.sqrt(abar) * x0 + jnp.sqrt(1 - abar) * noise


def weighted_mean(error: Array, weight: Array | None) -> Array:
    """sum_d w_d e_d / sum_d w_d, 0 without weight. float[*S], weight float[*S]."""
    if weight is None:
        return jnp.mean(error)
    return jnp.sum(weight * error) / jnp.maximum(jnp.sum(weight), 1e-6)


def x0_loss(
    network: Network,
    key: Array,
    x0: Array,
    abar: Array,
    weight: Array | None = None,
    weighting: str = "none",
) -> Array:
    """c_k mean_d (x0 - f(x_k, k / K))^2 at a uniform k in 1 .. K: float[].

    c_k = 1, or with "snr_difference" SNR(k-1) - SNR(k), SNR(1) at k = 1, where
    SNR(k) = abar_k / (1 - abar_k) (DiffRec, SIGIR'23). x0, weight: float[*S]; abar:
    float32[K + 1].
    """
    key_level, key_noise = jax.random.split(key)
    last = len(abar) - 1
    k = jax.random.randint(key_level, (), 1, last + 1)
    x = diffuse(x0, jax.random.normal(key_noise, x0.shape), abar[k])
    error = weighted_mean(jnp.square(network(x, k / last) - x0), weight)
    if weighting == "none":
        return error
    snr = abar / jnp.maximum(1 - abar, 1e-12)
    difference = jnp.where(k > 1, snr[k - 1] - snr[k], snr[1])
    return difference * error


def regression_loss(network: Network, x0: Array, weight: Array | None = None) -> Array:
    """mean_d (x0 - f(0, 1))^2: the same network told nothing of x0. float[]."""
    found = network(jnp.zeros_like(x0), jnp.ones(()))
    return weighted_mean(jnp.square(found - x0), weight)


def precondition(
    network: Network, config: Any, consistency: bool = False
) -> Callable[[Array, Array], Array]:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4) (EDM, table 1).

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in =
    1 / sqrt(sigma^2 + sd^2). With `consistency` sigma - sigma_min stands in c_skip and
    in the numerator of c_out, so that D(x; sigma_min) = x (Song et al. 2023, app. C).
    """
    sd = config.sigma_data
    least = config.sigma_min if consistency else 0.0

    def denoise(x: Array, sigma: Array) -> Array:
        spread = jnp.sqrt(jnp.square(sigma) + sd**2)
        c_skip = sd**2 / (jnp.square(sigma - least) + sd**2)
        c_out = (sigma - least) * sd / spread
        return c_skip * x + c_out * network(x / spread, jnp.log(sigma) / 4)

    return denoise


def edm_loss(
    network: Network, key: Array, x0: Array, config: Any, weight: Array | None = None
) -> Array:
    """(sigma^2 + sd^2) / (sigma sd)^2 mean_d (D(x0 + sigma e; sigma) - x0)^2: float[].

    ln sigma ~ N(log_sigma_mean, log_sigma_std^2), within [sigma_min, 4 sigma_max]
    (EDM, eq. 2, 8; the bounds are DIAMOND's). x0, weight: float[*S].
    """
    key_level, key_noise = jax.random.split(key)
    sd = config.sigma_data
    sigma = jnp.exp(
        config.log_sigma_mean + config.log_sigma_std * jax.random.normal(key_level)
    )
    sigma = jnp.clip(sigma, config.sigma_min, 4 * config.sigma_max)
    x = x0 + sigma * jax.random.normal(key_noise, x0.shape)
    error = jnp.square(precondition(network, config)(x, sigma) - x0)
    scale = (jnp.square(sigma) + sd**2) / jnp.square(sigma * sd)
    return scale * weighted_mean(error, weight)


def karras(config: Any, levels: int) -> np.ndarray:
    """sigma_0 = sigma_max > ... > sigma_{N-1} = sigma_min: float32[N] (EDM, eq. 5)."""
    high, low = config.sigma_max, config.sigma_min
    share = np.arange(levels) / max(levels - 1, 1)
    root = high ** (1 / config.rho), low ** (1 / config.rho)
    return ((root[0] + share * (root[1] - root[0])) ** config.rho).astype(np.float32)


def heun_step(
    denoise: Callable[[Array, Array], Array], x: Array, sigma: Array, after: Array
) -> Array:
    """x at the level `after` > 0 by Heun's method on dx/dsigma = (x - D) / sigma."""
    slope = (x - denoise(x, sigma)) / sigma
    there = x + (after - sigma) * slope
    slope_there = (there - denoise(there, after)) / after
    return x + (after - sigma) * (slope + slope_there) / 2


def consistency_loss(
    network: Network,
    average: Network,
    key: Array,
    x0: Array,
    config: Any,
    weight: Array | None = None,
    teacher: Network | None = None,
) -> Array:
    """d(f(x', s'), f-(x, s)) at two neighbouring levels s' > s of the grid: float[].

    f- is `average`, without gradient. With the EDM `teacher` x is Heun's step from x'
    (consistency distillation); without one x = x0 + s e of the same noise (consistency
    training; Song et al. 2023). d = sqrt(mean_d (.)^2 + c^2) - c, the pseudo-Huber
    distance with c = .00054 (Song & Dhariwal 2023, there of sums).
    """
    key_level, key_noise = jax.random.split(key)
    grid = jnp.asarray(karras(config, config.levels))
    index = jax.random.randint(key_level, (), 0, config.levels - 1)
    high, low = grid[index], grid[index + 1]
    noise = jax.random.normal(key_noise, x0.shape)
    x_high = x0 + high * noise
    x_low = x0 + low * noise
    if teacher is not None:
        x_low = heun_step(precondition(teacher, config), x_high, high, low)
    target = precondition(average, config, consistency=True)(x_low, low)
    found = precondition(network, config, consistency=True)(x_high, high)
    error = jnp.square(found - jax.lax.stop_gradient(target))
    c = 0.00054
    return jnp.sqrt(weighted_mean(error, weight) + c**2) - c
