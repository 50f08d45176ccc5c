"""What agents see and what is the case: windows, vectors, entities, global state.

CHANNELS of a cell, shared by an agent's window and the global grid: out of map, brick,
steel, water, bush, ice, base, ally, enemy, own tank (window) or ally number (grid,
(i + 1) / A), facing of the tank there (up, down, left, right), ally bullet, enemy
bullet. An agent is an ally in its own window. The window is a crop of the grid but for
channel 9 and for enemies out of sight: in bush an enemy tank and its facing are seen
only side by side (Manhattan distance 1) or when it fired in the last step; with
`line_of_sight` also nothing behind brick or steel. Bullets are always seen. The
observation of a dead agent is zero.

The channels of a cell are bits of one int32 until the last moment, so that everything
before is done for all games at once (see `layout`) on a sixteenth of the numbers. All
of this is ours.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrec.envs.battle_city.enemies import covered
from jaxrec.envs.battle_city.layout import at, flat, tall, where_any
from jaxrec.envs.battle_city.maps import BRICK, STEEL
from jaxrec.envs.battle_city.scenarios import ARMOR, HP, Settings
from jaxrec.envs.battle_city.state import State, cell_of
from jaxrec.types import Array

CHANNELS = (
    *("outside", "brick", "steel", "water", "bush", "ice", "base", "ally", "enemy"),
    *("self", "up", "down", "left", "right", "ally_bullet", "enemy_bullet"),
)
NUMBER = CHANNELS.index("self")  # the one channel that is not shared
ALLY, ENEMY, UP, ALLY_BULLET, ENEMY_BULLET = 7, 8, 10, 14, 15
FACING = 0b1111 << UP
ENTITY = 14  # features of a tank in the entity form


class Observation(NamedTuple):
    """What the agents of one game see."""

    window: Array  # float32[A, 2r+1, 2r+1, 16]
    vector: Array  # float32[A, V]


def cells(game: Settings, state: State) -> Array:
    """The global grid as bits, int32[cells, ...]; ally numbers from bit 16 on."""
    height, width = state.terrain.shape[:2]
    terrain = flat(state.terrain).astype(jnp.int32)
    bits = (1 << terrain) & ~1
    present = state.alive | state.bullet
    return where_any(present, lambda bits: _tanks(game, state, bits), bits)


def _tanks(game: Settings, state: State, bits: Array) -> Array:
    """The bits of terrain, with those of tanks and bullets."""
    height, width = state.terrain.shape[:2]
    where = tall(jnp.arange(height * width), bits)
    tank = jnp.where(state.alive, cell_of(state.pos, width), -1)
    bullet = jnp.where(state.bullet, cell_of(state.bullet_pos, width), -1)
    turned = 1 << (state.facing + UP)
    for j in range(game.tanks):
        ally = j < game.agents
        label = (1 << ALLY) | ((j + 1) << 16) if ally else 1 << ENEMY
        shell = 1 << (ALLY_BULLET if ally else ENEMY_BULLET)
        bits = bits | jnp.where(where == tank[j][None], label | turned[j][None], 0)
        bits = bits | jnp.where(where == bullet[j][None], shell, 0)
    return bits


def windows(game: Settings, state: State) -> Array:
    """The agents' windows as bits, int32[A, (2r+1)^2, ...], zero for the dead."""
    bits = cells(game, state)
    alive = state.alive[: game.agents]
    shape = (game.agents, (2 * game.radius + 1) ** 2, *alive.shape[1:])
    return where_any(
        alive,
        lambda bits: _windows(game, state, bits),
        bits,
        jnp.zeros(shape, jnp.int32),
    )


def _windows(game: Settings, state: State, bits: Array) -> Array:
    height, width = state.terrain.shape[:2]
    side = 2 * game.radius + 1
    offsets = np.stack(np.divmod(np.arange(side * side), side)) - game.radius
    down, right = (tall(x[None], state.facing) for x in offsets)
    row, col = (
        state.pos[: game.agents, 0][:, None],
        state.pos[: game.agents, 1][:, None],
    )
    r, c = row + down, col + right
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    where = jnp.where(inside, r * width + c, 0)
    batch = where.shape[2:]
    found = at(bits, where.reshape(-1, *batch)).reshape(where.shape)
    found = jnp.where(inside, found & 0xFFFF, 1)
    found = found | jnp.where((down == 0) & (right == 0), 1 << NUMBER, 0)
    unseen = ~sees(game, state)
    for j in range(game.slots):
        enemy = state.pos[game.agents + j]
        here = (r == enemy[0][None, None]) & (c == enemy[1][None, None])
        hide = unseen[:, j] & state.alive[game.agents + j][None]
        found = jnp.where(here & hide[:, None], found & ~(FACING | 1 << ENEMY), found)
    return jnp.where(state.alive[: game.agents][:, None], found, 0)


def sees(game: Settings, state: State) -> Array:
    """bool[A, E, ...]: bush and (if it counts) line of sight leave the enemy visible.

    Whether it is alive and within the window is not asked.
    """
    row, col = state.pos[:, 0], state.pos[:, 1]
    ours, theirs = slice(0, game.agents), slice(game.agents, None)
    down = row[theirs][None] - row[ours][:, None]
    right = col[theirs][None] - col[ours][:, None]
    seen = ~covered(game, state)[theirs][None] | (abs(down) + abs(right) <= 1)
    if not game.line_of_sight:
        return seen
    # Cells that a straight line between the two crosses, at steps of its longer side.
    ground = flat(state.terrain)
    width = state.terrain.shape[1]
    far = jnp.maximum(abs(down), abs(right))
    for ahead in range(1, game.radius):
        r = row[ours][:, None] + _share(down * ahead, far)
        c = col[ours][:, None] + _share(right * ahead, far)
        between = (ahead < far) & (far <= game.radius)
        where = jnp.where(between, r * width + c, 0)
        code = at(ground, where.reshape(-1, *where.shape[2:])).reshape(where.shape)
        seen = seen & ~(between & ((code == BRICK) | (code == STEEL)))
    return seen


def _share(x: Array, far: Array) -> Array:
    """x / far to the nearest whole number, halves away from zero."""
    far = jnp.maximum(far, 1)
    return jnp.sign(x) * ((2 * abs(x) + far) // (2 * far))


def expand(bits: Array) -> Array:
    """float32[..., 16] from the bits of int32[...]."""
    shifts = jnp.arange(16).reshape((1,) * bits.ndim + (16,))
    return ((bits[..., None] >> shifts) & 1).astype(jnp.float32)


def grid(game: Settings, bits: Array) -> Array:
    """float32[H, W, 16] of one game from the bits of `cells`."""
    height, width = game.map.terrain.shape
    full = expand(bits)
    number = (bits >> 16).astype(jnp.float32) / game.agents
    full = jnp.where((jnp.arange(16) == NUMBER)[None], number[:, None], full)
    return full.reshape(height, width, len(CHANNELS))


def observation(game: Settings, state: State, bits: Array) -> Observation:
    """What the agents of one game see, from the bits of `windows`."""
    side = 2 * game.radius + 1
    window = expand(bits).reshape(game.agents, side, side, len(CHANNELS))
    return Observation(window, vectors(game, state))


def _progress(game: Settings, state: State) -> Array:
    """float32[2]: enemies still to beat, of all; time left."""
    beaten = state.kills / game.enemies
    return jnp.stack([1 - beaten, 1 - state.step / game.limit])


def vectors(game: Settings, state: State) -> Array:
    """float32[A, V] of one game.

    Own row and column in [0, 1], facing (4), hp, reload, stun, lives; per base: alive,
    offset in maps (2); enemies left, time left; own number (A), last action (6).
    """
    num = game.agents
    size = np.array(game.map.terrain.shape, np.float32)
    own = state.pos[:num] / (size - 1)[None]
    facing = state.facing[:num, None] == jnp.arange(4)[None]
    counters = _counters(game, state)[:num]
    lives = state.lives[:, None] / game.lives
    parts = [own, facing, counters, lives]
    for index, base in enumerate(game.map.bases):
        parts.append(jnp.broadcast_to(state.base_alive[index], (num, 1)))
        parts.append((base[None] - state.pos[:num]) / size[None])
    parts.append(jnp.broadcast_to(_progress(game, state)[None], (num, 2)))
    parts.append(jnp.eye(num))
    parts.append(state.last_action[:, None] == jnp.arange(6)[None])
    full = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
    return full * state.alive[:num, None]


def _counters(game: Settings, state: State) -> Array:
    """float32[M, 3] of one game: hp, reload and stun as shares of the most."""
    most = np.where(np.arange(game.tanks) < game.agents, game.agent_hp, HP[ARMOR])
    parts = (state.hp / most, state.reload / game.reload, state.stun / game.stun)
    return jnp.stack(parts, 1).astype(jnp.float32)


def state_vector(game: Settings, state: State) -> Array:
    """float32[bases + 2 + 3 M] of one game: what the grid does not show.

    Bases alive, enemies left, time left, and hp, reload and stun of every tank.
    """
    counters = _counters(game, state) * state.alive[:, None]
    bases = state.base_alive[: len(game.map.bases)].astype(jnp.float32)
    return jnp.concatenate([bases, _progress(game, state), counters.ravel()])


def entities(game: Settings, state: State) -> Array:
    """float32[M, 14] of one game, tanks as rows.

    Alive, ally, row, column (in [0, 1]), facing (4), hp, reload, stun; bullet in
    flight, its row and column. Dead tanks keep but their bullet.
    """
    size = np.array(game.map.terrain.shape, np.float32)[None] - 1
    alive = state.alive[:, None].astype(jnp.float32)
    bullet = state.bullet[:, None].astype(jnp.float32)
    facing = (state.facing[:, None] == jnp.arange(4)[None]).astype(jnp.float32)
    ally = (np.arange(game.tanks) < game.agents).astype(np.float32)[:, None]
    tank = [ally, state.pos / size, facing, _counters(game, state)]
    tank = jnp.concatenate(tank, axis=1) * alive
    shell = state.bullet_pos / size * bullet
    return jnp.concatenate([alive, tank, bullet, shell], axis=1)


def seen_entities(game: Settings, state: State) -> Array:
    """float32[A, M, 14] of one game: what each agent sees of `entities`, else zero.

    Allies and enemies in its window and sight, bullets in its window.
    """
    full = entities(game, state)
    num = game.agents

    def near(pos):
        away = abs(pos[None] - state.pos[:num, None])
        return (away <= game.radius).all(-1)

    sight = jnp.concatenate([jnp.ones((num, num), bool), sees(game, state)], axis=1)
    sight = (near(state.pos) & sight).astype(jnp.float32)[..., None]
    shells = near(state.bullet_pos).astype(jnp.float32)[..., None]
    found = jnp.concatenate(
        [full[None, :, : ENTITY - 3] * sight, full[None, :, ENTITY - 3 :] * shells], -1
    )
    return found * state.alive[:num, None, None]


def canvas(game: Settings, seen: Observation) -> tuple[Array, Array]:
    """Each agent's window at its place on the grid, and which values are known.

    Of one game, from what agents see alone -> grid float32[A, H, W, 16], zero where
    nothing is known, and known bool[A, H, W, 16]. A cell of the window is known
    in all shared channels but one case: in bush two tiles or further away, enemy and
    facing are unknown unless a tank is seen there, since one may be hidden. With
    `line_of_sight` that holds for every such cell, a conservative answer.
    """
    height, width = game.map.terrain.shape
    radius, window = game.radius, seen.window
    size = np.array([height, width], np.float32)
    place = jnp.round(seen.vector[:, :2] * (size - 1)[None]).astype(jnp.int32)
    alive = window[:, radius, radius, NUMBER] > 0
    down = jnp.arange(height)[None] - place[:, :1]
    right = jnp.arange(width)[None] - place[:, 1:]
    rows, cols = (jnp.clip(x + radius, 0, 2 * radius) for x in (down, right))
    agent = jnp.arange(game.agents)[:, None, None]
    pasted = window[agent, rows[:, :, None], cols[:, None, :]]
    inside = (abs(down) <= radius)[:, :, None] & (abs(right) <= radius)[:, None, :]
    inside = inside & alive[:, None, None]
    distance = abs(down)[:, :, None] + abs(right)[:, None, :]
    tank = (pasted[..., ALLY] + pasted[..., ENEMY]) > 0
    bush = pasted[..., CHANNELS.index("bush")] > 0
    doubtful = (bush | game.line_of_sight) & (distance > 1) & ~tank
    channel = np.arange(len(CHANNELS))
    tanks = (channel == ENEMY) | ((channel >= UP) & (channel < UP + 4))
    known = inside[..., None] & (channel != NUMBER)[None, None, None]
    known = known & ~(doubtful[..., None] & tanks[None, None, None])
    return jnp.where(known, pasted, 0.0), known
