"""Where arrays live: a mesh of two named axes, and rules on parameter names.

A rule is (pattern, axes): the pattern is searched in the leaf's path, such as
`params/item_table/embedding`, and axes name the mesh axis of each dimension, such as
("model", None). Because optimiser moments and target networks carry the parameter's
path inside their own, one rule places them all. What no rule matches is replicated.

Axes are Auto: the compiler propagates shardings. (The Explicit default of newer JAX
fails on an embedding table split over its rows.)
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec.types import UserError

Rule = tuple[str, tuple[str | None, ...]]


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """Mesh with axes "data" and "model"; -1 for `data` takes all devices."""
    devices = jax.devices()
    if model < 1 or (data < 1 and data != -1):
        raise UserError(f"mesh data={data}, model={model}: sizes must be positive")
    if data == -1:
        data = max(len(devices) // model, 1)
    if data * model > len(devices):
        raise UserError(
            f"mesh data={data} x model={model} needs {data * model} devices, "
            f"found {len(devices)}: lower mesh.data or mesh.model"
        )
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[: data * model],
    )


def path_name(path: Sequence[Any]) -> str:
    """`params/item_table/embedding` for a pytree path."""
    return "/".join(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def place(mesh: Mesh, tree: Any, rules: Sequence[Rule], leading: int = 0) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs).

    `leading` dimensions, such as the axis of seeds, stay unsplit before the rule's.
    Raises UserError for a rule that matches no leaf, names an unknown axis, has more
    dimensions than the leaf, or does not divide it.
    """
    used = set()

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for number, (pattern, axes) in enumerate(rules):
            if re.search(pattern, name) is None:
                continue
            if leaf.ndim - leading < len(axes):
                continue  # a scalar beside the parameter, such as Adam's count
            used.add(number)
            check_rule(mesh, name, leaf.shape[leading:], pattern, axes)
            return NamedSharding(mesh, PartitionSpec(*(None,) * leading, *axes))
        return NamedSharding(mesh, PartitionSpec())

    placed = jax.tree_util.tree_map_with_path(one, tree)
    for number, (pattern, _) in enumerate(rules):
        if number not in used:
            names = [
                path_name(path)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                if path_name(path).startswith("params/")
            ]
            raise UserError(
                f"sharding rule {pattern!r} matches no parameter; there are: "
                + ", ".join(names[:12])
                + (", ..." if len(names) > 12 else "")
            )
    return placed


def check_rule(
    mesh: Mesh,
    name: str,
    shape: Sequence[int],
    pattern: str,
    axes: Sequence[str | None],
) -> None:
    """Raise UserError unless the axes exist and divide the shape."""
    for size, axis in zip(shape, axes):
        if axis is None:
            continue
        if axis not in mesh.shape:
            raise UserError(
                f"sharding rule {pattern!r} names axis {axis!r}: use data or model"
            )
        if size % mesh.shape[axis]:
            raise UserError(
                f"sharding rule {pattern!r}: {name} has {size} rows, not divisible by "
                f"mesh.{axis}={mesh.shape[axis]}"
            )


def split_batch(mesh: Mesh, batch: Any, leading: int = 0) -> Any:
    """Constrain a traced batch to be split over "data"; nothing on one device."""
    if mesh.shape["data"] == 1:
        return batch
    spec = PartitionSpec(*(None,) * leading, "data")
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())
