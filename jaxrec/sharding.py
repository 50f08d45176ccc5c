"""Where arrays live: a mesh of three named axes, and rules on parameter names.

"data" splits batches, "model" what the rules say, "time" the histories of encoders
that can (`ops.context`).

What a rule may be says `jaxrec.rules`; what none splits is replicated.

Axes are Auto: the compiler propagates shardings. (The Explicit default of newer JAX
fails on an embedding table split over its rows.)
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec import logs
from jaxrec import rules as rules_lib
from jaxrec.types import UserError


def make_mesh(data: int = -1, model: int = 1, time: int = 1) -> Mesh:
    """Mesh with axes "data", "model" and "time"; -1 for `data` takes all devices.

    Says so where model * time does not divide them and some have no work.
    """
    devices = jax.devices()
    if min(model, time) < 1 or (data < 1 and data != -1):
        raise UserError(
            f"mesh data={data}, model={model}, time={time}: sizes must be positive"
        )
    take_all = data == -1
    if take_all:
        data = max(len(devices) // (model * time), 1)
    size = data * model * time
    asked = f"mesh data={data} x model={model} x time={time}"
    if size > len(devices):
        raise UserError(
            f"{asked} needs {size} devices, found {len(devices)}: lower mesh.data, "
            "mesh.model or mesh.time"
        )
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"{asked} leaves some of {len(devices)} devices without work: several "
            "processes have to share all of theirs"
        )
    if size < len(devices) and take_all:
        logs.say(
            f"{asked} leaves {len(devices) - size} of {len(devices)} devices without "
            "work: choose mesh.model and mesh.time whose product divides them"
        )
    return jax.make_mesh(
        (data, model, time),
        ("data", "model", "time"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices[:size],
    )


def path_name(path: Sequence[Any]) -> str:
    """`params/item_table/embedding` for a pytree path."""
    return "/".join(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def place(mesh: Mesh, tree: Any, rules: Sequence[Any], leading: int = 0) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs).

    `rules`: see `jaxrec.rules`; what none splits is replicated. `leading` dimensions,
    such as the axis of seeds, stay unsplit before the rule's.
    Raises UserError for a rule that splits no leaf, names an unknown axis, or does not
    divide a leaf.
    """
    found = rules_lib.parse(rules)
    used = set()

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for rule in found:
            if not rule.fits(name, leaf.ndim - leading):
                continue
            axes = rule.split(name, leaf.shape[leading:], mesh.shape)
            if axes is not None:
                used.add(rule.source)
                return NamedSharding(mesh, PartitionSpec(*(None,) * leading, *axes))
        return NamedSharding(mesh, PartitionSpec())

    placed = jax.tree_util.tree_map_with_path(one, tree)
    for rule in found:
        if rule.source not in used:
            raise UserError(unused(rule.source, found, tree, leading))
    return placed


def tell_idle(mesh: Mesh, rules: Sequence[Any]) -> None:
    """Says which rules split over axes of size 1 alone: everything stays whole.

    And that no rule names "model", over which nothing is split then.
    """
    axes: dict[str, set[str]] = {}
    for rule in rules_lib.parse(rules):
        axes.setdefault(rule.source, set()).update(rule.named)
    for source, names in axes.items():
        if all(mesh.shape[name] == 1 for name in names):
            sizes = " and ".join(f"mesh.{name}" for name in sorted(names))
            logs.say(f"sharding rule {source} splits nothing here: {sizes} is 1")
    if mesh.shape["model"] > 1 and not any("model" in names for names in axes.values()):
        logs.say(
            f"mesh.model={mesh.shape['model']} splits no parameter: no rule names it, "
            "see --config.rules=items"
        )


def unused(
    source: str, rules: Sequence[rules_lib.Rule], tree: Any, leading: int
) -> str:
    """Why the rule splits nothing."""
    leaves = [
        (path_name(path), leaf.ndim - leading)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    own = [rule for rule in rules if rule.source == source]
    matched = [
        name for name, _ in leaves if any(re.search(r.pattern, name) for r in own)
    ]
    if not matched:
        every = [name for name, _ in leaves]
        names = [name for name in every if name.startswith("params/")]
        there = "there are: " if names else "there is none, only: "
        names = names or every
        return (
            f"sharding rule {source} matches no parameter; {there}"
            + ", ".join(names[:12])
            + (", ..." if len(names) > 12 else "")
        )
    if not any(rule.fits(*leaf) for rule in own for leaf in leaves):
        return (
            f"sharding rule {source} has more axes than {matched[0]} has dimensions: "
            "give one for each dimension, or fewer"
        )
    return (
        f"sharding rule {source} splits nothing: what it matches, such as "
        f"{matched[0]}, is small, not divisible or split by a rule before it"
    )


def in_use(mesh: Mesh, batches: bool = False) -> contextlib.AbstractContextManager:
    """Programs traced inside know a mesh that splits the catalogue or time.

    See `ops.catalogue`, `ops.context`. With `batches` also one that splits batches
    alone, see `ops.batches`; elsewhere the compiler does that by itself.
    """
    known = mesh.size if batches else mesh.shape["model"] * mesh.shape["time"]
    if known == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def split_batch(mesh: Mesh, batch: Any, leading: int = 0) -> Any:
    """Constrain a traced batch to be split over "data"; nothing on one device."""
    if mesh.shape["data"] == 1:
        return batch
    spec = PartitionSpec(*(None,) * leading, "data")
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every process has as a whole, on every device of the mesh."""
    whole = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def one(x: Any) -> jax.Array:  # device_put would compare it over the processes
        return jax.make_array_from_callback(x.shape, whole, lambda index: x[index])

    return jax.tree.map(one, tree)


def put_like(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """An array that every process has as a whole, placed as `leaf` is."""
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: array[index]
    )


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray | None:
    """The rows of a batch that this process's devices hold, None = all of them.

    Raises UserError when the mesh does not divide the batch.
    """
    if batch_size % mesh.shape["data"]:
        raise UserError(
            f"batch_size is {batch_size}, not divisible by mesh.data="
            f"{mesh.shape['data']}: change one of them"
        )
    if jax.process_count() == 1:
        return None
    spread = NamedSharding(mesh, PartitionSpec("data"))
    spans = spread.addressable_devices_indices_map((batch_size,)).values()
    every = np.arange(batch_size)
    return np.unique(np.concatenate([every[span] for span in spans]))


def put_rows(mesh: Mesh, batches: Any, batch_size: int, leading: int) -> Any:
    """Batches of which each process has its `own_rows`, as global arrays.

    `leading` dimensions, such as steps and seeds, stand before the rows.
    """
    if jax.process_count() == 1:
        return jax.device_put(batches, replicated(mesh))
    spread = NamedSharding(mesh, PartitionSpec(*(None,) * leading, "data"))

    def one(x: np.ndarray) -> jax.Array:
        shape = (*x.shape[:leading], batch_size, *x.shape[leading + 1 :])
        return jax.make_array_from_process_local_data(spread, x, shape)

    return jax.tree.map(one, batches)


def local(mesh: Mesh, tree: Any) -> Any:
    """Global arrays as arrays on this process's devices alone, without a copy.

    So evaluators and producers may do what they like with them, each process by itself.
    Arrays split over devices of several processes are gathered first.
    """
    if jax.process_count() == 1:
        return tree
    mine = mesh.local_mesh
    inside = mine.shape["model"] == mesh.shape["model"]

    def one(x: jax.Array) -> jax.Array:
        spec = x.sharding.spec
        if not x.is_fully_replicated and not (inside and "data" not in spec):
            x = jax.jit(lambda y: y, out_shardings=replicated(mesh))(x)
            spec = PartitionSpec()
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(mine, spec), shards
        )

    return jax.tree.map(one, tree)
