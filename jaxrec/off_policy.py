"""What the log would say a recommender earns, beside what it does earn.

Simulated users of the logging policy, which has exact propensities, are shown one more
item by it. From these impressions the estimators of `jaxrec.ope` guess what another
policy would have earned in the same states, that of showing one of a method's K
best-scored items at random. The simulator knows what that is: how far off the guesses
are, and why (few effective rows, large weights), is seen before anybody relies on them
where there is no simulator.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import logs, ope, reactions, recommender_evaluators
from jaxrec.envs import users as users_lib
from jaxrec.types import Array, Dataset, Method, TrainState

K = 10  # items that the policy draws from; ours
ROUNDS = 10  # of `eval.users` users; ours


def evaluator(
    config: Any, method: Method, dataset: Dataset
) -> Callable[..., dict[str, float]]:
    """`off_policy/<estimator>`, with `_low` and `_high`, and `off_policy/truth`.

    In reward an impression. Also `rows`, `effective_rows`, `max_weight` and
    `mean_weight` of `ope.support`. Rows are those of ROUNDS times `eval.users` new
    users who have events and are still there after `reactions.SHOWN` items.
    """
    if "users" not in dataset.info:
        logs.say("off_policy: these data have no simulator of users; no numbers")
        return lambda state, key: {}
    population = users_lib.make(dataset.info["users"])
    code, ids = recommender_evaluators.numbering(dataset.info, population)
    size = min(K, len(ids) - 1)

    @jax.jit
    def impressions(state: TrainState, key: Array) -> dict[str, Array]:
        """One each of `eval.users` users: `best` int32[B, K], others [B]."""
        key_met, key_shown, key_step = jax.random.split(key, 3)
        sizes = config.eval.users, dataset.info["seq_len"]
        user, items, length, timestep = reactions.met(population, key_met, *sizes)
        known = jnp.asarray(code)[items], length, timestep
        scores = method.scores(state, *known)[:, 1 : len(ids)]
        best = jnp.asarray(ids)[1 + jax.lax.top_k(scores, size)[1]]
        item, propensity = population.behave(key_shown, user)
        outcome = population.preview(user)
        click, purchase = population.rewards
        expected = click * outcome.click + purchase * outcome.purchase
        return dict(
            item=item,
            propensity=propensity,
            reward=population.step(key_step, user, item)[1].reward,
            best=best,
            truth=jnp.mean(jnp.take_along_axis(expected, best, axis=1), axis=1),
            counts=user.alive & (length > 0),
        )

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, float]:
        # The same users at every evaluation, and for every method.
        keys = jax.random.split(jax.random.key(config.eval.seed), ROUNDS)
        rounds = jax.device_get([impressions(state, key) for key in keys])
        rows = jax.tree.map(lambda *x: np.concatenate(x), *rounds)
        rows = {name: x[rows["counts"]] for name, x in rows.items()}
        if not len(rows["item"]):
            return {}
        found = estimates(rows, population.num_items)
        found["truth"] = rows["truth"].mean()
        return {f"off_policy/{name}": float(value) for name, value in found.items()}

    return evaluate


def estimates(rows: dict[str, np.ndarray], num_items: int) -> dict[str, float]:
    """All of `ope`, of impressions as above with items 1 .. num_items."""
    shown, best = rows["item"] - 1, rows["best"] - 1
    chosen = (best == shown[:, None]).any(axis=1)
    weight = chosen / best.shape[1] / np.asarray(rows["propensity"], np.float64)
    none = np.zeros(len(shown), int)
    reward = np.asarray(rows["reward"], np.float64)
    log = ope.Log(shown, none, reward, rows["propensity"])
    q = ope.ridge(log, num_items, 1)
    own, v = (np.take_along_axis(q, i, axis=1) for i in (shown[:, None], best))
    found = ope.estimate(reward, weight, own[:, 0], v.mean(axis=1))
    named = ope.support(weight)
    for name, (value, low, high) in found.items():
        named |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return named
