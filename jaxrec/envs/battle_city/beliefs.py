"""States that somebody believes, as states that can be drawn. NumPy on the host.

A belief holds tanks and bullets (`entities`) or channels of the map (`grid`), as
`observe` writes them, with any number in the place of zeros and ones. What it does not
hold, such as the kind of an enemy, is not taken from the truth: enemies are basic.
"""

from typing import Any

import numpy as np

from jaxrec.envs.battle_city.maps import EMPTY
from jaxrec.envs.battle_city.observe import (
    ALLY,
    ALLY_BULLET,
    ENEMY,
    ENEMY_BULLET,
    ENTITY,
    UP,
)
from jaxrec.envs.battle_city.scenarios import BASIC, FAST, Settings

THERE = 0.5  # a number above it says that something is there


def from_entities(game: Settings, state: Any, rows: np.ndarray) -> Any:
    """The State with the tanks and bullets of float[M, 14]; the ground is `state`'s."""
    if rows.shape != (game.tanks, ENTITY):
        raise ValueError(f"entities of shape {rows.shape}: this game has {game.tanks}")
    size = np.array(game.map.terrain.shape) - 1
    where = lambda part: np.clip(np.rint(part * size), 0, size).astype(int)  # noqa: E731
    return _placed(
        game,
        state,
        alive=rows[:, 0] > THERE,
        pos=where(rows[:, 2:4]),
        facing=rows[:, 4:8].argmax(1),
        stun=np.where(rows[:, 10] > THERE, 1, 0),
        bullet=rows[:, 11] > THERE,
        bullet_pos=where(rows[:, 12:14]),
    )


def from_grid(game: Settings, state: Any, grid: np.ndarray) -> Any:
    """The State of float[H, W, 16]: ground, and the most certain tanks and bullets.

    As many as the game has of each team.
    """
    if grid.shape != (*game.map.terrain.shape, 16):
        raise ValueError(f"a grid of shape {grid.shape} on {game.map.terrain.shape}")
    ground = grid[..., 1:ALLY]
    code = np.where(ground.max(-1) > THERE, ground.argmax(-1) + 1, EMPTY)
    pos, alive = _best(game, grid, ALLY, ENEMY)
    bullet_pos, bullet = _best(game, grid, ALLY_BULLET, ENEMY_BULLET)
    facing = grid[..., UP : UP + 4][tuple(pos.T)].argmax(1)
    state = _placed(
        game,
        state,
        alive=alive,
        pos=pos,
        facing=facing,
        stun=np.zeros(game.tanks, int),
        bullet=bullet,
        bullet_pos=bullet_pos,
    )
    return state._replace(terrain=code.astype(np.int8))


def _best(
    game: Settings, grid: np.ndarray, ours: int, theirs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places int[M, 2] of the largest numbers of two channels, an agent's or an
    enemy's each, and which of them are there."""
    places, there = [], []
    for channel, num in (
        (grid[..., ours], game.agents),
        (grid[..., theirs], game.slots),
    ):
        order = np.argsort(-channel.ravel(), kind="stable")[:num]
        places.append(np.stack(np.unravel_index(order, channel.shape), 1))
        there.append(channel.ravel()[order] > THERE)
    return np.concatenate(places), np.concatenate(there)


def _placed(game: Settings, state: Any, **fields: np.ndarray) -> Any:
    ours = np.arange(game.tanks) < game.agents
    return state._replace(
        kind=np.where(ours, FAST, BASIC), hp=np.ones(game.tanks, int), **fields
    )
