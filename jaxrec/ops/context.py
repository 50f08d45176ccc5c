"""The scans with time split over the devices of a mesh: context parallelism.

A device holds T / n consecutive steps. What passes between devices is the summary of
each stretch (`parallel_scan.across`), B D N floats twice whatever T is, and the last
few inputs of the left neighbour for the causal convolution (`halo`). Gradients come
by differentiating through the collectives.

`scan_shard` and `halo` are for use inside a `shard_map` of the caller's, such as
`over_devices` on the mesh in use (see `sharding.in_use`); `sharded_scan` wraps a scan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxrec.ops import parallel_scan, recurrence
from jaxrec.ops.recurrence import Decay, Scan, Steps
from jaxrec.ops.selective_scan import selective_scan
from jaxrec.ops.ssd import ssd_scan
from jaxrec.types import Array, UserError

AXIS = "time"


def ways(length: int = 0, halo: int = 0) -> int:
    """Devices that the mesh in use splits `length` steps over; 1 where it does not.

    Raises UserError where their stretches would be shorter than the `halo` steps that
    they exchange.
    """
    size = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)
    stretch = -(-length // size)
    if length and size > 1 and stretch < max(halo, 1):
        raise UserError(
            f"mesh.{AXIS}={size} makes stretches of {stretch} of {length} events, the "
            f"convolution looks back {halo}: lower mesh.{AXIS}"
        )
    return size


def over_devices(
    body: Callable[..., tuple[Array, Any]], events: Any, others: Any
) -> tuple[Array, Any]:
    """body(events, others) -> (y, end) on each device with its stretch of time.

    `events`: arrays [T, ...], filled up with zeros where the devices do not divide T;
    `others`: a pytree that all devices see whole. y: [T, ...]; `end`: what the body
    made equal on all devices.
    """
    length = len(jax.tree.leaves(events)[0])
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    y, end = jax.shard_map(
        body,
        in_specs=(split, whole),
        out_specs=(split, whole),
        axis_names={AXIS},
        check_vma=False,  # that `end` is equal everywhere is the body's word
    )(padded(events, ways()), others)
    return y[:length], end


def events_of(rows: Any) -> Any:
    """Arrays [B, T, ...] as [B T, ...], in an order that is the same for all of them.

    Where the mesh in use splits time each device keeps what it has; for the order that
    a reshape gives they would have to send each other everything.
    """

    def flat(rows: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    batch, length = jax.tree.leaves(rows)[0].shape[:2]
    data = dict(jax.sharding.get_abstract_mesh().shape).get("data", 1)
    if ways() == 1 or length % ways() or batch % data:
        return flat(rows)
    return jax.shard_map(
        flat,
        in_specs=PartitionSpec("data", AXIS),
        out_specs=PartitionSpec(("data", AXIS)),
        axis_names={"data", AXIS},
        check_vma=False,
    )(rows)


def padded(events: Any, size: int) -> Any:
    """Arrays [T, ...] with zeros behind, up to a multiple of `size`."""

    def one(x: Array) -> Array:
        return jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(one, events)


def scan_shard(
    axis: str, steps: Steps, A: Array, h0: Array | None = None, **options: Any
) -> Scan:
    """`selective_scan` (A of rank 2) or `ssd_scan` (rank 1) of all shards, inside one.

    The steps are this device's stretch of time; A and h0 are the same on all. y is
    this stretch's; h_last and the decay are those of all time, the same on all devices.
    options: `impl` and `chunk`.
    """
    u, dt, B, C, reset = steps
    scan = selective_scan if A.ndim == 2 else ssd_scan
    dtype = recurrence.working_dtype(u, dt, A, B, C)
    if h0 is None:
        h0 = recurrence.no_state(steps, dtype)

    def run(h: Array) -> Scan:
        return scan(u, dt, A, B, C, h0=h, reset=reset, **options)

    own = recurrence.decay_of(steps, dtype)
    y, h_last = parallel_scan.across(axis, run, A, h0.astype(dtype))
    total = jax.lax.psum(own.total, axis)
    alive = jnp.prod(jax.lax.all_gather(own.alive, axis), axis=0)
    return Scan(y, h_last, Decay(total, alive))


def halo(x: Array, steps: int, axis: str, first: Array | None = None) -> Array:
    """The last `steps` inputs of the left neighbour: [steps, ...] of x [T / n, ...].

    first: [steps, ...], what the device with the earliest time gets, zeros by default.
    A convolution that stops at resets needs the halo of the resets too.

    Raises ValueError where a shard is shorter than the halo.
    """
    if len(x) < steps:
        raise ValueError(
            f"a halo of {steps} steps from shards of {len(x)}: use fewer devices"
        )
    size = jax.lax.axis_size(axis)
    left = jax.lax.ppermute(
        x[len(x) - steps :], axis, [(i, i + 1) for i in range(size - 1)]
    )
    if first is None:
        return left  # ppermute gives zeros to who is sent nothing
    return jnp.where(jax.lax.axis_index(axis) == 0, first.astype(x.dtype), left)


def sharded_scan(
    mesh: Mesh,
    axis: str,
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    h0: Array | None = None,
    reset: Array | None = None,
    **options: Any,
) -> Scan:
    """`selective_scan` or `ssd_scan`, by the rank of A, with time split over `axis`.

    Arguments and result as there, global; call it under `jax.jit`. Other axes of the
    mesh stay the compiler's, so the batch may be split over them. T need not be a
    multiple of the axis: the tail is padded with steps that do nothing.

    Raises UserError for an axis that the mesh lacks.
    """
    if axis not in mesh.axis_names:
        raise UserError(
            f"time is to be split over axis {axis!r}, but the mesh has "
            f"{', '.join(mesh.axis_names)}: name one of these"
        )

    def body(steps: Steps, A: Array, h0: Array | None) -> Scan:
        return scan_shard(axis, steps, A, h0, **options)

    everywhere, split = PartitionSpec(), PartitionSpec(axis)
    out = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(split, everywhere, everywhere),
        out_specs=Scan(split, everywhere, everywhere),
        axis_names={axis},
        check_vma=False,
    )(padded(Steps(u, dt, B, C, reset), mesh.shape[axis]), A, h0)
    return out._replace(y=out.y[: len(u)])
