"""Every implementation of the selective scan is the NumPy loop, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scan_oracle

from jaxrec.ops.selective_scan import IMPLEMENTATIONS, choose, selective_scan

T, CHUNK = 37, 8
# At the first step, on the edge of a chunk, twice in a row, and within a chunk.
RESET = np.zeros((T, 2), bool)
RESET[[0, 8, 20, 21], 0] = RESET[[5, 15, 16], 1] = True


@functools.cache
def program(impl):
    """(args, reset, weights of y and h_last) -> (y, h_last), the six gradients."""

    def loss(args, reset, y_weight, h_weight):
        *rest, h0 = args
        out = selective_scan(*rest, h0=h0, reset=reset, impl=impl, chunk=CHUNK)
        loss = jnp.sum(out.y * y_weight) + jnp.sum(out.h_last * h_weight)
        return loss, (out.y, out.h_last)

    return jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def oracle(length, with_reset, weight_y=1, weight_h=1):
    args = scan_oracle.inputs(length)
    random = np.random.default_rng(1)
    y_weight = weight_y * random.normal(size=args[0].shape)
    h_weight = weight_h * random.normal(size=args[-1].shape)
    reset = RESET[:length] & with_reset
    values = scan_oracle.scan(*args, reset)
    grads = scan_oracle.gradients(args, reset, y_weight, h_weight)
    return (args, reset, y_weight, h_weight), values, grads


def check(impl, case, tolerance=1e-12):
    arguments, values, grads = case
    with jax.enable_x64(True):
        found_grads, found = program(impl)(*arguments)
    for got, want in zip(found, values):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    for name, got, want in zip(scan_oracle.NAMES, found_grads, grads):
        np.testing.assert_allclose(
            got, want, atol=tolerance * max(np.abs(want).max(), 1), err_msg=name
        )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_values_and_gradients_are_those_of_the_loop(impl):
    check(impl, oracle(T, with_reset=False))
    check(impl, oracle(T, with_reset=True))
    # The cotangents come through y alone and through the last state alone.
    check(impl, oracle(T, with_reset=True, weight_h=0))
    check(impl, oracle(T, with_reset=False, weight_y=0))


def test_the_oracle_sees_what_a_reset_does():
    _, (y, h_last), grads = oracle(T, with_reset=False)
    _, (y_reset, h_reset), grads_reset = oracle(T, with_reset=True)
    assert np.abs(y - y_reset).max() > 0.1
    assert np.abs(grads[-1]).max() > 0 and not np.any(grads_reset[-1][0])


@pytest.mark.parametrize("impl", ["custom_vjp", "two_pass"])
def test_fewer_steps_than_a_chunk(impl):
    check(impl, oracle(5, with_reset=True))


@pytest.mark.parametrize("impl", ["reference", "custom_vjp", "two_pass"])
def test_without_a_reset_argument(impl):
    args = scan_oracle.inputs(T)
    y, h_last = scan_oracle.scan(*args)
    with jax.enable_x64(True):
        out = selective_scan(*args[:5], h0=args[5], impl=impl, chunk=CHUNK)
    np.testing.assert_allclose(out.y, y, atol=1e-12)
    np.testing.assert_allclose(out.h_last, h_last, atol=1e-12)
    np.testing.assert_array_equal(out.decay.alive, 1)


def test_float32_to_1e_5_and_bfloat16_to_1e_2():
    arguments, _, grads = oracle(T, with_reset=True)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        args = [jnp.asarray(x, dtype) for x in arguments[0]]
        args[-1] = args[-1].astype(jnp.float32)
        weights = [np.asarray(w, np.float32) for w in arguments[2:]]
        found, (y, h_last) = program("custom_vjp")(args, RESET, *weights)
        assert y.dtype == h_last.dtype == jnp.float32
        exact = [np.asarray(x, np.float64) for x in args]
        want = scan_oracle.gradients(exact, RESET, *weights)
        for name, x, got, wanted in zip(scan_oracle.NAMES, args, found, want):
            assert got.dtype == x.dtype, name
            error = np.abs(np.asarray(got, np.float64) - wanted).max()
            assert error < tolerance * np.abs(wanted).max(), (name, error)


def test_states_of_narrow_inputs_are_wide():
    """Beyond 256, additions of one would stand still in bfloat16."""
    ones = jnp.ones((1000, 1, 1), jnp.bfloat16)
    out = selective_scan(ones, ones, jnp.zeros((1, 1), jnp.bfloat16), ones, ones)
    assert out.h_last.item() == 1000


def test_two_runs_give_the_same_bits():
    arguments, _, _ = oracle(T, with_reset=True)
    narrow = jax.tree.map(
        lambda x: x if x.dtype == bool else np.float32(x), list(arguments)
    )
    first, second = (program("custom_vjp")(*narrow) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_state_that_is_no_number_ends_at_a_reset(impl):
    """At the first step, in row 0, nothing is seen of it; at step 5, in row 1, nothing
    behind."""
    (args, *rest), values, grads = oracle(T, with_reset=True)
    h0 = args[-1].copy()
    h0[0] = np.nan
    check(impl, (((*args[:-1], h0), *rest), values, grads))
    h0[1] = np.inf
    with jax.enable_x64(True):
        found = program(impl)((*args[:-1], h0), *rest)
    assert not np.isfinite(found[1][0][:5, 1]).any()
    scan_oracle.check_behind(5, found, (grads, values))


def test_padding_leaves_the_state_alone():
    u, dt, A, B, C, h0 = (jnp.asarray(x, jnp.float32) for x in scan_oracle.inputs(T))
    out = selective_scan(u, dt.at[20:].set(0), A, B, C, h0=h0, chunk=CHUNK)
    short = selective_scan(u[:20], dt[:20], A, B[:20], C[:20], h0=h0, chunk=CHUNK)
    np.testing.assert_allclose(out.h_last, short.h_last, atol=1e-6)


def test_the_decay_is_what_crosses_the_stretch():
    args = [jnp.asarray(x, jnp.float32) for x in scan_oracle.inputs(T)]
    A, h0 = args[2], args[5]
    out = selective_scan(*args[:5], h0=h0, reset=RESET[::-1] & [True, False])
    zero = selective_scan(*args[:5], reset=RESET[::-1] & [True, False])
    np.testing.assert_array_equal(out.decay.alive, [0, 1])
    factor = jnp.exp(A[None] * out.decay.total[:, :, None])
    crossed = factor * out.decay.alive[:, None, None] * h0
    np.testing.assert_allclose(out.h_last - zero.h_last, crossed, atol=1e-6)


def test_vmap_is_a_loop_over_seeds():
    args = [jnp.asarray(x, jnp.float32) for x in scan_oracle.inputs(T)]

    def loss(u):
        return jnp.sum(selective_scan(u, *args[1:5], chunk=CHUNK).y ** 2)

    u = jnp.stack([args[0], 2 * args[0]])
    both = jax.jit(jax.vmap(jax.grad(loss)))(u)
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-5)


def test_the_choice_is_a_function_of_the_backend_and_in_the_table():
    assert choose("cpu", 100) == "custom_vjp"
    for backend in ("cpu", "gpu", "tpu"):
        assert {choose(backend, 1), choose(backend, 100)} <= set(IMPLEMENTATIONS)
        assert choose(backend, 100) != "pallas"
    args = scan_oracle.inputs(3)
    with pytest.raises(ValueError, match="impl='fast'.*custom_vjp"):
        selective_scan(*args[:5], impl="fast")
    with pytest.raises(ValueError, match="chunks of 0"):
        selective_scan(*args[:5], chunk=0)
    u, dt, A, B, C = args[:5]
    for wrong in (
        (u, dt[..., :1], A, B, C),
        (u, dt, A, B[:1], C),
        (u, dt, A, B, C[1:]),
    ):
        with pytest.raises(ValueError, match="do not fit each other"):
            selective_scan(*wrong)
    with pytest.raises(ValueError, match="do not fit each other"):
        selective_scan(*args[:5], reset=np.zeros((len(u), 1), bool))
