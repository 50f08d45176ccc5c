"""Games of the package jaxmarl (>= 0.2): SMAX, and MPE's simple_spread.

JaxMARL, Rutherford et al. 2024, arXiv 2311.10090; the package is an extra, `pip install
'jaxrec[marl]'`, and imported here alone. What differs from its own baselines: the limit
of steps is no end (the package does not tell it apart); agents' numbers are one-hot
behind their observations; SMAX's state is scaled to [0, 1] without the flags of teams
and types behind the units' features (a unit's own six bits of type stay, constant where
a scenario has one type).
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.envs.meeting import Outcome
from jaxrec.types import Array, UserError

SMAX_SCALE = 10.0  # of rewards, as the package's baselines: a won game returns 20
FIELD = 32.0  # side of SMAX's map
UNIT = 10  # features of a unit in SMAX's state: health, place, cooldown, six types
SPREAD = "MPE_simple_spread_v3"


def make(kind: str, name: str, settings: Mapping[str, Any]) -> Any:
    """A `teams.Team`. Raises UserError where the package or the game is missing."""
    from jaxrec.envs.teams import Team  # which imports this module only when asked

    try:
        import jaxmarl
        from jaxmarl.environments.smax import map_name_to_scenario
    except ImportError as error:
        raise UserError(
            f"data.source={kind!r} needs the package jaxmarl ({error}): "
            "pip install 'jaxrec[marl]'"
        ) from error
    settings = dict(settings)
    if kind == "mpe":
        if name not in ("simple_spread", "simple_spread_v3"):
            raise UserError(f"mpe has no team game {name!r}: use simple_spread")
        env = _made(lambda: jaxmarl.make(SPREAD, **settings), kind, settings)
        facts = _spread(env)
    else:
        try:
            scenario = map_name_to_scenario(name)
        except (KeyError, ValueError) as error:
            known = ("3m", "8m", "2s3z", "3s5z", "5m_vs_6m", "10m_vs_11m", "6h_vs_8z")
            near = difflib.get_close_matches(name, known, 3, 0.2) or known
            raise UserError(
                f"smax has no scenario {name!r}: did you mean {' or '.join(near)}?"
            ) from error
        build = lambda: jaxmarl.make(  # noqa: E731
            "HeuristicEnemySMAX", scenario=scenario, **settings
        )
        env = _made(build, kind, settings)
        facts = _smax(env)
    return Team(name=f"{kind}/{name}", game=env, scripted=None, **facts)


def _made(build: Callable[[], Any], kind: str, settings: Mapping[str, Any]) -> Any:
    try:
        return build()
    except TypeError as error:
        raise UserError(f"{kind} does not take {dict(settings)}: {error}") from error


def _stepper(env: Any, outcome: Callable[..., Outcome]) -> Callable[..., Any]:
    """The package's step without its own auto-reset, then ours."""

    def step(key: Array, state: Any, actions: Array) -> tuple[Any, Outcome]:
        key_step, key_reset = jax.random.split(key)
        named = {agent: actions[i] for i, agent in enumerate(env.agents)}
        _, after, rewards, dones, _ = env.step_env(key_step, state, named)
        found = outcome(after, rewards, dones["__all__"])
        fresh = env.reset(key_reset)[1]
        after = jax.tree.map(lambda a, b: jnp.where(found.done, a, b), fresh, after)
        return after, found

    return step


def _facts(
    env: Any, step: Any, observe: Any, world: Any, legal: Any, active: Any, limit: int
) -> dict[str, Any]:
    def reset(key: Array) -> Any:
        return env.reset(key)[1]

    def random(key: Array, state: Any) -> Array:
        logits = jnp.where(legal(state), 0.0, -jnp.inf)
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)

    shapes = jax.eval_shape(reset, jax.random.key(0))
    return dict(
        reset=reset,
        step=step,
        observe=observe,
        world=world,
        legal=legal,
        active=active,
        random=random,
        num_agents=len(env.agents),
        num_actions=jax.eval_shape(legal, shapes).shape[1],
        obs_size=jax.eval_shape(observe, shapes).shape[1],
        state_size=jax.eval_shape(world, shapes).shape[0],
        limit=limit,
    )


def _limit(env: Any) -> int:
    """Steps of an episode: the package compares the count before the step with its
    maximum, and so plays one more."""
    return int(env.max_steps) + 1


def _stacked(env: Any, found: Mapping[str, Array]) -> Array:
    return jnp.stack([found[agent] for agent in env.agents])


def _smax(env: Any) -> dict[str, Any]:
    num, units = env.num_allies, env.num_allies + env.num_enemies
    slowest = float(np.max(env.unit_type_weapon_cooldowns))
    scale = np.array([1.0, 1 / FIELD, 1 / FIELD, 1 / slowest, *(1.0,) * (UNIT - 4)])

    def active(state: Any) -> Array:
        return state.state.unit_alive[:num]

    def observe(state: Any) -> Array:
        seen = _stacked(env, env.get_obs(state))
        seen = jnp.concatenate([seen, jnp.eye(num)], axis=1)
        return seen * active(state)[:, None]

    def world(state: Any) -> Array:
        features = env.get_world_state(state)[: units * UNIT].reshape(units, UNIT)
        return jnp.clip(features * jnp.asarray(scale, jnp.float32)[None], 0, 1).ravel()

    def legal(state: Any) -> Array:
        return _stacked(env, env.get_avail_actions(state)).astype(bool)

    def outcome(after: Any, rewards: Any, done: Array) -> Outcome:
        alive = after.state.unit_alive
        won = done & ~alive[num:].any()
        lost = done & ~alive[:num].any()
        return Outcome(
            reward=SMAX_SCALE * rewards[env.agents[0]].astype(jnp.float32),
            done=done,
            won=won,
            truncated=done & ~won & ~lost,
            base_alive=jnp.bool_(True),
            kills=jnp.sum(~alive[num:]).astype(jnp.int32),
        )

    step = _stepper(env, outcome)
    return _facts(env, step, observe, world, legal, active, _limit(env))


def _spread(env: Any) -> dict[str, Any]:
    """No game is won: its episodes are cut by the limit, the return tells."""
    num = env.num_agents

    def observe(state: Any) -> Array:
        return jnp.concatenate([_stacked(env, env.get_obs(state)), jnp.eye(num)], 1)

    def world(state: Any) -> Array:
        """Places within two units of the centre and speeds, scaled to [0, 1]."""
        full = jnp.concatenate([state.p_pos.ravel(), state.p_vel[:num].ravel()])
        return (jnp.clip(full, -2.0, 2.0) + 2.0) / 4.0

    def legal(state: Any) -> Array:
        size = env.action_space(env.agents[0]).n
        return jnp.ones((num, size), bool)

    def outcome(after: Any, rewards: Any, done: Array) -> Outcome:
        return Outcome(
            reward=jnp.mean(_stacked(env, rewards)).astype(jnp.float32),
            done=done,
            won=jnp.bool_(False),
            truncated=done,
            base_alive=jnp.bool_(True),
            kills=jnp.int32(0),
        )

    def active(state: Any) -> Array:
        return jnp.ones(num, bool)

    step = _stepper(env, outcome)
    return _facts(env, step, observe, world, legal, active, _limit(env))
