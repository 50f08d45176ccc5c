"""Forms of attention: equal to the quadratic ones, causal, apart between users."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from toy_recommenders import jit

from jaxrec.bench import timing
from jaxrec.models import attention, encoders

B, T, H, P = 3, 37, 2, 8
LENGTH = np.array([37, 20, 0])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, groups and chunks, none of which divides T."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    monkeypatch.setattr(attention, "GROUPS", 2)
    monkeypatch.setattr(attention, "CHUNK", 8)


def qkv(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (B, T, H, P)) for key in keys]


def full(q, k, v, length):
    at = jnp.arange(T)[None]
    return attention.attend(q, k, v, at, length, attention.softmax)


def blockwise(q, k, v, length):
    return attention.blockwise(q, k, v, length, attention.softmax)


def exists(y):
    return (np.arange(T)[None] < LENGTH[:, None])[..., None, None] * y


def value_and_grads(form):
    weight = jax.random.normal(jax.random.key(9), (B, T, H, P))

    def f(q, k, v):
        y = exists(form(q, k, v, LENGTH))
        return jnp.sum(weight * y), y

    (_, y), grads = jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(*qkv())
    return y, *grads


def test_blocks_give_what_full_scores_give():
    for found, want in zip(value_and_grads(blockwise), value_and_grads(full)):
        np.testing.assert_allclose(found, want, atol=1e-5)
        assert np.any(want)


def masked_linrec(q, k, v, length):
    """The O(T^2) form: causal products of normalised queries and keys, times V."""
    k = jnp.where((jnp.arange(T)[None] < length[:, None])[..., None, None], k, -0.0)
    k, q = jnp.expm1(jnp.minimum(k, 0)) + jnp.maximum(k, 0), jax.nn.elu(q)
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True) / P**0.5
    column = jnp.sqrt(jnp.cumsum(k**2, axis=1) + 1e-12)
    score = jnp.einsum("brhd,bthd->bhrt", q / column, k)
    score = score * np.tril(np.ones((T, T)))[None, None]
    return jnp.einsum("bhrt,bthd->brhd", score, v)


def test_linrec_gives_what_the_masked_products_give():
    found, want = value_and_grads(attention.linear), value_and_grads(masked_linrec)
    for one, other in zip(found, want):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.any(other)


def test_linrec_at_the_last_event_is_that_of_the_paper():
    """Queries by their rows' norms, keys by their columns', sums over all keys."""
    q, k, v = (np.asarray(x, np.float64)[0] for x in qkv())
    elu = lambda x: np.where(x > 0, x, np.expm1(x))  # noqa: E731
    q = elu(q) / np.linalg.norm(elu(q), axis=-1, keepdims=True)
    k = elu(k) / np.linalg.norm(elu(k), axis=0, keepdims=True)
    want = np.einsum("hd,hde->he", q[-1], np.einsum("thd,the->hde", k, v)) / P**0.5
    q, k, v = qkv()
    np.testing.assert_allclose(
        attention.linear(q, k, v, LENGTH)[0, -1], want, atol=1e-5
    )
    one = attention.linear(q[:, -1:], k, v, LENGTH)
    np.testing.assert_allclose(one[0, 0], want, atol=1e-5)


def leaks(form):
    """How much user 0's outputs move with user 1's inputs, and with their own.

    Of their own only the first event moves, seen at the last: an encoder that mixes
    users and not time (RecMamba's LinRec) moves the first number, not the second.
    """
    inputs, other, length = qkv(), qkv(1), np.full(B, T)
    form = jit(form)
    out = form(*inputs, length)
    theirs = [x.at[1].set(y[1]) for x, y in zip(inputs, other)]
    own = [x.at[0, 0].set(y[0, 0]) for x, y in zip(inputs, other)]
    moved = [form(*changed, length) - out for changed in (theirs, own)]
    return [float(np.abs(m).max()) for m in (moved[0][0], moved[1][0, -1])]


@pytest.mark.parametrize("form", [full, blockwise, attention.linear])
def test_users_are_apart_and_time_is_not(form):
    theirs, own = leaks(form)
    assert theirs == 0.0 and own > 1e-3


def test_a_transposed_linrec_is_caught():
    """User 2's numbers come after user 1's on the axis that it takes for time."""

    def transposed(q, k, v, length):
        q, k, v = (x[::-1].swapaxes(0, 1) for x in (q, k, v))
        return attention.linear(q, k, v, np.full(T, B)).swapaxes(0, 1)[::-1]

    theirs, own = leaks(transposed)
    assert theirs > 1e-3 and own == 0.0


@functools.cache
def encoder(name, form, seq_len=T):
    config = ConfigDict(dict(encoders.SPEC))
    config.update(dict(name=name, width=16, num_layers=1, num_heads=2, attention=form))
    made = encoders.make(config, seq_len)
    params = made.init(jax.random.key(0), jnp.zeros((1, 4, 16)), np.full(1, 4))
    noise = np.random.default_rng(0)
    noisy = lambda x: x + 0.3 * noise.standard_normal(x.shape).astype(x.dtype)  # noqa: E731
    return made, jax.tree.map(noisy, params)


@pytest.mark.parametrize(
    "name", ["sasrec", pytest.param("hstu", marks=pytest.mark.slow)]
)
def test_encoders_in_blocks_equal_the_full_ones(name):
    x = jax.random.normal(jax.random.key(3), (B, T, 16))
    results = []
    for form in ("full", "blockwise"):
        made, params = encoder(name, form)

        @jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(params, x, made=made):
            y = made.apply(params, x, LENGTH)
            last = made.apply(params, x, LENGTH, only_last=True)
            y = jnp.where(exists(1.0)[..., 0] > 0, y, 0)
            return jnp.sum(y**2) + jnp.sum(last**3), (y, last)

        results.append(run(params, x))
    assert float(np.abs(results[0][0][1][0]).max()) > 1.0
    for found, want in zip(*map(jax.tree.leaves, results)):
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(found / scale, want / scale, atol=1e-5)


def test_hstu_against_numpy():
    made, params = encoder("hstu", "full")
    p = jax.tree.map(np.float64, params["params"])
    x = np.asarray(jax.random.normal(jax.random.key(3), (B, T, 16)))
    silu = lambda y: y / (1 + np.exp(-y))  # noqa: E731
    n = 20  # events of row 1

    def norm(y, q):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-8)
        return y * q["scale"] + q["bias"]

    y = 4 * np.float64(x[1, :n]) + p["positions_table"][:n]
    for i in range(1):
        z = norm(y, p[f"norm_in_{i}"]) @ p[f"first_{i}"]["kernel"]
        u, v, q, k = np.split(silu(z + p[f"first_{i}"]["bias"]), 4, axis=-1)
        out = np.zeros((n, 16))
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            for t in range(n):
                for s in range(t + 1):
                    score = q[t, part] @ k[s, part] + p[f"distance_{i}"][t - s, h]
                    out[t, part] += silu(score) / T * v[s, part]
        second = p[f"second_{i}"]
        out = norm(out, p[f"norm_attention_{i}"]) * u
        y = y + out @ second["kernel"] + second["bias"]
    found = made.apply(params, x, LENGTH)[1, :n]
    np.testing.assert_allclose(found, norm(y, p["norm_out"]), atol=1e-4)


def test_dropout_in_blocks_is_a_function_of_the_key_and_keeps_the_mean():
    made, params = encoder("sasrec", "blockwise")
    made = made.copy(dropout=0.5)
    x = jax.random.normal(jax.random.key(3), (B, T, 16))

    @jit
    def apply(key):
        return made.apply(params, x, LENGTH, True, rngs={"dropout": key})

    one, two = jax.random.split(jax.random.key(3))
    first = apply(jax.random.clone(one))
    np.testing.assert_array_equal(first, apply(one))
    assert not np.allclose(first[:2], apply(two)[:2])
    drop = attention.dropout(Key(jax.random.key(0)), 0.25)
    kept = drop(jnp.ones((4, 2, 50, 50)), jnp.arange(50)[None])
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(kept.mean()) - 1) < 0.02


class Key:
    def __init__(self, key):
        self.key = key

    def make_rng(self, name):
        return self.key


def temporary_bytes(name, form, length):
    made, params = encoder(name, form, length)
    x = jax.ShapeDtypeStruct((2, length, 16), jnp.float32)

    def loss(params, x):
        return jnp.sum(made.apply(params, x, jnp.full(2, length)) ** 2)

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x)
    return timing.memory(lowered.compile())["temporary_bytes"]


@pytest.mark.parametrize(
    "name", ["sasrec", pytest.param("linrec", marks=pytest.mark.slow)]
)
def test_memory_of_blocks_is_linear_in_the_length(name, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 64)
    monkeypatch.setattr(attention, "CHUNK", 64)
    form = "full" if name == "linrec" else "blockwise"
    small, large = (temporary_bytes(name, form, n) for n in (512, 2048))
    assert large < 4.4 * small
    if name != "linrec":
        assert large < 0.4 * temporary_bytes(name, "full", 2048)
