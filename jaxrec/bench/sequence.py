"""Cost of encoders of long histories: `python -m jaxrec.bench.sequence [--json]`.

One block of each encoder, forward and backward, gradients of its input and
parameters: scratch memory of the compiled program, CPU-ms of a step, tokens a second,
and ratios against SASRec with full scores and in blocks, measured in turn in
the same process. Lengths 2k, 5k and 10k by default. Memory is a fact of the compiled
program; programs above --memory_limit are compiled and not run.

SASRec, LinRec and the Mambas have a feed-forward network of four widths, HSTU has none
by design. CPU-ms are of all threads of this process: on a shared machine pin it to one
core, `taskset -c 1 python -m jaxrec.bench.sequence`.
"""

import argparse
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxrec import plots
from jaxrec.bench import timing
from jaxrec.errors import UserError
from jaxrec.models import attention, encoders

MODERN = dict(prenorm="all", ffn=4, scale_embedding=True)
RIVALS: dict[str, dict[str, Any]] = {
    "sasrec": dict(name="sasrec", **MODERN),
    "sasrec_blockwise": dict(name="sasrec", attention="blockwise", **MODERN),
    "linrec": dict(name="linrec", **MODERN),
    "hstu": dict(name="hstu", attention="blockwise"),
    "mamba": dict(name="mamba"),
    "mamba2": dict(name="mamba2"),
}
REFERENCES = ("sasrec", "sasrec_blockwise")
SSD_CHUNK = 64  # tokens that see each other as a matrix, for counting alone
MIB = 2**20


def build(rival: str, length: int, args: Any) -> tuple[Any, ConfigDict]:
    """(encoder, its config) for histories of `length`."""
    config = ConfigDict(dict(encoders.SPEC))
    sizes = dict(
        width=args.width, num_layers=args.layers, state=args.state, dropout=0.0
    )
    config.update(RIVALS[rival] | sizes | dict(head_dim=min(64, 2 * args.width)))
    return encoders.make(config, length), config


def lowered(rival: str, length: int, args: Any) -> tuple[Any, Callable[[], tuple]]:
    """(value and gradients, lowered; what makes its arguments)."""
    encoder, _ = build(rival, length, args)
    shape, size = (
        (args.batch_size, length, args.width),
        jnp.full(args.batch_size, length),
    )

    def loss(params: Any, x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(weight * encoder.apply(params, x, size))

    def arguments() -> tuple:
        keys = jax.random.split(jax.random.key(0), 3)
        params = jax.jit(encoder.init)(keys[0], jnp.zeros((1, 2, args.width)), size[:1])
        return params, *(jax.random.normal(key, shape) for key in keys[1:])

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(*jax.eval_shape(arguments)), arguments


def flops(rival: str, length: int, args: Any) -> float:
    """Of a step, forward and backward, by our own count: three times the products of
    the forward pass (two flops each) and nothing for what is computed twice.

    XLA's counter sees the body of a loop once, so it cannot compare these.
    """
    encoder, config = build(rival, length, args)
    d, D, N = config.width, config.expand * config.width, config.state
    scores = 2 * length * d  # q k and weights times v, of all pairs of events
    if config.attention == "blockwise":
        scores *= (attention.GROUPS + 1) / (2 * attention.GROUPS)
    scan = {
        "mamba": 3 * D * N + 1.5 * D,  # Section 2.4: 6 D N + 3 D flops
        "mamba2": SSD_CHUNK * (N + D) + 2 * N * D,
    }
    heads = D // config.head_dim if rival == "mamba2" else -(-d // 16)
    inputs = D * (heads + 2 * N) + (heads * D if rival == "mamba" else 0)
    shell = 2 * d * D + config.conv * D + inputs + D * d
    mixer = {
        "sasrec": 4 * d * d + scores,
        "linrec": 4 * d * d + 2 * attention.CHUNK * d + 2 * d * d,
        "hstu": 5 * d * d + scores,
        "mamba": shell + scan["mamba"],
        "mamba2": shell + scan["mamba2"],
    }[config.name]
    feed_forward = 0 if rival == "hstu" else 8 * d * d
    tokens = args.batch_size * length * config.num_layers
    return 3.0 * 2.0 * tokens * (mixer + feed_forward)


def measure(length: int, args: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """rival -> its numbers and ratios at one length."""
    found: dict[str, Any] = {}
    running: dict[str, Any] = {}
    for rival in args.encoders.split(","):
        program, arguments = lowered(rival, length, args)
        compiled, seconds = timing.compiled(program)
        sizes = timing.memory(compiled)
        found[rival] = dict(
            temporary_mib=round(sizes["temporary_bytes"] / MIB, 1),
            gflop=round(flops(rival, length, args) / 1e9, 2),
            compile_seconds=round(seconds, 1),
        )
        if sizes["temporary_bytes"] > args.memory_limit * MIB:
            say(f"{rival} at {length:,}: above --memory_limit, compiled and not run")
        elif args.rounds:
            running[rival] = (_call(compiled, arguments()), 1)
    for rival, spent in timing.in_turn(running, args.rounds, settled=True).items():
        ms = spent.ms()
        found[rival] |= dict(
            ms=round(ms, 1),
            wall_ms=round(spent.wall_ms, 1),
            tokens_per_second=round(1e3 * args.batch_size * length / ms),
        )
    for reference in REFERENCES:
        if reference in found:
            for numbers in found.values():
                numbers |= ratios(numbers, found[reference], reference)
    return found


def ratios(
    numbers: Mapping[str, Any], reference: Mapping[str, Any], name: str
) -> dict[str, float]:
    """What `numbers` are of the reference's: "memory/sasrec": 0.2 is a fifth."""
    pairs = dict(memory="temporary_mib", time="ms")
    return {
        f"{what}/{name}": round(numbers[field] / reference[field], 3)
        for what, field in pairs.items()
        if field in numbers and reference.get(field)
    }


def _call(compiled: Any, arguments: tuple) -> Callable[[], Any]:
    return lambda: compiled(*arguments)


def table(length: int, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the numbers at one length; "-" where a program was not run."""
    columns = dict(
        temporary_mib="MiB",
        ms="ms",
        tokens_per_second="tokens/s",
        gflop="GFLOP",
        compile_seconds="compile s",
    )
    columns |= {
        f"{what}/{name}": f"{what}/{short}"
        for name, short in zip(REFERENCES, ("full", "blocks"))
        for what in ("memory", "time")
    }
    widths = [max(len(label) + 2, 11) for label in columns.values()]
    head = "".join(f"{c:>{w}}" for c, w in zip(columns.values(), widths))
    lines = [f"{f'L = {length:,}':18}" + head]
    for rival, numbers in found.items():
        cells = (str(numbers.get(column, "-")) for column in columns)
        line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths))
        lines.append(f"{rival:18}" + line)
    return lines


def plot(found: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Memory and time against the length, a line a rival, as a PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure((11, 5), dpi=100, layout="constrained")
    panels = dict(temporary_mib="scratch memory, MiB", ms="ms of a step")
    lengths = [int(length) for length in found]
    rivals = list(dict.fromkeys(name for rows in found.values() for name in rows))
    for axes, (field, label) in zip(figure.subplots(1, 2), panels.items()):
        for rival in rivals:
            points = [
                (length, rows[rival][field])
                for length, rows in zip(lengths, found.values())
                if field in rows.get(rival, {})
            ]
            if points:
                axes.plot(*zip(*points), marker="o", label=rival)
        axes.set(xlabel="events of a history", title=label, xscale="log", yscale="log")
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right")
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plots.write(path, content.getvalue())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", default=",".join(RIVALS))
    parser.add_argument("--lengths", default="2048,5120,10240")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--state", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="0: memory alone")
    parser.add_argument("--memory_limit", type=float, default=3_000, help="MiB")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    args = parser.parse_args(argv)
    if unknown := set(args.encoders.split(",")) - set(RIVALS):
        parser.error(f"--encoders: {', '.join(sorted(unknown))} not in {list(RIVALS)}")
    lengths = [int(n) for n in args.lengths.split(",") if n.strip().isdigit()]
    if len(lengths) != args.lengths.count(",") + 1 or min(lengths) < 1:
        parser.error(f"--lengths: {args.lengths} are not numbers of 1 or more")
    for field in ("batch_size", "width", "layers", "state"):
        if getattr(args, field) < 1:
            parser.error(f"--{field}: {getattr(args, field)} is not 1 or more")
    if args.rounds < 0:
        parser.error(f"--rounds: {args.rounds} is not 0 or more")
    machine = timing.machine()

    def say(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    say(f"{machine}, batch {args.batch_size}, width {args.width}, float32")
    for rival in args.encoders.split(","):
        if scan := getattr(build(rival, 1, args)[0], "implementation", ""):
            say(f"{rival}: scan {scan}")
    found: dict[str, Any] = {}
    for length in lengths:
        try:
            found[str(length)] = measure(length, args, say)
        except UserError as error:
            parser.error(str(error))
        say("\n".join(table(length, found[str(length)])))
    if args.plot:
        title = f"{args.layers} block, batch {args.batch_size}, {machine['device']}"
        plot(found, args.plot, title)
    result = dict(machine=machine, batch_size=args.batch_size, lengths=found)
    if args.json:
        print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
