"""Temporary memory of a forward and backward pass, as the compiler states it.

Only compiled, never run: the numbers do not depend on the load of the machine. Naive
forms need about ten times the bounds (an autodiff scan 409 MiB, `associative_scan`
more), so a form that saves what it should recompute fails here.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxrec.ops.selective_scan import selective_scan
from jaxrec.ops.ssd import ssd_scan

B, D, N, H = 8, 128, 16, 2


def mebibytes(scan, length, impl):
    """Of value_and_grad in u, dt, A, B and C, without arguments and results."""
    heads = scan is ssd_scan
    shapes = [
        (length, B, H, D // H) if heads else (length, B, D),
        (length, B, H if heads else D),
        (H,) if heads else (D, N),
        (length, B, N),
        (length, B, N),
        (length, B, D),
    ]

    def loss(*args):
        *args, weight = args
        y = scan(*args, impl=impl, chunk=64).y
        return jnp.sum(y.reshape(weight.shape) * weight)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))
    analysis = program.lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


@pytest.mark.parametrize(
    "scan, impl, bound", [(selective_scan, "custom_vjp", 20), (ssd_scan, "chunked", 20)]
)
def test_memory_at_2048_steps_and_its_growth(scan, impl, bound):
    """The spec's gates are 45 and 30 MiB and 4.2 times; measured 11, 12 and 4.0."""
    at_2048 = mebibytes(scan, 2048, impl)
    assert at_2048 < bound
    assert mebibytes(scan, 8192, impl) < 4.2 * at_2048


def test_autodiff_through_the_steps_would_fail_the_gate():
    assert mebibytes(selective_scan, 2048, "reference") > 200


def test_without_a_gradient_the_adjoint_form_is_the_plain_loop():
    """Loops of chunks in it would copy what each of them reads."""
    args = [
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 1, 2), (2, 1), (8, 1, 1))
    ]

    def loss(u, A, b):
        return jnp.sum(selective_scan(u, u, A, b, b, impl="custom_vjp", chunk=4).y)

    loops = [
        jax.jit(f).lower(*args).as_text().count("stablehlo.while")
        for f in (loss, jax.grad(loss))
    ]
    assert loops[0] == 1 < loops[1], loops
