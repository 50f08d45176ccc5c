"""Training over meshes of eight devices is training on one; where the table stands."""

from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from toy_packed import build, data

from jaxrec import program, sharding, train

RULES = (("item_table/embedding", ("model", None)),)
LOSSES = dict(full={}, bce=dict(loss="bce"), rows=dict(loss="bce", sparse=True))


def make_stage(mesh, rules=RULES, **changes):
    loop = SimpleNamespace(steps=100, batch_size=8)
    rules = rules if mesh != (1, 1) else ()
    method = build(**changes)
    mesh = sharding.make_mesh(*mesh)
    return program.Stage("train", loop, method, data(), 0, 1, mesh, rules)


def of_table(state):
    """All arrays of the catalogue's size: the table and its moments."""
    return [x for x in jax.tree.leaves(state) if x.ndim == 2 and x.shape[0] == 128]


@pytest.mark.parametrize("rules", [RULES, ("items",)])
@pytest.mark.parametrize("changes", [{}, LOSSES["rows"]])
def test_the_rules_place_the_table_and_its_moments(changes, rules):
    state = train.abstract_state(make_stage((2, 4), rules, **changes), {})
    tables = of_table(state)
    assert len(tables) == 3
    for leaf in tables:
        assert leaf.sharding.shard_shape(leaf.shape) == (32, 8)
    assert state.params["params"]["encoder"]["in_proj_0"].sharding.is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_meshes_agree(loss):
    """Three updates of Adam, 0.003 of every number, and the state that rows carry."""
    found = {}
    for mesh in ((1, 1), (8, 1), (2, 4)):
        stage = make_stage(mesh, **LOSSES[loss])
        state = train.initial_state(stage, {})
        rows = next(program.feed(stage, 0, streamed=False))
        update = train.compiled(stage, False, 3, state, rows)
        before = jax.tree.map(np.asarray, state.params)
        found[mesh], metrics = update(state, rows)
        assert np.isfinite(metrics["loss"]).all()
        for leaf in of_table(found[mesh]):
            assert leaf.addressable_shards[0].data.shape == (128 // mesh[1], 8)
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max(), before, found[mesh].params
        )
        assert min(jax.tree.leaves(moved["params"]["encoder"])) > 1e-4
    for mesh in ((8, 1), (2, 4)):
        chex.assert_trees_all_close(found[mesh], found[1, 1], rtol=1e-4, atol=1e-4)
