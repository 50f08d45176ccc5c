"""One face for all environments of teams: what a multi-agent learner asks of a game.

A learner plays many games at once by `jax.vmap` of these functions of one game, keeps
the games' states in its replay and asks again what the agents saw in them: a state is
much smaller than A observations, and anything else that can be seen in it (a canvas,
the entities) needs no field of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrec.envs import battle_city, meeting
from jaxrec.types import Array, UserError


class Team(NamedTuple):
    """A cooperative game of A agents with one shared reward, as pure functions.

    `reset(key)` -> state. `step(key, state, actions int32[A])` -> (state, outcome), the
    state of a fresh game where the outcome says `done`; an outcome has the scalars
    reward (float32), done, won, truncated (by the limit: it is no end), base_alive
    (bool; True where there is no base) and kills (int32).
    `observe(state)` -> float32[A, od], zero for an agent that is out of the game.
    `world(state)` -> float32[ds], the whole state, for training.
    `legal(state)` -> bool[A, n], never all False. `active(state)` -> bool[A].
    `random(key, state)`, `scripted(key, state)` -> int32[A]; the second may be None.
    `game`: the environment itself, for what only some have.
    """

    name: str
    reset: Callable[..., Any]
    step: Callable[..., Any]
    observe: Callable[..., Array]
    world: Callable[..., Array]
    legal: Callable[..., Array]
    active: Callable[..., Array]
    random: Callable[..., Array]
    scripted: Callable[..., Array] | None
    num_agents: int
    num_actions: int
    obs_size: int
    state_size: int
    limit: int  # steps of an episode
    game: Any = None


def make(kind: str, name: str, settings: Mapping[str, Any] | None = None) -> Team:
    """The team game `name` of the environment `kind`, one of TEAMS.

    Raises UserError for unknown names and settings, and where a package is missing.
    """
    return TEAMS[kind](name, dict(settings or {}))


def of_battle_city(name: str, settings: Mapping[str, Any]) -> Team:
    """A scenario of Battle City."""
    env = battle_city.make({"scenario": name} | dict(settings))

    def observe(state: Any) -> Array:
        seen = env.get_obs(state)
        return jnp.stack([seen[agent] for agent in env.agents])

    return Team(
        name=f"battle_city/{name}",
        reset=lambda key: env.reset(key)[1],
        step=env.tick,
        observe=observe,
        world=env.get_state,
        legal=env.legal,
        active=lambda state: state.alive[: env.num_agents],
        random=env.random,
        scripted=env.scripted,
        num_agents=env.num_agents,
        num_actions=env.num_actions,
        obs_size=env.obs_size,
        state_size=env.state_size,
        limit=env.game.limit,
        game=env,
    )


def of_meeting(name: str, settings: Mapping[str, Any]) -> Team:
    """The toy game, for tests and first steps."""
    env = meeting.make({"scenario": name} | dict(settings))
    facts = env._asdict()
    return Team(name=f"meeting/{name}", game=env, **facts)


def of_jaxmarl(kind: str) -> Callable[..., Team]:
    """A game of the package jaxmarl, imported only when it is asked for."""

    def load(name: str, settings: Mapping[str, Any]) -> Team:
        from jaxrec.envs import marl_packages

        return marl_packages.make(kind, name, dict(settings))

    return load


TEAMS = {
    "battle_city": of_battle_city,
    "meeting": of_meeting,
    "smax": of_jaxmarl("smax"),
    "mpe": of_jaxmarl("mpe"),
}


def of_info(method: str, info: Mapping[str, Any]) -> Team:
    """The game that the data source of a run names.

    Raises UserError where the source is of logged data.
    """
    if "team" not in info:
        raise UserError(
            f"{method} learns by playing in a team, these data are a log: set "
            f"data.source to one of {', '.join(TEAMS)}"
        )
    return make(**info["team"])
