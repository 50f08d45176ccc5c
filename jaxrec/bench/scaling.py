"""What an update costs at sizes that are not there: `python -m jaxrec.bench.scaling`.

The program of an update, and of the ranking of a batch, is compiled ahead of time for
meshes of 8 to 512 devices that the CPU only claims to have, and catalogues of up to
100 million items. Nothing is executed and no state exists, only its shapes. Told for
each device:

- memory: arguments (state and batch), temporaries, outputs that reuse no argument;
- communication: the bytes of the collectives in the compiled program, by kind (see
  `collectives`); of two copies one is updated, so that loops over both count half;
- the largest catalogue that fits devices of 16, 80 and 192 GB (10^9 bytes): memory is
  taken for a line through what was compiled for the smallest and the largest
  catalogue, and "misfit" says how far those in between are off it.

Compiled for CPUs: compilers for GPUs and TPUs fuse other loops, pad arrays and may
choose other collectives. Arguments are the same there, the rest is an estimate. LLVM's
optimisations are left out, which changes no buffer and no collective.

The rows of a batch grow with `data` (weak scaling), which are games where a team plays.
Methods with a table of items split it over `model` (rules=items), those whose encoder
can split their histories over `time`; the others share out the batch over all devices.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxrec import held_out, metrics, program, recommender_evaluators, sharding, train
from jaxrec.bench import collectives, timing
from jaxrec.bench.scaling_cases import CASES, stage_of
from jaxrec.data import loader
from jaxrec.errors import UserError, fail

RANKED = 64  # events of a call
CAPACITIES = (16, 80, 192)  # GB of a device
LARGEST = 2**31 - 128  # items: their numbers have 32 bits
SHARED = ("all-reduce", "all-gather")  # kinds with a column of their own


def update_of(stage: program.Stage, state: Any) -> jax.stages.Compiled:
    """The program of one update, for a state of shapes."""
    batch = loader.host_batch(stage.dataset, stage.config.batch_size, np.uint32(0), 0)
    batches = jax.tree.map(lambda x: np.asarray(x)[None], batch)
    return train.compiled(stage, True, 1, state, batches)


def ranking_of(stage: program.Stage, state: Any) -> jax.stages.Compiled:
    """The program that ranks held-out events among all items.

    As evaluation calls it: every device has all rows, and only the items are split.
    """
    batch = held_out.batch_of(stage.dataset, "test", RANKED, 0)
    batch |= dict(seen=batch["item"][:, :-1])
    rank = jax.jit(recommender_evaluators.make_ranker(stage.method))
    number = jax.ShapeDtypeStruct((stage.dataset.info["vocab"],), np.float32)
    facts = {name: number for name in metrics.facts(dict(item_count=np.ones(2)))}
    with sharding.in_use(stage.mesh):
        return rank.lower(state, facts, 0, batch).compile()


def measured(compiled: jax.stages.Compiled, share: float) -> dict[str, Any]:
    """Bytes on one device: arguments, temporaries, outputs, each kind of collective."""
    moved = collectives.traffic(compiled.as_text(), share)
    return timing.memory(compiled) | dict(collective_bytes=dict(moved))


def total(row: dict[str, Any]) -> int:
    """Bytes of memory that the program needs on a device."""
    names = ("argument_bytes", "temporary_bytes", "output_bytes")
    return sum(row[name] for name in names)


def fit(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Memory as a line in the number of items, and the largest catalogues that fit.

    `found`: rows of the same program for two or more catalogues.
    """
    found = sorted(found, key=lambda row: row["items"])
    low, high = found[0], found[-1]
    slope = (total(high) - total(low)) / (high["items"] - low["items"])
    base = total(low) - slope * low["items"]
    off = [abs(base + slope * r["items"] - total(r)) / total(r) for r in found]
    most = {size: (size * 1e9 - base) / slope for size in CAPACITIES}
    fits = {size: int(np.clip(items, 0, LARGEST)) for size, items in most.items()}
    return dict(bytes_per_item=slope, other_bytes=base, misfit=max(off), fits=fits)


def fits(
    rows: Sequence[dict[str, Any]],
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(method, program, mesh) -> `fit` of its rows, where catalogues differ."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["method"], row["program"], named(row)
        groups.setdefault(key, []).append(row)
    return {
        key: fit(some)
        for key, some in groups.items()
        if len({row["items"] for row in some}) > 1
    }


def compiled_rows(names: Sequence[str], args: Any) -> Iterator[dict[str, Any]]:
    """A row for each method, program, mesh and catalogue.

    Meshes that come out equal for a method, such as 8x1 of 1x8 and of 2x4 for one
    without items, are compiled once.
    """
    done = set()
    for name in names:
        case = CASES[name]
        for shape in args.meshes:
            for items in args.items if case.has_items else (0,):
                stage = stage_of(case, items, shape)
                key = name, items, tuple(stage.mesh.shape.values())
                if key in done:
                    continue
                done.add(key)
                state = train.abstract_state(stage, {})
                programs = dict(update=update_of)
                if args.ranking and case.kind == "events":
                    programs["ranking"] = ranking_of
                rows_of = dict(update=stage.config.batch_size, ranking=RANKED)
                for what, make in programs.items():
                    begun = time.perf_counter()
                    found = measured(make(stage, state), case.share)
                    yield dict(
                        method=name,
                        program=what,
                        data=stage.mesh.shape["data"],
                        model=stage.mesh.shape["model"],
                        time=stage.mesh.shape["time"],
                        batch_size=rows_of[what],
                        items=items,
                        compile_seconds=round(time.perf_counter() - begun, 1),
                        **found,
                    )


def named(row: dict[str, Any]) -> str:
    """The mesh, `8x64`, or with its time `8x4x2`."""
    sizes = [row["data"], row["model"], row["time"]]
    return "x".join(map(str, sizes[: 2 + (row["time"] > 1)]))


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    moved = row["collective_bytes"]
    other = sum(size for kind, size in moved.items() if kind not in SHARED)
    megabytes = [*(moved.get(kind, 0) for kind in SHARED), other]
    return (
        f"{row['method']:17} {row['program']:7} {named(row):>9} "
        f"{row['batch_size']:6,} {row['items']:11,} "
        f"{row['argument_bytes'] / 1e9:9.3f} {row['temporary_bytes'] / 1e9:8.3f} "
        f"{row['output_bytes'] / 1e9:8.3f} "
        + " ".join(f"{size / 1e6:10.2f}" for size in megabytes)
        + f" {row['compile_seconds']:8}"
    )


def show_fit(key: tuple, line: dict[str, Any]) -> str:
    """A line of the second table."""
    name, what, mesh = key
    return (
        f"{name:17} {what:7} {mesh:>9} {line['bytes_per_item']:10.1f} "
        f"{line['other_bytes'] / 1e6:9.1f} {line['misfit']:7.1%} "
        + " ".join(f"{items:13,}" for items in line["fits"].values())
    )


def mesh_shapes(text: str) -> list[tuple[int, int, int]]:
    """ "1x8,2x4x8" -> [(1, 8, 1), (2, 4, 8)]. Raises UserError for what is none."""
    try:
        shapes = [tuple(map(int, one.split("x"))) for one in text.split(",")]
    except ValueError:
        shapes = [()]
    if any(len(one) not in (2, 3) or min(one) < 1 for one in shapes):
        raise UserError(
            f"meshes {text!r}: give data x model or data x model x time, such as "
            "1x8,8x8x8"
        )
    return [(*one, 1)[:3] for one in shapes]


def catalogues(text: str) -> list[int]:
    """ "1e6,1e8" -> [1_000_000, 100_000_000]. Raises UserError for what is none."""
    try:
        found = [int(float(one)) for one in text.split(",")]
    except (ValueError, OverflowError):
        found = []
    if not found or min(found) < 1_000 or max(found) > LARGEST:
        raise UserError(f"items {text!r}: give numbers from 1000 to 2^31, such as 1e6")
    return sorted(set(found))


def parse(argv: Sequence[str] | None) -> tuple[list[str], argparse.Namespace]:
    """(methods, other flags). Raises UserError for what cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(CASES))
    parser.add_argument("--meshes", default="1x8,8x8,8x64", help="data x model x time")
    parser.add_argument("--items", default="1e6,1e7,1e8", help="of the catalogue")
    parser.add_argument(
        "--ranking", action=argparse.BooleanOptionalAction, default=True
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    names = args.methods.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise UserError(f"method {unknown[0]!r} is unknown here: {', '.join(CASES)}")
    args.meshes, args.items = mesh_shapes(args.meshes), catalogues(args.items)
    return names, args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit status."""
    try:
        names, args = parse(argv)
    except UserError as error:
        return fail(error)
    jax.config.update("jax_platforms", "cpu")
    most = max(map(math.prod, args.meshes))
    if most > jax.config.jax_num_cpu_devices:
        jax.config.update("jax_num_cpu_devices", most)
    jax.config.update("jax_disable_most_optimizations", True)
    if not args.json:
        print(
            "compiled for CPUs, not executed; per device, memory in GB, moved in MB\n"
            "method            program      mesh  batch       items arguments "
            "   temps  outputs all-reduce all-gather      other compile s"
        )
    found = []
    for row in compiled_rows(names, args):
        found.append(row)
        if not args.json:
            print(show(row), flush=True)
    lines = fits(found)
    if args.json:
        listed = [
            dict(zip(("method", "program", "mesh"), key)) | line
            for key, line in lines.items()
        ]
        print(json.dumps(dict(machine=timing.machine(), rows=found, fits=listed)))
    elif lines:
        print(
            "\nmemory by a line: bytes an item, other MB, misfit, and items that fit "
            + ", ".join(f"{size} GB" for size in CAPACITIES)
        )
        for key, line in lines.items():
            print(show_fit(key, line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
