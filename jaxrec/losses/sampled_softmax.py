"""Cross entropy over the target and some drawn items in the place of a catalogue."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array, UserError


class Sampler(NamedTuple):
    """Draws items with known probabilities, one set for a whole batch.

    `draw(key)` -> int32[n]; `log_q`: float32[V], -inf where there is no item.
    """

    draw: Callable[[Array], Array]
    log_q: Array


def sampler(
    count: Any, num_items: int, negatives: int, popularity: float = 0.0
) -> Sampler:
    """`negatives` items in proportion to (count + 1)^popularity, with repeats.

    count: float[V], events of each item in training; the one more lets unseen items be
    drawn, ours. A draw costs a few integers (uniform) or a bisection of the cumulative
    counts, not a table of numbers [n, V]. Raises UserError for less than one.
    """
    if negatives < 1:
        raise UserError(
            f"negatives {negatives} leaves nothing to compare with: use 1 or more"
        )
    item = np.arange(len(count))
    exists = (item > 0) & (item <= num_items)
    if not popularity:
        log_q = np.where(exists, -np.log(num_items), -np.inf).astype(np.float32)

        def uniform(key: Array) -> Array:
            return jax.random.randint(key, (negatives,), 1, num_items + 1)

        return Sampler(uniform, jnp.asarray(log_q))
    weight = np.where(exists, (np.asarray(count, np.float64) + 1.0) ** popularity, 0.0)
    # Shares in units of 2^-31, one at least: what is drawn is then exactly what log_q
    # says, where sums of a million float32 would not be.
    whole = 2**31
    units = np.floor(weight / weight.sum() * (whole - num_items)) + exists
    units[np.argmax(units)] += whole - units.sum()
    edges = jnp.asarray(np.cumsum(units).astype(np.uint32))
    with np.errstate(divide="ignore"):
        log_q = np.log(units / whole).astype(np.float32)

    def popular(key: Array) -> Array:
        place = jax.random.bits(key, (negatives,), jnp.uint32) >> 1
        return jnp.searchsorted(edges, place, side="right").astype(jnp.int32)

    return Sampler(popular, jnp.asarray(log_q))


def unit(x: Array) -> Array:
    """Rows float[..., D] over their L2 norm; zeros stay zeros, with a finite slope."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def sampled_cross_entropy(
    x: Array,
    table: Array,
    bias: Array,
    target: Array,
    negatives: Array,
    log_q: Array,
    temperature: float = 0.0,
) -> Array:
    """Cross entropy over the target and drawn negatives, logits less log q (logQ).

    Correcting by the log of the probability with which a negative is drawn makes the
    estimate of the full softmax consistent (Bengio and Senecal 2008; Yi et al. 2019);
    the target itself, always there, is not corrected. A negative equal to the target is
    left out. negatives: int32[n], shared by the batch; log_q: float[V]. temperature:
    above 0, cosines over it take the place of products.
    """
    # One gather, so that the gradient is one array [V, D] and not a sum of two.
    item = jnp.concatenate([target, negatives])
    rows, biases = table[item], bias[item]
    if temperature:
        x, rows = unit(x) / temperature, unit(rows)
    size = target.shape[0]
    positive = jnp.sum(x * rows[:size], axis=-1) + biases[:size]
    y = x @ rows[size:].T + (biases[size:] - log_q[negatives])[None]
    y = y - jnp.log(negatives.shape[0])
    y = jnp.where(negatives[None, :] == target[:, None], -jnp.inf, y)
    both = jnp.concatenate([positive[:, None], y], axis=1).astype(jnp.float32)
    return jax.nn.logsumexp(both, axis=-1) - both[:, 0]
