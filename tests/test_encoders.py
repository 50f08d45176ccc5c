"""Encoders: causal, blind to padding, and what their papers' code computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.models import encoders
from jaxrec.types import UserError

B, T, D = 5, 10, 64
LENGTH = np.array([10, 3, 1, 0, 7])
MODERN = dict(num_layers=2, num_heads=4, prenorm="all", scale_embedding=True, ffn=4)


@functools.cache
def _built(name, changes):
    config = ConfigDict(dict(encoders.SPEC) | dict(name=name) | dict(changes))
    encoder = encoders.make(config, T)
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    # Not the initial values: biases of 0 and scales of 1 would hide their misuse.
    shapes = jax.eval_shape(encoder.init, jax.random.key(1), x, LENGTH)
    draw = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.float32(
            0.1 * draw.standard_normal(leaf.shape) + (path[-1].key == "scale")
        ),
        shapes,
    )
    return config, encoder, params, x


def build(name, **changes):
    return _built(name, tuple(changes.items()))


CASES = [(name, {}) for name in encoders.ENCODERS] + [
    ("gru", dict(num_layers=2)),
    ("sasrec", dict(positions="recency", **MODERN)),
    ("linrec", MODERN),
    ("hstu", dict(num_layers=2, num_heads=4)),
]


@pytest.mark.parametrize("name,changes", CASES)
def test_causal_blind_to_padding_and_finite(name, changes):
    config, encoder, params, x = build(name, **changes)
    apply = jax.jit(lambda x: encoder.apply(params, x, LENGTH))
    out = apply(x)
    assert out.shape == (B, T, encoders.out_width(config))
    assert encoders.out_width(config) == (112 if name == "caser" else 64)
    assert np.isfinite(out).all()
    noise = jax.random.normal(jax.random.key(2), x.shape)
    for t in (0, 4, 8):
        later = (jnp.arange(T) > t)[None, :, None]
        # Up to the last bit: XLA may add in another order where inputs differ.
        moved = apply(jnp.where(later, noise, x))
        np.testing.assert_allclose(moved[:, : t + 1], out[:, : t + 1], atol=1e-5)
        assert not np.allclose(moved[0, t + 1], out[0, t + 1], atol=1e-3)
    padding = (jnp.arange(T)[None] >= np.maximum(LENGTH, 1)[:, None])[..., None]
    moved = apply(jnp.where(padding, jnp.nan, x))
    for row, length in enumerate(LENGTH):
        kept = slice(0, max(length, 1))
        np.testing.assert_allclose(moved[row, kept], out[row, kept], atol=1e-5)


@pytest.mark.parametrize("name,changes", CASES)
def test_last_is_the_state_after_the_last_event(name, changes):
    _, encoder, params, x = build(name, **changes)
    weight = jax.random.normal(jax.random.key(4), (112,))

    def direct(params, x):
        y = encoder.apply(params, x, LENGTH, method=encoders.last)
        return jnp.sum(y * weight[None, : y.shape[-1]]), y

    def gathered(params, x):
        y = encoder.apply(params, x, LENGTH)
        y = y[np.arange(B), np.maximum(LENGTH - 1, 0)]
        return jnp.sum(y * weight[None, : y.shape[-1]]), y

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x)
        for f in (direct, gathered)
    ]
    assert results[0][0][1].ndim == 2
    for found, want in zip(*map(jax.tree.leaves, results)):
        assert np.isfinite(found).all() and np.isfinite(want).all()
        scale = max(1.0, np.abs(want).max())
        # LinRec divides by the norm of a column, which may be one small number.
        np.testing.assert_allclose(found / scale, want / scale, atol=5e-5)
    grad = results[0][1][1]
    padding = np.arange(T)[None] >= np.maximum(LENGTH, 1)[:, None]
    assert not np.any(grad[padding]) and np.any(grad[~padding])
    # Only the GRU reads the embedding of padding where there is no event.
    assert np.any(grad[LENGTH == 0]) == (name == "gru")


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_empty_histories_and_low_precision(name):
    """At the start, where norms meet zeros: finite values and gradients."""
    _, encoder, _, _ = build(name)
    x, none = jnp.zeros((2, T, D), jnp.bfloat16), np.zeros(2, np.int32)
    params = jax.jit(encoder.init)(jax.random.key(1), x, none)

    if name == "gru":
        assert np.all(params["params"]["gates_bias_0"] == 1.0)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def value_and_grad(params, x):
        y = encoder.apply(params, x, none)
        return jnp.sum(y**2 + y), y

    (_, y), grads = value_and_grad(params, x)
    assert y.dtype == jnp.float32
    for leaf in jax.tree.leaves((y, grads)):
        assert np.isfinite(np.float32(leaf)).all()
    _, encoder, params, x = build(name)
    low, full = (outputs(encoder, params, y) for y in (x.astype(jnp.bfloat16), x))
    assert low.dtype == jnp.float32
    for row, length in enumerate(LENGTH):
        kept = slice(0, max(length, 1))
        assert np.abs(low[row, kept] - full[row, kept]).max() < 0.1


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_dropout_is_a_function_of_the_key(name):
    config, encoder, params, x = build(name, dropout=0.5)

    @jax.jit
    def apply(key):
        return encoder.apply(params, x, LENGTH, True, rngs={"dropout": key})

    one, two = jax.random.split(jax.random.key(3))
    first = apply(jax.random.clone(one))
    np.testing.assert_array_equal(first, apply(one))
    assert not np.allclose(first, apply(two))
    assert not np.allclose(first, outputs(encoder, params, x))


@pytest.mark.parametrize("name", ["sasrec", "linrec", "mamba", "mamba2"])
def test_default_scale_of_item_vectors(name):
    config = ConfigDict(encoders.SPEC)
    config.name = name
    found = encoders.make(config, 10).scale_embedding
    assert found == name.startswith("mamba")
    for scale in (0, 1):
        config.scale_embedding = scale
        assert encoders.make(config, 10).scale_embedding == scale


def test_default_dropout_is_that_of_the_code():
    known = dict(gru=0.0, caser=0.1, nextitnet=0.0, sasrec=0.1, linrec=0.1, hstu=0.2)
    assert {name: build(name)[1].dropout for name in known} == known
    assert build("caser", dropout=0.0)[1].dropout == 0.0


@pytest.mark.parametrize(
    "name,changes,number",
    [
        # [D + D, 2 D] and its bias, [D + D, D] and its bias: 25k as in the papers
        ("gru", {}, 128 * 128 + 128 + 128 * 64 + 64),
        # three heights x 16 filters of height x 64, and one of 10 x 1
        ("caser", {}, 16 * 64 * (2 + 3 + 4) + 3 * 16 + 10 + 1),
        # six blocks of two convolutions of 3 x 64 x 64 and two norms
        ("nextitnet", {}, 12 * (3 * 64 * 64 + 64 + 128)),
        # positions, q k v, two dense layers, three norms
        ("sasrec", {}, 640 + 3 * (64 * 64 + 64) + 2 * (64 * 64 + 64) + 3 * 128),
        # per block q k v and a projection, up and down over 256, two norms
        ("sasrec", MODERN, 640 + 128 + 2 * (12 * 64 * 64 + 4 * 64 + 256 + 64 + 256)),
    ],
)
def test_parameters(name, changes, number):
    params = build(name, **changes)[2]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number


def outputs(encoder, params, x, length=LENGTH):
    return np.asarray(jax.jit(encoder.apply)(params, x, length))


def test_gru_against_numpy():
    _, encoder, params, x = build("gru", num_layers=2)
    p = jax.tree.map(np.float64, params["params"])
    found = outputs(encoder, params, x, np.full(B, T))
    y = np.float64(x)
    for layer in "01":
        h, states = np.zeros((B, D)), []
        for t in range(T):
            both = np.concatenate([y[:, t], h], axis=1)
            gates = both @ p[f"gates_kernel_{layer}"] + p[f"gates_bias_{layer}"]
            r, u = np.split(1 / (1 + np.exp(-gates)), 2, axis=1)
            both = np.concatenate([y[:, t], r * h], axis=1)
            c = both @ p[f"candidate_kernel_{layer}"] + p[f"candidate_bias_{layer}"]
            h = u * h + (1 - u) * np.tanh(c)
            states.append(h)
        y = np.stack(states, axis=1)
    np.testing.assert_allclose(found, y, atol=1e-5)


@pytest.mark.parametrize("size", [T, 6, 1])
def test_caser_against_numpy(size):
    """The code's Caser on every prefix, also where the window is not full."""
    _, encoder, params, x = build("caser")
    p = jax.tree.map(np.float64, params["params"])
    found = outputs(encoder, params, x[:, :size], np.full(B, size))
    for t in range(size):
        image = np.zeros((B, T, D))
        image[:, : t + 1] = x[:, : t + 1]
        parts = []
        for height in (2, 3, 4):
            kernel, bias = p[f"kernel_{height}"], p[f"bias_{height}"]
            windows = np.stack(
                [image[:, s : s + height] for s in range(T - height + 1)]
            )
            y = np.einsum("wbhd,hdf->wbf", windows, kernel) + bias
            parts.append(np.maximum(y, 0).max(0))
        y = np.einsum("btd,t->bd", image, p["vertical_kernel"]) + p["vertical_bias"]
        want = np.concatenate([*parts, np.maximum(y, 0)], axis=1)
        np.testing.assert_allclose(found[:, t], want, atol=2e-5)


def norm(y, p):
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-8)
    return y * p["scale"] + p["bias"]


def dense(y, p):
    return y @ p["kernel"] + p["bias"]


def test_nextitnet_against_numpy():
    _, encoder, params, x = build("nextitnet")
    p = jax.tree.map(np.float64, params["params"])
    n = 7  # row 4 has seven events
    out = np.float64(x[4, :n])
    for block, dilation in enumerate((1, 2, 1, 2, 1, 2)):
        y = out
        for layer, step in ((0, dilation), (1, 2 * dilation)):
            conv = p[f"conv_{block}_{layer}"]
            kernel, z = conv["kernel"].reshape(3, D, D), np.zeros((n, D))
            for t in range(n):
                for tap in range(3):  # the last tap is the event itself
                    if t - (2 - tap) * step >= 0:
                        z[t] += y[t - (2 - tap) * step] @ kernel[tap]
            z = norm(z + conv["bias"], p[f"norm_{block}_{layer}"])
            y = np.maximum(z, 0)
        out = out + y
    found = outputs(encoder, params, x)[4, :n]
    np.testing.assert_allclose(found, out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, dict(positions="recency", **MODERN)])
def test_sasrec_against_numpy(changes):
    """The code's variant normalises queries alone, and the residual adds those."""
    config, encoder, params, x = build("sasrec", **changes)
    p = jax.tree.map(np.float64, params["params"])
    paper, heads = config.prenorm == "queries", config.num_heads
    n = 7  # row 4 has seven events
    table = p["positions_table"][:n]
    y = np.float64(x[4, :n])
    y = y + table if paper else 8 * y + table[::-1]
    for i in range(config.num_layers):
        asks = norm(y, p[f"norm_attention_{i}"])
        keys = y if paper else asks
        q = dense(asks, p[f"query_{i}"])
        k, v = dense(keys, p[f"key_{i}"]), dense(keys, p[f"value_{i}"])
        out = np.zeros((n, D))
        for head in np.split(np.arange(D), heads):
            score = q[:, head] @ k[:, head].T / np.sqrt(len(head))
            score[np.triu_indices(n, 1)] = -np.inf
            weight = np.exp(score - score.max(1, keepdims=True))
            out[:, head] = weight / weight.sum(1, keepdims=True) @ v[:, head]
        y = asks + out if paper else y + dense(out, p[f"project_{i}"])
        m = norm(y, p[f"norm_ffn_{i}"])
        h = dense(np.maximum(dense(m, p[f"up_{i}"]), 0), p[f"down_{i}"])
        y = m + h if paper else y + h
    found = outputs(encoder, params, x)[4, :n]
    np.testing.assert_allclose(found, norm(y, p["norm_out"]), atol=2e-4)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="'gur' is unknown: use one of gru, caser"):
        build("gur")
    with pytest.raises(UserError, match="num_heads 5 does not divide .* 64"):
        build("sasrec", num_heads=5)
    with pytest.raises(UserError, match="higher than the 10 events"):
        build("caser", heights=(2, 12))
    with pytest.raises(UserError, match="prenorm 'post' is unknown"):
        build("sasrec", prenorm="post")
    for name in ("caser", "sasrec"):
        _, encoder, params, x = build(name)
        with pytest.raises(ValueError, match="20 events, but max_len is 10"):
            encoder.apply(params, jnp.concatenate([x, x], axis=1), LENGTH)
