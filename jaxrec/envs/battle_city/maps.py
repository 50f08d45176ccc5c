"""Maps of Battle City: the built-in ones, files of ASCII, random ones, validation.

Letters: `.` empty, `#` brick, `S` steel, `~` water, `b` bush, `i` ice, `B` the agents'
base, `H` the enemies' base (only in `assault`), `A` where an agent starts, `E` where
enemies enter. A start is empty ground. Maps, legend and rules are ours; the NES game
has 13 x 13 blocks, starts left and right of a base ringed by brick at the bottom, and
enemies that enter at three points of the top row.
"""

import difflib
from collections import deque
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array, UserError

EMPTY, BRICK, STEEL, WATER, BUSH, ICE, BASE = range(7)
LETTERS = {".": 0, "#": 1, "S": 2, "~": 3, "b": 4, "i": 5, "B": 6, "H": 6, "A": 0}
LETTERS["E"] = EMPTY
SMALLEST, LARGEST = 7, 16
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right

MAPS = {
    "open7": """
        E.....E
        .......
        .......
        .......
        .......
        ..#S#..
        .A#B#A.""",
    "open13": """
        E.....E.....E
        .............
        .............
        .............
        .............
        .............
        .............
        .............
        .............
        .............
        .............
        .....###.....
        A.A.A#B#A.A.A""",
    "bricks13": """
        E.....E.....E
        .............
        .#.#.#.#.#.#.
        .#.#.#.#.#.#.
        .#.#.#S#.#.#.
        .#.#.....#.#.
        ...#.#.#.#...
        S#...#.#...#S
        .....#.#.....
        .#.#.###.#.#.
        .#.#.....#.#.
        .#.#.#S#.#.#.
        A.A.A#B#A.A.A""",
    "river13": """
        E.....E.....E
        .............
        .#.#.....#.#.
        .#.#..#..#.#.
        ......#......
        ..b.......b..
        ~~~.~~~~~.~~~
        ~~~.~~~~~.~~~
        ..b.......b..
        .#..#...#..#.
        .#..#...#..#.
        .....###.....
        A.A.A#B#A.A.A""",
    "forest13": """
        E.....E.....E
        .bbb.bbb.bbb.
        .bbb.bbb.bbb.
        bbbb.bSb.bbbb
        bb.....#...bb
        bbb.bb.bb.bbb
        .bb.bb#bb.bb.
        bbb.bb.bb.bbb
        bb...#.....bb
        bbbb.bbb.bbbb
        .bbb.bbb.bbb.
        .b...###...b.
        A.A.A#B#A.A.A""",
    "fortress13": """
        E.....E.....E
        .............
        .##.#...#.##.
        .##.#...#.##.
        ....#.#.#....
        ......#......
        .#.........#.
        .#..##.##..#.
        .............
        ..#.SS.SS.#..
        ..#.S...S.#..
        ....S###S....
        A.A.A#B#A.A.A""",
    "ice13": """
        E.....E.....E
        .............
        .iii.###.iii.
        .iii.....iii.
        .iii.iii.iii.
        .....iii.....
        .S#..iii..#S.
        .....iii.....
        .iii.iii.iii.
        .iii.....iii.
        .iii.....iii.
        .....###.....
        A.A.A#B#A.A.A""",
    "arena9": """
        E..E.E..E
        .........
        ..#...#..
        .b..S..b.
        ....S....
        .b..S..b.
        ..#...#..
        .........
        A..A.A..A""",
    "thicket9": """
        .E.bbb.E.
        bbbbbbbbb
        bbbbbbbbb
        bbb#b#bbb
        EbbbSbbbb
        bbb#b#bbb
        bbbbbbbbb
        bbbbbbbbb
        .A..A..A.""",
    "twin13": """
        E.E.E#H#E.E.E
        .....###.....
        .............
        .##.#...#.##.
        .##.#...#.##.
        .............
        ..b..S~S..b..
        .............
        .##.#...#.##.
        .##.#...#.##.
        .............
        .....###.....
        A.A.A#B#A.A.A""",
}
RANDOM = "random13"  # drawn anew at every reset, on the starts and base of open13
# Shares of the ground that a random map covers, all ours.
DENSITY = {BRICK: 0.25, STEEL: 0.05, WATER: 0.06, BUSH: 0.12, ICE: 0.05}


class Map(NamedTuple):
    """A validated map; places are (row, column) from 0 at the top left."""

    name: str
    terrain: np.ndarray  # int8[H, W], codes EMPTY .. BASE
    agents: np.ndarray  # int32[., 2], where agents start, the nearest to the base first
    enemies: np.ndarray  # int32[., 2], where enemies enter
    bases: np.ndarray  # int32[0 | 1 | 2, 2]: the agents', the enemies'
    random: bool  # terrain is drawn anew at every reset


def load(name: str, mode: str, num_agents: int, num_enemies: int) -> Map:
    """A built-in map by name or an ASCII file by path, valid for the mode.

    Raises UserError that names the map, the rule and the cell.
    """
    if name == RANDOM:
        world = parse(MAPS["open13"], name, mode, num_agents, num_enemies)
        return world._replace(random=True)
    if name in MAPS:
        return parse(MAPS[name], name, mode, num_agents, num_enemies)
    path = Path(name)
    if not path.is_file():
        known = [*MAPS, RANDOM]
        near = difflib.get_close_matches(name, known, 3, 0.4) or known
        raise UserError(
            f"map {name!r} is neither built in nor a file: did you mean "
            f"{' or '.join(near)}? A file of your own needs its path"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"map {name!r} cannot be read as text: {error}") from None
    return parse(text, name, mode, num_agents, num_enemies)


def parse(text: str, name: str, mode: str, num_agents: int, num_enemies: int) -> Map:
    """A Map from lines of letters; empty lines and indentation do not count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    refuse = lambda what: UserError(f"map {name!r}: {what}")  # noqa: E731
    width = len(lines[0]) if lines else 0
    for row, line in enumerate(lines):
        if len(line) != width:
            raise refuse(f"row {row} has {len(line)} cells, row 0 has {width}")
        for col, letter in enumerate(line):
            if letter not in LETTERS:
                raise refuse(
                    f"cell ({row}, {col}) is {letter!r}: use one of {''.join(LETTERS)}"
                )
    if not all(SMALLEST <= size <= LARGEST for size in (len(lines), width)):
        raise refuse(
            f"{len(lines)} x {width} cells: both sides must be {SMALLEST} to {LARGEST}"
        )
    grid = np.array([list(line) for line in lines])
    places = lambda letter: np.argwhere(grid == letter).astype(np.int32)  # noqa: E731
    for letter, whose, modes in (
        ("B", "the agents' base", ("defend", "assault")),
        ("H", "the enemies' base", ("assault",)),
    ):
        found, wanted = places(letter), int(mode in modes)
        if len(found) != wanted:
            where = "".join(f" ({r}, {c})" for r, c in found)
            raise refuse(
                f"{len(found)} {letter} ({whose}){where and ' at' + where}: mode "
                f"{mode!r} needs exactly {wanted}"
            )
    agents, enemies = places("A"), places("E")
    bases = np.concatenate([places("B"), places("H")])
    if len(agents) < num_agents:
        raise refuse(f"{len(agents)} A (agent starts) are too few for {num_agents}")
    needed = num_enemies if mode == "annihilate" else 1
    if len(enemies) < needed:
        raise refuse(f"{len(enemies)} E (enemy entries): mode {mode!r} needs {needed}")
    terrain = np.vectorize(LETTERS.get)(grid).astype(np.int8)
    goal, what = (bases[0], "the base") if len(bases) else (enemies[0], "E")
    reached = reachable(terrain, goal)
    for letter in "AEH":
        for row, col in places(letter):
            if not reached[row, col]:
                raise refuse(
                    f"{letter} at ({row}, {col}) cannot reach {what} at "
                    f"({goal[0]}, {goal[1]}): steel and water shut it off, open a way"
                )
    if len(bases):  # the NES has its two players beside the base
        distance = np.abs(agents - bases[0]).sum(1)
        agents = agents[np.argsort(distance, kind="stable")]
    return Map(name, terrain, agents, enemies, bases, False)


def reachable(terrain: np.ndarray, start: np.ndarray) -> np.ndarray:
    """bool[H, W]: joined to the start by ground that a tank can cross or shoot free."""
    shut = (terrain == STEEL) | (terrain == WATER)
    reached = np.zeros(terrain.shape, bool)
    reached[tuple(start)] = True
    queue = deque([tuple(int(x) for x in start)])
    while queue:
        row, col = queue.popleft()
        for down, right in STEPS:
            r, c = row + down, col + right
            inside = 0 <= r < terrain.shape[0] and 0 <= c < terrain.shape[1]
            if inside and not reached[r, c] and not shut[r, c]:
                reached[r, c] = True
                queue.append((r, c))
    return reached


def random_words(world: Map) -> int:
    """Random 32-bit words that one random terrain takes."""
    height, width = world.terrain.shape
    return (height * ((width + 1) // 2) + 1) // 2 + 1


def random_terrain(world: Map, words: Array) -> Array:
    """int8[H, W, ...] from words uint32[random_words, ...]; left-right symmetric.

    The base and its ring of brick, starts and entries are those of the map. Top row,
    bottom row and one random column on each side have neither steel nor water, so
    every random map satisfies the rule of validation, that tanks reach the base.
    """
    height, width = world.terrain.shape
    half = (width + 1) // 2
    tail = (1,) * (words.ndim - 1)
    batch = words.shape[1:]
    drawn = jnp.concatenate([words[:-1] & 0xFFFF, words[:-1] >> 16])
    drawn = drawn[: height * half].astype(jnp.int32).reshape(height, half, *batch)
    ground = jnp.zeros(drawn.shape, jnp.int8)
    low = 0.0
    for code, share in DENSITY.items():
        inside = (drawn >= int(low * 65536)) & (drawn < int((low + share) * 65536))
        ground = jnp.where(inside, jnp.int8(code), ground)
        low += share
    row = jnp.arange(height).reshape(height, 1, *tail)
    col = jnp.arange(half).reshape(1, half, *tail)
    road = (words[-1] % (half - 1)).astype(jnp.int32)[None, None]
    clear = (row == 0) | (row == height - 1) | (col == road)
    ground = jnp.where(
        clear & ((ground == STEEL) | (ground == WATER)), jnp.int8(EMPTY), ground
    )
    ground = jnp.concatenate([ground, ground[:, : width - half][:, ::-1]], axis=1)
    keep = world.terrain != EMPTY
    for row, col in (*world.agents, *world.enemies):
        keep[row, col] = True
    keep, fixed = (x.reshape(height, width, *tail) for x in (keep, world.terrain))
    return jnp.where(keep, jnp.asarray(fixed), ground)
