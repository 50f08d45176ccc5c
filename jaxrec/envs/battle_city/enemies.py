"""The scripted drivers of Battle City: stochastic, and for either team. Ours.

Each tank looks along its facing: an opponent that it can see, or the opponents' base,
within six tiles and no steel between -> fire with aim_prob (brick between does not
matter). A brick right ahead -> fire with brick_prob. Otherwise it keeps its direction
with move_prob, or turns: towards the base with base_prob, towards the nearest opponent
that it can see with hunt_prob, anywhere else. The NES tanks drift from roaming to
hunting players to hunting the base; this is one mixture of the three.
"""

import jax.numpy as jnp

from jaxrec.envs.battle_city.layout import at, flat, tall
from jaxrec.envs.battle_city.maps import BRICK, BUSH, STEEL
from jaxrec.envs.battle_city.scenarios import FAST, POWER, Settings
from jaxrec.envs.battle_city.state import (
    DOWN,
    LEFT,
    RIGHT,
    UP,
    State,
    cell_of,
    offset,
)
from jaxrec.types import Array

SIGHT = 6  # tiles ahead
FAR = 1000


def has_bush(game: Settings) -> bool:
    """Whether bush can be on the map at all."""
    return game.map.random or bool((game.map.terrain == BUSH).any())


def covered(game: Settings, state: State) -> Array:
    """bool[M, ...]: in bush and did not fire, so opponents see it only side by side."""
    if not has_bush(game):
        return jnp.zeros_like(state.alive)
    cell = cell_of(state.pos, state.terrain.shape[1])
    return (at(flat(state.terrain), cell) == BUSH) & ~state.fired


def decide(game: Settings, state: State, words: Array, allies: bool = False) -> Array:
    """Actions int32[K, ...] of a team's tanks; words uint32[2 K, ...] are its chance.

    An ally never fires where its own base is the first thing in line.
    """
    height, width = state.terrain.shape[:2]
    ours, theirs = slice(0, game.agents), slice(game.agents, None)
    me, foe = (ours, theirs) if allies else (theirs, ours)
    row, col = state.pos[me, 0], state.pos[me, 1]
    facing = state.facing[me]
    down, right = offset(facing)
    first, second = words[: len(row)], words[len(row) :]
    aim, keep = (first & 0xFFFF).astype(jnp.int32), (first >> 16).astype(jnp.int32)
    pick = (second & 0xFFFF).astype(jnp.int32)
    anywhere = ((second >> 16) & 3).astype(jnp.int32)
    chip = (second >> 18).astype(jnp.int32)
    chance = lambda drawn, p, bits=16: drawn < round(p * 2**bits)  # noqa: E731

    # What stands ahead: the nearest steel within SIGHT, and a brick on the next tile.
    ground = flat(state.terrain)
    steel = jnp.full_like(row, SIGHT + 1)
    for ahead in range(SIGHT, 0, -1):
        r, c = row + ahead * down, col + ahead * right
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        code = at(ground, jnp.where(inside, r * width + c, 0))
        steel = jnp.where(inside & (code == STEEL), ahead, steel)
    blocked = inside & (code == BRICK)

    def line(to_row, to_col):
        """Tiles ahead to a place in line, before any steel; FAR if it is not."""
        distance = (to_row - row) * down + (to_col - col) * right
        aside = jnp.where(down == 0, to_row - row, to_col - col)
        clear = (aside == 0) & (distance >= 1) & (distance < steel)
        return jnp.where(clear, distance, FAR)

    targets = len(state.alive[foe])
    hidden = covered(game, state)[foe]
    nearest = jnp.full_like(row, FAR)
    near_row, near_col = row, col
    in_line = jnp.full_like(row, FAR)
    for j in range(targets):
        r, c = state.pos[foe, 0][j][None], state.pos[foe, 1][j][None]
        distance = abs(r - row) + abs(c - col)
        seen = state.alive[foe][j][None] & (~hidden[j][None] | (distance <= 1))
        distance = jnp.where(seen, distance, FAR)
        closer = distance < nearest
        near_row, near_col = (
            jnp.where(closer, r, near_row),
            jnp.where(closer, c, near_col),
        )
        nearest = jnp.minimum(nearest, distance)
        in_line = jnp.minimum(in_line, jnp.where(seen, line(r, c), FAR))
    goals = game.map.bases[1:] if allies else game.map.bases[:1]
    for r, c in goals:
        in_line = jnp.minimum(in_line, line(int(r), int(c)))
    fires = (in_line < FAR) & chance(aim, game.aim_prob)
    fires = fires | (blocked & chance(chip, game.brick_prob, 14))
    if allies:
        for r, c in game.map.bases[:1]:
            fires = fires & ~(line(int(r), int(c)) < in_line)
    fires = fires & ~state.bullet[me] & (state.reload[me] == 0)

    def towards(to_row, to_col):
        vertical = abs(to_row - row) >= abs(to_col - col)
        upright = jnp.where(to_row < row, UP, DOWN)
        return jnp.where(vertical, upright, jnp.where(to_col < col, LEFT, RIGHT))

    hunting = jnp.where(nearest < FAR, towards(near_row, near_col), anywhere)
    hunts = game.base_prob + game.hunt_prob
    turn = jnp.where(chance(pick, hunts), hunting, anywhere)
    for r, c in goals:
        turn = jnp.where(chance(pick, game.base_prob), towards(int(r), int(c)), turn)
    heading = jnp.where(chance(keep, game.move_prob), facing, turn)
    kind = state.kind[me]
    lively = (kind == FAST) | (kind == POWER)
    # Two ticks of three, each slot with a phase of its own.
    number = tall(jnp.arange(len(row)), row)
    drives = lively | ((state.step[None] + number) % 3 != 0)
    return jnp.where(fires, 5, jnp.where(drives, heading + 1, 0))
