"""Action rules of simulated trajectories, alone and with all sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import ConfigDict
from toy_imagination import K, produce
from toy_world import Policy, linear, settings

from jaxrec.methods import (
    imagination,
    real_rows,
    world_model,
    world_rollout,
    world_sources,
)


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=K)


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
    plain = real_rows.make(ConfigDict(real_rows.HPARAMS), dataset.info)
    for name, column in plain.produce(None, dataset, key).items():
        np.testing.assert_array_equal(column, dataset.train[name])
    noisy = real_rows.make(
        ConfigDict(real_rows.HPARAMS | dict(sigma=0.1)), dataset.info
    )
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
    config = ConfigDict(settings())
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
