"""Hand-made positions of Battle City, shared by its tests."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city.maps import LETTERS

UP, DOWN, LEFT, RIGHT = range(4)
STAY, GO_UP, GO_DOWN, GO_LEFT, GO_RIGHT, FIRE = range(6)
# Enemies that do nothing of their own but drive straight on.
STRAIGHT = dict(aim_prob=0.0, move_prob=1.0, brick_prob=0.0, mix=(0.25,) * 4)
BOARD = """
    E..E..E
    .......
    .b.i.~.
    .S...#.
    .......
    ..###..
    .A#B#A."""
ALL_GROUNDS = """
    E..bE.b.E
    .b#.i.#b.
    .bb.S.bb.
    ~.b.b.b.~
    .i..b..i.
    .#.b.b.#.
    bb.....bb
    ...###...
    .A.#B#.A."""
THREE = """
    E..E..E
    .......
    .b.i.~.
    .S...#.
    .......
    A.###..
    .A#B#A."""
NUM, STEPS = 100, 100  # 10k steps


class Table:
    """One game with its functions compiled, and hands to set the pieces."""

    def __init__(self, folder, board=BOARD, **config):
        path = folder / "board.txt"
        path.write_text(board)
        config = STRAIGHT | dict(map=str(path)) | config
        self.env = battle_city.make(config)
        self.game = self.env.game
        self.state = jax.jit(self.env.reset)(jax.random.key(0))[1]
        self.tick = jax.jit(self._tick)
        self.calls = 0

    def _tick(self, key, state, actions):
        _, state, rewards, dones, info = self.env.step_env(key, state, actions)
        return state, info | dict(reward=rewards["ally_0"], dones=dones)

    def set(self, agents=(), enemies=(), bullets=None, rows=None, **fields):
        """Tanks (row, column, facing) from the first; the others are dead.

        `bullets`: tank -> (row, column, facing). `rows`: a terrain in letters, else
        empty ground around the base. Enemies are basic and stunned unless told.
        """
        game, state = self.game, self.state
        pieces = [*agents, *[None] * (game.agents - len(agents)), *enemies]
        pieces += [None] * (game.tanks - len(pieces))
        alive = np.array([piece is not None for piece in pieces])
        placed = np.array([piece or (0, 0, 0) for piece in pieces], np.int32)
        bullets = bullets or {}
        flying = np.array([i in bullets for i in range(game.tanks)])
        shells = [bullets.get(i, (0, 0, 0)) for i in range(game.tanks)]
        shells = np.array(shells, np.int32)
        terrain = np.zeros(game.map.terrain.shape, np.int8)
        if rows is not None:
            terrain = [[LETTERS[x] for x in line.strip()] for line in rows.split()]
        terrain = np.array(terrain, np.int8)
        for row, col in game.map.bases:
            terrain[row, col] = 6
        enemy = np.arange(game.tanks) >= game.agents
        values = dict(
            terrain=terrain,
            brick_hp=((terrain == 1) * game.brick_hp).astype(np.int8),
            alive=alive,
            hp=np.where(alive, 1, 0),
            pos=placed[:, :2],
            facing=placed[:, 2],
            stun=np.where(enemy, 50, 0),
            timer=np.full(game.tanks, 50),
            kind=np.where(enemy, 0, 1),
            lives=alive[: game.agents] * game.lives,
            bullet=flying,
            bullet_pos=shells[:, :2],
            bullet_facing=shells[:, 2],
        )
        values |= fields
        return state._replace(
            **{
                name: jnp.asarray(value).astype(getattr(state, name).dtype)
                for name, value in values.items()
            }
        )

    def play(self, state, *actions):
        """One step; agents without an action stay. -> (state, info)"""
        self.calls += 1
        full = [*actions, *[STAY] * (self.game.agents - len(actions))]
        key = jax.random.key(100 + self.calls)
        state, info = self.tick(key, state, jnp.array(full))
        return jax.tree.map(np.asarray, (state, info))


def places(state):
    """(row, column) of the living tanks by number."""
    return {
        int(i): tuple(int(x) for x in state.pos[i]) for i in np.flatnonzero(state.alive)
    }


@functools.cache
def all_grounds():
    """A game with every ground, kind of enemy and rule; one for all test files."""
    path = Path(tempfile.mkdtemp(prefix="jaxrec-maps-")) / "all.txt"
    path.write_text(ALL_GROUNDS)
    return battle_city.make(
        dict(map=str(path), ice=True, lives=2, brick_hp=2, mix=(0.25,) * 4, limit=60)
    )


@functools.cache
def random_play():
    """Its states [STEPS + 1, NUM, ...], outcomes and actions under random actions."""
    return play(all_grounds(), NUM, STEPS)


def play(env, num, steps, seed=0):
    """Random legal play: states [steps + 1, num, ...], outcomes and actions."""

    def advance(state, key):
        key_act, key_step = jax.random.split(key)
        actions = jax.vmap(env.random)(jax.random.split(key_act, num), state)
        keys = jax.random.split(key_step, num)
        after, outcome = jax.vmap(env.tick)(keys, state, actions)
        return after, (after, outcome, actions)

    @jax.jit
    def run(key):
        key_start, key_play = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(key_start, num))[1]
        return state, jax.lax.scan(advance, state, jax.random.split(key_play, steps))[1]

    first, found = run(jax.random.key(seed))
    states, outcomes, actions = jax.tree.map(np.asarray, found)
    states = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, states)
    return states, outcomes, actions


def sample(played, num):
    states = played[0]
    draw = np.random.default_rng(0)
    steps, games = draw.integers(20, STEPS, num), draw.integers(0, NUM, num)
    return jax.tree.map(lambda x: jnp.asarray(x[steps, games]), states)


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@functools.cache
def three_agents():
    """The plain rules on a small board."""
    folder = Path(tempfile.mkdtemp(prefix="jaxrec-maps-"))
    return Table(folder, agents=3, board=THREE, limit=50)
