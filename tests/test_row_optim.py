"""Rows touched alone: Adam by rows is a lazy Adam; no step touches a whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_packed import batch_of, build, data, run

from jaxrec import row_optim
from jaxrec.bench import timing


def test_rows_of_adam_are_those_of_a_dense_lazy_adam():
    draw = np.random.default_rng(0)
    table = dense = jnp.asarray(draw.standard_normal((12, 3)), jnp.float32)
    moments = row_optim.init(table)
    mean = square = np.zeros((12, 3))
    for t in range(6):
        ids = draw.integers(0, 12, (2, 2))  # with repeats, some rows never
        touched, place = row_optim.distinct(dict(a=ids, b=ids[0]), 12)
        assert len(touched) == 6
        np.testing.assert_array_equal(touched[place["a"]], ids)

        def loss(rows, at):
            """Of rows, by their places in `rows`."""
            return jnp.sum((rows[at["a"]] - 1.5) ** 2) + jnp.sum(rows[at["b"]] ** 3)

        drawn = dict(a=ids, b=ids[0])
        grads = jax.grad(loss)(row_optim.gather(table, touched), place)
        table, moments = row_optim.update(
            grads, touched, table, moments, jnp.int32(t), 0.1
        )
        g = np.asarray(jax.grad(loss)(dense, drawn))
        hit = np.isin(np.arange(12), ids)[:, None]
        mean = np.where(hit, 0.9 * mean + 0.1 * g, mean)
        square = np.where(hit, 0.999 * square + 0.001 * g**2, square)
        down = mean / (1 - 0.9 ** (t + 1))
        down = down / (np.sqrt(square / (1 - 0.999 ** (t + 1))) + 1e-8)
        dense = jnp.asarray(np.where(hit, dense - 0.1 * down, dense), jnp.float32)
        np.testing.assert_allclose(table, dense, atol=1e-5)
    np.testing.assert_allclose(moments.square, square, atol=1e-5)


def test_a_sparse_step_is_the_dense_one_where_it_touches():
    """The first step, when lazy and dense Adam agree on touched rows; clipping too."""
    states = []
    for sparse in (False, True):
        method = build(loss="bce", sparse=sparse, **{"optim.clip": 0.1})
        states.append(run(method, 1)[0])
    np.testing.assert_allclose(
        *(s.params["params"]["item_table"]["embedding"] for s in states), atol=1e-6
    )
    for found, want in zip(*(jax.tree.leaves(s.params) for s in states)):
        np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_does_not_touch_a_table_of_millions(sparse):
    """Compiled only: 32M x 64 numbers and their moments are 24 GB."""
    info = dict(data().info, num_items=32_000_000, vocab=32_000_128)
    method = build(info=info, loss="bce", sparse=sparse, **{"encoder.width": 64})
    batch = batch_of(0)
    state = jax.eval_shape(method.init, jax.random.key(0), batch, {})
    table = 4 * 64 * info["vocab"]
    lowered = jax.jit(method.train_step, donate_argnums=0).lower(
        state, batch, jax.random.key(0)
    )
    found = timing.memory(lowered.compile())
    assert found["argument_bytes"] > 3 * table
    if sparse:
        assert found["temporary_bytes"] < 10e6 and found["output_bytes"] < 10e6
    else:
        assert found["temporary_bytes"] > table  # the gradient: the gate can fail
