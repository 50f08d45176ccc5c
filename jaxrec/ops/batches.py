"""Rows drawn from a batch, where the mesh splits batches.

The compiler splits what it computes row by row as the batch is split. Rows gathered
from all of a batch it would give to every device, and with them all that follows: the
devices would do the same work. Asked of the mesh in use, see `sharding.in_use`.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec

AXIS = "data"


def split_rows(tree: Any, leading: int = 0) -> Any:
    """Arrays [..., B, ...], rows behind `leading` axes, with B split over `data`."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)

    def one(x: jax.Array) -> jax.Array:
        if size == 1 or x.shape[leading] % size:
            return x
        free = (PartitionSpec.UNCONSTRAINED,)
        spec = PartitionSpec(*free * leading, AXIS, *free * (x.ndim - leading - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(one, tree)
