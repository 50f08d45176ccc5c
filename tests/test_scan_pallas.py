"""The TPU kernel in Pallas's interpreter, and its lowering; no TPU is needed.

`test_selective_scan` holds it to the loop with several tiles of time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scan_oracle
from jax import export

from jaxrec.ops import pallas_scan
from jaxrec.ops.selective_scan import selective_scan


def test_parts_of_several_tiles_of_channels_add_up(monkeypatch):
    """Four channels in tiles of three: the second one is mostly padding."""
    monkeypatch.setattr(pallas_scan, "LANES", 3)
    args = scan_oracle.inputs(11)
    random = np.random.default_rng(1)
    weights = random.normal(size=args[0].shape), random.normal(size=args[-1].shape)
    reset = np.zeros((11, 2), bool)
    reset[[0, 8], 0] = True

    def loss(args):
        *rest, h0 = args
        out = selective_scan(*rest, h0=h0, reset=reset, impl="pallas", chunk=8)
        return jnp.sum(out.y * weights[0]) + jnp.sum(out.h_last * weights[1])

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(loss))(args)
    for name, got, want in zip(
        scan_oracle.NAMES, found, scan_oracle.gradients(args, reset, *weights)
    ):
        scale = max(np.abs(want).max(), 1)
        np.testing.assert_allclose(got, want, atol=1e-12 * scale, err_msg=name)


def test_both_passes_lower_for_a_tpu():
    """To Mosaic: shapes of blocks, operations and layouts that a TPU lacks are refused.

    What Mosaic's own compiler makes of it needs a device.
    """
    batch, length, channels, size = 2, 128, 256, 16
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    per_channel, shared = shape((batch, length, channels)), shape((batch, length, size))
    rates, state = shape((size, channels)), shape((batch, size, channels))
    keep = shape((batch, length, 1))

    def loss(*inputs):
        y, h_last = pallas_scan.scan(64, False, *inputs)
        return jnp.sum(y**2) + jnp.sum(h_last)

    exported = export.export(
        jax.jit(jax.grad(loss, argnums=range(6))), platforms=["tpu"]
    )(per_channel, per_channel, rates, shared, shared, state, keep)
    assert exported.mlir_module().count("tpu_custom_call") == 2
