"""Greedy episodes of a team in the game of its data: see `envs.episodes`."""

from collections.abc import Callable
from typing import Any

import jax

from jaxrec import logs
from jaxrec.envs import episodes, teams
from jaxrec.types import Dataset, Method, TrainState


def evaluator(config: Any, method: Method, dataset: Dataset) -> Callable[..., Any]:
    """`eval/win_rate`, `eval/return`, `eval/kills`, `eval/base_alive` and more.

    Means over `eval.episodes` games, the same ones at every evaluation.
    """
    if "team" not in dataset.info:
        logs.say("episodes: these data name no game of a team; no numbers")
        return lambda state, key: {}
    team = teams.make(**dataset.info["team"])
    num = config.eval.episodes

    @jax.jit
    def play(state: TrainState, key: jax.Array) -> dict[str, jax.Array]:
        def act(seen: Any, key: jax.Array) -> Any:
            return method.act(state, seen, key)

        return episodes.play(team, act, method.memory(num), num, key)

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, Any]:
        found = play(state, jax.random.key(config.eval.seed))
        means = episodes.summary(jax.device_get(found))
        return {f"eval/{name}": value for name, value in means.items()}

    return evaluate
