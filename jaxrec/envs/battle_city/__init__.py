"""Battle City for teams, MABC-v0: a multi-agent environment in pure JAX.

A team of tanks keeps its base against waves of scripted enemies (`defend`), fights a
team of equals (`annihilate`) or takes a base (`assault`), each agent with a window of
the map. SIDIFF's paper (arXiv 2408.09501) describes an environment of this name only
as novel and flexible and no code of it is public: every rule and number here is ours,
after the NES game; `RULES.md` beside this file states them with pictures.

The interface is JaxMARL's: pure functions of a key, dicts by agent, auto-reset.

    env = battle_city.make({"scenario": "2t_vs_4e_open7"})
    observations, state = env.reset(key)
    observations, state, rewards, dones, info = env.step(key, state, actions)

All functions take one game; `jax.vmap` them. Their vmap puts the games on the last
axis inside (see `layout`); a loop that keeps its states that way, with
`jax.vmap(..., in_axes=(0, -1, 0), out_axes=...)`, saves the transposition.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.envs.battle_city import enemies, observe, rules
from jaxrec.envs.battle_city.layout import batch_last
from jaxrec.envs.battle_city.observe import Observation
from jaxrec.envs.battle_city.scenarios import Settings, settings
from jaxrec.envs.battle_city.state import Outcome, State, reset_words, select, start
from jaxrec.types import Array, UserError

NUM_ACTIONS = 6  # nothing, up, down, left, right, fire


class BattleCity(NamedTuple):
    """One game as pure functions; A agents, `Actions` a dict by agent or int32[A].

    In dicts by agent: `reset(key)` -> (obs, state); `step(key, state, actions)` and
    `step_env`, the same without auto-reset, -> (obs, state, rewards, dones, info).
    `obs` is float32[obs_size] an agent, flat or by entity as the settings say, and
    "world_state" float32[state_size]; `dones` has "__all__", an agent is done when it
    has no life left; `info` holds won, lost, truncated, base_alive and kills.
    `get_obs(state)`, `get_avail_actions(state)` -> bool[6] an agent.

    As arrays: `get_state(state)` -> float32[state_size], the grid first.
    `tick(key, state, actions)` -> (state, Outcome), with auto-reset and no observation.
    `observe(state)` -> Observation. `grid(state)` -> float32[H, W, 16].
    `entities(state)` -> float32[M, 14]; `seen_entities(state)` -> float32[A, M, 14].
    `canvas(observation)` -> each agent's window on the grid, and what is known.
    `legal(state)` -> bool[A, 6].
    Baselines: `random(key, state)`, `scripted(key, state)` -> int32[A].
    """

    reset: Callable[..., Any]
    step: Callable[..., Any]
    step_env: Callable[..., Any]
    get_obs: Callable[..., Any]
    get_avail_actions: Callable[..., Any]
    get_state: Callable[..., Array]
    tick: Callable[..., tuple[State, Outcome]]
    observe: Callable[..., Observation]
    grid: Callable[..., Array]
    entities: Callable[..., Array]
    seen_entities: Callable[..., Array]
    canvas: Callable[..., tuple[Array, Array]]
    legal: Callable[..., Array]
    random: Callable[..., Array]
    scripted: Callable[..., Array]
    game: Settings
    agents: tuple[str, ...]
    num_agents: int
    num_actions: int
    obs_size: int
    state_size: int


def make(config: Mapping[str, Any] | None = None) -> BattleCity:
    """A game by `scenario` and other fields of `scenarios.HPARAMS`.

    Raises UserError for unknown names, impossible numbers, maps that break a rule.
    """
    game = settings(config)
    names = tuple(f"ally_{i}" for i in range(game.agents))
    starts = batch_last(partial(start, game))
    ticks = batch_last(partial(rules.step, game))
    choose = batch_last(select)
    board = batch_last(partial(observe.cells, game))
    views = batch_last(partial(observe.windows, game))
    drive = batch_last(partial(enemies.decide, game, allies=True))
    chance, chance_start = rules.random_words(game), reset_words(game)

    def words(key: Array, num: int) -> Array:
        return jax.random.bits(key, (num,), jnp.uint32)

    def fresh(key: Array) -> State:
        # Without chance in the start the key is not used at all.
        drawn = words(key, chance_start) if chance_start else jnp.zeros(1, jnp.uint32)
        return starts(drawn)

    def array(actions: Any) -> Array:
        if isinstance(actions, Mapping):
            if set(actions) != set(names):
                raise UserError(
                    f"actions for {', '.join(map(str, actions))}: this game has the "
                    f"agents {', '.join(names)}"
                )
            actions = jnp.stack([jnp.asarray(actions[name]) for name in names])
        actions = jnp.asarray(actions)
        if actions.shape != (game.agents,):
            raise UserError(
                f"actions of shape {actions.shape}: this game has {game.agents} agents"
            )
        return actions.astype(jnp.int32)

    def advance(key: Array, state: State, actions: Any) -> tuple[State, Outcome]:
        return ticks(state, array(actions), words(key, chance))

    def tick(key: Array, state: State, actions: Any) -> tuple[State, Outcome]:
        if chance_start:
            key, key_start = jax.random.split(key)
            first = fresh(key_start)
        else:
            first = start(game, jnp.zeros(1, jnp.uint32))
        state, outcome = advance(key, state, actions)
        return choose(outcome.done, first, state), outcome

    def view(state: State) -> Observation:
        return observe.observation(game, state, views(state))

    def grid(state: State) -> Array:
        return observe.grid(game, board(state))

    def get_state(state: State) -> Array:
        return jnp.concatenate([grid(state).ravel(), observe.state_vector(game, state)])

    def get_obs(state: State) -> dict[str, Array]:
        if game.observation == "entity":
            seen = observe.seen_entities(game, state).reshape(game.agents, -1)
            rows = jnp.concatenate([seen, observe.vectors(game, state)], axis=1)
        else:
            seen = view(state)
            window = seen.window.reshape(game.agents, -1)
            rows = jnp.concatenate([window, seen.vector], axis=1)
        found = {name: rows[i] for i, name in enumerate(names)}
        return found | {"world_state": get_state(state)}

    def legal(state: State) -> Array:
        alive = state.alive[: game.agents]
        active = alive & (state.stun[: game.agents] == 0)
        loaded = (state.reload == 0) & ~state.bullet
        fire = active & loaded[: game.agents]
        moves = jnp.broadcast_to(active[:, None], (game.agents, 4))
        return jnp.concatenate([jnp.ones_like(moves[:, :1]), moves, fire[:, None]], 1)

    def reset(key: Array) -> tuple[dict[str, Array], State]:
        state = fresh(key)
        return get_obs(state), state

    def answer(state: State, outcome: Outcome, out: Array) -> tuple:
        rewards = {name: outcome.reward for name in names}
        dones = {name: outcome.done | out[i] for i, name in enumerate(names)}
        dones["__all__"] = outcome.done
        info = outcome._asdict()
        del info["reward"], info["done"]
        return get_obs(state), state, rewards, dones, info

    def step_env(key: Array, state: State, actions: Any) -> tuple:
        state, outcome = advance(key, state, actions)
        return answer(state, outcome, state.lives == 0)

    def step(key: Array, state: State, actions: Any) -> tuple:
        state, outcome = tick(key, state, actions)
        return answer(state, outcome, state.lives == 0)

    def random(key: Array, state: State) -> Array:
        logits = jnp.where(legal(state), 0.0, -jnp.inf)
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)

    def scripted(key: Array, state: State) -> Array:
        return drive(state, words(key, 2 * game.agents))

    example = jax.eval_shape(lambda key: reset(key)[0], jax.random.key(0))
    return BattleCity(
        reset=reset,
        step=step,
        step_env=step_env,
        get_obs=get_obs,
        get_avail_actions=lambda state: dict(zip(names, legal(state))),
        get_state=get_state,
        tick=tick,
        observe=view,
        grid=grid,
        entities=partial(observe.entities, game),
        seen_entities=partial(observe.seen_entities, game),
        canvas=partial(observe.canvas, game),
        legal=legal,
        random=random,
        scripted=scripted,
        game=game,
        agents=names,
        num_agents=game.agents,
        num_actions=NUM_ACTIONS,
        obs_size=example[names[0]].shape[0],
        state_size=example["world_state"].shape[0],
    )
