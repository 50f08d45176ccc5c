"""Time split over four devices gives what one device gives, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scan_oracle
from jax.sharding import AxisType, PartitionSpec

from jaxrec.ops import context
from jaxrec.ops.selective_scan import selective_scan
from jaxrec.ops.ssd import ssd_scan
from jaxrec.types import UserError

# 38 steps over four devices: ten each, the last with two of padding.
T = 38
RESETS = {"none": [], "inside shards": [3, 17, 18], "on their edges": [10, 19, 20, 30]}
RESETS["first, behind a NaN"] = [0]


def mesh():
    return jax.make_mesh((2, 4), ("data", "time"), axis_types=(AxisType.Auto,) * 2)


@functools.cache
def programs(heads):
    """(args, reset) -> (six gradients, the Scan): with time split, and without."""
    one = ssd_scan if heads else selective_scan
    split = functools.partial(context.sharded_scan, mesh(), "time")

    def graded(scan):
        def loss(args, reset):
            *rest, h0 = args
            out = scan(*rest, h0=h0, reset=reset, chunk=4)
            crossing = jnp.sum(jnp.sin(out.decay.total)) * jnp.sum(out.decay.alive)
            loss = jnp.sum(jnp.sin(out.y)) + jnp.sum(jnp.cos(out.h_last)) + crossing
            return loss, out

        return jax.jit(jax.grad(loss, has_aux=True))

    return graded(split), graded(one)


@pytest.mark.parametrize("where", RESETS)
@pytest.mark.parametrize("heads", [False, True])
def test_split_time_is_one_device(heads, where):
    args = scan_oracle.inputs(T, heads)
    reset = np.zeros((T, 2), bool)
    reset[RESETS[where], 0] = True
    args[-1][reset[0]] = np.nan
    with jax.enable_x64(True):
        found, want = (program(args, reset) for program in programs(heads))
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(want)):
        assert got.shape == wanted.shape
        scale = max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(got, wanted, atol=1e-12 * scale)
    y, h_last = scan_oracle.scan(*args, reset)
    np.testing.assert_allclose(found[1].y, y, atol=1e-12)
    np.testing.assert_allclose(found[1].h_last, h_last, atol=1e-12)


def test_defaults_and_a_batch_split_over_the_other_axis():
    args = [jnp.asarray(x, jnp.float32) for x in scan_oracle.inputs(T)][:5]
    rows = jax.NamedSharding(mesh(), PartitionSpec(None, "data"))
    placed = [jax.device_put(x, rows) if x.ndim == 3 else x for x in args]
    split = jax.jit(functools.partial(context.sharded_scan, mesh(), "time"))(*placed)
    np.testing.assert_allclose(split.y, selective_scan(*args).y, atol=1e-6)
    # Chunks side by side within shards side by side.
    form = functools.partial(context.sharded_scan, mesh(), "time", impl="two_pass")
    np.testing.assert_allclose(jax.jit(form)(*args).y, split.y, atol=1e-6)
    with pytest.raises(UserError, match="'tme'.*data, time"):
        context.sharded_scan(mesh(), "tme", *args)


def convolve(x, tail, taps):
    """A causal convolution over [tail, x]: the way a shard uses its halo."""
    ext = jnp.concatenate([tail, x])
    return sum(tap * ext[i : i + len(x)] for i, tap in enumerate(taps))


def test_a_halo_continues_the_convolution_across_shards():
    x, tail = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    tail, taps = tail[:3], (0.5, -1.0, 2.0, 0.25)

    @functools.partial(
        jax.shard_map,
        mesh=mesh(),
        in_specs=(PartitionSpec("time"), PartitionSpec()),
        out_specs=PartitionSpec("time"),
    )
    def split(x, first):
        return convolve(x, context.halo(x, 3, "time", first), taps)

    def one(x, first):
        return convolve(x, first, taps)

    def graded(f):
        return jax.jit(jax.grad(lambda *xs: jnp.sum(jnp.sin(f(*xs))), argnums=(0, 1)))

    np.testing.assert_allclose(split(x, tail), one(x, tail), atol=1e-6)
    for got, want in zip(graded(split)(x, tail), graded(one)(x, tail)):
        np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(ValueError, match="halo of 3 steps from shards of 2"):
        split(x[:8], tail)


def test_a_halo_without_a_first_starts_from_zeros():
    x = np.arange(8, dtype=np.float32)
    split = jax.shard_map(
        lambda x: context.halo(x, 1, "time"),
        mesh=mesh(),
        in_specs=PartitionSpec("time"),
        out_specs=PartitionSpec("time"),
    )
    np.testing.assert_array_equal(split(x), [0, 1, 3, 5])
