"""Evaluators of policies: whose simulator, whose scores, how much data, what worth."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import evaluators
from jaxrec.envs import gym
from jaxrec.methods import fqe
from jaxrec.types import Dataset, Method, UserError


@functools.cache
def config():
    return importlib.import_module("configs.td3bc").get_config("smoke")


def method(size):
    """A policy that does nothing."""
    act = lambda state, observation, key: jnp.zeros((len(observation), size))  # noqa: E731
    return Method(init=None, train_step=None, act=act)


def info(od, ad, **changes):
    sizes = dict(observation_size=od, action_size=ad)
    return dict(name="mine", env_id="Hopper-v4") | sizes | changes


@pytest.mark.parametrize(
    "facts, message",
    [
        (info(17, 6), "'Hopper-v4' has observations of size 11, mine of 17"),
        (info(11, 6), "'Hopper-v4' has actions of size 3, mine of 6"),
        (info(11, 3, env_id="Walker2d-v4"), "observations of size 17, mine of 11"),
    ],
)
def test_another_tasks_simulator_is_refused(facts, message):
    pytest.importorskip("mujoco")
    with pytest.raises(UserError, match=message) as caught:
        evaluators.simulator(config(), method(3), Dataset({}, {}, facts))
    assert "\n" not in str(caught.value)


def test_data_of_no_task_have_no_simulator(capsys):
    """A team's run, or a recommender's, measured again by any evaluator."""
    assert evaluators.simulator(config(), method(3), Dataset({}, {}, {}))(0, 0) == {}
    assert "no numbers" in capsys.readouterr().err


def test_replay_in_another_simulator_is_refused():
    pytest.importorskip("mujoco")
    qpos, qvel, actions = np.zeros((1, 9)), np.zeros((1, 9)), np.zeros((1, 2, 3))
    with pytest.raises(UserError, match="Hopper-v4 has 6 positions and 6 velocities"):
        gym.replay("Hopper-v4", qpos, qvel, actions)


def test_scores_are_by_the_references_of_the_data_set_where_it_has_them():
    pytest.importorskip("mujoco")
    found = []
    for own in ({}, dict(ref_min_score=10.0, ref_max_score=110.0)):
        data = Dataset({}, {}, info(11, 3, **own))
        evaluate = evaluators.simulator(config(), method(3), data)
        found.append(evaluate(None, jax.random.key(0)))
    d4rl, own = found
    assert d4rl["eval/return"] == own["eval/return"]
    low, high = gym.SCORES["hopper"]
    wanted = 100 * (d4rl["eval/return"] - low) / (high - low)
    assert d4rl["eval/normalized_score"] == pytest.approx(wanted)
    assert own["eval/normalized_score"] == pytest.approx(own["eval/return"] - 10.0)


def test_references_that_tell_no_range_are_left_out():
    assert gym.reference(info(11, 3, ref_min_score=1.0, ref_max_score=1.0))[2] == "D4RL"
    assert gym.reference(info(11, 3, ref_min_score=1.0))[2] == "D4RL"
    assert gym.reference(dict(env_id="")) is gym.reference({}) is None


def rows(number):
    """One-step episodes with reward 1: every state is worth 1."""
    columns = dict(
        observation=np.random.default_rng(0).normal(size=(number, 2)),
        action=np.zeros((number, 1)),
        reward=np.ones(number),
        next_observation=np.zeros((number, 2)),
        terminal=np.ones(number),
        valid_next=np.ones(number),
    )
    columns = {name: column.astype(np.float32) for name, column in columns.items()}
    return columns | dict(timestep=np.zeros(number, np.int32))


def test_fitted_q_takes_a_sample_of_a_large_set_to_the_device(monkeypatch):
    data = rows(20_000)
    whole = {name: column for name, column in data.items() if name in fqe.NAMES}
    assert fqe.sample(whole, 20_000)["reward"] is whole["reward"]
    sizes = {k: len(v) for k, v in fqe.sample(whole, 700).items()}
    assert set(sizes.values()) == {700}
    row = sum(column.nbytes for column in whole.values()) / 20_000
    monkeypatch.setattr(fqe, "BYTES", int(300 * row))
    few = fqe.sample(whole, 700)
    again = fqe.sample(whole, 700)
    assert len(few["reward"]) == 300
    np.testing.assert_array_equal(few["observation"], again["observation"])
    # Rows stay together and in their order, and come from everywhere.
    place = {tuple(s): i for i, s in enumerate(data["observation"].tolist())}
    index = [place[tuple(s)] for s in few["observation"].tolist()]
    assert index == sorted(set(index)) and np.mean(index) == pytest.approx(1e4, abs=1e3)


def test_fitted_q_evaluates_what_is_larger_than_its_limit(monkeypatch):
    monkeypatch.setattr(fqe, "BYTES", 10_000)
    monkeypatch.setattr(fqe, "STARTS", 100)
    inner, sizes = fqe._evaluate, {}

    def spy(act, settings, state, data, first, standard, key):
        sizes.update(starts=len(first), bytes=sum(x.nbytes for x in data.values()))
        return inner(act, settings, state, data, first, standard, key)

    monkeypatch.setattr(fqe, "_evaluate", spy)
    facts = info(2, 1, observation_mean=np.zeros(2), observation_std=np.ones(2))
    settings = config()
    settings.eval.fqe_steps = 150
    evaluate = evaluators.fitted_q(settings, method(1), Dataset(rows(2_000), {}, facts))
    found = evaluate(None, jax.random.key(0))
    assert found["eval/fqe_value"] == pytest.approx(1.0, abs=0.1)
    assert sizes["starts"] == 100 and 9_000 < sizes["bytes"] <= 10_000


# A corridor of three cells; action > 0 moves right with reward 1, the last cell ends
# the episode; action < 0 stays for nothing. Always right: 1 + 0.9 + 0.81 = 2.71.


def corridor(episodes=200):
    draw, rows = np.random.default_rng(0), []
    for _ in range(episodes):
        cell = 0
        for t in range(6):  # six steps are a time limit, not an end
            a = draw.uniform(-1, 1)
            right = a > 0
            nxt = cell + right
            rows.append((cell, a, float(right), min(nxt, 2), float(nxt == 3), t))
            cell = nxt
            if nxt == 3:
                break
    cell, action, reward, nxt, terminal, t = map(np.array, zip(*rows, strict=True))
    return dict(
        observation=np.eye(3, dtype=np.float32)[cell],
        action=action[:, None].astype(np.float32),
        reward=reward.astype(np.float32),
        next_observation=np.eye(3, dtype=np.float32)[nxt],
        terminal=terminal.astype(np.float32),
        valid_next=np.ones(len(cell), np.float32),
        timestep=t.astype(np.int32),
    )


@pytest.mark.parametrize("direction, want", [(0.5, 2.71), (-0.5, 0.0)])
def test_fitted_q_evaluation_of_a_corridor(direction, want):
    arrays = corridor()
    info = dict(
        observation_mean=arrays["observation"].mean(0),
        observation_std=arrays["observation"].std(0),
    )

    def act(state, observation, key):
        return jnp.full((len(observation), 1), direction)

    found = fqe.evaluate(
        act,
        None,
        arrays,
        info,
        jax.random.key(0),
        steps=2000,
        batch_size=64,
        gamma=0.9,
        lr=1e-3,
        widths=(32, 32),
    )
    assert found["value"] == pytest.approx(want, abs=0.15)
    assert found["value_std"] == pytest.approx(0.0, abs=1e-4)  # one start state
