"""A toy game for teams: short-sighted agents on a line who have to meet. All ours.

A agents stand on a line of L cells and see who is on the cells beside them; the game is
won when all stand within `near` cells, and cut after `limit` steps. Nobody sees far, so
that the team needs a convention (such as the middle), and one who knew the whole state
would be faster. With `near=0` two neighbours must not both move, or they swap: what
monotone mixers cannot write down; with `near=1` they can. It compiles in a moment:
tests of learners play it, and a first run that takes seconds.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.types import Array, UserError

SCENARIOS = {
    "two_on_5": dict(agents=2, cells=5),
    "three_on_7": dict(agents=3, cells=7),
    "two_on_9": dict(agents=2, cells=9, near=1),
}
HPARAMS = dict(agents=2, cells=5, limit=8, near=0)


class State(NamedTuple):
    pos: Array  # int32[A], from 0
    step: Array  # int32[]


class Outcome(NamedTuple):
    """See `teams.Team`; there is no base, and kills are always 0."""

    reward: Array
    done: Array
    won: Array
    truncated: Array
    base_alive: Array
    kills: Array


class Meeting(NamedTuple):
    """The fields of `teams.Team` but for its name and game."""

    reset: Callable[..., State]
    step: Callable[..., tuple[State, Outcome]]
    observe: Callable[..., Array]
    world: Callable[..., Array]
    legal: Callable[..., Array]
    active: Callable[..., Array]
    random: Callable[..., Array]
    scripted: Callable[..., Array]
    num_agents: int
    num_actions: int
    obs_size: int
    state_size: int
    limit: int


def make(config: Mapping[str, Any]) -> Meeting:
    """A game by `scenario` and fields of HPARAMS. Raises UserError for others."""
    given = dict(config)
    name = given.pop("scenario")
    if name not in SCENARIOS:
        near = difflib.get_close_matches(str(name), SCENARIOS, 3, 0.2) or SCENARIOS
        raise UserError(f"meeting has no scenario {name!r}: use {' or '.join(near)}")
    if unknown := sorted(set(given) - set(HPARAMS)):
        raise UserError(f"meeting has no {unknown[0]!r}: use {', '.join(HPARAMS)}")
    values = HPARAMS | SCENARIOS[name] | given
    for field, least in dict(agents=2, cells=2, limit=1, near=0).items():
        if not isinstance(values[field], int) or values[field] < least:
            raise UserError(
                f"meeting.{field}={values[field]!r}: it must be {least} or more"
            )
    num, cells, limit = values["agents"], values["cells"], values["limit"]

    def reset(key: Array) -> State:
        """Anywhere, but not all on one cell."""
        pos = jax.random.randint(key, (num,), 0, cells)
        met = (pos == pos[:1]).all()
        return State(pos.at[0].add(jnp.where(met, 1, 0)) % cells, jnp.int32(0))

    def legal(state: State) -> Array:
        """Stay, left, right; nobody leaves the line."""
        stay = jnp.ones(num, bool)
        return jnp.stack([stay, state.pos > 0, state.pos < cells - 1], axis=1)

    def step(key: Array, state: State, actions: Array) -> tuple[State, Outcome]:
        wanted = state.pos + (actions == 2) - (actions == 1)
        after = State(jnp.clip(wanted, 0, cells - 1), state.step + 1)
        won = jnp.max(after.pos) - jnp.min(after.pos) <= values["near"]
        truncated = ~won & (after.step >= limit)
        done = won | truncated
        outcome = Outcome(
            reward=won.astype(jnp.float32),
            done=done,
            won=won,
            truncated=truncated,
            base_alive=jnp.bool_(True),
            kills=jnp.int32(0),
        )
        fresh = reset(key)
        return jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, after), outcome

    def observe(state: State) -> Array:
        """Own cell one-hot, somebody left, here, right, and who I am."""
        away = state.pos[None] - state.pos[:, None]
        others = ~jnp.eye(num, dtype=bool)
        seen = [((away == d) & others).any(1) for d in (-1, 0, 1)]
        own = jax.nn.one_hot(state.pos, cells)
        return jnp.concatenate([own, jnp.stack(seen, 1), jnp.eye(num)], axis=1)

    def world(state: State) -> Array:
        """All cells one-hot, and the share of time left."""
        left = 1.0 - state.step / limit
        return jnp.append(jax.nn.one_hot(state.pos, cells).ravel(), left)

    def random(key: Array, state: State) -> Array:
        logits = jnp.where(legal(state), 0.0, -jnp.inf)
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)

    def scripted(key: Array, state: State) -> Array:
        """Towards the middle."""
        middle = cells // 2
        turn = jnp.where(state.pos > middle, 1, jnp.where(state.pos < middle, 2, 0))
        return turn.astype(jnp.int32)

    return Meeting(
        reset=reset,
        step=step,
        observe=observe,
        world=world,
        legal=legal,
        active=lambda state: jnp.ones(num, bool),
        random=random,
        scripted=scripted,
        num_agents=num,
        num_actions=3,
        obs_size=cells + 3 + num,
        state_size=num * cells + 1,
        limit=limit,
    )
