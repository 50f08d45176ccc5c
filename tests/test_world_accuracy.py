"""World accuracy: a simulation beside the true system."""

import jax
import numpy as np
import pytest
import toy_world
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import trajectories
from jaxrec.methods import world_accuracy, world_model
from jaxrec.methods.world_accuracy import Truth
from jaxrec.methods.world_model import WorldModel
from jaxrec.types import Method

K = 4
CONFIG = FrozenConfigDict(dict(eval=dict(seed=100)))


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=K)


def make(dataset, spread=(0.0, 0.0), **changes):
    """evaluate(state, key), and the state of a model of the toy system."""
    predict, state = toy_world.linear(dataset, spread)
    config = toy_world.settings(**changes)
    model = WorldModel(None, None, predict=predict, context=K, config=config)
    return world_accuracy.make(CONFIG, model, dataset), state


def test_ranks_and_their_correlation_by_hand():
    np.testing.assert_array_equal(
        world_accuracy.ranks(np.array([3.0, 1.0, 3.0, 2.0])), [3.5, 1, 3.5, 2]
    )
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert np.isclose(world_accuracy.spearman(x, x**3), 1)
    assert np.isclose(world_accuracy.spearman(x, -np.exp(x)), -1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (1, -1, 0, 0)
    assert np.isclose(world_accuracy.spearman(x, x[[1, 0, 2, 3]]), 0.8)
    assert world_accuracy.spearman(x, np.ones(4)) == 0


def test_errors_by_hand():
    """Two starts, five steps; the second start's true system ends with step 3."""
    zeros = np.zeros((2, 5, 2))
    alive = np.array([[True] * 5, [True] * 3 + [False] * 2])
    truth = Truth({}, zeros, zeros, np.zeros((2, 5)), alive, zeros)
    simulated = np.zeros((2, 5, 2))
    simulated[:, :, 0] = np.arange(1, 6)  # standardised by 2
    simulated[1, 0, 0] = 3
    found = dict(
        next_observation=simulated,
        reward=np.array([[1.0, 0, 0, 0, -3], [2, 0, 0, 0, 99]]),
        uncertainty=np.array([[1.0, 2, 3, 4, 5], [3, 2, 3, 9, 9]]),
        keep=np.ones((2, 5), bool),
    )
    metrics = world_accuracy.compare(truth, found, np.array([2.0, 1.0]), theta=4.5)
    # mean over two starts and two dimensions of (1/2)^2, 0, (3/2)^2, 0
    assert np.isclose(metrics["rmse@1"], np.sqrt((0.25 + 2.25) / 4))
    assert np.isclose(metrics["reward_mae@1"], 1.5)
    assert np.isclose(metrics["rmse@5"], np.sqrt(2.5**2 / 2))  # start 1 counts no more
    assert np.isclose(metrics["reward_mae@5"], 3)
    assert metrics["alive@1"] == 1 and metrics["alive@5"] == 0.5
    assert "rmse@10" not in metrics
    # Errors 1..5 and 3, 2, 3: u has their ranks; the worst tenth is the fifth step.
    assert np.isclose(metrics["spearman"], 1) and metrics["caught"] == 1
    higher = world_accuracy.compare(truth, found, np.array([2.0, 1.0]), theta=5.0)
    assert higher["caught"] == 0 and higher["theta"] == 5.0
    # A simulation that stops being finite has no error, rather than a small one.
    found["keep"] = np.array([[True] * 3 + [False] * 2, [True] * 5])
    broken = world_accuracy.compare(truth, found, np.array([2.0, 1.0]), theta=4.5)
    assert np.isnan(broken["rmse@5"]) and np.isfinite(broken["rmse@1"])


def test_exact_model_has_no_error_and_a_wrong_one_has(dataset):
    evaluate, state = make(dataset)
    exact = evaluate(state, jax.random.key(0))
    for h in world_accuracy.HORIZONS:
        assert exact[f"world/rmse@{h}"] < 1e-4
        assert exact[f"world/reward_mae@{h}"] < 1e-4
        assert exact[f"world/alive@{h}"] == 1
    assert exact["world/theta"] == 0 and exact["world/caught"] == 0
    # Simulated states are those of real dynamics: as near the data as real ones.
    ratio = exact["world/coverage"] / exact["world/coverage_real"]
    assert 0.5 < ratio < 2
    wrong = state.replace(params=state.params + 0.2)
    found = evaluate(wrong, jax.random.key(0))
    errors = [found[f"world/rmse@{h}"] for h in (1, 5)]
    assert 1e-3 < errors[0] < errors[1]
    again = evaluate(wrong, jax.random.key(1))  # the starts do not change with the key
    assert again == found


def test_coverage_against_brute_force(dataset, monkeypatch):
    monkeypatch.setattr(world_accuracy, "STARTS", 3)
    evaluate, state = make(dataset)
    found = evaluate(state, jax.random.key(0))
    truth = world_accuracy.find(dataset, K, 0.1, 100)
    std = np.asarray(world_model.scales(dataset.info).observation_std)
    for states, name in (
        (truth.observation, "coverage"),  # the model is exact
        (truth.real, "coverage_real"),
    ):
        gap = states.reshape(-1, 1, 4) - dataset.train["observation"][None]
        nearest = np.sqrt(((gap / std) ** 2).sum(-1)).min(1)
        assert np.isclose(found[f"world/{name}"], nearest.mean(), rtol=1e-3)


def test_starts_are_held_out_and_followed_by_their_own_actions(dataset):
    truth = world_accuracy.find(dataset, K, 0.0, 0)
    held_out = dataset.info["valid_rows"]
    observation = dataset.info["trajectories"].observation
    newest = truth.window["observation"][:, -1]
    rows = [held_out[(observation[held_out] == s).all(1)] for s in newest]
    assert all(len(row) == 1 for row in rows)
    rows = np.concatenate(rows)
    action = dataset.info["trajectories"].action
    horizon = truth.action.shape[1]
    np.testing.assert_array_equal(
        truth.action, action[rows[:, None] + np.arange(horizon)]
    )
    # The data's own course differs by the noise of the toy system only.
    assert 0 < np.abs(truth.observation[:, :5] - truth.real[:, :5]).max() < 0.2
    noisy = world_accuracy.find(dataset, K, 0.1, 0)
    assert np.isclose(np.std(noisy.action - truth.action), 0.1, rtol=0.2)
    assert np.abs(noisy.action).max() <= 1


def test_without_a_truth_there_are_no_numbers(dataset, capsys):
    cases = (
        (dataset._replace(evals={}), "set the stage's data.valid_fraction"),
        (dataset._replace(info=dataset.info | {"name": "npz/mine"}), "no qpos"),
    )
    for without, words in cases:
        evaluate, state = make(without)
        assert evaluate(state, jax.random.key(0)) == {}
        said = capsys.readouterr().err
        assert words in said and said.count("world_accuracy") == 1
        evaluate(state, jax.random.key(0))
        assert capsys.readouterr().err == ""  # said once
    policy = Method(None, None)
    assert world_accuracy.make(CONFIG, policy, dataset)(None, None) == {}
    assert "no world model" in capsys.readouterr().err


def test_replay_of_held_out_steps_meets_the_simulator(monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from jaxrec.data import gym

    data = gym.collect("Hopper-v4", "random", 600, seed=0)
    view = ConfigDict(dict(seed=0, top=1.0, valid_fraction=0.3, window=K))
    dataset = trajectories.dataset(data, view)
    truth = world_accuracy.find(dataset, K, 0.0, 0)
    # Without noise the simulator repeats the data, if it starts at the right rows.
    np.testing.assert_allclose(truth.observation, truth.real, atol=0.02)
    first = truth.window["observation"][:, -1]
    assert np.abs(truth.observation[:, 0] - first).max() > 0.02
    # The step that ends counts, with its reward; those after it do not.
    ended = np.zeros(truth.reward.shape, bool)
    ended[:, 2:] = True
    ended[0] = False
    answer = (truth.observation, truth.reward, ended)
    monkeypatch.setattr(world_accuracy.gym, "replay", lambda *arguments: answer)
    alive = world_accuracy.find(dataset, K, 0.0, 0).alive
    assert alive[0].all() and alive[1:, :3].all() and not alive[1:, 3:].any()
