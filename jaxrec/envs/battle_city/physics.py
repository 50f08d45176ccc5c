"""Moves, shots and what they hit, in Battle City: steps 2, 4 and 5 of a tick.

Arrays are [things, ...] with any batch behind (see `layout`); M tanks, agents first.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxrec.envs.battle_city.layout import anyof, at, flat, tall, total, where_any
from jaxrec.envs.battle_city.maps import BRICK, EMPTY, STEEL
from jaxrec.envs.battle_city.scenarios import Settings
from jaxrec.envs.battle_city.state import State, cell_of, offset
from jaxrec.types import Array

CROSSABLE = 0b0110001  # bits of terrain codes: empty, bush, ice


class Hits(NamedTuple):
    """What the bullets of this step did so far, [M, ...]."""

    cell: Array  # int32, the brick or steel cell that a bullet hit, -1
    damage: Array  # int32, to each tank
    stunned: Array  # bool


def opponents_of(game: Settings, like: Array) -> Array:
    """bool[M, M, 1...]: opponents."""
    ours = jnp.arange(game.tanks) < game.agents
    return tall(ours[:, None] != ours[None], like)


def move(state: State, moving: Array) -> tuple[State, Array]:
    """Move one tile ahead where bool[M, ...] says so and the tile is free.

    Of several tanks that want one tile none moves; two never swap; a tank enters a
    tile that another leaves only if the other does leave. Returns who moved, too.
    """
    wants, target = where_any(
        moving & state.alive,
        lambda state: _targets(state, moving),
        state,
        (jnp.zeros_like(moving), jnp.zeros_like(state.facing)),
    )
    goes = where_any(wants, lambda wants: _goers(state, wants, target), wants)
    width = state.terrain.shape[1]
    to = jnp.stack([target // width, target % width], 1)
    return state._replace(pos=jnp.where(goes[:, None], to, state.pos)), goes


def _targets(state: State, moving: Array) -> tuple[Array, Array]:
    """Who would move onto ground it can cross, and its cell int32[M, ...]."""
    height, width = state.terrain.shape[:2]
    down, right = offset(state.facing)
    row, col = state.pos[:, 0] + down, state.pos[:, 1] + right
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    cell = jnp.where(inside, row * width + col, 0)
    ground = at(flat(state.terrain), cell).astype(jnp.int32)
    free = ((CROSSABLE >> ground) & 1).astype(bool)
    return moving & state.alive & inside & free, cell


def _goers(state: State, wants: Array, target: Array) -> Array:
    """Who of bool[M, ...] moves, if they want to the cells int32[M, ...]."""
    num = len(wants)
    number = tall(jnp.arange(num), wants)
    target = jnp.where(wants, target, -1 - number)
    here = jnp.where(state.alive, cell_of(state.pos, state.terrain.shape[1]), -100)
    blockers = jnp.zeros_like(target)  # bits of the tanks on the target
    clash = jnp.zeros_like(wants)
    for j in range(num):
        enters = target == here[j][None]
        blockers = blockers | (enters.astype(jnp.int32) << j)
        clash = clash | ((number != j) & (target == target[j][None]))
        clash = clash | (enters & (here == target[j][None]))
    wants = wants & ~clash
    bit = 1 << number

    def leave(_: int, leaving: Array) -> Array:
        goes = wants & ((blockers & ~leaving[None]) == 0)
        return total(jnp.where(goes, bit, 0))

    # From all who want to: each round drops those behind one who stays.
    leaving = lax.fori_loop(0, num, leave, total(jnp.where(wants, bit, 0)))
    return (leaving[None] & bit) > 0


def hit_tanks(
    game: Settings, state: State, hits: Hits, flying: Array
) -> tuple[State, Hits]:
    """Bullets bool[M, ...] that share a tile with a tank other than their shooter."""
    return where_any(flying, lambda c: _hit_tanks(game, *c, flying), (state, hits))


def _hit_tanks(
    game: Settings, state: State, hits: Hits, flying: Array
) -> tuple[State, Hits]:
    num, width = game.tanks, state.terrain.shape[1]
    here = jnp.where(state.alive, cell_of(state.pos, width), -1)
    there = jnp.where(flying, cell_of(state.bullet_pos, width), -2)
    opponents = opponents_of(game, here)
    damage, stunned, spent = hits.damage, hits.stunned, jnp.zeros_like(flying)
    friendly = game.friendly_fire
    for i in range(num):  # bullets
        struck = (here == there[i][None]) & tall(jnp.arange(num) != i, here)
        hurts = struck if friendly == "damage" else struck & opponents[i]
        damage = damage + hurts.astype(jnp.int32)
        if friendly == "stun":
            stunned = stunned | (struck & ~opponents[i])
    for j in range(num):  # tanks
        spent = spent | ((there == here[j][None]) & tall(jnp.arange(num) != j, here))
    state = state._replace(bullet=state.bullet & ~spent)
    return state, hits._replace(damage=damage, stunned=stunned)


def advance_bullets(
    game: Settings, state: State, hits: Hits, faster: Array
) -> tuple[State, Hits]:
    """One tile further for the bullets that are `faster`, and what they meet."""
    width = state.terrain.shape[1]
    flying = state.bullet & faster
    old = cell_of(state.bullet_pos, width)
    state, hits = where_any(flying, lambda c: _fly(game, *c, faster), (state, hits))
    state, hits = hit_tanks(game, state, hits, state.bullet & faster)

    def meet(bullet: Array) -> Array:
        """Without the opposing bullets that met on a tile or crossed between two."""
        cell = cell_of(state.bullet_pos, width)
        now = jnp.where(bullet, cell, -1 - tall(jnp.arange(game.tanks), cell))
        opponents = opponents_of(game, cell)
        met = jnp.zeros_like(bullet)
        for j in range(game.tanks):
            crossed = (old == now[j][None]) & (now == old[j][None])
            met = met | (((now == now[j][None]) | crossed) & opponents[j])
        return bullet & ~met

    return state._replace(bullet=where_any(flying, meet, state.bullet)), hits


def _fly(game: Settings, state: State, hits: Hits, faster: Array) -> tuple[State, Hits]:
    """One tile further for the bullets that are `faster`; walls and bases they meet."""
    height, width = state.terrain.shape[:2]
    flying = state.bullet & faster
    down, right = offset(state.bullet_facing)
    row = state.bullet_pos[:, 0] + jnp.where(flying, down, 0)
    col = state.bullet_pos[:, 1] + jnp.where(flying, right, 0)
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    row, col = jnp.clip(row, 0, height - 1), jnp.clip(col, 0, width - 1)
    flying = flying & inside
    cell = row * width + col
    ground = at(flat(state.terrain), cell)
    worn = jnp.zeros_like(cell)
    broken = jnp.zeros_like(flying)
    for j in range(game.tanks):  # what earlier sub-ticks took from this cell
        same = cell == hits.cell[j][None]
        worn = worn + same.astype(jnp.int32)
        broken = broken | (same & (state.power[j][None] >= 3))
    standing = (ground == STEEL) & ~broken
    if game.brick_hp == 1:
        standing = standing | ((ground == BRICK) & (worn == 0))
    else:
        left = at(flat(state.brick_hp), cell).astype(jnp.int32)
        standing = standing | ((ground == BRICK) & (left > worn))
    stopped = flying & standing
    base_alive = state.base_alive
    if len(game.map.bases):
        where = game.map.bases[:, 0] * width + game.map.bases[:, 1]
        ends = [flying & (cell == int(place)) for place in where]
        base_alive = base_alive & ~jnp.stack([anyof(end) for end in ends])
        for end in ends:
            stopped = stopped | end
    state = state._replace(
        bullet_pos=jnp.stack([row, col], 1),
        bullet=state.bullet & inside & ~stopped,
        base_alive=base_alive,
    )
    hits = hits._replace(cell=jnp.where(flying & standing, cell, hits.cell))
    return state, hits


def wear_down(game: Settings, state: State, cell: Array) -> State:
    """Brick, and steel hit with power 3, after the hits at int32[M, ...] (or -1)."""
    return where_any(cell >= 0, lambda state: _wear_down(game, state, cell), state)


def _wear_down(game: Settings, state: State, cell: Array) -> State:
    terrain, left = flat(state.terrain), flat(state.brick_hp)
    place = tall(jnp.arange(len(terrain)), cell)
    hurt, broken = jnp.zeros_like(left), jnp.zeros_like(left, bool)
    for i in range(game.tanks):
        same = place == cell[i][None]
        hurt = hurt + same.astype(hurt.dtype)
        if i < game.agents and game.agent_power >= 3:
            broken = broken | same
    left = jnp.maximum(left - hurt, 0)
    gone = ((terrain == BRICK) & (left == 0)) | ((terrain == STEEL) & broken)
    terrain = jnp.where(gone, jnp.int8(EMPTY), terrain)
    return state._replace(
        terrain=terrain.reshape(state.terrain.shape),
        brick_hp=left.reshape(state.brick_hp.shape),
    )
