"""Speed of the offline methods: `python -m jaxrec.bench.offline_rl [--json]`.

Per method, at the same sizes and in the same process:

- the loop as users run it: many updates a call, data and sampling on the device;
- the floor: the matrix products of one update, taken from its jaxpr (forward and
  backward), run alone;
- the plain loop: batches drawn on the host, one dispatch an update;
- with --num_seeds=S: S seeds in one program against S times one seed.

CPU-ms are of all threads of this process. For steady numbers on a machine shared with
others pin the process to one core: `taskset -c 1 python -m jaxrec.bench.offline_rl`.

Measured on one core of an AMD EPYC with AVX-512, jax 0.10.2: TD3+BC 1.95 CPU-ms an
update (products 1.87), IQL 2.73 (2.63), CQL 47.7 (29.5). Eight seeds in one program
cost nine of one there, as one seed already fills the core; on an H200 1.9 (TD3+BC).

Alternatives, each against the form taken: critics as separate modules +0 %; one input
shared by the stacked critics +3 %; last kernels stored [in, out] +2 %; scan unrolled
twice +4 % and more to compile; CQL with all 30 actions in one product +12 %; gradients
of kernels from an input first transposed in memory -10 % for CQL, +7 % for the others.
Adam and targets take 29 us for 65,536 parameters, as a matrix or as one flat vector.
"""

import argparse
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import program, seeds, sharding
from jaxrec.bench import timing
from jaxrec.types import Dataset, Method


def dataset(num_rows: int, od: int, ad: int) -> Dataset:
    """Transitions of standard normal noise."""
    draw = np.random.default_rng(0)
    arrays = dict(
        observation=draw.normal(size=(num_rows, od)),
        action=draw.uniform(-1, 1, size=(num_rows, ad)),
        reward=draw.normal(size=num_rows),
        next_observation=draw.normal(size=(num_rows, od)),
        terminal=draw.uniform(size=num_rows) < 0.01,
        valid_next=np.ones(num_rows),
    )
    info = dict(
        observation_size=od,
        action_size=ad,
        observation_mean=np.zeros(od, np.float32),
        observation_std=np.ones(od, np.float32),
        return_min=0.0,
        return_max=1000.0,
    )
    return Dataset({k: x.astype(np.float32) for k, x in arrays.items()}, {}, info)


def stage(name: str, args: Any, num_seeds: int, updates: int) -> program.Stage:
    """The method `name` with bench sizes, as the loop takes it."""
    module = importlib.import_module(f"jaxrec.methods.{name}")
    config = ConfigDict(module.HPARAMS)
    widths = tuple(int(width) for width in args.widths.split(","))
    config.update(widths=widths, steps=1_000_000, batch_size=args.batch_size)
    if name == "cql" and jax.default_backend() != "cpu":
        config.actions_at_once = 3 * config.num_actions
    cadence = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), updates)
    config.update(steps_per_call=updates, **cadence)
    config.steps = 1_000 * updates
    data = dataset(args.rows, args.observation_size, args.action_size)
    method = module.make(FrozenConfigDict(config), data.info)
    mesh = sharding.make_mesh(1, 1)
    return program.Stage("bench", config, method, data, 0, num_seeds, mesh)


class Loop:
    """The compiled many-update program of a stage, and the state it moves on."""

    def __init__(self, part: program.Stage) -> None:
        self.data = next(program.feed(part, 0, False))
        rows = part.config.batch_size
        batch = {k: jnp.asarray(x[:rows]) for k, x in part.dataset.train.items()}
        init = jax.jit(seeds.vmap_init(part.method.init, part.num_seeds))
        self.state = init(program.streams(part)[0], batch, {})
        step = jax.jit(program.multi_step(part, False), donate_argnums=0)
        lowered = step.lower(self.state, self.data)
        self.program, self.compile_seconds = timing.compiled(lowered)

    def __call__(self) -> Any:
        self.state, metrics = self.program(self.state, self.data)
        return self.state, metrics


def plain_loop(part: program.Stage, updates: int) -> Callable[[], Any]:
    """One dispatch an update, rows drawn and gathered by NumPy."""
    arrays, draw = dict(part.dataset.train), np.random.default_rng(1)
    rows, num_rows = part.config.batch_size, len(arrays["reward"])
    step = jax.jit(part.method.train_step, donate_argnums=0)
    batch = {k: x[:rows] for k, x in arrays.items()}
    held = [jax.jit(part.method.init)(jax.random.key(0), batch, {})]
    key = jax.random.key(1)

    def run() -> Any:
        state = held.pop()
        for number in range(updates):
            index = draw.integers(num_rows, size=rows)
            batch = {k: x[index] for k, x in arrays.items()}
            state, metrics = step(state, batch, jax.random.fold_in(key, number))
        held.append(state)
        return state, metrics

    return run


def products(jaxpr: Any, share: float, weight: float = 1.0) -> Iterator[tuple]:
    """(dot_general parameters and operand shapes, times an update) of a jaxpr.

    A branch not taken at every update (the delayed actor) counts by `share`.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            shapes = tuple(v.aval.shape for v in eqn.invars)
            yield (shapes, eqn.params["dimension_numbers"]), weight
        inner = (
            weight
            * eqn.params.get("length", 1)
            * (share if eqn.primitive.name == "cond" else 1.0)
        )
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            closed = getattr(value, "jaxpr", value)
            if hasattr(closed, "eqns"):
                yield from products(closed, share, inner)


def floor(part: program.Stage, repeats: int) -> tuple[Callable[[], Any], float]:
    """The update's matrix products alone, `repeats` times over, and their GFLOP."""
    method: Method = part.method
    rows = part.config.batch_size
    batch = {k: jnp.asarray(x[:rows]) for k, x in part.dataset.train.items()}
    key = jax.random.key(0)
    state = jax.eval_shape(method.init, key, batch, {})
    jaxpr = jax.make_jaxpr(method.train_step)(state, batch, key)
    count: Counter = Counter()
    for product, times in products(jaxpr.jaxpr, 1 / part.config.get("delay", 1)):
        count[product] += times
    calls, gflop = [], 0.0
    for ((left, right), numbers), times in count.items():
        (contract, _), (batch_dims, _) = numbers
        kept = [
            n for i, n in enumerate(right) if i not in (*numbers[0][1], *numbers[1][1])
        ]
        gflop += times * 2e-9 * np.prod(left) * np.prod(kept)
        a = jax.random.normal(jax.random.key(1), left)
        b = jax.random.normal(jax.random.key(2), right)
        calls.append((round(times * repeats), numbers, a, b))

    @jax.jit
    def run(operands: Any) -> Any:
        total = jnp.zeros(())
        for (times, numbers, _, _), (a, b) in zip(calls, operands):

            def body(_: Any, total: Any, a=a, b=b, numbers=numbers) -> Any:
                # Barriers: the product is neither hoisted from the loop nor cut down
                # to the number that is used.
                a, b, total = jax.lax.optimization_barrier((a, b, total))
                out = jax.lax.dot_general(a, b, numbers)
                return total + jax.lax.optimization_barrier(out).ravel()[0]

            total = jax.lax.fori_loop(0, times, body, total)
        return total

    operands = [(a, b) for _, _, a, b in calls]
    return lambda: run(operands), gflop


def measure(name: str, args: Any) -> dict[str, Any]:
    """All numbers of one method."""
    updates = args.updates or (10 if name in ("cql", "mcq") else 200)
    part = stage(name, args, 1, updates)
    loop, plain = Loop(part), plain_loop(part, updates)
    bare, gflop = floor(part, updates)
    rivals = dict(loop=(loop, updates), floor=(bare, updates), plain=(plain, updates))
    if args.num_seeds > 1:
        many = Loop(stage(name, args, args.num_seeds, updates))
        rivals["seeds"] = (many, updates)
    found = timing.in_turn(rivals, args.rounds)
    ms = {rival: times.ms() for rival, times in found.items()}
    result = dict(
        method=name,
        cpu_ms=found["loop"].cpu_ms,
        cpu_ms_range=[found["loop"].cpu_ms_min, found["loop"].cpu_ms_max],
        wall_ms=found["loop"].wall_ms,
        updates_per_second=1e3 / found["loop"].wall_ms,
        gflop=gflop,
        floor_ms=ms["floor"],
        times_floor=ms["loop"] / ms["floor"],
        plain_ms=ms["plain"],
        faster_than_plain=ms["plain"] / ms["loop"],
        compile_seconds=loop.compile_seconds,
        **timing.memory(loop.program),
    )
    if args.num_seeds > 1:
        result |= dict(
            num_seeds=args.num_seeds,
            seeds_ms=ms["seeds"],
            seeds_cost=ms["seeds"] / ms["loop"],  # num_seeds = no gain
            seeds_compile_seconds=many.compile_seconds,
        )
    return result


def show(result: dict[str, Any]) -> str:
    line = (
        f"{result['method']:8s} {result['cpu_ms']:8.2f} {result['wall_ms']:8.2f} "
        f"{result['updates_per_second']:9.0f} {result['floor_ms']:8.2f} "
        f"{result['times_floor']:7.2f} {result['plain_ms']:8.2f} "
        f"{result['faster_than_plain']:7.2f} {result['compile_seconds']:9.1f} "
        f"{result.get('temporary_bytes', 0) / 2**20:8.1f}"
    )
    if "seeds_cost" in result:
        line += f"   {result['num_seeds']} seeds cost {result['seeds_cost']:.2f} of one"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="td3bc,iql,cql")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--num_seeds", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--widths", default="256,256", help="of all actors and critics")
    parser.add_argument("--observation_size", type=int, default=17)
    parser.add_argument("--action_size", type=int, default=6)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--updates", type=int, default=0, help="a call; 0 = by method")
    parser.add_argument("--rounds", type=int, default=9, help="medians are over these")
    args = parser.parse_args()
    results = []
    if not args.json:
        print(" ".join(f"{k}={v}" for k, v in timing.machine().items()))
        print(
            "method     cpu_ms  wall_ms updates/s    floor xfloor    plain  faster "
            "compile_s  temp_MiB"
        )
    for name in args.methods.split(","):
        results.append(measure(name, args))
        if not args.json:
            print(show(results[-1]), flush=True)
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        print(json.dumps(dict(machine=timing.machine(), **settings, results=results)))


if __name__ == "__main__":
    main()
