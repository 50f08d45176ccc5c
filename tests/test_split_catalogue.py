"""A catalogue split over the mesh: the numbers of a whole one, and no device has it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_ladder
import toy_recommenders as toy
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from split_catalogue import split_leaves, step_program, whole_catalogue, widest

from jaxrec import (
    experiment,
    held_out,
    metrics,
    program,
    recommender_evaluators,
    sharding,
    train,
)
from jaxrec.errors import UserError
from jaxrec.losses import softmax
from jaxrec.methods import METHODS, ce, sqn
from jaxrec.ops import catalogue

B, V, D, ITEMS = 16, 1_664, 8, 1_500


def everything(x, table, bias, target):
    """Loss and gradients, argmax, top k and rank, in slices where they have any."""

    def loss(x, table, bias):
        size = 104
        found = softmax.chunked_cross_entropy(x, table, bias, target, size, ITEMS)
        return found @ jnp.arange(1.0, B + 1)

    seen = jnp.stack([target[::-1], 1 + jnp.arange(B) * 99], axis=1)
    item = jnp.arange(V)
    exists = (item > 0) & (item <= ITEMS)
    scores = jnp.where(exists[None], x @ table.T + bias[None], -jnp.inf)
    return (
        jax.value_and_grad(loss, (0, 1, 2))(x, table, bias),
        softmax.chunked_argmax(x, table, bias, 104, ITEMS),
        catalogue.top_k(scores, 5),
        metrics.top_k(jnp.round(scores), 5),  # the first of equals
        metrics.rank(scores, target),
        metrics.rank_chunked(x, table, bias, target, 104, ITEMS, seen=seen),
    )


def test_a_split_catalogue_gives_the_same_numbers():
    keys = jax.random.split(jax.random.key(0), 4)
    args = (
        jax.random.normal(keys[0], (B, D)),
        jax.random.normal(keys[1], (V, D)),
        jax.random.normal(keys[2], (V,)),
        jax.random.randint(keys[3], (B,), 1, ITEMS + 1),
    )
    mesh = sharding.make_mesh(2, 4)
    axes = ("data", "model", "model", "data")
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(axis)))
        for x, axis in zip(args, axes)
    ]
    plain = jax.jit(lambda *args: everything(*args)).lower(*placed).compile()
    assert whole_catalogue(plain, V)  # left to the compiler, it is gathered

    def known(*args):
        with sharding.in_use(mesh):
            return everything(*args)

    split = jax.jit(known).lower(*placed).compile()
    assert not whole_catalogue(split, V)
    for a, b in zip(jax.tree.leaves(plain(*placed)), jax.tree.leaves(split(*placed))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [ce, sqn])
def test_an_update_never_has_the_whole_catalogue(module):
    dataset = toy.data()
    count = np.resize(dataset.info["item_count"], V)
    info = dataset.info | dict(vocab=V, item_count=count)
    stage = program.Stage(
        name="train",
        config=SimpleNamespace(batch_size=toy.BATCH, steps=100),
        method=toy.build(module, info=info),
        dataset=dataset,
        seed=0,
        num_seeds=1,
        mesh=sharding.make_mesh(2, 4),
        rules=("items",),
    )
    state, step = step_program(stage, {})
    own, split = split_leaves(state, V)
    assert len(own) > 8 and own == split  # moments and copies too
    assert not whole_catalogue(step, V)


def abstract_stage(method, mesh):
    """The stage that runs the method on many items, and what it uses, as shapes."""
    config, wanted = test_ladder.stages_of(method)
    config = ConfigDict(config)
    config.data.data_dir = test_ladder.data_dir()
    if "num_users" in config.data and config.data.source == "simulated":
        config.data.update(num_users=1_500, users="num_items=1500")
    if "lifelong" in config.data:
        config.data.lifelong.num_items = 1_700
    for name in config.stages:
        config[name].mix.fraction = 0.0
        if "chunk" in config[name][config[name].method]:
            config[name][config[name].method].chunk = 100
    config = experiment.resolve(config)
    stages, shapes = {}, {}
    for name in config.stages:
        stage = experiment.build(config, name, sharding.make_mesh(*mesh), stages)
        earlier = {used: shapes[used] for used in stage.config.uses}
        if name == wanted:
            return stage, earlier
        stages[name], shapes[name] = stage, train.abstract_state(stage, earlier)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_method_has_the_whole_catalogue(method):
    """Updates, held-out losses and ranks, compiled on eight devices, not executed."""
    stage, earlier = abstract_stage(method, (2, 4))
    stage = test_ladder.split_items(stage, earlier)
    if "items" not in stage.rules:
        with pytest.raises(UserError, match="'items' matches no parameter"):
            train.abstract_state(stage._replace(rules=("items",)), earlier)
        return
    vocab = stage.dataset.info["vocab"]
    state, step = step_program(stage, earlier)
    own, split = split_leaves(state, vocab)
    assert [name for name in own if "item_table" in name or "head" in name]
    whole = set(own) - set(split)
    assert not [n for n in whole if not n.startswith("extra/")], whole
    assert not whole_catalogue(step, vocab)
    if stage.method.scores is None:
        return
    batch = held_out.batch_of(stage.dataset, "valid", 64, 0)
    rank = recommender_evaluators.make_ranker(stage.method)
    facts = metrics.facts(stage.dataset.info)
    with sharding.in_use(stage.mesh):
        loss = jax.jit(stage.method.eval_step).lower(state, batch, jax.random.key(0))
        masked = batch | dict(seen=batch["item"][:, :-1])
        ranks = jax.jit(rank).lower(state, facts, 0, masked)
    assert not whole_catalogue(loss.compile(), vocab)
    assert not whole_catalogue(ranks.compile(), vocab)
    if "users" not in stage.dataset.info:
        return
    sizes = SimpleNamespace(eval=SimpleNamespace(users=24, horizon=3))
    server = recommender_evaluators.make_server(sizes, stage.method, stage.dataset)
    with sharding.in_use(stage.mesh):
        users = jax.jit(server).lower(state, jax.random.key(0)).compile()
    # Not of all that occur in the log either, who are fewer than `vocab`.
    assert widest(users) <= vocab // 4
