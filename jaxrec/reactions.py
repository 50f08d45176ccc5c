"""What scores know of simulated users: items in their order, against true reactions.

The log has the items that users reacted to, and nothing of those they ignored. So it
tells how an event pays, once it comes; how likely it comes is what a softmax learns.
This evaluator asks the simulator, in states that the logging policy leads to, which of
the two a method's scores follow.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import logs, recommender_evaluators
from jaxrec.envs import users as users_lib
from jaxrec.ops import history
from jaxrec.types import Array, Dataset, Method, TrainState

SHOWN = 10  # items that users were shown before they are asked; ours


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation of the rows of float[N, V]: float32[N]; ties by place."""

    def centred(x: Array) -> Array:
        place = jnp.argsort(jnp.argsort(x, axis=1), axis=1).astype(jnp.float32)
        return place - (x.shape[1] - 1) / 2

    a, b = centred(x), centred(y)
    return jnp.sum(a * b, axis=1) / jnp.sum(a * a, axis=1)


def met(
    population: users_lib.Users, key: Array, num: int, seq_len: int
) -> tuple[Any, Array, Array, Array]:
    """`num` users after SHOWN items of the logging policy.

    Their hidden state, and what a recommender knows: the last events int32[B, L], how
    many of them, and of all.
    """

    def one(carry: Any, key: Array) -> tuple[Any, None]:
        user, items, length, timestep = carry
        key_act, key_step = jax.random.split(key)
        item, _ = population.behave(key_act, user)
        user, feedback = population.step(key_step, user, item)
        event = feedback.click | feedback.purchase
        items, length = history.append(items, length, item, event)
        return (user, items, length, timestep + event), None

    key_reset, key_steps = jax.random.split(key)
    none = jnp.zeros(num, jnp.int32)
    items = jnp.zeros((num, seq_len), jnp.int32)
    start = population.reset(key_reset, num), items, none, none
    return jax.lax.scan(one, start, jax.random.split(key_steps, SHOWN))[0]


def evaluator(
    config: Any, method: Method, dataset: Dataset
) -> Callable[..., dict[str, float]]:
    """`users/<what>_spearman` of scores and what showing each item would do.

    `event`: the probability of a click or a purchase; `purchase`: that of a purchase,
    given an event; `reward`: what is expected of the next step. The mean over states of
    the rank correlation over the items of the log. Of the best-scored item that was not
    shown lately `users/best_item_reward`, what is expected of it, and
    `users/best_item_leave`, the probability that it is the last. Of `eval.users` new
    users those who have events and are still there after SHOWN items.
    """
    if "users" not in dataset.info:
        logs.say("reactions: these data have no simulator of users; no numbers")
        return lambda state, key: {}
    population = users_lib.make(dataset.info["users"])
    code, ids = recommender_evaluators.numbering(dataset.info, population)
    known = ids[1:]

    @jax.jit
    def measure(state: TrainState, key: Array) -> dict[str, Array]:
        sizes = config.eval.users, dataset.info["seq_len"]
        user, items, length, timestep = met(population, key, *sizes)
        known_so_far = jnp.asarray(code)[items], length, timestep
        scores = method.scores(state, *known_so_far)[:, 1 : len(ids)]
        outcome = population.preview(user)
        click, purchase = outcome.click[:, known], outcome.purchase[:, known]
        event = click + purchase
        reward = population.rewards[0] * click + population.rewards[1] * purchase
        truths = dict(event=event, reward=reward)
        truths["purchase"] = purchase / jnp.maximum(event, 1e-9)
        weight = (user.alive & (length > 0)).astype(jnp.float32)

        def mean(x: Array) -> Array:
            return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1.0)

        lately = (known[None, :, None] == user.shown[:, None]).any(axis=2)
        best = jnp.argmax(jnp.where(lately, -jnp.inf, scores), axis=1)[:, None]
        of_best = dict(reward=reward, leave=outcome.leave[:, known])
        found = {f"{k}_spearman": mean(spearman(scores, y)) for k, y in truths.items()}
        return found | {
            f"best_item_{k}": mean(jnp.take_along_axis(y, best, axis=1)[:, 0])
            for k, y in of_best.items()
        }

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, float]:
        # The same users at every evaluation, and for every method.
        found = jax.device_get(measure(state, jax.random.key(config.eval.seed)))
        return {f"users/{name}": float(value) for name, value in found.items()}

    return evaluate
