"""Encoders: causal, blind to padding, and what their papers' code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.models import encoders
from jaxrec.types import UserError

B, T, D = 5, 10, 64
LENGTH = np.array([10, 3, 1, 0, 7])


def build(name, **changes):
    config = ConfigDict(dict(encoders.SPEC) | dict(name=name) | changes)
    encoder = encoders.make(config, T)
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    params = encoder.init(jax.random.key(1), x, LENGTH)
    return config, encoder, params, x


CASES = [(name, {}) for name in encoders.ENCODERS] + [
    ("gru", dict(num_layers=2)),
    ("sasrec", dict(num_layers=2, num_heads=4, prenorm="all", scale_embedding=True)),
]


@pytest.mark.parametrize("name,changes", CASES)
def test_causal_blind_to_padding_and_finite(name, changes):
    config, encoder, params, x = build(name, **changes)
    apply = jax.jit(lambda x: encoder.apply(params, x, LENGTH))
    out = apply(x)
    assert out.shape == (B, T, encoders.out_width(config))
    assert np.isfinite(out).all()
    noise = jax.random.normal(jax.random.key(2), x.shape)
    for t in (0, 4, 8):
        later = (jnp.arange(T) > t)[None, :, None]
        # Up to the last bit: XLA may add in another order where inputs differ.
        moved = apply(jnp.where(later, noise, x))
        np.testing.assert_allclose(moved[:, : t + 1], out[:, : t + 1], atol=1e-6)
        assert not np.allclose(moved[0, t + 1], out[0, t + 1])
    padding = (jnp.arange(T)[None] >= np.maximum(LENGTH, 1)[:, None])[..., None]
    moved = apply(jnp.where(padding, 1e3 * noise, x))
    for row, length in enumerate(LENGTH):
        kept = slice(0, max(length, 1))
        np.testing.assert_allclose(moved[row, kept], out[row, kept], atol=1e-6)


@pytest.mark.parametrize("name,changes", CASES)
def test_last_is_the_state_after_the_last_event(name, changes):
    _, encoder, params, x = build(name, **changes)
    found = encoder.apply(params, x, LENGTH, method=encoders.last)
    states = encoder.apply(params, x, LENGTH)
    want = states[np.arange(B), np.maximum(LENGTH - 1, 0)]
    np.testing.assert_allclose(found, want, atol=1e-5)

    def total(params, x):
        return encoder.apply(params, x, LENGTH, method=encoders.last).sum()

    for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(params, x)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_dropout_is_a_function_of_the_key(name):
    _, encoder, params, x = build(name)

    def apply(key):
        return encoder.apply(params, x, LENGTH, True, rngs={"dropout": key})

    one, two = jax.random.split(jax.random.key(3))
    first = apply(jax.random.clone(one))
    np.testing.assert_array_equal(first, apply(one))
    assert not np.allclose(first, apply(two))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "name,number",
    [
        # [D + D, 2 D] and its bias, [D + D, D] and its bias: 24.8k as in the papers
        ("gru", 128 * 128 + 128 + 128 * 64 + 64),
        # three heights x 16 filters of height x 64, and one of 10 x 1
        ("caser", 16 * 64 * (2 + 3 + 4) + 3 * 16 + 10 + 1),
        # six blocks of two convolutions of 3 x 64 x 64 and two norms
        ("nextitnet", 12 * (3 * 64 * 64 + 64 + 128)),
        # positions, q k v, two dense layers, three norms
        ("sasrec", 640 + 3 * (64 * 64 + 64) + 2 * (64 * 64 + 64) + 3 * 128),
    ],
)
def test_parameters(name, number):
    assert count(build(name)[2]) == number


def test_gru_against_numpy():
    _, encoder, params, x = build("gru")
    p = jax.tree.map(np.float64, params["params"])
    sigmoid = lambda y: 1 / (1 + np.exp(-y))  # noqa: E731
    h, x = np.zeros((B, D)), np.float64(x)
    gates, new = p["layer_0_gates_x"], p["layer_0_new_x"]
    for t in range(T):
        gate = x[:, t] @ gates["kernel"] + gates["bias"] + h @ p["layer_0_gates_h"]
        r, u = np.split(sigmoid(gate + 1.0), 2, axis=1)
        c = x[:, t] @ new["kernel"] + new["bias"] + (r * h) @ p["layer_0_new_h"]
        h = u * h + (1 - u) * np.tanh(c)
        found = encoder.apply(params, jnp.float32(x), LENGTH)[:, t]
        np.testing.assert_allclose(found, h, atol=1e-5)


def test_sasrec_block_against_numpy():
    """The code's variant: keys and values are not normalised, the residual's query is."""
    _, encoder, params, x = build("sasrec")
    p = jax.tree.map(np.float64, params["params"])

    def norm(y, name):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-8)
        return y * p[name]["scale"] + p[name]["bias"]

    def dense(y, name):
        return y @ p[f"block_0_{name}"]["kernel"] + p[f"block_0_{name}"]["bias"]

    n = 7  # row 4 has seven events
    y = np.float64(x[4, :n]) + p["positions"][:n]
    h = norm(y, "block_0_norm_1")
    score = dense(h, "query") @ dense(y, "key").T / 8
    score[np.triu_indices(n, 1)] = -np.inf
    weight = np.exp(score - score.max(1, keepdims=True))
    y = h + weight / weight.sum(1, keepdims=True) @ dense(y, "value")
    h = norm(y, "block_0_norm_2")
    y = h + dense(np.maximum(dense(h, "ffn_1"), 0), "ffn_2")
    found = encoder.apply(params, x, LENGTH)[4, :n]
    np.testing.assert_allclose(found, norm(y, "norm"), atol=2e-4)


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="encoder 'gur' is unknown: use gru, caser"):
        build("gur")
    with pytest.raises(UserError, match="multiple of num_heads=5"):
        build("sasrec", num_heads=5)
    with pytest.raises(UserError, match="cover 12 events, data.seq_len is 10"):
        build("caser", heights=(2, 12))
