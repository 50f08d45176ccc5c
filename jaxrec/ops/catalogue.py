"""What each device does for its own items where the catalogue is split over `model`.

The compiler splits products with a table and sums over it by itself. A loop over slices
of the table and a top k it does not: it would first gather the table or the scores on
every device. Here they run under `shard_map` on the items of each device, and what
passes between devices is a few numbers a row, whatever the catalogue's size.

Whether there is such an axis is asked of the mesh in use, see `sharding.in_use`; axes
other than `model` stay the compiler's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrec.types import Array

AXIS = "model"


def is_split(vocab: int) -> bool:
    """Whether the program being traced runs on a mesh that splits that many items."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)
    return size > 1 and vocab % size == 0


def own_items(
    body: Callable[..., Any], items: Any, others: Any, out: Any, axis: int = 0
) -> Any:
    """body(items, others, first) on each device with its own items.

    `items`: a pytree of arrays whose dimension `axis` is the catalogue; `others`: one
    that all devices see whole; `first`: int32[], the number of a device's first item.
    `out`: the PartitionSpec of the result, or a pytree of them: `split(axis)` of items,
    `WHOLE` of what the body made equal on all devices.
    """

    def run(items: Any, others: Any) -> Any:
        size = jax.tree.leaves(items)[0].shape[axis]
        return body(items, others, jax.lax.axis_index(AXIS) * size)

    return jax.shard_map(
        run,
        in_specs=(split(axis), WHOLE),
        out_specs=out,
        axis_names={AXIS},
        check_vma=False,
    )(items, others)


def split(axis: int = 0) -> PartitionSpec:
    """The spec of arrays whose dimension `axis` is the catalogue."""
    return PartitionSpec(*(None,) * axis, AXIS)


WHOLE = PartitionSpec()


def top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of float[B, V]: float[B, k], int32[B, k], the first of equals.

    Of a split catalogue each device gives its own best k.
    """
    if not is_split(scores.shape[1]):
        return jax.lax.top_k(scores, k)

    def own(scores: Array, _: None, first: Array) -> tuple[Array, Array]:
        value, item = jax.lax.top_k(scores, min(k, scores.shape[1]))
        return best_of_all(value, item + first, k)

    return own_items(own, scores, None, (WHOLE, WHOLE), axis=1)


def argmax(scores: Array) -> Array:
    """The best item of float[B, V], the first of equals: int32[B]."""
    if not is_split(scores.shape[1]):
        return jnp.argmax(scores, axis=1).astype(jnp.int32)
    return top_k(scores, 1)[1][:, 0]


def gather(parts: Any) -> Any:
    """Arrays [B, n] of all devices side by side, those of lower items first."""
    return jax.tree.map(
        lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True), parts
    )


def best_of_all(value: Array, item: Array, k: int) -> tuple[Array, Array]:
    """The k best of what all devices found: [B, n] each -> [B, k] each."""
    value, item = gather((value, item))
    value, place = jax.lax.top_k(value, k)
    return value, jnp.take_along_axis(item, place, axis=1)
