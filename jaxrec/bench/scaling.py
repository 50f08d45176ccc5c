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

The rows of a batch grow with `data` (weak scaling). Methods with a table of items split
it over `model` (rules=items); the others, copied to all devices, share out the batch.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import held_out, metrics, program, recommender_evaluators, sharding, train
from jaxrec.bench import collectives, offline_rl, recsys, timing
from jaxrec.data import loader, packing, rows, trajectories
from jaxrec.errors import UserError, fail
from jaxrec.methods import ce, recmamba, snqn, td3bc, world_transformer
from jaxrec.types import Dataset

RANKED = 64  # events of a call
CAPACITIES = (16, 80, 192)  # GB of a device
LARGEST = 2**31 - 128  # items: their numbers have 32 bits
SHARED = ("all-reduce", "all-gather")  # kinds with a column of their own


class Case(NamedTuple):
    """A method at given sizes; `rows`: of a batch, for each step along `data`."""

    module: Any
    rows: int
    fields: dict[str, Any] = {}  # of its HPARAMS
    kind: str = "events"  # of data: events, packed, transitions, windows
    share: float = 1.0  # see collectives.traffic


SASREC = {"encoder.name": "sasrec"}
CASES = {
    "ce": Case(ce, 64, SASREC | dict(positions="all")),
    "snqn": Case(snqn, 64, SASREC, share=0.5),
    "recmamba": Case(recmamba, 1, kind="packed"),
    "recmamba_sparse": Case(recmamba, 1, dict(loss="bce", sparse=True), kind="packed"),
    "td3bc": Case(td3bc, 256, kind="transitions"),
    "world_transformer": Case(world_transformer, 64, kind="windows"),
}


def has_items(case: Case) -> bool:
    return case.kind in ("events", "packed")


def data(case: Case, num_items: int, num_rows: int) -> Dataset:
    """Enough rows for a batch; most items of the catalogue do not occur in them."""
    if not has_items(case):
        found = offline_rl.dataset(max(2_000, num_rows), 17, 6).train
        columns = {name: found[name] for name in ("observation", "action", "reward")}
        timeout = np.arange(1, len(found["reward"]) + 1) % 100 == 0
        raw = rows.from_arrays(
            **columns,
            terminal=np.zeros_like(timeout),
            timeout=timeout,
            info=dict(name="noise"),
        )
        window = 10 if case.kind == "windows" else 0
        settings = SimpleNamespace(window=window, top=1.0, valid_fraction=0.1, seed=0)
        return trajectories.dataset(raw, settings)
    size = 2_048 if case.kind == "packed" else 10
    found = recsys.dataset(1_000, 6 * max(1_000, num_rows * size), size)
    vocab = -(-(num_items + 1) // 128) * 128
    count = np.broadcast_to(np.float64(1), (vocab,))  # one number, however many items
    info = found.info | dict(num_items=num_items, vocab=vocab, item_count=count)
    found = found._replace(info=info, evals=dict(test=found.train))
    return packing.view(found, "packed", size) if case.kind == "packed" else found


def stage_of(case: Case, num_items: int, shape: Sequence[int]) -> program.Stage:
    """The stage on a mesh (data, model)."""
    if not has_items(case):
        shape = shape[0] * shape[1], 1
    batch_size = case.rows * shape[0]
    section = ConfigDict(case.module.HPARAMS | dict(steps=10**6, batch_size=batch_size))
    section.update_from_flattened_dict(case.fields)
    dataset = data(case, num_items, batch_size)
    return program.Stage(
        name="bench",
        config=section,
        method=case.module.make(FrozenConfigDict(section), dataset.info),
        dataset=dataset,
        seed=0,
        num_seeds=1,
        mesh=sharding.make_mesh(*shape),
        rules=("items",) if has_items(case) else (),
    )


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


def compiled_rows(names: Sequence[str], args: Any) -> Iterator[dict[str, Any]]:
    """A row for each method, program, mesh and catalogue."""
    for name in names:
        case = CASES[name]
        for shape in args.meshes:
            for items in args.items if has_items(case) else (0,):
                stage = stage_of(case, items, shape)
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
                        batch_size=rows_of[what],
                        items=items,
                        compile_seconds=round(time.perf_counter() - begun, 1),
                        **found,
                    )


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    moved = row["collective_bytes"]
    other = sum(size for kind, size in moved.items() if kind not in SHARED)
    megabytes = [*(moved.get(kind, 0) for kind in SHARED), other]
    return (
        f"{row['method']:17} {row['program']:7} {row['data']:4} x {row['model']:<3} "
        f"{row['batch_size']:6,} {row['items']:11,} "
        f"{row['argument_bytes'] / 1e9:9.3f} {row['temporary_bytes'] / 1e9:8.3f} "
        f"{row['output_bytes'] / 1e9:8.3f} "
        + " ".join(f"{size / 1e6:10.2f}" for size in megabytes)
        + f" {row['compile_seconds']:8}"
    )


def show_fit(key: tuple, line: dict[str, Any]) -> str:
    """A line of the second table."""
    name, what, data_size, model = key
    return (
        f"{name:17} {what:7} {data_size:4} x {model:<3} {line['bytes_per_item']:10.1f} "
        f"{line['other_bytes'] / 1e6:9.1f} {line['misfit']:7.1%} "
        + " ".join(f"{items:13,}" for items in line["fits"].values())
    )


def mesh_shapes(text: str) -> list[tuple[int, int]]:
    """ "1x8,8x64" -> [(1, 8), (8, 64)]. Raises UserError for what is none."""
    try:
        shapes = [tuple(map(int, one.split("x"))) for one in text.split(",")]
    except ValueError:
        shapes = [()]
    if any(len(one) != 2 or min(one) < 1 for one in shapes):
        raise UserError(f"meshes {text!r}: give data x model, such as 1x8,8x64")
    return shapes


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
    parser.add_argument("--meshes", default="1x8,8x8,8x64", help="data x model")
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
    most = max(a * b for a, b in args.meshes)
    if most > jax.config.jax_num_cpu_devices:
        jax.config.update("jax_num_cpu_devices", most)
    jax.config.update("jax_disable_most_optimizations", True)
    if not args.json:
        print(
            "compiled for CPUs, not executed; per device, memory in GB, moved in MB\n"
            "method            program data x model batch       items arguments "
            "   temps  outputs all-reduce all-gather      other compile s"
        )
    found, groups = [], {}
    for row in compiled_rows(names, args):
        found.append(row)
        key = row["method"], row["program"], row["data"], row["model"]
        groups.setdefault(key, []).append(row)
        if not args.json:
            print(show(row), flush=True)
    lines = {key: fit(some) for key, some in groups.items() if len(some) > 1}
    if args.json:
        named = [
            dict(zip(("method", "program", "data", "model"), key)) | line
            for key, line in lines.items()
        ]
        print(json.dumps(dict(machine=timing.machine(), rows=found, fits=named)))
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
