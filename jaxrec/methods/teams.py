"""What learners of teams share: playing many games, and the running score.

The games go on from update to update and live in `state.extra`, so a roll-out is a
chunk of steps in which episodes end and begin anywhere. What was inferred of the state
while playing is kept in the chunk beside what happened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.envs.teams import Team
from jaxrec.ops import batches
from jaxrec.types import Array, UserError

MEMORY = 100  # episodes that the running score looks back on, about
ROWS = "state", "hidden", "fresh", "returned"  # of Games: they have an axis E


@struct.dataclass
class Games:
    """E games that are being played, and the agents' memories in them."""

    state: Any  # of the environment, [E, ...]
    hidden: Any  # of the networks, float32[E, A, D] or a tree of such
    fresh: Array  # bool[E], an episode begins: the memories are to be forgotten
    returned: Array  # float32[E], rewards of the episode so far
    score: Array  # float32[2], running win rate and return of finished episodes
    finished: Array  # float32[], their weight, up to 1


class Chunk(NamedTuple):
    """T steps of E games, and the state after them; [T, E, ...] or [T + 1, E, ...].

    In a replay the axes are [C, T, ...], a row for a game.
    """

    state: Any  # [T + 1]
    fresh: Array  # bool[T + 1], where an episode begins
    seen: Any  # [T + 1], what the policy wants kept
    action: Array  # int32[T, E, A]
    reward: Array  # float32[T, E]
    done: Array  # bool[T, E]
    cut: Array  # bool[T, E], by the limit: what follows is of another episode
    hidden: Any  # [E, ...], before the first observation


class View(NamedTuple):
    """What can be seen in states [...]."""

    observation: Array  # float32[..., A, od]
    world: Array  # float32[..., ds]
    legal: Array  # bool[..., A, n]
    active: Array  # bool[..., A]


def views(team: Team, states: Any) -> View:
    """Of states with any number of axes before their own."""

    def see(s: Any) -> View:
        return View(team.observe(s), team.world(s), team.legal(s), team.active(s))

    one = jax.eval_shape(team.reset, jax.random.key(0))
    axes = jax.tree.leaves(states)[0].ndim - jax.tree.leaves(one)[0].ndim
    for _ in range(axes):  # not one axis of all: the mesh splits that of the games
        see = jax.vmap(see)
    return see(states)


def start(team: Team, key: Array, num: int, hidden: Any) -> Games:
    """`num` fresh games; `hidden` is what the agents remember at first."""
    return Games(
        state=jax.vmap(team.reset)(jax.random.split(key, num)),
        hidden=hidden,
        fresh=jnp.ones(num, bool),
        returned=jnp.zeros(num),
        score=jnp.zeros(2),
        finished=jnp.zeros(()),
    )


def play(
    team: Team,
    policy: Callable[..., tuple[Array, Any, Any]],
    games: Games,
    key: Array,
    steps: int,
) -> tuple[Games, Chunk]:
    """`steps` steps of all games.

    `policy(key, states, view, hidden)` -> (actions int32[E, A], hidden, seen), with
    hidden already forgotten where an episode begins. The last state of the chunk is
    seen too, without acting: its values are what learning bootstraps from.
    """
    num = len(games.fresh)

    def see(key: Array, games: Games) -> tuple[Array, Any, Any]:
        view = views(team, games.state)
        return policy(key, games.state, view, forget(games.hidden, games.fresh))

    def step(games: Games, number: Array) -> tuple[Games, tuple]:
        # Folded, not split before the scan: under the vmap of seeds JAX's check of keys
        # takes the rows of a split for used ones.
        key_act, key_step = jax.random.split(jax.random.fold_in(key, number))
        action, hidden, seen = see(key_act, games)
        keys = batches.split_rows(jax.random.split(key_step, num))
        state, outcome = jax.vmap(team.step)(keys, games.state, action)
        before = games.state, games.fresh, seen
        happened = action, outcome.reward, outcome.done, outcome.truncated
        games = games.replace(state=state, hidden=hidden, fresh=outcome.done)
        return count(games, outcome), (before, happened)

    rows = batches.split_rows((games.state, games.hidden, games.fresh, games.returned))
    games = games.replace(**dict(zip(ROWS, rows)))
    hidden = games.hidden
    games, (before, happened) = jax.lax.scan(step, games, jnp.arange(steps))
    key_last = jax.random.fold_in(key, steps)
    last = games.state, games.fresh, see(key_last, games)[2]
    before = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last)
    return games, Chunk(*before, *happened, hidden)


def forget(hidden: Any, fresh: Array) -> Any:
    """Zeros where an episode begins; hidden: float[E, ...] in a tree."""

    def one(h: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (h.ndim - 1)), 0.0, h)

    return jax.tree.map(one, hidden)


def count(games: Games, outcome: Any) -> Games:
    """The games with a step's rewards in their running score."""
    returned = games.returned + outcome.reward
    done = outcome.done.astype(jnp.float32)
    ended = jnp.stack([outcome.won * done, returned * done]).sum(1)
    keep = (1 - 1 / MEMORY) ** done.sum()
    mean = ended / jnp.maximum(done.sum(), 1.0)
    return games.replace(
        returned=returned * (1 - done),
        score=keep * games.score + (1 - keep) * mean,
        finished=keep * games.finished + (1 - keep),
    )


def score(games: Games) -> dict[str, Array]:
    """Win rate and return of about the last MEMORY episodes; 0 before the first."""
    win_rate, returned = games.score / jnp.maximum(games.finished, 1e-8)
    return dict(win_rate=win_rate, episode_return=returned)


def by_game(chunk: Chunk) -> Chunk:
    """[T, E, ...] as rows [E, T, ...] for a replay, and back."""
    swapped = jax.tree.map(lambda x: x.swapaxes(0, 1), chunk._replace(hidden=()))
    return swapped._replace(hidden=chunk.hidden)


def random_actions(key: Array, legal: Array) -> Array:
    """int32[..., A], each legal action of bool[..., A, n] as likely."""
    logits = jnp.where(legal, 0.0, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def check(config: Any, fields: tuple[str, ...]) -> None:
    """Raises UserError for a setting that counts something and is below 1."""
    for field in fields:
        if config[field] < 1:
            raise UserError(f"{field} is {config[field]}: must be positive")


def check_shares(config: Any, fields: tuple[str, ...]) -> None:
    """Raises UserError for a setting that is a share and is not in [0, 1]."""
    for field in fields:
        values = config[field]
        for value in values if isinstance(values, tuple) else (values,):
            if not 0 <= value <= 1:
                raise UserError(f"{field} is {values}: must be from 0 to 1")
