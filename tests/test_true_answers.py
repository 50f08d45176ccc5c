"""The simulator's answers to simulated actions, the study's perfect world model."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import otto_study
from jaxrec import experiment
from jaxrec.data import gym as source
from jaxrec.data import trajectories
from jaxrec.methods import real_rows, true_answers
from jaxrec.methods.world_sources import episodes
from jaxrec.types import Mix, UserError

VIEW = dict(window=0, valid_fraction=0.2, top=1.0, seed=0)


@pytest.fixture(scope="module")
def logged():
    pytest.importorskip("mujoco", reason="mujoco is not installed")
    rows = source.collect("Hopper-v4", "medium-replay", 1_500, seed=3)
    return trajectories.dataset(rows, ConfigDict(VIEW))


def simulate(dataset, horizon=6, every=7):
    """The log's own actions as simulations, with wrong states and rewards after the
    first row, as a poor world model would give."""
    train, table = dataset.train, episodes(dataset.train)
    parts = []
    for episode, (first, length) in enumerate(zip(table["first"], table["length"])):
        for start in range(0, length, every):
            row = first + start + np.arange(min(horizon, length - start))
            part = {name: np.array(x[row]) for name, x in train.items()}
            part["observation"][1:] += 0.1
            part["reward"] += 1.0
            part["terminal"][:] = 0.0
            part["timestep"] = np.arange(len(row), dtype=np.int32)
            part["source"] = np.full(len(row), episode, np.int32)
            part["start"] = np.full(len(row), start, np.int32)
            parts.append((row, part))
    rows = np.concatenate([row for row, _ in parts])
    arrays = {k: np.concatenate([p[k] for _, p in parts]) for k in parts[0][1]}
    return rows, arrays


def test_the_logs_own_actions_get_the_logs_own_answers(logged):
    rows, arrays = simulate(logged)
    found = true_answers.rows(logged._replace(mix=(Mix(arrays, 0.5),)))
    assert logged.train["terminal"].sum() > 3  # deaths are among the answers
    for name in ("observation", "action", "next_observation", "reward", "terminal"):
        wanted = np.asarray(logged.train[name])[rows]
        np.testing.assert_allclose(found[name], wanted, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["claimed"], found["reward"] + 1, atol=1e-5)
    facts = true_answers.facts(found, logged.info)
    assert facts["claimed"] - facts["reward"] == pytest.approx(1, abs=1e-4)
    assert facts["rows"] == len(rows)


def test_nothing_follows_a_true_death(logged):
    _, arrays = simulate(logged)
    first = np.flatnonzero(arrays["timestep"] == 0)
    # Full throttle to one side from every start: many fall before six steps are over.
    arrays["action"] = np.ones_like(arrays["action"])
    found = true_answers.rows(logged._replace(mix=(Mix(arrays, 0.5),)))
    ends = np.flatnonzero(found["terminal"])
    assert 0 < len(found["reward"]) < len(arrays["reward"]) and len(ends) > 3
    assert (found["timestep"][(ends + 1) % len(found["timestep"])] == 0).all()
    assert (found["timestep"] == 0).sum() == len(first)


def test_refusals_name_the_cause(logged):
    _, arrays = simulate(logged)
    with pytest.raises(UserError, match="mix.stage"):
        true_answers.rows(logged)
    other = trajectories.dataset(
        logged.info["trajectories"], ConfigDict(VIEW | dict(seed=5))
    )
    with pytest.raises(UserError, match="data.valid_fraction"):
        true_answers.rows(other._replace(mix=(Mix(arrays, 0.5),)))
    with pytest.raises(UserError, match="simulates nothing"):
        plain = {k: v for k, v in arrays.items() if k != "source"}
        true_answers.rows(logged._replace(mix=(Mix(plain, 0.5),)))
    with pytest.raises(UserError, match="set one of them"):
        both = real_rows.HPARAMS | dict(sigma=0.1, replay=True)
        real_rows.make(ConfigDict(both), logged.info)
    replay = ConfigDict(real_rows.HPARAMS | dict(replay=True))
    with pytest.raises(UserError, match="no simulator"):  # before anything is trained
        real_rows.make(replay, logged.info | dict(env_id=""))
    real_rows.make(replay, logged.info)
    with pytest.raises(ValueError, match="otto,truth"):
        otto_study.get_config("td3bc/truth")


def test_each_seed_replays_its_own_simulations(logged):
    arrays = {"action": np.arange(6.0).reshape(2, 3)}
    mixed = logged._replace(mix=(Mix(arrays, 0.5, per_seed=True),))
    own = experiment.own_rows(mixed, 1).mix[0]
    np.testing.assert_array_equal(own.arrays["action"], [3.0, 4.0, 5.0])
    assert not own.per_seed and own.fraction == 0.5
