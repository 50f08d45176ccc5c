"""Settings that cannot work are refused in one line, before anything is read."""

import importlib

import pytest
from ml_collections import FrozenConfigDict

from jaxrec import settings
from jaxrec.types import UserError


def config(name="td3bc", **changes):
    found = importlib.import_module(f"configs.{name}").get_config("smoke")
    with found.unlocked():
        found.update_from_flattened_dict(changes)
    return found


@pytest.mark.parametrize("name", ["td3bc", "dt", "cql", "otto", "mopo", "sqn", "vpq"])
def test_what_ships_is_accepted(name):
    assert isinstance(settings.resolve(config(name)), FrozenConfigDict)


@pytest.mark.parametrize(
    "name, field, value, message",
    [
        ("td3bc", "seed", -1, "must be 0 or more"),
        ("td3bc", "seed", 2**32, "seeds must be below"),
        ("td3bc", "data.seed", -1, "must be 0 or more"),
        ("td3bc", "data.time_limit", -1, "must be 0 or more"),
        ("td3bc", "stages", (), "name at least one"),
        ("otto", "stages", ("world", "world"), "none twice"),
        ("otto", "stages", ("data",), "has no section"),
        ("td3bc", "num_seeds", 0, "must be positive"),
        ("td3bc", "profile.steps", -1, "must be 0 or more"),
        ("td3bc", "eval.episodes", 0, "must be positive"),
        ("td3bc", "eval.batch_size", 0, "must be positive"),
        ("td3bc", "eval.fqe_steps", 0, "must be positive"),
        ("td3bc", "eval.seed", -1, "must be 0 or more"),
        ("td3bc", "train.eval_every", -5, "must be 0 or more"),
        ("td3bc", "train.checkpoint_every", -1, "must be 0 or more"),
        ("td3bc", "train.td3bc.delay", 0, "must be positive"),
        ("td3bc", "train.td3bc.widths", (64, 0), "must be positive"),
        ("td3bc", "train.td3bc.widths", ("a",), "must be whole numbers"),
        ("td3bc", "train.td3bc.widths", (64.0,), "must be whole numbers"),
        ("td3bc", "train.evals", (1,), "must be names"),
        ("td3bc", "stages", (1,), "must be names"),
        ("otto", "policy.uses", (None,), "must be names"),
        ("mopo", "world.world_mlp.decays", ("a",), "must be numbers"),
        ("ce", "train.ce.encoder.heights", ((2,),), "must be whole numbers"),
        ("qmix", "train.qmix.epsilon", (1.0,), "give two numbers"),
        ("sa2c", "train.sa2c.advantage_clip", (True, 10.0), "must be numbers"),
        ("recmamba", "data.lifelong.lags", ("a",), "must be whole numbers"),
        ("td3bc", "train.mix.fraction", 0.5, "of no stage: set train.mix.stage"),
        ("td3bc", "select", "eval/return_std", "better larger or smaller"),
        ("dt", "train.dt.max_timestep", 0, "must be positive"),
        ("cql", "train.cql.num_actions", 0, "must be positive"),
        ("sqn", "train.sqn.encoder.width", 0, "must be positive"),
        ("otto", "world.world_transformer.members", 0, "must be positive"),
        ("otto", "policy.mix.fraction", 1.5, "the share of a batch, 0 to 1"),
        ("otto", "policy.mix.stage", "", "of no stage: set policy.mix.stage"),
    ],
)
def test_values_out_of_range_are_named(name, field, value, message):
    with pytest.raises(UserError) as caught:
        settings.resolve(config(name, **{field: value}))
    text = str(caught.value)
    assert message in text and "\n" not in text
    known = (field, field.replace("stage", "fraction"), field.rstrip("s"))
    assert any(name in text for name in known)


def test_numbers_of_either_kind_and_none_are_accepted():
    assert settings.resolve(config("sa2c", **{"train.sa2c.advantage_clip": ()}))
    assert settings.resolve(config("qmix", **{"train.qmix.epsilon": (1, 0)}))
    assert settings.resolve(config("td3bc", **{"train.td3bc.widths": [64]}))


def test_a_share_of_zero_needs_no_rows():
    assert settings.resolve(config("otto", **{"policy.mix.fraction": 0.0}))


def test_the_short_name_of_an_encoder():
    found = settings.resolve(config("sqn", **{"train.encoder": "sasrec"}))
    assert found.train.sqn.encoder.name == "sasrec" and "encoder" not in found.train
    assert settings.resolve(config("sqn")).train.sqn.encoder.name == "gru"
    assert "encoder" not in config("td3bc").train
    section = config("sqn", **{"train.encoder": "gru", "train.method": "pop"})
    with section.unlocked():
        section.train.pop = {}
    with pytest.raises(UserError, match="encoder is 'gru', but pop has no encoder"):
        settings.resolve(section)
