"""Teams that do not learn: any legal action at random, and the environment's script.

Every table of learners has these rows beside it. They are evaluated like a method.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.envs import teams
from jaxrec.types import Array, Method, TrainState, UserError

HPARAMS = dict()


def make_random(config: Any, info: dict[str, Any]) -> Method:
    """Every legal action with the same chance."""
    return played(teams.of_info("team_random", info).random)


def make_scripted(config: Any, info: dict[str, Any]) -> Method:
    """What the environment's own driver does, stochastic where it is."""
    team = teams.of_info("team_scripted", info)
    if team.scripted is None:
        raise UserError(f"{team.name} has no script: use method team_random")
    return played(team.scripted)


def played(choose: Callable[..., Array]) -> Method:
    """A method that acts by `choose(key, state)` in each game, and learns nothing."""

    def init(key: Array, batch: Any, earlier: Any) -> TrainState:
        return TrainState(step=jnp.zeros((), jnp.int32), params={}, opt_state=None)

    def train_step(state: TrainState, batch: Any, key: Array) -> Any:
        return state.replace(step=state.step + 1), dict(loss=jnp.zeros(()))

    def act(state: TrainState, seen: Any, key: Array) -> Any:
        memory, states, reward = seen
        keys = jax.random.split(key, len(reward))
        return memory, jax.vmap(choose)(keys, states)

    return Method(init, train_step, act=act, memory=lambda games: ())
