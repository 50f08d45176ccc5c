"""Simulated trajectories: the artefact, the World Evaluator, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from toy_imagination import K, produce
from toy_world import settings

from jaxrec.data import loader
from jaxrec.methods import (
    imagination,
    world_rows,
)
from jaxrec.types import UserError


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=K)


def test_columns_of_the_artefact(dataset):
    found = produce(dataset, generated=1.0, horizon=7)
    num = len(dataset.train["reward"])
    for name, array in dataset.train.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == (num, *array.shape[1:]), name
    for name in ("source", "start"):
        assert found[name].dtype == np.int32 and found[name].shape == (num,)
    for name in ("uncertainty", "corrected", "cut"):
        assert found[name].dtype == np.float32 and found[name].shape == (num,)
    # Every simulation begins at the row of the data that it names.
    table, new = imagination.episodes(dataset.train), found["timestep"] == 0
    row = (table["first"][found["source"]] + found["start"])[new]
    np.testing.assert_array_equal(
        found["observation"][new], dataset.train["observation"][row]
    )


def test_simulations_are_contiguous_and_windows_do_not_cross_them(dataset):
    found = produce(dataset)
    t = found["timestep"]
    assert (np.diff(t)[t[1:] != 0] == 1).all() and t.max() == 5
    follows = np.flatnonzero(t[1:] > 0)
    np.testing.assert_array_equal(
        found["observation"][follows + 1], found["next_observation"][follows]
    )
    window = loader.gather(found, np.arange(len(t)), K, np)
    assert (window["source"] == found["source"][:, None])[window["mask"]].all()
    np.testing.assert_array_equal(window["mask"].sum(1), np.minimum(t + 1, K))


def test_returns_to_go_sum_the_simulated_rewards(dataset):
    found = produce(dataset)
    first = np.flatnonzero(found["timestep"] == 0)
    for a, b in zip(first, [*first[1:], len(found["reward"])]):
        reward = found["reward"][a:b]
        wanted = [reward[i:].sum() for i in range(b - a)]
        np.testing.assert_allclose(found["return_to_go"][a:b], wanted, atol=1e-5)


def test_a_dropped_row_starts_a_new_piece():
    keep = np.array([[True, False, True, True], [True, True, False, False]])
    scalar = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    names = ("observation", "action", "next_observation", "reward", "uncertainty")
    flags = dict(terminal=keep & False, changed=keep & False, cut=keep & False)
    flags["cut"] = np.array([[0, 0, 0, 0], [0, 0, 1, 0]], bool)
    rows = {name: scalar for name in names} | flags | {"keep": keep}
    found = world_rows.columns(rows, np.array([3, 5]), np.array([1, 2]))
    found = world_rows.finish(found)
    np.testing.assert_array_equal(found["reward"], [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(found["timestep"], [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(found["return_to_go"], [0, 5, 3, 9, 5])
    np.testing.assert_array_equal(found["source"], [3, 3, 3, 5, 5])
    np.testing.assert_array_equal(found["start"], [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(found["cut"], [0, 0, 0, 0, 1])


def test_produce_is_a_function_of_the_key(dataset):
    one, same, other = (produce(dataset, key=key) for key in (0, 0, 1))
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert not np.array_equal(one["action"], other["action"])


def test_chunks_differ(dataset, monkeypatch):
    monkeypatch.setattr(imagination, "CHUNK", 8)
    found = produce(dataset, correction="none", source="random")
    starts = [found[name][found["timestep"] == 0] for name in ("source", "start")]
    starts = np.stack(starts, 1)
    assert not np.array_equal(starts[:8], starts[8:16])


def test_simulations_end_with_their_source(dataset):
    # All of the data's actions would be needed: L - start of them are there.
    found = produce(dataset, horizon=60, sigma=0.0, correction="none")
    table = imagination.episodes(dataset.train)
    last = np.flatnonzero(np.diff(found["timestep"], append=0) <= 0)[:-1]
    end = table["length"][found["source"]] - found["start"]
    np.testing.assert_array_equal(found["timestep"][last] + 1, end[last])
    assert not found["terminal"].any()  # a cut: targets bootstrap
    # Retrieval needs no actions of the source, and goes on.
    found = produce(dataset, horizon=60, action_rule="retrieval", correction="none")
    assert found["timestep"].max() == 59


def test_equal_members_need_no_correction(dataset):
    equal = (0.05, 0.05, 0.05)
    found = produce(dataset, equal, correction="relabel", kappa=1e-9)
    plain = produce(dataset, equal, correction="none")
    assert (found["uncertainty"] == 0).all() and not found["corrected"].any()
    for name in plain:
        np.testing.assert_array_equal(found[name], plain[name])


def test_summary(dataset):
    found = produce(dataset, quantile=0.6)
    facts = world_rows.summary(found, dataset.info)
    assert facts["rows"] == len(found["reward"]) and facts["terminal"] == 0
    assert 1 <= facts["length"] < 6 and 0 < facts["truncated"] <= 1
    assert facts["u_50"] <= facts["u_90"] <= facts["u_99"]
    assert facts["reward_data"] == dataset.info["reward_mean"]
    untouched = world_rows.summary(produce(dataset, correction="none"))
    assert untouched["truncated"] == 0 and "reward_data" not in untouched


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(source="best"), "source 'best' is unknown: use random, top_n"),
        (dict(action_rule="decision"), "action_rule 'decision' is unknown"),
        (dict(rollout_member="all"), "rollout_member 'all' is unknown"),
        (dict(termination="always"), "termination 'always' is unknown"),
        (dict(u_kind="std"), "u_kind 'std' is unknown"),
        (dict(correction="truncate+fix"), "correction 'fix' is unknown"),
        (dict(quantile=1.0), "quantile=1.0"),
        (dict(top_fraction=0.0), "top_fraction=0.0: it must be in"),
        (dict(horizon=0), "horizon=0: it must be positive"),
        (dict(sigma=-0.1), "sigma=-0.1"),
        (dict(action_rule="policy", policy_stage="other"), "'other': use one of"),
        (dict(termination="analytic"), "no rule for 'unknown environments'"),
        (dict(termination="learned"), "no termination head"),
        (dict(members=1), "members=1 never disagree, so u_kind=pairwise-diff"),
    ],
)
def test_settings_that_cannot_work(dataset, changes, words):
    with pytest.raises(UserError) as error:
        produce(dataset, **changes)
    assert words in str(error.value)


def test_the_threshold_is_a_quantile_of_held_out_windows(dataset):
    first = jax.jit(lambda state, window: window["observation"][:, -1, 0])
    theta = imagination.threshold(first, None, dataset, K, 0.8)
    wanted = np.quantile(dataset.evals["valid"]["observation"][:, 0], 0.8)
    assert np.isclose(theta, wanted, rtol=1e-5)
    assert not np.isclose(theta, np.quantile(dataset.train["observation"][:, 0], 0.8))


def test_thresholds_need_held_out_rows(dataset):
    whole = toy_world.dataset(K, valid_fraction=0.0)
    with pytest.raises(UserError, match="data.valid_fraction"):  # before training
        imagination.make_produce(settings(), whole.info, None, K)
    bare = dataset._replace(evals={})
    with pytest.raises(UserError, match="data.valid_fraction"):
        produce(bare)
    assert len(produce(bare, correction="none")["reward"])


def test_an_evaluator_that_keeps_nothing_says_so(dataset):
    # The sum of u passes kappa at the first step of nearly every simulation.
    with pytest.raises(UserError, match="World Evaluator left .* rows"):
        produce(dataset, kappa=1e-6)


def test_gain_by_hand():
    reward = np.array([[1.0, 2.0, 3.0]] * 5)
    found = dict(
        reward=reward,
        keep=np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]], bool),
        terminal=np.array(
            [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool
        ),
    )
    own = np.array([[1.0, 1.0, 1.0]] * 5)
    # whole; cut after two; died at the first; nothing kept; the second dropped
    np.testing.assert_array_equal(
        world_rows.gain(found, own), [6 - 3, 3 - 2, 1 - 3, -np.inf, 4 - 2]
    )
    np.testing.assert_array_equal(
        world_rows.best(np.array([3, 1, -2, 3, 2.0]), 0.41), [0, 3, 4]
    )


def test_kept_simulations_earn_more_than_all(dataset):
    """Of the same simulations; the toy system's reward is learnt by `linear`."""

    def mean_gain(keep):
        found = produce(dataset, keep=keep, sigma=0.5, source="random")
        table = imagination.episodes(dataset.train)
        row = table["first"][found["source"]] + found["start"] + found["timestep"]
        return (found["reward"] - dataset.train["reward"][row]).mean()

    assert mean_gain(0.25) > mean_gain(1.0) + 0.01


def ends(env_id, kind="auto", has_head=False):
    return imagination.termination(
        settings(termination=kind), {"env_id": env_id}, has_head
    )


def test_choice_of_the_rule_that_ends_simulations():
    fallen = jnp.zeros((1, 11))
    assert ends("Hopper-v4")(fallen, None).all()
    for env_id in ("Hopper-v4", "Walker2d-v4", "HalfCheetah-v4", "Ant-v4"):
        assert ends(env_id)(fallen + jnp.nan, None).all()
    # Also where the model has a head, which here sees no end.
    assert ends("Hopper-v4", has_head=True)(fallen, jnp.array([-1.0])).all()
    assert ends("Hopper-v4", "none") is None
    assert ends("") is None and ends("Swimmer-v4") is None
    logit = jnp.array([-0.1, 0.0, 0.1])
    for env_id, kind in (("", "auto"), ("Hopper-v4", "learned")):
        found = ends(env_id, kind, has_head=True)(fallen, logit)
        np.testing.assert_array_equal(found, [False, False, True])
