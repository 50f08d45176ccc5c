"""The scan with one decay a head, by matrix products, is the NumPy loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scan_oracle

from jaxrec.ops.ssd import IMPLEMENTATIONS, choose, ssd_scan

T = 37


@functools.cache
def program(impl, chunk):
    """(args, reset, weights of y and h_last) -> (y, h_last), the six gradients."""

    def loss(args, reset, y_weight, h_weight):
        *rest, h0 = args
        out = ssd_scan(*rest, h0=h0, reset=reset, impl=impl, chunk=chunk)
        loss = jnp.sum(out.y * y_weight) + jnp.sum(out.h_last * h_weight)
        return loss, (out.y, out.h_last)

    return jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def case(length, *resets, weight_y=1, weight_h=1):
    """Arguments, values, gradients; `resets` are the steps at which row 0 starts."""
    args = scan_oracle.inputs(length, heads=True)
    random = np.random.default_rng(1)
    y_weight = weight_y * random.normal(size=args[0].shape)
    h_weight = weight_h * random.normal(size=args[-1].shape)
    reset = np.zeros((length, 2), bool)
    reset[list(resets), 0] = True
    values = scan_oracle.scan(*args, reset)
    grads = scan_oracle.gradients(args, reset, y_weight, h_weight)
    return (args, reset, y_weight, h_weight), values, grads


def check(impl, case, chunk=16):
    arguments, values, grads = case
    with jax.enable_x64(True):
        found_grads, found = program(impl, chunk)(*arguments)
    for got, want in zip(found, values):
        np.testing.assert_allclose(got, want, atol=1e-12 * np.abs(want).max())
    for name, got, want in zip(scan_oracle.NAMES, found_grads, grads):
        scale = max(np.abs(want).max(), 1)
        np.testing.assert_allclose(got, want, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_values_and_gradients_are_those_of_the_loop(impl):
    """37 steps make three chunks of 13: edges at 13 and 26."""
    check(impl, case(T))
    for resets in ([0], [13], [12], [13, 14], [20, 21, 35], [36]):
        check(impl, case(T, *resets))
    check(impl, case(T, 5, 13, weight_h=0))
    check(impl, case(T, 5, weight_y=0))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_state_that_is_no_number_ends_at_a_reset(impl):
    """At the first step nothing is seen of it; within a chunk nothing behind."""
    (args, *rest), values, grads = case(T, 0)
    h0 = args[-1].copy()
    h0[0] = np.nan
    check(impl, (((*args[:-1], h0), *rest), values, grads))
    (_, *rest), values, grads = case(T, 20)
    h0[0] = np.inf
    with jax.enable_x64(True):
        found = program(impl, 16)((*args[:-1], h0), *rest)
    assert not np.isfinite(found[1][0][:20, 0]).any()
    scan_oracle.check_behind(20, found, (grads, values))


@pytest.mark.parametrize("impl", ["chunked", "all_chunks"])
def test_a_chunk_longer_than_the_sequence(impl):
    check(impl, case(7, 3), chunk=64)


def test_without_a_reset_argument():
    args = scan_oracle.inputs(T, heads=True)
    y, h_last = scan_oracle.scan(*args)
    for impl in IMPLEMENTATIONS:
        with jax.enable_x64(True):
            out = ssd_scan(*args[:5], h0=args[5], impl=impl, chunk=8)
        np.testing.assert_allclose(out.y, y, atol=1e-12)
        np.testing.assert_allclose(out.h_last, h_last, atol=1e-12)


@pytest.mark.parametrize("impl", ["chunked", "all_chunks"])
def test_steep_decay_has_finite_exact_gradients(impl):
    """dt |A| Q of thousands: exp of what the mask hides would be infinite."""
    (args, reset, *weights), *_ = case(T, 20)
    steep = [np.float32(x) for x in args]
    steep[2] = steep[2] * 1000
    weights = [np.float32(w) for w in weights]
    grads, (y, h_last) = program(impl, 16)(steep, reset, *weights)
    exact = [np.float64(x) for x in steep]
    want_y, want_h = scan_oracle.scan(*exact, reset)
    np.testing.assert_allclose(y, want_y, atol=1e-5 * np.abs(want_y).max())
    np.testing.assert_allclose(h_last, want_h, atol=1e-5 * np.abs(want_h).max())
    want = scan_oracle.gradients(exact, reset, *weights)
    for name, got, wanted in zip(scan_oracle.NAMES, grads, want):
        scale = max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(got, wanted, atol=1e-4 * scale, err_msg=name)


def test_float32_to_1e_5_and_bfloat16_to_1e_2():
    (args, reset, *weights), *_ = case(T, 20)
    weights = [np.float32(w) for w in weights]
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        narrow = [jnp.asarray(x, dtype) for x in args]
        narrow[-1] = narrow[-1].astype(jnp.float32)
        found, (y, h_last) = program("chunked", 16)(narrow, reset, *weights)
        assert y.dtype == h_last.dtype == jnp.float32
        exact = [np.asarray(x, np.float64) for x in narrow]
        want = scan_oracle.gradients(exact, reset, *weights)
        for name, x, got, wanted in zip(scan_oracle.NAMES, narrow, found, want):
            assert got.dtype == x.dtype, name
            error = np.abs(np.asarray(got, np.float64) - wanted).max()
            assert error < tolerance * np.abs(wanted).max(), (name, error)


def test_the_choice_and_what_it_refuses():
    for backend in ("cpu", "gpu", "tpu"):
        assert choose(backend, 1) == "sequential" and choose(backend, 99) == "chunked"
    args = scan_oracle.inputs(3, heads=True)
    with pytest.raises(ValueError, match="impl='fast'.*chunked"):
        ssd_scan(*args[:5], impl="fast")
    with pytest.raises(ValueError, match="do not fit each other"):
        ssd_scan(args[0], args[1][..., :1], *args[2:5])
