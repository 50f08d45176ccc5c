"""python -m jaxrec.export --run=RUN --out=DIR [--platforms=cpu,cuda,tpu]

A trained policy as a program that needs neither this code nor its data: StableHLO with
a batch of any size (`jax.export`), and its weights beside it.

DIR/program.bin     the serialised program, `jax.export.deserialize` reads it
DIR/program.mlir    the same as text
DIR/weights.npz     its first argument, a dict of arrays by these names
DIR/items.json      recommenders: ids and titles of the items, how often each occurs
DIR/export.json     names, dtypes and shapes of all arguments; where it comes from

The program of a recommender is (weights, items int32[B, L], length int32[B], timestep
int32[B]) -> scores float32[B, V], see `types.Method`; of another method with a policy
of one observation (weights, observation float32[B, od]) -> actions. An export is read
back (`exported.read`) and compared with the run, where there is a device that it is
for, before it is named DIR. `jaxrec.recommend --run=DIR` asks it. Weights are
arguments, so that those of a newer run of the same config can take their place; only
those that the program reads are kept, no optimiser and no second copy.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from jaxrec import exported, finished, logs, sharding, workdir
from jaxrec.errors import UserError, fail
from jaxrec.types import Method, TrainState

TOLERANCE = 1e-4  # relative to the largest score; float32 in another order of sums
CHECKED = (1, 5)  # sizes of the batches that an export is tested with


def arguments(method: Method, info: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    """Name -> ShapeDtypeStruct of what the program takes beside its weights."""
    if method.scores is None:
        return dict(
            observation=jax.ShapeDtypeStruct((batch, info["observation_size"]), "f4")
        )
    items = jax.ShapeDtypeStruct((batch, info["seq_len"]), np.int32)
    one = jax.ShapeDtypeStruct((batch,), np.int32)
    return dict(items=items, length=one, timestep=one)


def program(method: Method) -> Callable[..., Any]:
    """(state, *arguments) -> scores or actions."""
    if method.scores is not None:
        return method.scores
    return lambda state, observation: method.act(state, observation, jax.random.key(0))


def weights_of(
    method: Method, state: TrainState, info: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], Callable[..., Any]]:
    """(the leaves of the state that the program reads by name, the program of them)."""
    function, one = program(method), arguments(method, info, 1).values()
    traced = jax.make_jaxpr(function)(state, *one).jaxpr
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    used = {v for equation in traced.eqns for v in _variables(equation.invars)}
    used |= set(_variables(traced.outvars))
    names = [sharding.path_name(path) for path, _ in leaves]
    kept = [
        number for number, v in enumerate(traced.invars[: len(leaves)]) if v in used
    ]
    shapes = [leaf for _, leaf in leaves]

    def of_weights(weights: Mapping[str, Any], *args: Any) -> Any:
        whole = [
            weights[name] if name in weights else jnp.zeros(leaf.shape, leaf.dtype)
            for name, leaf in zip(names, shapes)
        ]
        return function(jax.tree.unflatten(structure, whole), *args)

    return {names[number]: leaves[number][1] for number in kept}, of_weights


def _variables(found: Sequence[Any]) -> list[Any]:
    """Without literals, which cannot be looked up."""
    return [v for v in found if not hasattr(v, "val")]


def write(
    run: str | Path,
    out: str | Path,
    stage: str = "",
    number: int = 0,
    platforms: Sequence[str] = (),
) -> dict[str, Any]:
    """Export a finished stage; returns what export.json says.

    `platforms`: of `exported.PLATFORMS`; none: that of this process. Raises UserError
    for what cannot be exported, for a folder that is there, and where the program that
    was read back disagrees with the run.
    """
    out = Path(out)
    exported.check_installed()
    if out.exists():
        raise UserError(f"{out} is there already: name another --out")
    platforms = list(platforms) or [exported.platform()]
    if unknown := sorted(set(platforms) - set(exported.PLATFORMS)):
        known = ", ".join(exported.PLATFORMS)
        raise UserError(f"platform {unknown[0]!r} is unknown: use some of {known}")
    method, state, info, stage, _ = finished.policy(run, stage, number, acting=True)
    weights, function = weights_of(method, state, info)
    (batch,) = jax_export.symbolic_shape("B")
    args = arguments(method, info, batch)
    made = jax_export.export(jax.jit(function), platforms=platforms)(
        weights, *args.values()
    )
    # Beside it, to be renamed, under a name that nothing of the user's has.
    part, made_it = out.with_name(f".{out.name}.{os.getpid()}.part"), False
    try:
        part.mkdir(parents=True)
        made_it = True
        (part / "program.bin").write_bytes(made.serialize())
        (part / "program.mlir").write_text(made.mlir_module())
        np.savez(part / "weights.npz", **{k: np.asarray(v) for k, v in weights.items()})
        if method.scores is not None:
            logs.write_json(part / "items.json", _items(info))
        facts = dict(
            version=exported.VERSION,
            kind="act" if method.scores is None else "scores",
            run=Path(run).name,
            stage=stage,
            arguments={k: [str(v.dtype), *map(str, v.shape)] for k, v in args.items()},
            results=[
                f"{x.dtype}[{', '.join(map(str, x.shape))}]" for x in made.out_avals
            ],
            parameters=sum(int(leaf.size) for leaf in weights.values()),
            platforms=platforms,
            calling_convention=made.calling_convention_version,
            seed_number=number,
            **workdir.provenance(),
        )
        logs.write_json(part / "export.json", facts)
        facts["difference"] = check(part, program(method), state, info)
        logs.write_json(part / "export.json", facts)
        part.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out} ({error.strerror}): free space or name another --out"
        ) from error
    finally:
        if made_it:
            shutil.rmtree(part, ignore_errors=True)
    return facts


def _items(info: Mapping[str, Any]) -> dict[str, Any]:
    size = info["num_items"] + 1
    return dict(
        item_ids=np.asarray(info["item_ids"]).tolist(),
        titles=info["titles"][:size] if info["titles"] else None,
        item_count=np.asarray(info["item_count"])[:size].tolist(),
        vocab=info["vocab"],
        num_items=info["num_items"],
        seq_len=info["seq_len"],
        mask_seen=bool(info["mask_seen"]),
    )


def check(
    folder: Path, function: Callable[..., Any], state: Any, info: Mapping[str, Any]
) -> float | None:
    """The largest difference of the export from the run, over that of the scores.

    Random histories of every length from none on, batches of CHECKED sizes. Raises
    UserError above TOLERANCE. None where the export is of other platforms.
    """
    call, weights, facts = exported.read(folder)
    if exported.platform() not in facts["platforms"]:
        return None
    draw, largest = np.random.default_rng(0), 0.0
    for rows in CHECKED:
        if facts["kind"] == "act":
            args = (
                draw.standard_normal((rows, info["observation_size"])).astype(
                    np.float32
                ),
            )
        else:
            length = draw.integers(0, info["seq_len"] + 1, rows).astype(np.int32)
            items = draw.integers(1, info["num_items"] + 1, (rows, info["seq_len"]))
            items = items * (np.arange(info["seq_len"])[None] < length[:, None])
            args = items.astype(np.int32), length, length
        want, found = (
            np.asarray(y, np.float64)
            for y in (jax.jit(function)(state, *args), call(weights, *args))
        )
        same = want == found  # minus infinity where there is no item
        apart = np.abs(np.where(same, 0.0, want) - np.where(same, 0.0, found))
        scale = max(1.0, np.abs(want[np.isfinite(want)]).max())
        largest = max(largest, float(apart.max() / scale))
    if not largest <= TOLERANCE:
        raise UserError(
            f"the exported program differs from the run by {largest:.2g}, more than "
            f"{TOLERANCE:g}: nothing was written; please report the method and encoder"
        )
    return largest


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns the exit status: 0, or 2 for a fault of the input."""
    flags = finished.parser(
        "jaxrec.export", "A run as StableHLO with weights.", "folder of a finished run"
    )
    flags.add_argument("--out", required=True, help="folder to write")
    flags.add_argument(
        "--platforms", default="", help="comma-separated; default: this process's"
    )
    given = flags.parse_args(argv)
    platforms = [name for name in given.platforms.split(",") if name]
    try:
        facts = write(given.run, given.out, given.stage, given.seed_number, platforms)
    except UserError as error:
        return fail(error)
    compared = f"not compared: no {' or '.join(facts['platforms'])} device here"
    if facts["difference"] is not None:
        apart = f"{facts['difference']:.1e} of the largest output"
        compared = f"read back, it differs from the run by {apart}"
    told = dict(kind=facts["kind"], arguments=facts["arguments"])
    print(f"{given.out}: {json.dumps(told)} -> {', '.join(facts['results'])}")
    print(f"{facts['parameters']:,} numbers in weights.npz; {compared}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
