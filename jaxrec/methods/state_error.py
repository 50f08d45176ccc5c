"""How well states were imagined, on the part that was not seen.

For one agent at one moment; the caller maps over them. Weights are 0 for what was seen
for certain, for constants, and for everything of an agent that is out of the game.
"""

import jax
import jax.numpy as jnp

from jaxrec.types import Array


def squared(x: Array, samples: Array, weight: Array) -> Array:
    """sum_d w_d mean_m (x_md - x_d)^2: float[]. x, weight: float[d]; samples: [M, d].

    A sampler that spreads as the truth does pays twice the variance here, a regressor
    once: to compare them take the mean of the samples, or `energy`, which is least for
    the true distribution.
    """
    return jnp.sum(weight * jnp.mean(jnp.square(samples - x[None]), axis=0))


def distance(
    x: Array, samples: Array, there: Array, place: Array, tiles: Array
) -> Array:
    """sum over n of there_n times the mean over samples of how far off n is: float[].

    x: float[d]; samples: float[M, d]; there: float[n]; place: int32[n, 2], numbers of
    a flat state; tiles: float[2], of a unit of them.
    """
    off = (samples[:, place] - x[place][None]) * tiles[None, None]
    return jnp.sum(there * jnp.mean(jnp.sqrt(jnp.sum(off**2, axis=-1) + 1e-12), axis=0))


def energy(x: Array, samples: Array, weight: Array) -> Array:
    """mean_m |x_m - x| - (1 / (2 M (M - 1))) sum_mn |x_m - x_n|: float[], the energy
    score (Gneiting & Raftery 2007, eq. 22) in its fair form, norms over the weighted
    numbers. With one sample the second term is left out, as for a forecast without
    spread.
    """
    apart = jnp.sqrt(jnp.sum(weight[None] * jnp.square(samples - x[None]), axis=-1))
    num = len(samples)
    if num == 1:
        return jnp.mean(apart)
    pairs = jnp.square(samples[:, None] - samples[None])
    pairs = jnp.sqrt(jnp.sum(weight[None, None] * pairs, axis=-1))
    return jnp.mean(apart) - jnp.sum(pairs) / (2 * num * (num - 1))


def matches(x: Array, samples: Array, weight: Array) -> Array:
    """True positives, false positives, false negatives of what is above 0: float[3].

    x, weight: float[n]; samples: float[M, n]; means over the samples.
    """
    there, said = x[None] > 0, samples > 0
    counts = [there & said, ~there & said, there & ~said]
    return jnp.stack([jnp.sum(weight * jnp.mean(c, axis=0)) for c in counts])


def f1(counts: Array) -> Array:
    """2 TP / (2 TP + FP + FN) of float[3]; 0 where there is nothing."""
    hit, false, missed = counts
    return 2 * hit / jnp.maximum(2 * hit + false + missed, 1e-6)


def summary(
    x: Array,
    samples: Array,
    weight: Array,
    present: Array | None = None,
    place: tuple[Array, Array] | None = None,
) -> dict[str, Array]:
    """Means over agents: x, weight float[N, *shape]; samples float[N, M, *shape].

    `unseen_error`: mean square of a number of one sample, `unseen_mean_error` of the
    mean of the samples; `unseen_energy`: of an agent with anything unseen. With
    `present` (see `state_forms.Form`) `unseen_f1`, whether an enemy is there at all,
    and with `place` `unseen_distance`, tiles from where a living one is.
    """
    flat = x.reshape(len(x), -1)
    samples = samples.reshape(*samples.shape[:2], -1).astype(jnp.float32)
    middle = samples.mean(axis=1, keepdims=True)
    weight = weight.reshape(flat.shape)
    some = jnp.maximum(jnp.sum(weight), 1.0)
    anything = jnp.maximum(jnp.sum(weight.max(axis=1)), 1.0)
    found = dict(
        unseen_error=jnp.sum(jax.vmap(squared)(flat, samples, weight)) / some,
        unseen_mean_error=jnp.sum(jax.vmap(squared)(flat, middle, weight)) / some,
        unseen_energy=jnp.sum(jax.vmap(energy)(flat, samples, weight)) / anything,
    )
    if present is not None:
        parts = flat[:, present], samples[..., present], weight[:, present]
        found["unseen_f1"] = f1(jnp.sum(jax.vmap(matches)(*parts), axis=0))
    if place is not None:
        there = weight[:, present] * (flat[:, present] > 0)
        far = jax.vmap(distance, (0, 0, 0, None, None))(flat, samples, there, *place)
        found["unseen_distance"] = jnp.sum(far) / jnp.maximum(jnp.sum(there), 1.0)
    return found
