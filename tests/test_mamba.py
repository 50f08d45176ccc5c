"""Mamba encoders: chunks, packed rows and carried caches give what one user's row does.

That they are causal and blind to padding is tested with the other encoders.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recommenders as toy
from ml_collections import ConfigDict

from jaxrec.methods import snqn
from jaxrec.models import encoders, mamba
from jaxrec.types import UserError

D = 8
SIZES = dict(width=D, state=3, conv=3, head_dim=4, num_layers=2, scale_embedding=True)
MIXERS = ("mamba", "mamba2")
ONE = [pytest.param("mamba", marks=pytest.mark.slow), "mamba2"]  # stands for both
# The plain scans compile fastest; that the others equal them is tested in ops.
PLAIN = dict(mamba="reference", mamba2="sequential")


def make(name, seq_len=20, **changes):
    config = ConfigDict(dict(encoders.SPEC) | SIZES | dict(name=name) | changes)
    return encoders.make(config, seq_len)


@functools.cache
def built(name, layers=1, gaps=0):
    """The encoder, parameters that are not their initial values, and 40 inputs."""
    settings = dict(time_chunk=4, scan=PLAIN[name], num_layers=layers, gaps=gaps)
    encoder = make(name, **settings)
    x = jax.random.normal(jax.random.key(0), (2, 40, D))
    timed = dict(gap=jnp.zeros((2, 20))) if gaps else {}
    args = jax.random.key(1), x[:, :20], np.array([20, 20])
    params = toy.jit(encoder.init)(*args, **timed)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.float32(0.2 * draw.standard_normal(leaf.shape)), params
    )
    return encoder, params, x


def advance(encoder, params, *args, **options):
    apply = functools.partial(encoder.apply, method="advance")
    return toy.jit(functools.partial(apply, **options))(params, *args)


def close(found, want, atol=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        scale = max(1.0, float(np.abs(b).max(initial=0.0)))
        np.testing.assert_allclose(a / scale, b / scale, atol=atol)


@pytest.mark.parametrize("name", ONE)
def test_chunks_of_time_change_no_number(name):
    encoder, params, x = built(name)
    length, weight = np.array([17, 6]), jax.random.normal(jax.random.key(2), (2, 20, D))
    exists = (np.arange(20)[None] < length[:, None])[..., None]

    def results(size):
        def loss(params, x):
            y = encoder.clone(time_chunk=size).apply(params, x, length)
            return jnp.sum(jnp.where(exists, y * weight, 0)), jnp.where(exists, y, 0)

        return toy.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x[:, :20])

    want = results(64)
    assert np.abs(want[1]).max() > 0.1
    close(results(7), want, 2e-5)


# Users of packed rows in chunks of 4: ends in a chunk and at its edge, of one event,
# a row with padding behind, a row of padding alone.
ROWS = [(5, 3, 1, 1, 10), (8, 4, 2), ()]


@pytest.mark.parametrize("name", MIXERS)
def test_packed_rows_are_their_users(name):
    """Values and gradients, also of the inputs."""
    encoder, params, _ = built(name)
    x = jax.random.normal(jax.random.key(3), (3, 20, D))
    weight = jax.random.normal(jax.random.key(4), (3, 20, D))
    length = np.array([sum(row) for row in ROWS])
    starts = [np.cumsum((0, *row))[:-1] for row in ROWS]
    reset = np.zeros((3, 20), bool)
    for row, places in enumerate(starts):
        reset[row, places] = True
    reset[2, 3] = True  # of padding: means nothing
    users = [
        (row, slice(start, start + size))
        for row in range(3)
        for start, size in zip(starts[row], ROWS[row])
    ]

    def packed(params, x):
        # What precedes the first user of a row is forgotten, whatever it is.
        cache = jax.tree.map(lambda c: c + 7, mamba.empty_cache(encoder, 3))
        y, _ = encoder.apply(params, x, length, reset, cache, method="advance")
        parts = [y[user] * weight[user] for user in users]
        return sum(part.sum() for part in parts), [y[user] for user in users]

    def alone(params, x):
        rows = jnp.stack([jnp.pad(x[u], ((0, 20), (0, 0)))[:20] for u in users])
        sizes = np.array([u[1].stop - u[1].start for u in users])
        y = encoder.clone(time_chunk=64).apply(params, rows, sizes)
        found = [one[:size] for one, size in zip(y, sizes)]
        loss = sum((y * weight[u]).sum() for y, u in zip(found, users))
        return loss, found

    results = [
        toy.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x)
        for f in (packed, alone)
    ]
    close(*results, 2e-5)
    assert not np.any(results[0][1][1][2]), "padding has a gradient"


@pytest.mark.parametrize("name", ONE)
def test_a_row_may_end_anywhere_and_go_on(name):
    """Pieces of 3 and 17 events from the cache, with users that end between."""
    encoder, params, x = built(name, layers=2)
    reset = np.zeros((2, 40), bool)
    reset[0, [2, 17, 20, 21]] = reset[1, [39]] = True
    want, last = advance(encoder, params, x, np.array([40, 40]), reset)
    for size in (3, 17):
        run = toy.jit(functools.partial(encoder.apply, method="advance"))
        cache, parts = mamba.empty_cache(encoder, 2), []
        for start in range(0, 40, size):
            piece = slice(start, start + size)
            count = min(size, 40 - start)
            pad = ((0, 0), (0, size - count))
            y, cache = run(
                params,
                jnp.pad(x[:, piece], (*pad, (0, 0)), constant_values=9.0),
                np.full(2, count),
                np.pad(reset[:, piece], pad),
                cache,
            )
            parts.append(y[:, :count])
        close((jnp.concatenate(parts, axis=1), cache), (want, last))


@pytest.mark.parametrize("name", MIXERS)
def test_rows_without_events_keep_their_cache(name):
    encoder, params, x = built(name)
    _, cache = advance(encoder, params, x[:, :5], np.array([5, 3]))
    _, after = advance(encoder, params, x[:, 5:9], np.array([0, 4]), None, cache)
    for old, new in zip(*map(jax.tree.leaves, (cache, after))):
        np.testing.assert_array_equal(new[0], old[0])
        assert not np.array_equal(new[1], old[1])
    for leaf in jax.tree.leaves(cache):
        assert leaf.dtype == jnp.float32
    # One padded step is the state after it, of another width of row.
    want, _ = advance(encoder, params, x[1:, [0, 1, 2, 5, 6, 7, 8]], np.array([7]))
    found, _ = advance(
        encoder, params, x[:, 5:9], np.array([0, 4]), None, cache, only_last=True
    )
    close(found[1], want[0, -1])


def test_users_of_a_batch_and_of_a_row_do_not_meet():
    encoder, params, x = built("mamba")
    x, length = x[:, :20], np.array([20, 20])
    reset = np.zeros((2, 20), bool)
    reset[:, 9] = True

    def later(x):
        y, cache = encoder.apply(params, x, length, reset, method="advance")
        return y[0, 9:].sum() + sum(leaf[0].sum() for leaf in jax.tree.leaves(cache))

    grad = toy.jit(jax.grad(later))(x)
    assert not np.any(grad[1]) and not np.any(grad[0, :9])
    assert np.all(np.any(grad[0, 9:] != 0, axis=-1))
    alone, _ = advance(encoder, params, x[:1], length[:1], reset[:1])
    both, _ = advance(encoder, params, x, length, reset)
    close(alone[0], both[0])


def parameters(name="mamba", **changes):
    encoder = make(name, seq_len=50, num_layers=1, **changes)
    x = jnp.zeros((1, 50, encoder.width))
    return toy.jit(encoder.init)(jax.random.key(1), x, np.array([1]))["params"]


def test_paper_block():
    """RecMamba's: one bare mixer of 38,784 numbers, Xavier on whatever has two axes."""
    sizes = dict(width=64, state=32, conv=4)
    params = parameters(block="paper", **sizes)
    assert params["positions_table"].shape == (50, 64)
    assert sum(leaf.size for leaf in params.values()) == 50 * 64 + 38_784
    assert not [name for name in params if "norm" in name or "up" in name]
    a_log = np.asarray(params["A_log_0"])
    assert abs(a_log.std() - 0.1118) < 0.005 and abs(np.exp(a_log).mean() - 1) < 0.02
    assert abs(params["conv_0"].std() - (2 / (4 + 512)) ** 0.5) < 0.006
    other = parameters(block="paper", init_scheme="mamba", **sizes)
    np.testing.assert_allclose(
        np.exp(other["A_log_0"]), np.tile(np.arange(1, 33), (128, 1)), rtol=1e-5
    )
    dt = np.log1p(np.exp(other["dt_bias_0"]))
    assert 0.9e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.11
    encoder = make("mamba", 50, block="paper", num_layers=1, **sizes)
    inputs = {"params": params}, jnp.zeros((1, 2, 64)), np.array([2])
    with pytest.raises(UserError, match="has no step: its positions are counted from"):
        encoder.apply(*inputs, method="advance")


@pytest.mark.parametrize("name", MIXERS)
def test_selective_steps_at_the_start(name):
    """A = -1, dt from 0.003 to 0.3 in equal ratios, the rest as in "mamba"."""
    sizes = dict(width=32, state=4, head_dim=32, dt_rank=5)
    found, other = (
        parameters(name, init_scheme=scheme, **sizes)
        for scheme in ("selective", "mamba")
    )
    assert not np.any(found["A_log_0"])
    dt = np.log1p(np.exp(np.asarray(found["dt_bias_0"], np.float64)))
    assert dt.shape == ((64,) if name == "mamba" else (2,))
    np.testing.assert_allclose(dt, np.geomspace(3e-3, 0.3, len(dt)), rtol=1e-4)
    louder = np.asarray(found["x_proj_0"]) / np.asarray(other["x_proj_0"])
    np.testing.assert_allclose(louder, np.tile([1.0] * 5 + [5.0] * 8, (64, 1)), 1e-6)
    for leaf in found.keys() - {"dt_bias_0", "A_log_0", "x_proj_0"}:
        np.testing.assert_array_equal(found[leaf], other[leaf])


def test_paper_positions_count_from_the_newest_event():
    encoder = make("mamba", seq_len=12, block="paper", num_layers=1)
    x = jax.random.normal(jax.random.key(0), (1, 12, D))
    params = toy.jit(encoder.init)(jax.random.key(1), x, np.array([12]))
    table = params["params"]["positions_table"]
    moved = table.at[:12].set(jnp.roll(table, -5, axis=0))
    apply = toy.jit(encoder.apply)
    want = apply(params, x, np.array([7]))
    found = apply(
        {"params": {**params["params"], "positions_table": moved}}, x, np.array([12])
    )
    close(found[:, :7], want[:, :7])  # event t of 7 is at 12 - 7 + t
    assert not np.allclose(
        apply(params, x, np.array([12]))[:, :7], want[:, :7], atol=1e-2
    )


def test_settings_that_cannot_be_are_refused():
    for changes, reason in (
        (dict(head_dim=5), "head_dim 5 does not divide expand . width = 16"),
        (dict(block="papr"), "block 'papr' is unknown: use recommended or paper"),
        (dict(block="paper"), "is one layer of Mamba-1"),
        (dict(init_scheme="he"), "use mamba or recmamba_xavier"),
        (dict(scan="magic"), "scan 'magic' is unknown: use auto"),
        (dict(time_chunk=0), "time_chunk is 0: must be positive"),
        (dict(gaps=-1), "gaps is -1: use 0"),
        (dict(dt_rank=-1), "dt_rank is -1: use 0"),
    ):
        with pytest.raises(UserError, match=reason):
            make("mamba2", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_snqn_learns_with_it(name):
    sizes = dict(SIZES, name=name, width=16, num_layers=1)
    method, one = toy.build(snqn, encoder=sizes), toy.batch_of()
    _, metrics = toy.run(method, toy.start(method), 25, batch=lambda _: one)
    losses = np.array([step["loss"] for step in metrics])
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.85 * losses[:5].mean(), losses


def scratch(name, length, **changes):
    """MiB of scratch that value and gradients of 8 histories of 64 numbers need."""
    sizes = dict(width=64, state=16, conv=4, head_dim=64, num_layers=1)
    encoder = make(name, length, dropout=0.0, **sizes | changes)
    x = jax.ShapeDtypeStruct((8, length, 64), jnp.float32)
    rows = jax.ShapeDtypeStruct((8,), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), x, rows)

    def loss(params, x, rows):
        return jnp.sum(encoder.apply(params, x, rows) ** 2)

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    memory = program.lower(params, x, rows).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_memory_of_the_backward_pass(name):
    """A block of the spec's sizes, as compiled: at most 45 MiB, linear in time, and
    half of what attention in blocks of queries needs."""
    found = scratch(name, 2_048), scratch(name, 8_192)
    assert found[0] <= 45 and found[1] <= 4.2 * found[0], found
    blocks = scratch("sasrec", 2_048, attention="blockwise", num_heads=1)
    assert found[0] < 0.5 * blocks, (found, blocks)
