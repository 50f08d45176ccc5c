"""First episodes of a team in many games at once: win rate, return, base, kills."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.envs.teams import Team
from jaxrec.types import Array


def play(
    team: Team, act: Callable[..., Any], memory: Any, num: int, key: Array
) -> dict[str, Array]:
    """One episode each of `num` games, to its end: arrays float32[num].

    `act((memory, states, reward float32[num]), key)` -> (memory, actions int32[num,
    A]), memory as given at first. won, lost, truncated, return, base_alive, kills and
    length (steps).
    """

    def advance(carry: Any, key: Array) -> tuple[Any, Any]:
        states, memory, reward, over = carry
        key_act, key_step = jax.random.split(key)
        memory, actions = act((memory, states, reward), key_act)
        keys = jax.random.split(key_step, num)
        states, outcome = jax.vmap(team.step)(keys, states, actions)
        seen = dict(
            won=outcome.won & ~over,
            truncated=outcome.truncated & ~over,
            base_alive=outcome.base_alive & outcome.done & ~over,
            kills=jnp.where(outcome.done & ~over, outcome.kills, 0),
            length=~over,
        )
        seen = {name: x.astype(jnp.float32) for name, x in seen.items()}
        seen["return"] = jnp.where(over, 0.0, outcome.reward)
        return (states, memory, outcome.reward, over | outcome.done), seen

    key_start, key_play = jax.random.split(key)
    states = jax.vmap(team.reset)(jax.random.split(key_start, num))
    carry = states, memory, jnp.zeros(num), jnp.zeros(num, bool)
    keys = jax.random.split(key_play, team.limit)
    seen = jax.lax.scan(advance, carry, keys)[1]
    return {name: x.sum(axis=0) for name, x in seen.items()}


def summary(found: dict[str, Array]) -> dict[str, float]:
    """Means over the episodes of `play`."""
    means = {name: float(x.mean()) for name, x in found.items()}
    return dict(win_rate=means.pop("won"), **means)
