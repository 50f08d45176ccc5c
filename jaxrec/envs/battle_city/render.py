"""Battle City for people: RGB frames, PNG and GIF. NumPy on the host, not traced.

Agents are gold, enemies red (armor darkens as it is hit), the turret shows the facing;
bushes are drawn over the tanks in them. Blue bars under an agent show that it is
stunned. Beside the field: enemies to come and agents alive.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.envs.battle_city.maps import BASE, BRICK, BUSH, ICE, STEEL, WATER
from jaxrec.envs.battle_city.scenarios import ARMOR, FAST, POWER, Settings
from jaxrec.types import UserError

GROUND = (28, 28, 32)
BODY = {FAST: (226, 120, 90), POWER: (214, 70, 120), ARMOR: (150, 40, 40)}
BASIC_BODY, AGENT = (205, 70, 62), (236, 190, 64)
SHADE, STUNNED, SHELL, MARGIN = (90, 92, 100), (90, 150, 255), (250, 250, 240), 2


def frame(
    game: Settings, state: Any, scale: int = 24, agent: int | None = None
) -> np.ndarray:
    """uint8[(H + 1) scale, W scale, 3] of one game's State.

    With `agent` the cells outside its window are dark, and tanks and bullets that it
    cannot see are left out. Raises UserError for more than one game.
    """
    state = type(state)(*(np.asarray(leaf) for leaf in state))
    if state.terrain.ndim != 2:
        raise UserError(
            f"render draws one game, not terrain of shape {state.terrain.shape}: take "
            "one, jax.tree.map(lambda x: x[0], states)"
        )
    height, width = state.terrain.shape
    image = np.zeros(((height + 1) * scale, width * scale, 3), np.uint8)
    image[:] = GROUND
    for row, col in np.ndindex(height, width):
        _tile(_cell(image, row, col, scale), int(state.terrain[row, col]))
    for index, (row, col) in enumerate(game.map.bases):
        colour = AGENT if index == 0 else BASIC_BODY
        _base(_cell(image, row, col, scale), colour, bool(state.base_alive[index]))
    hidden, lost = _hidden(game, state, agent)
    for i in np.flatnonzero(state.alive):
        if not hidden[i]:
            _tank(_cell(image, *state.pos[i], scale), game, state, i)
    for row, col in np.argwhere(state.terrain == BUSH):
        _leaves(_cell(image, row, col, scale))
    for i in np.flatnonzero(state.bullet & ~lost):
        cell = _cell(image, *state.bullet_pos[i], scale)
        low, high = int(0.38 * scale), int(0.62 * scale)
        cell[low:high, low:high] = SHELL if i < game.agents else (255, 140, 120)
    if agent is not None:
        away = np.indices((height, width)) - state.pos[agent][:, None, None]
        seen = (abs(away).max(0) <= game.radius) & state.alive[agent]
        for row, col in np.argwhere(~seen):
            cell = _cell(image, row, col, scale)
            cell[:] = cell // 5
    _scores(image[height * scale :], game, state, scale)
    return image


def _cell(image: np.ndarray, row: int, col: int, scale: int) -> np.ndarray:
    return image[row * scale : (row + 1) * scale, col * scale : (col + 1) * scale]


def _hidden(
    game: Settings, state: Any, agent: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tanks bool[M] out of the agent's window or in bush, bullets out of it."""
    if agent is None:
        return np.zeros(game.tanks, bool), np.zeros(game.tanks, bool)
    away = np.abs(state.pos - state.pos[agent])
    in_bush = state.terrain[tuple(state.pos.T)] == BUSH
    enemy = np.arange(game.tanks) >= game.agents
    covered = enemy & in_bush & (away.sum(1) > 1) & ~state.fired
    shells = np.abs(state.bullet_pos - state.pos[agent]).max(1) > game.radius
    return covered | (away.max(1) > game.radius), shells


def _tile(cell: np.ndarray, code: int) -> None:
    size = len(cell)
    if code == BRICK:
        cell[:] = (156, 74, 44)
        joint = max(1, size // 12)
        for start in range(0, size, max(3, size // 3)):
            cell[start : start + joint] = (84, 40, 28)
        cell[: size // 3, size // 2 : size // 2 + joint] = (84, 40, 28)
        cell[size // 3 : 2 * size // 3, size // 4 : size // 4 + joint] = (84, 40, 28)
        cell[2 * size // 3 :, 3 * size // 4 : 3 * size // 4 + joint] = (84, 40, 28)
    elif code == STEEL:
        cell[:] = (120, 124, 134)
        inner = slice(size // 5, size - size // 5)
        cell[inner, inner] = (214, 218, 226)
    elif code == WATER:
        cell[:] = (38, 74, 168)
        for start in range(size // 5, size, max(4, size // 3)):
            cell[start : start + max(1, size // 12), size // 6 : -size // 6] = (
                (96, 140, 226),
            )
    elif code == ICE:
        cell[:] = (186, 214, 226)
        rows, cols = np.indices(cell.shape[:2])
        cell[(rows + cols) % max(4, size // 3) == 0] = (226, 242, 248)
    elif code == BUSH:
        cell[:] = (34, 62, 34)
    elif code == BASE:
        cell[:] = GROUND


def _leaves(cell: np.ndarray) -> None:
    """Two dots of three stay bush, so that people see who hides in it."""
    rows, cols = np.indices(cell.shape[:2]) // max(1, len(cell) // 8)
    cell[(rows + cols) % 3 == 0] = (54, 120, 58)
    cell[(rows + 2 * cols) % 5 == 1] = (40, 94, 46)


def _base(cell: np.ndarray, colour: tuple[int, int, int], alive: bool) -> None:
    size = len(cell)
    rows, cols = np.abs(np.indices(cell.shape[:2]) - (size - 1) / 2)
    diamond = rows + cols <= 0.45 * size
    cell[diamond] = colour if alive else SHADE
    cell[rows + cols <= 0.2 * size] = (255, 255, 255) if alive else GROUND


def _tank(cell: np.ndarray, game: Settings, state: Any, i: int) -> None:
    size = len(cell)
    kind, hp = int(state.kind[i]), int(state.hp[i])
    colour = AGENT if i < game.agents else BODY.get(kind, BASIC_BODY)
    if kind == ARMOR:
        colour = tuple(int(c * (0.5 + hp / 8)) for c in colour)
    # Drawn facing up, then turned.
    picture = np.zeros((size, size, 3), np.uint8)
    edge, track = max(1, size // 10), max(2, size // 6)
    picture[edge:-edge, edge : edge + track] = SHADE
    picture[edge:-edge, -edge - track : -edge] = SHADE
    picture[2 * edge : -2 * edge, edge + track : -edge - track] = colour
    middle, barrel = size // 2, max(1, size // 12)
    picture[edge // 2 : middle, middle - barrel : middle + barrel] = (255, 244, 214)
    picture = np.rot90(picture, (0, 2, 1, 3)[int(state.facing[i])])
    if state.stun[i] > 0:
        picture = picture.copy()
        picture[-edge - 1 :] = STUNNED
    drawn = picture.any(-1)
    cell[drawn] = picture[drawn]


def _scores(strip: np.ndarray, game: Settings, state: Any, scale: int) -> None:
    """Under the field: a red mark for each enemy to come, gold for agents alive."""
    strip[:] = (12, 12, 14)
    mark = max(2, scale // 4)
    step = mark + MARGIN
    width = strip.shape[1]
    for k in range(int(state.pool)):
        top, left = divmod(k * step, max(step, width // 2 // step * step))
        top = MARGIN + top * step
        strip[top : top + mark, MARGIN + left : MARGIN + left + mark] = BASIC_BODY
    for k in range(int(state.alive[: game.agents].sum())):
        left = width - (k + 1) * step
        strip[MARGIN : MARGIN + mark, left : left + mark] = AGENT


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8[H, W, 3] as PNG."""
    from PIL import Image

    Image.fromarray(image).save(path, format="PNG")


def save_gif(path: str | Path, frames: Sequence[np.ndarray], fps: float = 8) -> None:
    """Write frames uint8[H, W, 3] as a looping GIF. Raises UserError without frames."""
    from PIL import Image

    if not len(frames):
        raise UserError(f"no frames to write to {path}: play at least one step")
    first, *rest = [Image.fromarray(image).quantize(64) for image in frames]
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
    )


def side_by_side(images: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Frames of equal height in one row."""
    bar = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    parts = [images[0]]
    for image in images[1:]:
        parts += [bar, image]
    return np.concatenate(parts, axis=1)
