"""Time split over devices: an encoder, and its training, are those of one device."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_recmamba_mesh import make_stage
from toy_packed import build

from configs import ce, recmamba
from jaxrec import experiment, program, settings, sharding, train
from jaxrec.models.mamba import Mamba, empty_cache
from jaxrec.ops import context
from jaxrec.types import UserError

# 38 events over four devices: ten each, the last with two of padding.
T, LENGTH = 38, np.array([38, 21, 0])
SPLIT = "axis_index[axis_name=time]"
RESETS = [[0, 5, 9, 10, 19, 20, 30], [18], []]
KINDS = dict(
    one_layer=dict(mixer="ssd", head_dim=8, num_layers=1),
    mamba=dict(mixer="mamba1", gaps=4),
    mamba2=dict(mixer="ssd", head_dim=8),
    paper=dict(block="paper", num_layers=1, max_len=64),
    one_tap=dict(conv=1),
)


@pytest.mark.parametrize(
    "kind",
    [
        "one_layer",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:]),
    ],
)
def test_an_encoder_is_that_of_one_device(kind):
    draw = np.random.default_rng(0)
    sizes = dict(width=16, num_layers=2, state=4, time_chunk=6, dropout=0.0)
    encoder = Mamba(**sizes | KINDS[kind])
    x = jnp.asarray(draw.normal(size=(3, T, 16)), jnp.float32)
    gap = jnp.asarray(draw.exponential(9, (3, T)), jnp.float32)
    gap = gap if encoder.gaps else None
    reset = np.zeros((3, T), bool)
    for row, places in enumerate(RESETS):
        reset[row, places] = True
    cache = jax.tree.map(
        lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32),
        empty_cache(encoder, 3),
    )
    own = jax.jit(encoder.init)(jax.random.key(0), x, LENGTH, gap=gap)
    real = (np.arange(T) < LENGTH[:, None])[..., None]

    def loss(own, x, cache):
        if encoder.block == "paper":
            y, after = encoder.apply(own, x, LENGTH, gap=gap), cache
        else:
            args = own, x, LENGTH, reset, cache
            y, after = encoder.apply(*args, gap=gap, method="advance")
        y = jnp.where(real, y, 0)
        ends = sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(after))
        return jnp.sum(jnp.cos(y)) + ends, (y, after)

    graded = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    mesh = sharding.make_mesh(2, 1, 4)

    def split(*args):
        with sharding.in_use(mesh, batches=True):
            return graded(*args)

    want = jax.jit(graded)(own, x, cache)
    program = jax.jit(split).trace(*sharding.put(mesh, (own, x, cache)))
    assert SPLIT in str(program.jaxpr)
    found = program.lower().compile()(*sharding.put(mesh, (own, x, cache)))
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_newest_state_and_dropout_of_many_seeds():
    """Each as if it were alone; draws alike on all devices would repeat themselves."""
    encoder = Mamba(width=8, num_layers=1, state=4, conv=2, expand=1, dropout=0.5)
    x = jnp.ones((1, 40, 8))
    length = np.array([33])
    own = encoder.init(jax.random.key(0), x, length)
    mesh = sharding.make_mesh(1, 1, 4)

    def loss(own, key):
        with sharding.in_use(mesh):
            args = own, x, length, True
            rngs = dict(dropout=key)
            last = encoder.apply(*args, only_last=True, rngs=rngs)
            return jnp.sum(jnp.sin(last)), encoder.apply(*args, rngs=rngs)

    graded = jax.value_and_grad(loss, has_aux=True)
    keys = jax.random.split(jax.random.key(1), 2)
    own, keys = sharding.put(mesh, (own, keys))
    many = jax.jit(jax.vmap(graded, (None, 0)))(own, keys)
    one = jax.jit(graded)(own, keys[1])
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], many), one, atol=1e-5)
    (_, y), _ = one
    assert not np.allclose(y[0, 4:10], y[0, 14:20], atol=1e-3)
    assert not np.allclose(many[0][1][0], many[0][1][1], atol=1e-3)


def test_rows_that_devices_keep_stay_together():
    mesh = sharding.make_mesh(2, 1, 4)
    x = np.arange(4 * 8).reshape(4, 8)

    @jax.jit
    def flat(x):
        with sharding.in_use(mesh, batches=True):
            return context.events_of((x, 10 * x[..., None]))

    one, ten = flat(sharding.put(mesh, x))
    assert sorted(one.tolist()) == x.reshape(-1).tolist()
    np.testing.assert_array_equal(10 * one[:, None], ten)
    assert one.tolist() != x.reshape(-1).tolist()
    np.testing.assert_array_equal(context.events_of(x), x.reshape(-1))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["full", "sampled", "bce"])
def test_training_is_that_of_one_device(loss):
    found = {}
    for mesh in ((1, 1, 1), (2, 1, 4), (2, 2, 2)):
        rules = ("items",) if mesh[1] > 1 else ()
        stage = make_stage(mesh, rules, loss=loss)
        state = train.initial_state(stage, {})
        rows = next(program.feed(stage, 0, streamed=False))
        traced = train.traced(stage, False, 3, state, rows)
        assert (SPLIT in str(traced.jaxpr)) == (mesh[2] > 1)
        found[mesh], metrics = traced.lower().compile()(state, rows)
        assert np.isfinite(metrics["loss"]).all()
    for mesh in list(found)[1:]:
        chex.assert_trees_all_close(found[mesh], found[1, 1, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_devices_share_the_memory_of_long_histories():
    long = 8_192
    config = recmamba.get_config("smoke")
    config.data.seq_len = long
    config.train.batch_size = 1
    config = settings.resolve(config)

    def temporary(time):
        mesh = sharding.make_mesh(1, 1, time)
        stage = experiment.build(config, "train", mesh, {})
        state = train.initial_state(stage, {})
        rows = next(program.feed(stage, 0, streamed=False))
        done = train.compiled(stage, False, 1, state, rows)
        text = done.as_text()
        assert not re.search(rf"f32\[(1,{long}|{long},1),\d+\]\S* all-gather", text)
        return done.memory_analysis().temp_size_in_bytes

    one, four = temporary(1), temporary(4)
    assert four < 0.6 * one


def test_what_cannot_split_time_says_so():
    for sizes, words in (
        ((1, 1, 0), "time=0: sizes must be positive"),
        ((2, 2, 4), "time=4 needs 16 devices, found 8"),
    ):
        with pytest.raises(UserError, match=words):
            sharding.make_mesh(*sizes)
    assert sharding.make_mesh(time=4).shape == dict(data=2, model=1, time=4)
    config = settings.resolve(ce.get_config("smoke"))
    with pytest.raises(UserError, match="mesh.time=2: nothing in stage train splits"):
        experiment.build(config, "train", sharding.make_mesh(1, 1, 2), {})
    assert build().splits_time
    mesh = sharding.make_mesh(1, 1, 8)
    with sharding.in_use(mesh), pytest.raises(UserError, match="stretches of 2 of 10"):
        context.ways(10, 3)
