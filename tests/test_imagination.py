"""Simulated trajectories: sources, action rules, rollouts, the World Evaluator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import ConfigDict
from toy_world import Policy, linear, settings

from jaxrec.data import loader
from jaxrec.methods import (
    imagination,
    real_rows,
    world_model,
    world_rollout,
    world_rows,
    world_sources,
)
from jaxrec.types import UserError

K = 4


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=K)


MADE = {}  # settings -> produce: compiled once for the tests that share them


def produce(dataset, spread=(-0.1, 0.0, 0.1), key=0, **changes):
    predict, state = linear(dataset, spread)
    info = dict(dataset.info, stages={"agent": (None, Policy)})
    changes = (
        dict(generated=0.3, horizon=6, quantile=0.9, action_rule="noise") | changes
    )
    label = tuple(sorted(changes.items()))
    if label not in MADE:
        config = settings(**changes)
        MADE[label] = imagination.make_produce(config, info, predict, K)
    return MADE[label](state, dataset, jax.random.key(key))


# Action rules


@pytest.mark.parametrize("rule", ["noise", "uniform_scale"])
def test_without_noise_actions_are_those_of_the_data(dataset, rule):
    found = produce(dataset, action_rule=rule, sigma=0.0, delta=0.0)
    table = imagination.episodes(dataset.train)
    row = table["first"][found["source"]] + found["start"] + found["timestep"]
    assert found["action"].tobytes() == dataset.train["action"][row].tobytes()
    other = produce(dataset, action_rule=rule)
    assert np.abs(other["action"]).max() <= 1
    assert other["action"].tobytes() != found["action"].tobytes()


def test_rules_by_hand():
    config, keys = (
        settings(sigma=0.3, delta=0.5),
        jax.random.split(jax.random.key(2), 3),
    )
    planned = jnp.full((4000, 2), 0.5)
    s = jnp.zeros((4000, 4))
    noisy = world_rollout.noise(config, None, s, planned, keys[0])
    assert np.isclose(np.mean(noisy < 0.5), 0.5, atol=0.02)
    assert np.isclose(np.mean(jnp.abs(noisy - 0.5) < 0.3), 0.683, atol=0.02)
    scaled = world_rollout.uniform_scale(config, None, s, planned, keys[1])
    assert scaled.min() < 0.26 and 0.74 < scaled.max() < 0.75
    assert np.isclose(scaled.mean(), 0.5, atol=0.01)
    # Noise would leave the box; it is clipped.
    edge = world_rollout.noise(config, None, s, planned * 2, keys[2])
    assert edge.max() == 1.0 and np.isclose(np.mean(edge == 1.0), 0.5, atol=0.02)


def test_retrieval_takes_the_action_of_the_nearest_best_state(dataset):
    config = settings(action_rule="retrieval", top_fraction=0.1)
    table = imagination.episodes(dataset.train)
    best = np.argsort(-table["returns"])[:3]  # ceil(0.1 * 23)
    assert len(table["returns"]) == 23
    first, length = table["first"], table["length"]
    rows = np.concatenate([first[i] + np.arange(length[i]) for i in sorted(best)])
    found = imagination.lookups(config, frozenset(), dataset.train, table)["best"]
    np.testing.assert_array_equal(found["action"], dataset.train["action"][rows])
    scales = world_model.scales(dataset.info)
    query = dataset.train["observation"][:7]
    std = np.asarray(scales.observation_std)
    gap = (query[:, None] - dataset.train["observation"][rows][None]) / std
    nearest = rows[np.argmin((gap**2).sum(-1), axis=1)]
    action = world_sources.search(scales, found, "action")(jnp.asarray(query))
    np.testing.assert_array_equal(action, dataset.train["action"][nearest])


def test_retrieval_does_not_find_its_own_episode(dataset):
    config = settings(action_rule="retrieval", top_fraction=0.1)
    table = imagination.episodes(dataset.train)
    found = imagination.lookups(config, frozenset(), dataset.train, table)["best"]
    scales = world_model.scales(dataset.info)
    episodes = np.unique(found["episode"])
    assert len(episodes) == 3
    for own in episodes:
        query = jnp.asarray(found["observation"][found["episode"] == own])
        without = jnp.full(len(query), own)
        other = found["episode"] != own
        std = np.asarray(scales.observation_std)
        gap = (np.asarray(query)[:, None] - found["observation"][other][None]) / std
        nearest = np.argmin((gap**2).sum(-1), axis=1)
        action = world_sources.search(scales, found, "action", without)(query)
        np.testing.assert_array_equal(action, found["action"][other][nearest])
    # The only episode there is stays: some action must follow.
    one = {name: x[found["episode"] == own] for name, x in found.items()}
    action = world_sources.search(scales, one, "action", without)(query)
    np.testing.assert_array_equal(action, one["action"])


def test_controls_hand_on_real_rows(dataset):
    key = jax.random.key(3)
    plain = real_rows.make(ConfigDict(dict(sigma=0.0)), dataset.info)
    for name, column in plain.produce(None, dataset, key).items():
        np.testing.assert_array_equal(column, dataset.train[name])
    noisy = real_rows.make(ConfigDict(dict(sigma=0.1)), dataset.info)
    found = noisy.produce(None, dataset, key)
    inside = np.abs(dataset.train["action"]) < 0.5
    gap = (found["action"] - dataset.train["action"])[inside]
    assert np.isclose(gap.std(), 0.1, rtol=0.1) and np.abs(found["action"]).max() <= 1
    np.testing.assert_array_equal(
        found["next_observation"], dataset.train["next_observation"]
    )


def test_policy_acts_on_simulated_states(dataset):
    found = produce(dataset, action_rule="policy", policy_stage="agent", sigma=0.0)
    wanted = np.clip(-0.5 * found["observation"][:, :2], -1, 1)
    np.testing.assert_allclose(found["action"], wanted, rtol=1e-6)


@pytest.mark.parametrize("rule", imagination.ACTION_RULES)
def test_all_sources_and_rules_work_together(dataset, rule):
    predict, state = linear(dataset)
    info = dict(dataset.info, stages={"agent": (None, Policy)})
    config = ConfigDict(imagination.HPARAMS)
    config.update(action_rule=rule, policy_stage="agent", correction="project")
    config.update(generated=0.3, horizon=4)
    make = imagination.make_produce(config, info, predict, K)
    for source in imagination.SOURCES:
        config.source = source  # read at every call; the compiled part has no source
        found = make(state, dataset, jax.random.key(0))
        assert {len(array) for array in found.values()} == {len(found["reward"])}
        assert len(found["reward"]) == np.ceil(0.3 * len(dataset.train["reward"]))
        assert all(np.isfinite(array).all() for array in found.values())
        chosen = len(np.unique(found["source"]))
        assert chosen <= 3 if source in ("top_n", "softmax_top_n") else chosen > 3


# The artefact


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


# Mistakes of users


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
    bare = dataset._replace(evals={})
    with pytest.raises(UserError, match="data.valid_fraction"):
        produce(bare)
    assert len(produce(bare, correction="none")["reward"])


def test_an_evaluator_that_keeps_nothing_says_so(dataset):
    # The sum of u passes kappa at the first step of nearly every simulation.
    with pytest.raises(UserError, match="World Evaluator left .* rows"):
        produce(dataset, kappa=1e-6)


# Selection by gain


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
