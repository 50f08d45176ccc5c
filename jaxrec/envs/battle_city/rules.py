"""One tick of Battle City: moves, shots, hits, deaths, entries, reward, end.

Order within a step (all rules are ours): 1 decode actions, the dead and the stunned do
nothing; 2 turn and move, then hits of bullets that a tank moved onto; 3 fire;
4 bullets advance tile by tile; 5 slides on ice; 6 deaths; 7 entries of enemies and
return of agents; 8 counters, reward, end. Where bullets and tanks meet in one sub-tick
everything is decided at once from what stood before it; a tank that was shot stands in
the way until 6.

Arrays are [things, ...] with any batch behind (see `layout`). Tanks: agents first.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrec.envs.battle_city import enemies
from jaxrec.envs.battle_city.layout import anyof, at, flat, tall, total, where_any
from jaxrec.envs.battle_city.maps import ICE
from jaxrec.envs.battle_city.physics import (
    Hits,
    advance_bullets,
    hit_tanks,
    move,
    wear_down,
)
from jaxrec.envs.battle_city.scenarios import ARMOR, HP, POWER, Settings
from jaxrec.envs.battle_city.state import (
    DOWN,
    UP,
    Outcome,
    State,
    cell_of,
    kind_hp,
    kinds,
)
from jaxrec.types import Array


def step(
    game: Settings, state: State, actions: Array, words: Array
) -> tuple[State, Outcome]:
    """One tick without auto-reset.

    `actions`: int32[A, ...], 0 nothing, 1 up, 2 down, 3 left, 4 right, 5 fire.
    `words`: uint32[random_words(game), ...].
    """
    slots = game.slots
    theirs = where_any(
        state.alive[game.agents :],
        lambda state: enemies.decide(game, state, words[: 2 * slots]),
        state,
        jnp.zeros_like(state.facing[game.agents :]),
    )
    decided = jnp.concatenate([actions.astype(jnp.int32), theirs])
    decided = jnp.where(state.alive & (state.stun == 0), decided, 0)
    turning = (decided >= 1) & (decided <= 4)
    facing = jnp.where(turning, decided - 1, state.facing)
    state = state._replace(facing=facing, last_action=decided[: game.agents])
    state, moved = move(state, turning)
    hits = Hits(
        cell=jnp.full_like(state.facing, -1),
        damage=jnp.zeros_like(state.facing),
        stunned=jnp.zeros_like(state.alive),
    )
    state, hits = hit_tanks(game, state, hits, state.bullet)
    state = fire(game, state, decided == 5)

    def fly(tick: Array, carry: tuple[State, Hits]) -> tuple[State, Hits]:
        return advance_bullets(game, *carry, carry[0].bullet_speed > tick)

    fastest = max(3, game.bullet_speed) if game.mix[POWER] else game.bullet_speed
    state, hits = lax.fori_loop(0, fastest, fly, (state, hits))
    state = wear_down(game, state, hits.cell)
    if game.ice:
        cell = cell_of(state.pos, state.terrain.shape[1])
        sliding = moved & (at(flat(state.terrain), cell) == ICE)
        state, _ = move(state, sliding)
    state, reward = deaths(game, state, hits)
    state = entries(game, state, words[2 * slots :])
    return finish(game, state, reward)


def random_words(game: Settings) -> int:
    """32-bit words of chance in a tick: two an enemy and one for an entry."""
    return 2 * game.slots + 1


def fire(game: Settings, state: State, wants: Array) -> State:
    """Shots of the tanks bool[M, ...] whose bullet is back and whose gun is loaded."""
    fires = wants & ~state.bullet & (state.reload == 0)
    speed = jnp.where(state.kind == POWER, max(3, game.bullet_speed), game.bullet_speed)
    return state._replace(
        fired=fires,
        reload=jnp.where(fires, game.reload, state.reload),
        bullet=state.bullet | fires,
        bullet_pos=jnp.where(fires[:, None], state.pos, state.bullet_pos),
        bullet_facing=jnp.where(fires, state.facing, state.bullet_facing),
        bullet_speed=jnp.where(fires, speed, state.bullet_speed),
    )


def deaths(game: Settings, state: State, hits: Hits) -> tuple[State, Array]:
    """Damage counts; reward float32[...] for it and for the agents lost."""
    taken = jnp.minimum(hits.damage, jnp.maximum(state.hp, 0))
    hp = state.hp - taken
    dies = state.alive & (hp <= 0)
    share = jnp.where(state.kind == ARMOR, 1 / HP[ARMOR], 1.0)
    ours, theirs = slice(0, game.agents), slice(game.agents, None)
    reward = total((taken * share)[theirs]) * (10 / game.enemies)
    if game.death_penalty:
        reward = reward - game.death_penalty * total(dies[ours].astype(jnp.float32))
    delay = [game.respawn_delay] * game.agents + [game.spawn_delay] * game.slots
    state = state._replace(
        hp=hp,
        alive=state.alive & ~dies,
        stun=jnp.where(hits.stunned, game.stun, state.stun),
        timer=jnp.where(dies, tall(delay, hp), state.timer),
        lives=state.lives - dies[ours].astype(jnp.int32),
        kills=state.kills + total(dies[theirs].astype(jnp.int32)),
    )
    return state, reward.astype(jnp.float32)


def entries(game: Settings, state: State, words: Array) -> State:
    """Agents with lives left return; at most one enemy enters, at a free point.

    An agent's start must have neither tank nor bullet on it; an enemy's entry besides
    no tank on the eight tiles around. `words`: uint32[1, ...].
    """
    if game.mode == "annihilate":
        return state
    if game.lives > 1:
        home = tall(game.map.agents[: game.agents], state.lives)
        free = vacant(state, home, 0)
        back = ~state.alive[: game.agents] & (state.lives > 0)
        back = back & (state.timer[: game.agents] == 0) & free
        back = jnp.concatenate([back, jnp.zeros_like(state.alive[game.agents :])])
        home = jnp.concatenate(
            [jnp.broadcast_to(home, state.pos[: game.agents].shape)]
            + [state.pos[game.agents :]]
        )
        state = place(state, back, home, UP, game.agent_hp)
    ready = ~state.alive & (state.timer == 0) & (state.pool > 0)[None]
    ready = ready & tall(np.arange(game.tanks) >= game.agents, ready)
    return where_any(ready, lambda x: enter(game, state, x, words[0]), ready, state)


def enter(game: Settings, state: State, ready: Array, word: Array) -> State:
    """The first slot that is ready, bool[M, ...], at a free entry if there is one."""
    points = tall(game.map.enemies, ready)  # [K, 2, 1...]
    num = len(points)
    # The first free point, counted from a random one.
    turn = (word & 0xFFFF).astype(jnp.int32)[None]
    order = jnp.where(
        vacant(state, points, 1), (tall(jnp.arange(num), turn) + turn) % num, num
    )
    best = order.min(0)
    chosen = (order == best[None])[:, None]
    where = jnp.where(chosen, points, 0).sum(0)[None]
    before = jnp.cumsum(ready.astype(jnp.int32), axis=0)
    enters = ready & (before == 1) & (best < num)[None]
    kind = kinds(game, word)
    state = place(state, enters, where, DOWN, kind_hp(kind)[None])
    return state._replace(
        kind=jnp.where(enters, kind[None], state.kind),
        pool=state.pool - enters.any(0).astype(jnp.int32),
    )


def vacant(state: State, points: Array, around: int) -> Array:
    """bool[K, ...]: no bullet on int32[K, 2, ...] and no tank within `around` tiles."""
    free = True
    for j in range(len(state.alive)):
        away = abs(points - state.pos[j][None])
        near = (away[:, 0] <= around) & (away[:, 1] <= around)
        shot = points == state.bullet_pos[j][None]
        free = free & ~(near & state.alive[j][None])
        free = free & ~(shot[:, 0] & shot[:, 1] & state.bullet[j][None])
    return free


def place(state: State, who: Array, pos: Array, facing: int, hp: Array | int) -> State:
    """Tanks bool[M, ...] come to life at int32[M | 1, 2, ...]."""
    return state._replace(
        alive=state.alive | who,
        pos=jnp.where(who[:, None], pos, state.pos),
        facing=jnp.where(who, facing, state.facing),
        hp=jnp.where(who, hp, state.hp),
        reload=jnp.where(who, 0, state.reload),
        stun=jnp.where(who, 0, state.stun),
        fired=state.fired & ~who,
    )


def finish(game: Settings, state: State, reward: Array) -> tuple[State, Outcome]:
    """Counters, the reward of the end and what ended the game; a loss goes first."""
    own = state.base_alive[0]
    if game.mode == "assault":
        cleared = ~state.base_alive[1]
    else:
        cleared = (state.pool == 0) & ~anyof(state.alive[game.agents :])
    remaining = anyof(state.alive[: game.agents] | (state.lives > 0))
    lost = ~own | ~remaining
    won = cleared & ~lost
    step_number = state.step + 1
    truncated = (step_number >= game.limit) & ~won & ~lost
    done = won | lost | truncated
    if game.sparse:
        reward = won.astype(jnp.float32)
    else:
        reward = reward + 10 * won - game.base_penalty * ~own
    lower = lambda counter: jnp.maximum(counter - 1, 0)  # noqa: E731
    state = state._replace(
        reload=lower(state.reload),
        stun=lower(state.stun),
        timer=lower(state.timer),
        step=step_number,
        done=done,
    )
    return state, Outcome(reward, done, won, lost, truncated, own, state.kills)
