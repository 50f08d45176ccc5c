"""The World Evaluator: which simulated steps to trust, and what to do with the others.

OTTO (arXiv 2404.10393) states that confidence comes from the uncertainty of the
ensemble and that data of low confidence are corrected; its statistic, threshold and
correction are not known to us. The kinds of uncertainty here are those of
OfflineRL-Kit; the threshold is a quantile on held-out real data; the corrections are
our own reading.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.methods.world_model import Prediction, mean_over_members
from jaxrec.types import Array, UserError


def deviation(mean: Array) -> Array:
    """mu_e - mean_e mu_e, float[E, B, od]; exactly 0 where all members agree.

    By comparison: when XLA fuses this with a product before it, the difference of equal
    numbers is that of a rounded and an unrounded one.
    """
    agree = jnp.all(mean == mean[:1], axis=0, keepdims=True)
    return jnp.where(agree, 0.0, mean - mean_over_members(mean)[None])


def pairwise_diff(prediction: Prediction) -> Array:
    """max_e ||mu_e - mean_e mu_e||_2: float[B]. Zero when members agree."""
    return jnp.max(jnp.linalg.norm(deviation(prediction.mean), axis=-1), axis=0)


def ensemble_std(prediction: Prediction) -> Array:
    """sqrt(mean_d var_e mu_ed): float[B]."""
    variance = jnp.mean(jnp.square(deviation(prediction.mean)), axis=0)
    return jnp.sqrt(jnp.mean(variance, axis=-1))


def aleatoric(prediction: Prediction) -> Array:
    """max_e ||sigma_e||_2 of the standardised prediction, as MOPO: float[B]."""
    sigma = jnp.exp(0.5 * prediction.log_var)
    return jnp.max(jnp.linalg.norm(sigma, axis=-1), axis=0)


U_KINDS = {
    "pairwise-diff": pairwise_diff,
    "ensemble_std": ensemble_std,
    "aleatoric": aleatoric,
}

CORRECTIONS = ("project", "relabel", "penalise", "drop", "truncate")


class Evaluator(NamedTuple):
    """A step is of low confidence if u > theta, or the sum of u so far > kappa."""

    uncertainty: Callable[[Prediction], Array]
    corrections: frozenset[str]
    theta: Any = jnp.inf
    kappa: Any = jnp.inf
    penalty: float = 0.0


class Verdict(NamedTuple):
    """For B simulated steps: the corrected step, and what becomes of the rollout."""

    next_observation: Array  # float[B, od]
    reward: Array  # float[B]
    low: Array  # bool[B]
    changed: Array  # bool[B], the row differs from what the model said
    keep: Array  # bool[B], the row is part of the data
    go_on: Array  # bool[B], the rollout continues


def make(config: Any) -> Evaluator:
    """From `u_kind`, `correction` (names joined by "+", or "none"), `kappa`, `penalty`.

    theta is set later, from held-out data. Raises UserError for unknown names.
    """
    if config.u_kind not in U_KINDS:
        raise UserError(f"u_kind {config.u_kind!r} is unknown: use {list(U_KINDS)}")
    names = [] if config.correction == "none" else config.correction.split("+")
    for name in names:
        if name not in CORRECTIONS:
            raise UserError(
                f"correction {name!r} is unknown: use none, or some of "
                f"{', '.join(CORRECTIONS)} joined by +"
            )
    if not 0 < config.quantile < 1:
        raise UserError(f"quantile={config.quantile}: it must be in (0, 1)")
    kappa = config.kappa if config.kappa > 0 else jnp.inf
    return Evaluator(
        U_KINDS[config.u_kind], frozenset(names), kappa=kappa, penalty=config.penalty
    )


def judge(
    evaluator: Evaluator,
    prediction: Prediction,
    next_observation: Array,
    reward: Array,
    u: Array,
    total: Array,
    nearest: Callable[[Array], Array] | None = None,
) -> Verdict:
    """Apply the corrections to the steps of low confidence.

    project:  s' <- nearest(s'), a state of the data
    relabel:  r <- min_e r_e
    penalise: r <- r - lambda u, MOPO's form
    drop:     the row is left out, the rollout goes on
    truncate: the rollout ends before this step. A cut, not a death: the row before
              keeps its next state, terminal stays 0 and a target may bootstrap.

    next_observation: float[B, od]; reward, u, total: float[B], total the sum of u up
    to and with this step.
    """
    on = evaluator.corrections
    low = (u > evaluator.theta) | (total > evaluator.kappa)
    changed = jnp.zeros_like(low)
    if "project" in on:
        assert nearest is not None
        s = nearest(next_observation)
        next_observation = jnp.where(low[:, None], s, next_observation)
        changed = changed | low
    if "relabel" in on:
        worst = jnp.min(prediction.reward, axis=0)
        changed = changed | (low & (worst != reward))
        reward = jnp.where(low, worst, reward)
    if "penalise" in on:
        reward = jnp.where(low, reward - evaluator.penalty * u, reward)
        changed = changed | low
    keep = ~low if on & {"drop", "truncate"} else jnp.ones_like(low)
    go_on = ~low if "truncate" in on else jnp.ones_like(low)
    return Verdict(next_observation, reward, low, changed, keep, go_on)


def nearest_rows(query: Array, table: Array, barred: Array | None = None) -> Array:
    """Row of `table` nearest to each query in L2: int32[B].

    query: float[B, n]; table: float[R, n]; barred: bool[B, R], not these. One matrix
    product, in full precision also on accelerators; the query's own norm does not
    change the order.
    """
    product = jnp.matmul(query, table.T, precision="highest")
    distance = jnp.sum(jnp.square(table), axis=-1)[None, :] - 2 * product
    if barred is not None:
        distance = jnp.where(barred, jnp.inf, distance)
    return jnp.argmin(distance, axis=-1)


def nearest_distance(query: Array, table: Array) -> Array:
    """L2 distance of each query to its nearest row: float[B]."""
    near = table[nearest_rows(query, table)]
    return jnp.linalg.norm(query - near, axis=-1)


def quantile(u: jax.Array, q: float) -> float:
    """theta, the q-quantile of u on held-out windows. u: float[N]."""
    return float(jnp.quantile(u, q))
