"""Rules of sharding: their forms, what is refused, and FSDP by name."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import FrozenConfigDict
from test_baselines import info_of
from test_train import make_stage, run

from jaxrec import rules, settings, sharding, train
from jaxrec.methods import item_knn
from jaxrec.types import Dataset, UserError

TREE = dict(
    params=dict(
        item_table=dict(embedding=jnp.zeros((256, 8))),
        q_head=dict(table=jnp.zeros((3, 256, 8)), bias=jnp.zeros((3, 256))),
        dense=dict(kernel=jnp.zeros((32, 64)), bias=jnp.zeros(64)),
    ),
    extra=dict(kernel=jnp.zeros((32, 64))),
)


def specs(*given, mesh=(4, 2)):
    placed = sharding.place(sharding.make_mesh(*mesh), TREE, given)
    return {
        sharding.path_name(path): tuple(leaf.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
        if any(leaf.spec)
    }


def test_presets_split_items_and_the_rest():
    items = {
        "params/item_table/embedding": ("model", None),
        "params/q_head/table": (None, "model", None),
        "params/q_head/bias": (None, "model"),
    }
    assert specs("items") == items
    dense = {"params/dense/kernel": (None, "data")}  # its bias is too small
    assert specs("items,fsdp") == specs("items", "fsdp") == items | dense
    alone = specs("fsdp")
    assert alone["params/q_head/table"] == (None, "data")
    assert "params/q_head/bias" not in alone and "extra/kernel" not in alone


def test_an_axis_alone_splits_the_longest_dimension_that_it_divides():
    assert specs(("kernel", "data")) == {
        "params/dense/kernel": (None, "data"),
        "extra/kernel": (None, "data"),
    }
    assert specs(("q_head/table", "model"), mesh=(1, 3)) == {
        "params/q_head/table": ("model",)
    }


@pytest.mark.parametrize(
    "given, message",
    [
        ("itmes", "rule 'itmes' is unknown: give .* items, fsdp"),
        (("table", ("model",), 3), "is no rule: give"),
        ((3, ("model",)), "is no rule: give"),
        (("table", 3), "is no rule: give"),
        (("table", ("experts",)), "names axis 'experts': use data or model"),
        (("table", ("model", "model")), "each once"),
        (("table", (None,)), "name one or both"),
        (("(table", ("model",)), "no regular expression"),
        (("no_such", ("model",)), "'no_such' matches no parameter; there are: params/"),
        (("dense/bias", (None, "model")), "more axes than params/dense/bias has"),
        (("dense/bias", "data"), "'dense/bias' splits nothing: .* is small"),
    ],
)
def test_what_splits_nothing_is_named(given, message):
    with pytest.raises(UserError, match=message) as caught:
        specs(given)
    assert "\n" not in str(caught.value)


def test_a_stage_without_parameters_is_named_with_what_it_has():
    method = item_knn.make(FrozenConfigDict(item_knn.HPARAMS), info_of([[1, 2], [2]]))
    stage = make_stage(rules=("fsdp",))._replace(name="knn", method=method)
    found = "stage knn: .* 'fsdp' matches no parameter; there is none, only: .*extra"
    with pytest.raises(UserError, match=found):
        train.abstract_state(stage, {})


def test_a_rule_after_one_that_takes_all_is_named():
    with pytest.raises(UserError, match="'embedding' splits .* by a rule before it"):
        specs("items", ("embedding", ("data",)))
    with pytest.raises(UserError, match="'items': .* 256 rows, .* mesh.model=3"):
        specs("items", mesh=(1, 3))


def test_rules_are_looked_at_with_the_config():
    from test_settings import config

    assert settings.resolve(config("sqn", rules=("items,fsdp",)))
    with pytest.raises(UserError, match="'item' is unknown"):
        settings.resolve(config("sqn", rules=("item",)))


def test_parameters_over_data_give_the_same_run(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    dataset = Dataset(dict(x=x, y=x.sum(1)), {}, {})
    plain = run(make_stage(dataset=dataset, steps=20), tmp_path / "plain")
    split = make_stage(dataset=dataset, steps=20, mesh=(8, 1), rules=("fsdp",))
    split = run(split, tmp_path / "split")
    chex.assert_trees_all_close(plain, split, rtol=1e-4, atol=1e-6)
    assert plain.params["table"]["weights"].size == rules.SMALLEST
    for leaf in jax.tree.leaves((split.params, split.opt_state[0].mu)):
        assert leaf.addressable_shards[0].data.shape == (16, 8)


def test_a_rule_over_an_axis_of_one_is_named(capsys):
    given = ("items,fsdp", ("dense/kernel", ("data", None)))
    sharding.tell_idle(sharding.make_mesh(2, 1), given)
    found = capsys.readouterr().err
    assert "sharding rule 'items' splits nothing here: mesh.model is 1" in found
    assert found.count("\n") == 1
    sharding.tell_idle(sharding.make_mesh(1, 2), given)
    assert capsys.readouterr().err.count("splits nothing here: mesh.data is 1") == 2
    sharding.tell_idle(sharding.make_mesh(2, 2), given)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("given", [(), ("fsdp",), (("kernel", ("data", None)),)])
def test_an_axis_that_no_rule_names_is_told(capsys, given):
    sharding.tell_idle(sharding.make_mesh(2, 4), given)
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert "mesh.model=4 splits no parameter: no rule names it, see --config" in found
    for sizes, rule in (((2, 4), ("kernel", "model")), ((2, 1, 4), ("kernel", "data"))):
        sharding.tell_idle(sharding.make_mesh(*sizes), (rule,))
        assert not capsys.readouterr().err


def test_devices_without_work_are_told(capsys):
    assert sharding.make_mesh(model=3).size == 6
    found = capsys.readouterr().err
    assert "data=2 x model=3 x time=1 leaves 2 of 8 devices without work" in found
    assert found.count("\n") == 1
    for sizes in (dict(model=2, time=2), dict(data=2, model=3)):  # all; as asked for
        sharding.make_mesh(**sizes)
        assert not capsys.readouterr().err


def test_games_and_their_replay_are_split():
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, np.float32)  # noqa: E731
    games = dict(state=dict(pos=shape(8, 6, 2)), fresh=shape(8), score=shape(2))
    tree = dict(extra=dict(games=games, replay=dict(reward=shape(8, 4, 3))))
    placed = sharding.place(sharding.make_mesh(4, 1), tree, ("games",))["extra"]
    split, whole = PartitionSpec("data"), PartitionSpec()
    assert placed["games"]["state"]["pos"].spec == split
    assert placed["games"]["fresh"].spec == split
    assert placed["games"]["score"].spec == whole
    assert placed["replay"]["reward"].spec == split
    with pytest.raises(UserError, match=r"has 8 rows \(num_envs\), not divisible by"):
        sharding.place(sharding.make_mesh(3, 1), tree, ("games",))
