"""EVALS: name -> make(config, method, dataset) -> (state, key) -> metrics.

`config` is that of the whole run; the state is that of one seed. Metrics are numbers,
and arrays of numbers, which the loop keeps in `<stage>/arrays/<step>.npz`. An evaluator
that cannot work here (no simulator installed, nothing held out) says so once, when it
is made, and gives no metrics: training goes on.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrec import (
    held_out,
    logs,
    off_policy,
    reactions,
    recommender_evaluators,
    sampled_ranking,
    team_episodes,
)
from jaxrec.data import loader
from jaxrec.envs import gym
from jaxrec.errors import UserError
from jaxrec.methods import fqe, world_accuracy
from jaxrec.types import Batch, Dataset, Method, TrainState

Metrics = dict[str, Any]


def simulator(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Deterministic episodes in the data's simulator: return and normalised score.

    `eval/normalized_score`: 100 (G - random) / (expert - random), the constants of the
    data set or D4RL's, G the mean undiscounted return; `eval/length` in steps. The
    first states are the same at every evaluation. Where the simulator is not installed,
    fitted Q evaluation takes its place. Raises UserError for another's simulator and
    for a `data.env_id` that cannot be made.
    """
    if "env_id" not in dataset.info:
        logs.say("simulator: these data are of no task with one; no numbers")
        return lambda state, key: {}
    env_id, episodes = dataset.info["env_id"], config.eval.episodes
    act = jax.jit(method.act)
    try:
        if not env_id:
            raise UserError("the data name no simulator, set data.env_id if it has one")
        envs = [gym.make(env_id) for _ in range(episodes)]
    except UserError as error:
        if config.data.get("env_id", "") and gym.installed():
            raise  # the user named a simulator, and this is no missing package
        logs.say(f"no roll-outs: {error}; fitted Q evaluation takes their place")
        return fitted_q(config, method, dataset)
    gym.check_sizes(envs[0], env_id, dataset.info)
    reference = gym.reference(dataset.info)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        def policy(observation: np.ndarray, reward: np.ndarray) -> np.ndarray:
            return np.asarray(act(state, observation, key))

        def remembering(memory: Any, observation: np.ndarray, reward: np.ndarray):
            return act(state, (memory, observation, reward), key)

        memory = method.memory(episodes) if method.memory else None
        found = gym.rollout(
            env_id,
            policy if memory is None else remembering,
            episodes,
            config.eval.seed,
            memory,
            envs,
        )
        values = {
            "eval/return": found["returns"].mean(),
            "eval/return_std": found["returns"].std(),
            "eval/length": found["lengths"].mean(),
        }
        if reference is not None:
            score = reference.score(found["returns"].mean())
            values["eval/normalized_score"] = score
        return values

    return evaluate


def fitted_q(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Value of the policy at the starts of episodes, from the data alone."""
    if method.memory is not None:
        logs.say("fitted_q: not for policies that act on a history")
        return lambda state, key: {}

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found = fqe.evaluate(
            method.act,
            state,
            dataset.train,
            dataset.info,
            key,
            steps=config.eval.fqe_steps,
        )
        return {f"eval/fqe_{name}": value for name, value in found.items()}

    return evaluate


def values(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """`method.values` of every held-out row: arrays `<set>/q_data` ... float32[N].

    Where nothing is held out, of a batch of training rows, the same every time. They
    are kept with their step, and TensorBoard shows them as histograms.
    """
    size = config.eval.batch_size
    step = jax.jit(method.values)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        if not dataset.evals:
            batch = loader.host_batch(dataset, size, np.uint32(config.eval.seed), 0)
            found = jax.device_get(step(state, batch))
            return {f"train/{name}": array for name, array in found.items()}

        def one(number: int, batch: Batch) -> dict[str, jax.Array]:
            return step(state, batch)

        found = {}
        for name in dataset.evals:
            parts = jax.device_get(list(held_out.each(one, dataset, name, size)))
            rows = held_out.num_rows(dataset, name)
            for value in parts[0]:
                array = np.concatenate([part[value] for part in parts])[:rows]
                found[f"{name}/{value}"] = array
        return found

    return evaluate


EVALS = {
    "episodes": team_episodes.evaluator,
    "held_out": held_out.evaluator,
    "off_policy": off_policy.evaluator,
    "ranking": recommender_evaluators.ranking,
    "reactions": reactions.evaluator,
    "recall_by_lag": recommender_evaluators.recall_by_lag,
    "sampled_1000": sampled_ranking.evaluator,
    "users": recommender_evaluators.users,
    "simulator": simulator,
    "fitted_q": fitted_q,
    "values": values,
    "world_accuracy": world_accuracy.make,
}
NEEDS = dict(  # evaluator: what a method must have
    held_out="eval_step",
    off_policy="scores",
    ranking="scores",
    reactions="scores",
    recall_by_lag="scores",
    sampled_1000="scores",
    episodes="act",
    simulator="act",
    fitted_q="act",
    values="values",
)


def make(
    name: str, config: Any, method: Method, dataset: Dataset
) -> Callable[..., Metrics]:
    """The evaluator `name`; one that says why it measures nothing where it cannot."""
    need = NEEDS.get(name)
    if need and getattr(method, need) is None:
        logs.say(f"{name}: this method has no {need}; no numbers")
        return lambda state, key: {}
    return EVALS[name](config, method, dataset)
