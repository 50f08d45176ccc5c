"""The state of a game of Battle City, and its start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.envs.battle_city import maps
from jaxrec.envs.battle_city.layout import tall
from jaxrec.envs.battle_city.scenarios import ARMOR, FAST, HP, Settings
from jaxrec.types import Array

UP, DOWN, LEFT, RIGHT = range(4)


class State(NamedTuple):
    """One game; M = A + E tanks, agents first, then the enemies' slots.

    A bullet belongs to the slot of the tank that fired it. Positions are (row, column).
    """

    terrain: Array  # int8[H, W], codes of `maps`
    brick_hp: Array  # int8[H, W]
    pos: Array  # int32[M, 2], the last place of a dead tank
    facing: Array  # int32[M], 0 up, 1 down, 2 left, 3 right
    alive: Array  # bool[M]
    hp: Array  # int32[M]
    reload: Array  # int32[M], steps until the tank may fire again
    stun: Array  # int32[M], steps without action
    timer: Array  # int32[M], steps until a dead tank may come back
    kind: Array  # int32[M], basic, fast, power, armor; agents are fast
    power: Array  # int32[M], of the shots; 3 breaks steel
    fired: Array  # bool[M], in the last step: bush does not hide the tank
    bullet: Array  # bool[M], in flight
    bullet_pos: Array  # int32[M, 2]
    bullet_facing: Array  # int32[M]
    bullet_speed: Array  # int32[M], tiles a step
    base_alive: Array  # bool[1 | 2], the agents' (True where none is), the enemies'
    lives: Array  # int32[A], left, the present one included
    last_action: Array  # int32[A], as carried out
    pool: Array  # int32[], enemies still to enter
    kills: Array  # int32[]
    step: Array  # int32[]
    done: Array  # bool[]


class Outcome(NamedTuple):
    """What a step brought. Of won, lost and truncated at most one is True."""

    reward: Array  # float32[], shared
    done: Array  # bool[]
    won: Array  # bool[]
    lost: Array  # bool[]
    truncated: Array  # bool[], by the limit of steps: bootstrap
    base_alive: Array  # bool[], the agents' own; True where there is none
    kills: Array  # int32[], in the episode so far


def offset(facing: Array) -> tuple[Array, Array]:
    """Rows and columns, -1, 0 or 1, of a step ahead."""
    down = (facing == DOWN).astype(jnp.int32) - (facing == UP).astype(jnp.int32)
    right = (facing == RIGHT).astype(jnp.int32) - (facing == LEFT).astype(jnp.int32)
    return down, right


def cell_of(pos: Array, width: int) -> Array:
    """Cells int32[K, ...] of positions int32[K, 2, ...]."""
    return pos[:, 0] * width + pos[:, 1]


def kinds(game: Settings, words: Array) -> Array:
    """Kinds of enemies int32[...] from words uint32[...] by the shares of the mix."""
    drawn = (words >> 16).astype(jnp.int32)
    bounds = np.round(np.cumsum(game.mix)[:-1] * 65536).astype(int)
    return sum((drawn >= int(bound)).astype(jnp.int32) for bound in bounds)


def kind_hp(kind: Array) -> Array:
    return jnp.where(kind == ARMOR, HP[ARMOR], HP[0])


def reset_words(game: Settings) -> int:
    """Random words that a start takes; 0 where every start is the same."""
    words = maps.random_words(game.map) if game.map.random else 0
    return words + (game.slots if game.mode == "annihilate" else 0)


def start(game: Settings, words: Array) -> State:
    """The first state, from words uint32[reset_words, ...]; any batch behind."""
    batch = words.shape[1:]
    num_agents, slots = game.agents, game.slots
    tanks = game.tanks

    def spread(values):
        values = np.asarray(values)
        full = tall(values, jnp.zeros((1, *batch))) if values.ndim else values
        return jnp.broadcast_to(full, (*values.shape, *batch))

    terrain = spread(game.map.terrain)
    if game.map.random:
        used = maps.random_words(game.map)
        terrain = maps.random_terrain(game.map, words[:used])
        words = words[used:]
    fight = game.mode == "annihilate"
    pos = np.zeros((tanks, 2), np.int32)
    pos[:num_agents] = game.map.agents[:num_agents]
    pos[num_agents:] = game.map.enemies[:slots] if fight else game.map.enemies[:1]
    ours = np.arange(tanks) < num_agents
    kind = spread(np.full(tanks, FAST, np.int32))
    hp = np.where(ours, game.agent_hp, 0).astype(np.int32)
    timer = np.where(ours, 0, np.arange(tanks) - num_agents) * game.spawn_delay
    zeros = np.zeros(tanks, np.int32)
    state = State(
        terrain=terrain,
        brick_hp=(terrain == maps.BRICK).astype(jnp.int8) * game.brick_hp,
        pos=spread(pos),
        facing=spread(np.where(ours, UP, DOWN).astype(np.int32)),
        alive=spread(ours | fight),
        hp=spread(hp),
        reload=spread(zeros),
        stun=spread(zeros),
        timer=spread(timer.astype(np.int32)),
        kind=kind,
        power=spread(np.where(ours, game.agent_power, 1).astype(np.int32)),
        fired=spread(zeros > 0),
        bullet=spread(zeros > 0),
        bullet_pos=spread(pos),
        bullet_facing=spread(zeros),
        bullet_speed=spread(zeros + game.bullet_speed),
        base_alive=spread(np.ones(max(1, len(game.map.bases)), bool)),
        lives=spread(np.full(num_agents, game.lives, np.int32)),
        last_action=spread(np.zeros(num_agents, np.int32)),
        pool=spread(np.int32(0 if fight else game.enemies)),
        kills=spread(np.int32(0)),
        step=spread(np.int32(0)),
        done=spread(np.bool_(False)),
    )
    if fight:
        drawn = kinds(game, words)
        kind = jnp.concatenate([kind[:num_agents], drawn])
        hp = jnp.concatenate([state.hp[:num_agents], kind_hp(drawn)])
        state = state._replace(kind=kind, hp=hp)
    return state


def select(which: Array, yes: State, no: State) -> State:
    """`yes` where bool[...] says so, for states with that batch behind."""

    def choose(a, b):
        return jnp.where(
            which.reshape((1,) * (a.ndim - which.ndim) + which.shape), a, b
        )

    return jax.tree.map(choose, yes, no)
