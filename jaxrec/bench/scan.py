"""Cost of the scans alone: `python -m jaxrec.bench.scan [--json] [--impls=...]`.

One scan of random sequences, forward alone and forward with the gradients of u, dt, A,
B and C (not of h0): CPU-ms of all threads of this process, the median of rounds in
which the implementations take turns, each after an untimed call of its own; scratch
memory of the compiled program, a fact that no load changes; seconds of compilation.
"ssd_" are Mamba-2's, another model than the others, of as many numbers: D channels in
heads of 64.

Ours to hold (`GATES`, with the defaults on a CPU): the adjoint by hand takes at most
0.6 of the time of autodiff, the matrix products at most 0.6 of that. Threads that wait
for a core count as busy: on a shared machine pin the process to one core,
`taskset -c 1 python -m jaxrec.bench.scan`.
"""

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.bench import sequence, timing
from jaxrec.ops import selective_scan, ssd
from jaxrec.types import Array

SCANS: dict[str, tuple[Callable[..., Any], str]] = {
    name: (selective_scan.selective_scan, name)
    for name in selective_scan.IMPLEMENTATIONS
} | {f"ssd_{name}": (ssd.ssd_scan, name) for name in ssd.IMPLEMENTATIONS}
# Without the Pallas kernel, which the interpreter runs where there is no TPU.
DEFAULT = (
    "reference",
    "custom_vjp",
    "two_pass",
    "associative",
    "ssd_chunked",
    "ssd_all_chunks",
)
REFERENCES = ("reference", "custom_vjp")
GATES = {("custom_vjp", "reference"): 0.6, ("ssd_chunked", "custom_vjp"): 0.6}
HEAD = 64  # channels of a head of ssd_scan, fewer where D has fewer


def arguments(name: str, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """u, dt, A, B, C and the weight of y, for [B, L, D, N]; decays as Mamba starts."""
    rows, length, channels, states = shape
    u, dt, A = (length, rows, channels), (length, rows, channels), (channels, states)
    rates = jnp.broadcast_to(jnp.arange(1.0, states + 1)[None], A)
    if SCANS[name][0] is ssd.ssd_scan:
        head = min(HEAD, channels)
        u, dt = (length, rows, channels // head, head), (length, rows, channels // head)
        rates = jnp.arange(1.0, channels // head + 1)
    keys = jax.random.split(jax.random.key(0), 5)
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    return (
        jax.random.normal(keys[0], u),
        jnp.exp(jax.random.uniform(keys[1], dt, minval=low, maxval=high)),
        -rates,
        jax.random.normal(keys[2], (length, rows, states)),
        jax.random.normal(keys[3], (length, rows, states)),
        jax.random.normal(keys[4], u),
    )


def lowered(name: str, shape: tuple[int, ...], chunk: int) -> dict[str, Any]:
    """ "forward" and "both" (value and five gradients), lowered."""
    scan, impl = SCANS[name]

    def forward(*args: Array) -> Array:
        *args, weight = args
        return jnp.sum(weight * scan(*args, impl=impl, chunk=chunk).y)

    both = jax.value_and_grad(forward, argnums=(0, 1, 2, 3, 4))
    shapes = jax.eval_shape(functools.partial(arguments, name, shape))
    programs = dict(forward=forward, both=both)
    return {what: jax.jit(f).lower(*shapes) for what, f in programs.items()}


def measure(
    names: list[str], shape: tuple[int, ...], chunk: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Implementation -> its numbers, with ratios to those of `REFERENCES`."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    running: dict[str, Any] = {}
    for name in names:
        given = jax.jit(functools.partial(arguments, name, shape))()
        for what, program in lowered(name, shape, chunk).items():
            compiled, seconds = timing.compiled(program)
            scratch = timing.memory(compiled)["temporary_bytes"] / sequence.MIB
            prefix = "forward_" if what == "forward" else ""
            found[name][f"{prefix}temporary_mib"] = round(scratch, 1)
            found[name][f"{prefix}compile_seconds"] = round(seconds, 1)
            if rounds:
                running[f"{name} {what}"] = (functools.partial(compiled, *given), 1)
    for key, spent in timing.in_turn(running, rounds, settled=True).items():
        name, what = key.split()
        prefix = "forward_" if what == "forward" else ""
        found[name] |= {
            f"{prefix}ms": round(spent.ms(), 3),
            f"{prefix}ms_min": round(spent.cpu_ms_min, 3),
        }
    for reference in REFERENCES:
        if reference in found:
            for numbers in found.values():
                numbers |= sequence.ratios(numbers, found[reference], reference)
    return found


def gates(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of `GATES` that were measured: what takes how much of what, at most."""
    return [
        dict(of=name, to=other, time=ratio, limit=limit, holds=ratio <= limit)
        for (name, other), limit in GATES.items()
        if (ratio := found.get(name, {}).get(f"time/{other}")) is not None
    ]


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the numbers; "-" where there is none."""
    columns = {
        "forward_ms": "fwd ms",
        "ms": "fwd+bwd ms",
        "forward_temporary_mib": "fwd MiB",
        "temporary_mib": "fwd+bwd MiB",
        "compile_seconds": "compile s",
        "time/reference": "time/autodiff",
        "memory/reference": "memory/autodiff",
        "time/custom_vjp": "time/custom",
    }
    widths = [max(len(label) + 2, 10) for label in columns.values()]
    lines = [
        f"{'':16}" + "".join(f"{c:>{w}}" for c, w in zip(columns.values(), widths))
    ]
    for name, numbers in found.items():
        cells = (str(numbers.get(column, "-")) for column in columns)
        line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths))
        lines.append(f"{name:16}" + line)
    return lines


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--impls", default=",".join(DEFAULT))
    parser.add_argument("--shape", default="8,2048,128,16", help="B,L,D,N")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="0: memory alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    names = args.impls.split(",")
    if unknown := set(names) - set(SCANS):
        parser.error(f"--impls: {', '.join(sorted(unknown))} not in {list(SCANS)}")
    shape = tuple(int(size) for size in args.shape.split(",") if size.isdigit())
    if len(shape) != 4 or min(shape) < 1:
        parser.error(f"--shape: {args.shape} is not B,L,D,N, four sizes of 1 or more")
    if shape[2] % min(HEAD, shape[2]):
        parser.error(
            f"--shape: D={shape[2]} has no whole heads: use multiples of {HEAD}"
        )
    found = measure(names, shape, args.chunk, args.rounds)
    machine = timing.machine()
    result = dict(machine=machine, shape=shape, chunk=args.chunk, impls=found)
    result["gates"] = gates(found)
    if args.json:
        print(json.dumps(result))
        return result
    print(f"{machine}, [B, L, D, N] = {list(shape)}, float32, chunk {args.chunk}")
    print("\n".join(table(found)))
    for gate in result["gates"]:
        verdict = "holds" if gate["holds"] else "does not hold"
        print("{of} takes {time} of {to}, at most {limit}: ".format(**gate) + verdict)
    return result


if __name__ == "__main__":
    main()
