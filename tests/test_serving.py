"""Serving: steps equal the whole history, users keep apart, refusals change nothing."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec import serving, snapshots
from jaxrec.methods import ce
from jaxrec.models import recommender as networks
from jaxrec.types import UserError

ITEMS = 30
MIXERS = ("mamba", "mamba2")
SIZES = dict(width=8, state=3, conv=3, head_dim=4, num_layers=2, scale_embedding=True)
# The plain scans compile fastest; that the others equal them is tested in ops.
PLAIN = dict(mamba="reference", mamba2="sequential")


def network_of(name, **changes):
    config = ConfigDict(ce.HPARAMS)
    sizes = SIZES | dict(name=name, scan=PLAIN.get(name, "auto"))
    config.encoder.update(sizes | changes)
    return networks.make(config, dict(vocab=32, num_items=ITEMS, seq_len=20))


@functools.cache
def model_of(name, key=0):
    network = network_of(name)
    one = np.ones((1, 1), np.int32)
    params = jax.jit(network.init)(jax.random.key(key), one, np.ones(1, np.int32))
    draw = np.random.default_rng(key)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.float32(0.2 * draw.standard_normal(leaf.shape)), params
    )
    return serving.make(network, params, np.arange(ITEMS + 1) * 10)


def histories(rows=3, size=20):
    draw = np.random.default_rng(1)
    return draw.integers(1, ITEMS + 1, (rows, size)).astype(np.int32)


def close(found, want):
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "mamba2" else pytest.mark.slow)
        for name in MIXERS
    ],
)
def test_steps_equal_the_whole_history(name):
    """prefill(L) == prefill(L - k) + k steps, users of different length in a batch."""
    model, items = model_of(name), histories()
    length = np.array([20, 7, 12])
    whole, last = serving.prefill(model, items, length)
    want = model.network.apply(model.params, items, length, method="state")
    close(whole, want)  # what training and evaluation see
    x, states = serving.prefill(model, items, np.maximum(length - 9, 0))
    for t in range(20):
        at = np.maximum(length - 9, 0) + t
        active = at < length
        item = items[np.arange(3), np.minimum(at, 19)]
        new, states = serving.step(model, item, states, active)
        x = jnp.where(active[:, None], new, x)
    close((x, states), (whole, last))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(states))
    scores, best = serving.top_k(model, x, 4)
    logits = np.array(model.network.apply(model.params, x, method="logits"))
    np.testing.assert_array_equal(best, np.argsort(-logits, axis=1)[:, :4])
    assert np.all(best > 0) and np.all(best <= ITEMS) and scores.shape == (3, 4)


@pytest.mark.parametrize("name", MIXERS)
def test_pieces_of_any_size_agree(name):
    model, items = model_of(name), histories()
    want = serving.prefill(model, items, np.full(3, 20))
    for size in (3, 17):
        states = serving.empty(model, 3)
        for first in range(0, 20, size):
            piece = np.zeros((3, size), np.int32)
            count = min(size, 20 - first)
            piece[:, :count] = items[:, first : first + count]
            x, states = serving.extend(model, piece, np.full(3, count), states)
        close((x, states), want)


def test_users_keep_apart_and_the_idle_keep_their_state():
    model, items = model_of("mamba"), histories()
    _, states = serving.prefill(model, items, np.full(3, 20))
    other = items.copy()
    other[1] = items[1][::-1]
    _, moved = serving.prefill(model, other, np.full(3, 20))
    active = np.array([True, False, True])
    _, after = serving.step(model, np.array([3, 4, 5]), states, active)
    found = [map(np.asarray, jax.tree.leaves(one)) for one in (states, moved, after)]
    for old, new, stepped in zip(*found, strict=True):
        np.testing.assert_array_equal(old[[0, 2]], new[[0, 2]])
        assert not np.array_equal(old[1], new[1])
        np.testing.assert_array_equal(stepped[1], old[1])
        assert not np.array_equal(stepped[0], old[0])


def test_a_state_costs_what_the_spec_says():
    """RecMamba's sizes: 128 x 32 and 3 x 128 float32 a layer, 17.9 kB."""
    sizes = dict(width=64, state=32, conv=4, head_dim=64, num_layers=1)
    for name in MIXERS:
        model = model_of(name)._replace(network=network_of(name, **sizes))
        leaves = jax.tree.leaves(serving.empty(model, 1))
        assert sum(leaf.nbytes for leaf in leaves) == 17_920


def test_states_of_another_model_are_refused(tmp_path):
    model, other = model_of("mamba"), model_of("mamba", key=1)
    assert model.version != other.version
    _, states = serving.prefill(model, histories(), np.full(3, 20))
    with pytest.raises(UserError, match=f"version {model.version}, this model is"):
        serving.step(other, np.ones(3, np.int32), states, np.ones(3, bool))
    path = tmp_path / "states.npz"
    snapshots.save(path, states, ["a", 7, "c"])
    assert [p.name for p in tmp_path.iterdir()] == ["states.npz"]
    found, users = snapshots.restore(path, model)
    assert users == ["a", 7, "c"]
    for a, b in zip(*map(jax.tree.leaves, (found, states)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=f"{path}: the states are of model version"):
        snapshots.restore(path, other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="or a damaged one"):
        snapshots.restore(path, model)
    with pytest.raises(UserError, match="no snapshot"):
        snapshots.restore(tmp_path / "none.npz", model)
    with pytest.raises(UserError, match="cannot write"):
        snapshots.save(tmp_path / "no" / "states.npz", states, ["a", 7, "c"])
    for bad in (["a", "a", "c"], [["a"], 1, 2], 5, None):
        snapshots.save(path, states, ["a", 7, "c"])
        with np.load(path) as file:
            parts = dict(file) | dict(users=np.array(json.dumps(bad)))
        np.savez(path, **parts)
        with pytest.raises(UserError, match="or a damaged one"):
            snapshots.restore(path, model)
    layers = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), states.layers)
    snapshots.save(path, states.replace(layers=layers), ["a", 7, "c"])
    with pytest.raises(UserError, match="not finite"):
        snapshots.restore(path, model)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="or a damaged one"):
        snapshots.restore(path, model)


def test_events_that_cannot_be_change_nothing():
    model, items = model_of("mamba"), histories()
    _, states = serving.prefill(model, items, np.full(3, 20))
    before = jax.tree.map(np.asarray, states)
    full, rows = np.full(3, 20), np.arange(3)
    bad = [
        ("items \\[31\\]: give numbers from 1 to 30", np.full((3, 20), 31), full),
        ("items \\[-1, 0\\]", np.where(items < 15, 0, -1), full),
        ("length .*: give 0 to 20", items, np.array([1, 21, 0])),
        ("length .*: give 0 to 20", items, np.array([1, -1, 0])),
        ("of 3 users: give \\[3, T\\]", items, np.full(1, 20)),
    ]
    for match, given, length in bad:
        with pytest.raises(UserError, match=match):
            serving.extend(model, given, length, states)
        with pytest.raises(UserError, match=match):
            serving.advance_rows(model, states, rows, given, length, 3)
    with pytest.raises(UserError, match="of 3 users"):
        serving.extend(model, items[:2], full[:2], states)
    for wrong in ([0, 1, 3], [0, 1, 1], [-1, 0, 1]):
        with pytest.raises(UserError, match="distinct ones from 0 to 2"):
            serving.advance_rows(model, states, np.array(wrong), items, full, 3)
    with pytest.raises(UserError, match="k is 31"):
        serving.advance_rows(model, states, rows, items, full, 31)
    other = model_of("mamba", key=1)
    with pytest.raises(UserError, match="the states are of model version"):
        serving.advance_rows(other, states, rows, items, full, 3)
    for a, b in zip(*map(jax.tree.leaves, (states, before)), strict=True):
        np.testing.assert_array_equal(a, b)
    # Behind the events anything may stand, as in a padded batch.
    serving.extend(model, np.where(items < 0, 0, 99), np.zeros(3, int), states)


def test_a_model_is_its_numbers():
    """How it is computed is no part of the version, what it means is."""
    model = model_of("mamba2")
    faster = network_of("mamba2", scan="auto", time_chunk=7, dropout=0.5)
    assert serving.make(faster, model.params).version == model.version
    heads = network_of("mamba2", head_dim=8)
    assert serving.make(heads, model.params).version != model.version


def test_what_cannot_be_served_is_refused():
    params = model_of("mamba").params
    with pytest.raises(UserError, match="encoder GRU has no step"):
        serving.make(network_of("gru"), params)
    paper = network_of("mamba", block="paper", num_layers=1)
    with pytest.raises(UserError, match="'paper' has no step: its positions"):
        serving.make(paper, params)
    with pytest.raises(UserError, match="no softmax head"):
        serving.make(network_of("mamba").clone(tied=True), params)
    with pytest.raises(UserError, match="k is 31: give 1 to 30"):
        serving.top_k(model_of("mamba"), jnp.zeros((1, 8)), 31)
