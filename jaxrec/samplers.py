"""Samplers of diffusion models behind one signature.

    sample(config, network, key, shape, known=None, warm=None) -> x0 float[*shape]

`config` has the fields of `losses.diffusion.SPEC`, `network` is (x, level) -> float as
the losses there take it, so that what was trained by one form is sampled by its own.
Write `shape` for one example and vmap, or with leading axes if the network takes them;
the same key gives the same noise, and with ddim at eta 0, euler, heun and one
consistency step the same state.

The single samplers take `denoise(x, noise) -> x0` in their natural units, noise being
the step k or sigma, and standard normal `noise` to begin from:

    sampler(denoise, key, noise, config, known, warm) -> x0

`known = (values, mask)`, float and bool[*shape]: what is seen for certain ("outpaint").
At every step the estimate of x0 takes the known values there, so that x follows the
forward process of the truth (RePaint's idea, Lugmayr et al. 2022, who overwrite x by
the truth with fresh noise: the same law, but deterministic where the sampler is), and
the result holds them exactly. `warm`: an earlier estimate float[*shape] to which only
the share `config.warm` of the noise is put back, for states that change slowly.

Few deterministic steps give too little spread even with a perfect network; see the
tests for by how much.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.losses import diffusion
from jaxrec.losses.diffusion import Network
from jaxrec.types import Array

Denoise = Callable[[Array, Array], Array]
Known = tuple[Array, Array]


def sample(
    config: Any,
    network: Network,
    key: Array,
    shape: tuple[int, ...],
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """A state from noise by `config.sampler` in `config.steps`: float32[*shape]."""
    key_noise, key_steps = jax.random.split(key)
    noise = jax.random.normal(key_noise, shape)
    denoise = denoiser(config, network)
    return SAMPLERS[config.sampler](denoise, key_steps, noise, config, known, warm)


def denoiser(config: Any, network: Network) -> Denoise:
    """(x, k or sigma) -> x0 of a network trained by the loss of `config.sampler`."""
    if config.sampler in diffusion.VP:

        def raw(x: Array, k: Array) -> Array:
            return network(x, k / config.train_steps)
    else:
        raw = diffusion.precondition(
            network, config, consistency=config.sampler == "consistency"
        )
    if not config.clip:
        return raw
    return lambda x, noise: jnp.clip(raw(x, noise), -config.clip, config.clip)


def guided(conditional: Network, unconditional: Network, weight: float) -> Network:
    """(1 + w) f(x; c) - w f(x; none): classifier-free guidance (Ho & Salimans 2022).

    w = 0 is the conditional network itself, a calibrated belief; w > 0 sharpens.
    """
    if not weight:
        return conditional

    def network(x: Array, level: Array) -> Array:
        given, none = conditional(x, level), unconditional(x, level)
        return (1 + weight) * given - weight * none

    return network


def step_grid(train_steps: int, steps: int, start: int = 0) -> np.ndarray:
    """k_j = round(k_0 (1 - j / n)), k_0 = `start` or K, and 0 at the end: int32[n + 1].

    Not the grid that ends at k = 1: its last step would change nothing (ours).
    """
    start = start or train_steps
    share = 1 - np.arange(steps + 1) / steps
    return np.floor(start * share + 0.5).astype(np.int32)


def ddim(
    denoise: Denoise,
    key: Array,
    noise: Array,
    config: Any,
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """Song et al. 2021, eq. 12, on any sub-sequence of the steps.

    x' = sqrt(abar') x0 + sqrt(1 - abar' - s^2) e + s z, e = (x - sqrt(abar) x0) /
    sqrt(1 - abar), s = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar').
    """
    return _ancestral(denoise, key, noise, config, config.eta, known, warm)


def ddpm(
    denoise: Denoise,
    key: Array,
    noise: Array,
    config: Any,
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, eq. 7).

    This is ddim with eta = 1; with fewer steps than in training they are strides.
    """
    return _ancestral(denoise, key, noise, config, 1.0, known, warm)


def _ancestral(denoise, key, noise, config, eta, known, warm):
    abar = jnp.asarray(diffusion.schedule(config))
    start = config.train_steps
    if warm is not None:
        start = max(round(config.warm * start), 1)
    steps = min(config.steps, start)
    grid = jnp.asarray(step_grid(config.train_steps, steps, start))
    begin = _begin(noise, known, warm)
    x = noise if begin is None else diffusion.diffuse(begin, noise, abar[start])

    def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
        k, after, number = at
        here, there = abar[k], abar[after]
        x0 = clamp(denoise(x, k), known)
        e = (x - jnp.sqrt(here) * x0) / jnp.sqrt(1 - here)
        if not eta:
            return jnp.sqrt(there) * x0 + jnp.sqrt(1 - there) * e, None
        s = eta * jnp.sqrt((1 - there) / (1 - here) * (1 - here / there))
        rest = jnp.sqrt(jnp.maximum(1 - there - jnp.square(s), 0.0))
        x = jnp.sqrt(there) * x0 + rest * e
        again = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        return x + s * again, None

    x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:], jnp.arange(steps)))
    return clamp(x, known)


def euler(
    denoise: Denoise,
    key: Array,
    noise: Array,
    config: Any,
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """Euler's method on EDM's ODE, `steps` levels and then 0; `key` is not used."""
    return _ode(denoise, noise, config, known, warm, second_order=False)


def heun(
    denoise: Denoise,
    key: Array,
    noise: Array,
    config: Any,
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """EDM's Heun, alg. 1 without churn: 2 `steps` - 1 calls; `key` is not used."""
    return _ode(denoise, noise, config, known, warm, second_order=True)


def _ode(denoise, noise, config, known, warm, second_order):
    high = config.sigma_max * (1.0 if warm is None else config.warm)
    grid = jnp.asarray(diffusion.karras(config, config.steps, high))
    clamped = lambda x, sigma: clamp(denoise(x, sigma), known)  # noqa: E731
    begin = _begin(noise, known, warm)
    x = grid[0] * noise if begin is None else begin + grid[0] * noise

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        sigma, after = at
        if second_order:
            return diffusion.heun_step(clamped, x, sigma, after), None
        return x + (after / sigma - 1) * (x - clamped(x, sigma)), None

    x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    return clamped(x, grid[-1])  # the step to sigma = 0 ends at D itself


def consistency(
    denoise: Denoise,
    key: Array,
    noise: Array,
    config: Any,
    known: Known | None = None,
    warm: Array | None = None,
) -> Array:
    """Song et al. 2023, alg. 1: f at sigma_max, then noise again and f, `steps` times.

    The levels are Karras' of `steps` + 1 without the last (ours).
    """
    high = config.sigma_max * (1.0 if warm is None else config.warm)
    grid = diffusion.karras(config, config.steps + 1, high)[:-1]
    begin = _begin(noise, known, warm)
    x = grid[0] * noise if begin is None else begin + grid[0] * noise
    x0 = clamp(denoise(x, jnp.asarray(grid[0])), known)
    for number, sigma in enumerate(grid[1:]):
        again = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        x = x0 + np.sqrt(sigma**2 - config.sigma_min**2) * again
        x0 = clamp(denoise(x, jnp.asarray(sigma)), known)
    return x0


def clamp(x: Array, known: Known | None) -> Array:
    """x with the known values where they are known."""
    return x if known is None else jnp.where(known[1], known[0], x)


def _begin(noise: Array, known: Known | None, warm: Array | None) -> Array | None:
    """What the first noise is added to; None: nothing is known."""
    if known is None and warm is None:
        return None
    return clamp(jnp.zeros_like(noise) if warm is None else warm, known)


SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "consistency": consistency,
}
