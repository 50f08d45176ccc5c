"""Speed of the team environments: `python -m jaxrec.bench.marl [--json]`.

Environment steps per CPU-second with random legal actions, many games in one scan:
the bare game (`tick`: rules, drivers, auto-reset), the game with what the agents see,
and JaxMARL's whole step, which adds the global state. What is seen is carried through
the the scan, as a policy would need it, so nothing is optimised away. `act` plays by
the recurrent network of a host in the place of random actions, and `infer` by SIDIFF on
it, which imagines the state in K=5 passes for each agent and step, as entities or as a
vector; all untrained, at the sizes of `configs/sidiff.py`.

CPU time is of all threads of this process; the target is for one core:
`taskset -c 0 python -m jaxrec.bench.marl`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.bench import timing
from jaxrec.envs import battle_city, teams
from jaxrec.errors import UserError, fail
from jaxrec.methods import sidiff

PLAYED = dict(  # by `sidiff`, with these settings
    act=dict(inference="none"),
    infer=dict(form="entities"),
    infer_vector=dict(form="vector"),
)
FORMS = ("tick", "observe", "step", *PLAYED)


def stepper(env: battle_city.BattleCity, form: str) -> Callable[..., Any]:
    """(key, state) -> (state, what is seen, reward) after random legal actions."""

    def advance(key: jax.Array, state: Any) -> tuple[Any, Any, Any]:
        key_act, key_step = jax.random.split(key)
        actions = env.random(key_act, state)
        if form == "step":
            seen, state, rewards, _, _ = env.step(key_step, state, actions)
            return state, seen, rewards[env.agents[0]]
        state, outcome = env.tick(key_step, state, actions)
        seen = env.observe(state) if form == "observe" else ()
        return state, seen, outcome.reward

    return advance


def program(
    env: battle_city.BattleCity, form: str, envs: int, steps: int
) -> tuple[Callable[[], Any], float]:
    """A run of `steps` steps of `envs` games, and the seconds of its compilation."""
    advance = stepper(env, form)
    last = -1  # inside the scan the games are on the last axis

    def body(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        run = jax.vmap(advance, in_axes=(0, last), out_axes=(last, 0, 0))
        state, seen, reward = run(jax.random.split(key, envs), carry[0])
        return (state, seen), reward.mean()

    def roll(key: jax.Array, carry: Any) -> Any:
        return jax.lax.scan(body, carry, jax.random.split(key, steps))

    def start(key: jax.Array) -> Any:
        obs, state = jax.vmap(env.reset, out_axes=(0, last))(
            jax.random.split(key, envs)
        )
        if form == "observe":
            obs = jax.vmap(env.observe, in_axes=last)(state)
        return state, () if form == "tick" else obs

    return runner(roll, jax.jit(start)(jax.random.key(0)))


def playing(
    scenario: str, form: str, envs: int, steps: int
) -> tuple[Callable[[], Any], float]:
    """As `program`, of games that a team plays."""
    about = dict(kind="battle_city", name=scenario, settings=dict(observation="entity"))
    team = teams.make(**about)
    config = ConfigDict(sidiff.HPARAMS | dict(steps=1_000, batch_size=32))
    config.update(warmup=0.0, **PLAYED[form])
    config.value.replay = config.value.num_envs
    method = sidiff.make(FrozenConfigDict(config), dict(team=about))
    trained = jax.jit(lambda key: method.init(key, {}, {}))(jax.random.key(0))

    def roll(key: jax.Array, carry: Any) -> Any:
        def body(carry: Any, key: jax.Array) -> tuple[Any, Any]:
            memory, states, reward = carry
            key_act, key_step = jax.random.split(key)
            memory, actions = method.act(trained, carry, key_act)
            keys = jax.random.split(key_step, envs)
            states, outcome = jax.vmap(team.step)(keys, states, actions)
            return (memory, states, outcome.reward), outcome.reward.mean()

        return jax.lax.scan(body, carry, jax.random.split(key, steps))

    start = jax.jit(jax.vmap(team.reset))(jax.random.split(jax.random.key(0), envs))
    return runner(roll, (method.memory(envs), start, jnp.zeros(envs)))


def runner(roll: Callable[..., Any], carry: Any) -> tuple[Callable[[], Any], float]:
    """(a call that goes on from where the last one ended, seconds of compilation)."""
    held = [carry, 0]
    compiled, seconds = timing.compiled(jax.jit(roll).lower(jax.random.key(0), carry))

    def run() -> Any:
        held[1] += 1
        held[0], rewards = compiled(jax.random.key(held[1]), held[0])
        return held[0], rewards

    return run, seconds


def measure(args: argparse.Namespace, scenario: str) -> dict[str, Any]:
    """Steps per CPU-second of each form."""
    env = battle_city.make(dict(scenario=scenario))
    rivals, found = {}, {}
    for form in args.forms.split(","):
        sizes = args.envs, args.steps
        if form in PLAYED:
            run, seconds = playing(scenario, form, *sizes)
        else:
            run, seconds = program(env, form, *sizes)
        rivals[form] = (run, args.envs * args.steps)
        found[form] = dict(compile_seconds=round(seconds, 1))
    for form, timed in timing.in_turn(rivals, args.rounds).items():
        found[form] |= dict(
            steps_per_cpu_second=round(1e3 / timed.ms()),
            steps_per_second=round(1e3 / timed.wall_ms),
            slowest=round(1e3 / timed.cpu_ms_max),
            fastest=round(1e3 / timed.cpu_ms_min),
        )
    return found | dict(agents=env.num_agents, tanks=env.game.tanks)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Raises UserError for what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenarios", default="2t_vs_4e_open7")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100, help="of one measured call")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.forms.split(",")) - set(FORMS)):
        raise UserError(f"form {unknown[0]!r} is unknown: use {', '.join(FORMS)}")
    for name in ("envs", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: at least 1")
    for scenario in args.scenarios.split(","):
        battle_city.make(dict(scenario=scenario))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    try:
        args = parse(argv)
    except UserError as error:
        return fail(error)
    found: dict[str, Any] = dict(machine=timing.machine(), envs=args.envs)
    if not args.json:
        print(f"{found['machine']}, {args.envs} games, {args.rounds} rounds")
        print("scenario  form  steps/CPU-s (slowest-fastest)  steps/s  compile s")
    for scenario in args.scenarios.split(","):
        row = found[scenario] = measure(args, scenario)
        for form in args.forms.split(",") if not args.json else ():
            x = row[form]
            print(
                f"{scenario}  {form}  {x['steps_per_cpu_second']:,} "
                f"({x['slowest']:,}-{x['fastest']:,})  {x['steps_per_second']:,}  "
                f"{x['compile_seconds']}",
                flush=True,
            )
    if args.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
