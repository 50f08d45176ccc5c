"""Samplers of diffusion models behind one signature.

    sample(config, network, key, shape, known=None) -> x0 float[*shape]

`config` has the fields of `losses.diffusion.SPEC`, `network` is (x, level) -> float as
the losses there take it, so that what was trained by one form is sampled by its own.
Write `shape` for one example and vmap, or with leading axes if the network takes them;
the same key gives the same noise, and with ddim at eta 0, euler, heun and one
consistency step the same state.

The single samplers take `denoise(x, level) -> x0` in their natural units, the level
being the step k or sigma, and the `Start` that they begin from:

    sampler(denoise, config, start) -> x0

What is known for certain ("outpaint") stays: at every step the estimate of x0 takes the
known values, so that x follows the forward process of the truth (RePaint's idea,
Lugmayr et al. 2022, who overwrite x by the truth with fresh noise: the same law, but
deterministic where the sampler is), and the result holds them exactly.

Few deterministic steps give too little spread even with a perfect network; see the
tests for by how much.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.losses import diffusion
from jaxrec.losses.diffusion import Network
from jaxrec.types import Array

Denoise = Callable[[Array, Array], Array]
Known = tuple[Array, Array]


class Start(NamedTuple):
    """What a state is made from, beside the network.

    noise: float[*shape], standard normal. key: for noise on the way; ddim at eta 0,
    euler and heun need none. known: (values, mask), float and bool[*shape], what is
    seen for certain.
    """

    noise: Array
    key: Array | None = None
    known: Known | None = None

    def estimate(self) -> Array | None:
        """What the first noise is added to; None: nothing is known."""
        if self.known is None:
            return None
        return clamp(jnp.zeros_like(self.noise), self.known)

    def at(self, sigma: Array) -> Array:
        """The first x of the samplers that add noise of size sigma."""
        x, of = sigma * self.noise, self.estimate()
        return x if of is None else of + x


def sample(
    config: Any,
    network: Network,
    key: Array,
    shape: tuple[int, ...],
    known: Known | None = None,
) -> Array:
    """A state from noise by `config.sampler` in `config.steps`: float32[*shape].

    known: see `Start`.
    """
    key_noise, key_steps = jax.random.split(key)
    start = Start(jax.random.normal(key_noise, shape), key_steps, known)
    return SAMPLERS[config.sampler](denoiser(config, network), config, start)


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
    return lambda x, level: jnp.clip(raw(x, level), -config.clip, config.clip)


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


def step_grid(train_steps: int, steps: int) -> np.ndarray:
    """k_j = round(K (1 - j / n)), 0 at the end: int32[n + 1].

    Not the grid that ends at k = 1: its last step would change nothing (ours).
    """
    share = 1 - np.arange(steps + 1) / steps
    return np.floor(train_steps * share + 0.5).astype(np.int32)


def ddim(denoise: Denoise, config: Any, start: Start) -> Array:
    """Song et al. 2021, eq. 12, on any sub-sequence of the steps.

    x' = sqrt(abar') x0 + sqrt(1 - abar' - s^2) e + s z, e = (x - sqrt(abar) x0) /
    sqrt(1 - abar), s = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar').
    """
    return _ancestral(denoise, config, start, config.eta)


def ddpm(denoise: Denoise, config: Any, start: Start) -> Array:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, eq. 7).

    This is ddim with eta = 1; with fewer steps than in training they are strides.
    """
    return _ancestral(denoise, config, start, 1.0)


def _ancestral(denoise: Denoise, config: Any, start: Start, eta: float) -> Array:
    abar = jnp.asarray(diffusion.schedule(config))
    grid = jnp.asarray(step_grid(config.train_steps, config.steps))
    x, of = start.noise, start.estimate()
    if of is not None:
        x = diffusion.diffuse(of, x, abar[-1])

    def step(x: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
        k, after, number = at
        here, there = abar[k], abar[after]
        x0 = clamp(denoise(x, k), start.known)
        e = (x - jnp.sqrt(here) * x0) / jnp.sqrt(1 - here)
        if not eta:
            return jnp.sqrt(there) * x0 + jnp.sqrt(1 - there) * e, None
        s = eta * jnp.sqrt((1 - there) / (1 - here) * (1 - here / there))
        rest = jnp.sqrt(jnp.maximum(1 - there - jnp.square(s), 0.0))
        x = jnp.sqrt(there) * x0 + rest * e
        again = jax.random.normal(jax.random.fold_in(start.key, number), x.shape)
        return x + s * again, None

    x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:], jnp.arange(config.steps)))
    return clamp(x, start.known)


def euler(denoise: Denoise, config: Any, start: Start) -> Array:
    """Euler's method on EDM's ODE, `steps` levels and then 0."""
    return _ode(denoise, config, start, second_order=False)


def heun(denoise: Denoise, config: Any, start: Start) -> Array:
    """EDM's Heun, alg. 1 without churn: 2 `steps` - 1 calls of the network."""
    return _ode(denoise, config, start, second_order=True)


def _ode(denoise: Denoise, config: Any, start: Start, second_order: bool) -> Array:
    grid = jnp.asarray(diffusion.karras(config, config.steps))

    def clamped(x: Array, sigma: Array) -> Array:
        return clamp(denoise(x, sigma), start.known)

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        sigma, after = at
        if second_order:
            return diffusion.heun_step(clamped, x, sigma, after), None
        return x + (after / sigma - 1) * (x - clamped(x, sigma)), None

    x, _ = jax.lax.scan(step, start.at(grid[0]), (grid[:-1], grid[1:]))
    return clamped(x, grid[-1])  # the step to sigma = 0 ends at D itself


def consistency(denoise: Denoise, config: Any, start: Start) -> Array:
    """Song et al. 2023, alg. 1: f at sigma_max, then noise again and f, `steps` times.

    The levels are Karras' of `steps` + 1 without the last (ours).
    """
    grid = diffusion.karras(config, config.steps + 1)[:-1]
    x = start.at(grid[0])
    x0 = clamp(denoise(x, jnp.asarray(grid[0])), start.known)
    for number, sigma in enumerate(grid[1:]):
        again = jax.random.normal(jax.random.fold_in(start.key, number), x.shape)
        x = x0 + np.sqrt(sigma**2 - config.sigma_min**2) * again
        x0 = clamp(denoise(x, jnp.asarray(sigma)), start.known)
    return x0


def clamp(x: Array, known: Known | None) -> Array:
    """x with the known values where they are known."""
    return x if known is None else jnp.where(known[1], known[0], x)


SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "consistency": consistency,
}
