"""Watch Battle City: `python -m jaxrec.envs.battle_city --out=game.gif`.

Plays one episode of a scenario with a baseline and writes it as GIF, or as the PNG of
its last step if the name ends so: the whole field and, beside it, what one agent sees.
`--scenarios` lists the scenarios with what the baselines reach in them.
"""

import argparse
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.envs import battle_city
from jaxrec.envs.battle_city import render
from jaxrec.envs.battle_city.scenarios import SCENARIOS
from jaxrec.errors import UserError, fail


def episode(env: battle_city.BattleCity, policy: str, seed: int) -> tuple[list, Any]:
    """States from the start to the end, and the last Outcome."""
    act = getattr(env, policy)

    @jax.jit
    def advance(key: jax.Array, state: Any) -> tuple[Any, Any]:
        key_act, key_step = jax.random.split(key)
        actions = dict(zip(env.agents, act(key_act, state)))
        _, state, rewards, _, info = env.step_env(key_step, state, actions)
        return state, info | dict(reward=rewards[env.agents[0]])

    key, key_start = jax.random.split(jax.random.key(seed))
    state = jax.jit(env.reset)(key_start)[1]
    states, info = [state], None
    for number in range(env.game.limit):
        state, info = advance(jax.random.fold_in(key, number), state)
        states.append(state)
        if bool(state.done):
            break
    return states, info


def score(env: battle_city.BattleCity, policy: str, games: int) -> dict[str, float]:
    """Means over the first episodes of `games` games: won, kills, return, steps."""
    act = getattr(env, policy)

    split = jax.random.split

    def advance(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        state, over = carry
        key_act, key_step = split(key)
        actions = jax.vmap(act)(split(key_act, games), state)
        state, outcome = jax.vmap(env.tick)(split(key_step, games), state, actions)
        seen = jax.tree.map(lambda x: jnp.where(over, 0, x).astype(float), outcome)
        return (state, over | outcome.done), (seen, ~over)

    @jax.jit
    def play(key: jax.Array) -> dict[str, jax.Array]:
        key_start, key_play = split(key)
        state = jax.vmap(env.reset)(split(key_start, games))[1]
        carry = state, jnp.zeros(games, bool)
        keys = split(key_play, env.game.limit)
        _, (seen, lived) = jax.lax.scan(advance, carry, keys)
        return dict(
            won=seen.won.sum(0),
            kills=seen.kills.max(0),
            returned=seen.reward.sum(0),
            steps=lived.sum(0),
        )

    found = play(jax.random.key(1))
    return {name: float(x.mean()) for name, x in found.items()}


def table(games: int) -> None:
    """What the baselines reach in every scenario."""
    print("scenario  policy  won  kills  return  steps")
    for name in SCENARIOS:
        env = battle_city.make(dict(scenario=name))
        for policy in ("random", "scripted"):
            x = score(env, policy, games)
            print(
                f"{name}  {policy}  {x['won']:.3f}  {x['kills']:.2f}  "
                f"{x['returned']:.2f}  {x['steps']:.0f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", default="2t_vs_4e_open7")
    parser.add_argument("--map", help="a built-in map or a file of ASCII")
    parser.add_argument("--policy", default="scripted", choices=("scripted", "random"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--agent", type=int, default=0, help="whose view is shown")
    parser.add_argument("--out", default="battle_city.gif")
    parser.add_argument("--scenarios", action="store_true", help="a table of all")
    parser.add_argument("--games", type=int, default=256, help="of a row of the table")
    args = parser.parse_args()
    if args.scenarios:
        return table(args.games)
    config = dict(scenario=args.scenario) | ({"map": args.map} if args.map else {})
    env = battle_city.make(config)
    if not 0 <= args.agent < env.num_agents:
        raise UserError(
            f"--agent={args.agent}: this game has agents 0 to {env.num_agents - 1}"
        )
    states, info = episode(env, args.policy, args.seed)
    draw = partial(render.frame, env.game)
    frames = [
        render.side_by_side([draw(state), draw(state, agent=args.agent)])
        for state in (states[-1:] if args.out.endswith(".png") else states)
    ]
    if args.out.endswith(".png"):
        render.save_png(args.out, frames[-1])
    else:
        render.save_gif(args.out, frames)
    facts = {name: leaf.item() for name, leaf in info.items()}
    print(f"{args.out}: {len(states) - 1} steps, {facts}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(fail(error))
