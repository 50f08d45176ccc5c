"""Simulator adapters, collected trajectories and the policies behind them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec.data import cache, trajectories
from jaxrec.data import gym as source
from jaxrec.envs import behaviour, gym, policies
from jaxrec.types import UserError

ENVS = [env_id for env_id in source.ENVS if any(policies.WEIGHTS.glob(f"{env_id}*"))]


@pytest.fixture(scope="module", autouse=True)
def simulator():
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    pytest.importorskip("mujoco", reason="mujoco is not installed")


@pytest.fixture(scope="module")
def collected():
    """One small data set of each environment: many ends in Hopper and Walker2d."""
    return {e: source.collect(e, "medium-replay", 4000, seed=3) for e in ENVS}


def config(tmp_path, name, rows=1500, seed=0):
    return ConfigDict(dict(name=name, rows=rows, seed=seed, data_dir=str(tmp_path)))


def test_normalized_scores():
    for name, (low, high) in gym.SCORES.items():
        assert gym.normalized_score(name, low) == 0
        assert gym.normalized_score(f"{name}-medium-v2", high) == 100
    assert gym.normalized_score("Hopper-v4", 3727) == pytest.approx(115.1, abs=0.06)
    assert gym.normalized_score("HalfCheetah-v4", -233.7) == pytest.approx(0.37, 0.02)
    np.testing.assert_allclose(
        gym.normalized_score("Walker2d-v4", np.array([1.629008, 4592.3])), [0, 100]
    )
    with pytest.raises(UserError, match="Pusher"):
        gym.normalized_score("Pusher-v4", 0.0)


def test_importing_does_not_import_gymnasium():
    code = (
        "import sys, jaxrec.data.gym, jaxrec.envs.behaviour;"
        "assert 'gymnasium' not in sys.modules and 'mujoco' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_is_the_users(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[mujoco\]'"):
        gym.make("Hopper-v4")


@pytest.mark.parametrize("name", ["Hoper-v4/medium", "gym/Hopper-v4/midium", "Hopper"])
def test_unknown_names_are_refused_with_the_nearest(tmp_path, name):
    with pytest.raises(UserError, match="Hopper-v4|medium"):
        source.load(config(tmp_path, name))
    assert not list(tmp_path.iterdir())


def test_unknown_environment_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean.*Hopper-v4"):
        gym.make("Hoper-v4")
    with pytest.raises(UserError, match="use its v4 or v5"):
        gym.make("Hopper-v3")


@pytest.mark.parametrize("env_id", ENVS)
def test_rule_agrees_with_the_simulator(collected, env_id):
    rows, rule = collected[env_id], gym.terminated(env_id)
    np.testing.assert_array_equal(rule(rows.next_observation), rows.terminal)
    traced = jax.jit(rule)(jnp.asarray(rows.next_observation))
    np.testing.assert_array_equal(traced, rows.terminal)
    assert rows.terminal.any() == (env_id != "HalfCheetah-v4")


def test_rules_at_their_boundaries():
    hopper, walker = gym.terminated("Hopper-v4"), gym.terminated("Walker2d-v4")
    cheetah, ant = gym.terminated("HalfCheetah-v4"), gym.terminated("Ant-v4")
    assert gym.terminated("Pusher-v4") is None

    def state(size, height, angle=0.0, other=0.0):
        return np.array([height, angle] + [other] * (size - 2))

    cases = [
        (hopper, state(11, 0.71), False), (hopper, state(11, 0.7), True),
        (hopper, state(11, 1.2, 0.199), False), (hopper, state(11, 1.2, -0.2), True),
        (hopper, state(11, 1.2, 0, 100), True), (hopper, state(11, 150), False),
        (hopper, state(11, np.inf), True), (hopper, state(11, np.nan), True),
        (walker, state(17, 0.81), False), (walker, state(17, 0.8), True),
        (walker, state(17, 1.99), False), (walker, state(17, 2), True),
        (walker, state(17, 1.2, -1), True), (walker, state(17, 1.2, 0.99), False),
        (cheetah, state(17, -0.5, 3, 99), False), (cheetah, state(17, 0, 100), True),
        (cheetah, state(17, 0, np.nan), True),
        (ant, state(27, 0.2), False), (ant, state(27, 0.19), True),
        (ant, state(27, 1.0), False), (ant, state(27, 1.01), True),
        (ant, state(27, 0.5, 0, np.nan), True),
    ]  # fmt: skip
    for rule, observation, ended in cases:
        assert rule(observation) == ended, (rule, observation)


@pytest.mark.parametrize("env_id", ENVS)
def test_replay_meets_the_stored_steps(collected, env_id):
    """Single steps, the last rows of episodes among them, and ten steps in a row."""
    rows = collected[env_id]
    ends = np.flatnonzero(rows.terminal | rows.timeout)
    chosen = np.union1d(np.arange(0, 4000, 97), ends)
    qpos, qvel = rows.extras["qpos"], rows.extras["qvel"]
    observations, rewards, terminals = gym.replay(
        env_id, qpos[chosen], qvel[chosen], rows.action[chosen, None]
    )
    np.testing.assert_allclose(
        observations[:, 0], rows.next_observation[chosen], atol=1e-3
    )
    np.testing.assert_allclose(rewards[:, 0], rows.reward[chosen], atol=1e-3)
    np.testing.assert_array_equal(terminals[:, 0], rows.terminal[chosen])
    start = trajectories.starts(rows)[:1]
    window = rows.action[None, start[0] : start[0] + 10]
    observations, _, _ = gym.replay(env_id, qpos[start], qvel[start], window)
    np.testing.assert_allclose(
        observations[0], rows.next_observation[start[0] : start[0] + 10], atol=1e-2
    )


@pytest.mark.parametrize("env_id", ENVS)
def test_rows_are_well_formed(collected, env_id):
    rows = trajectories.validate(collected[env_id])
    length = trajectories.lengths(rows)
    assert not (rows.terminal & rows.timeout).any()
    assert length.sum() == 4000 and length.max() <= 1000 and rows.valid_next.all()
    ends = rows.terminal | rows.timeout
    # A timeout is the time limit, or the cut at the very end.
    cut = np.repeat(length, length)[rows.timeout & (np.arange(4000) < 3999)]
    assert (cut == 1000).all()
    follows = ~ends[:-1]
    np.testing.assert_array_equal(
        rows.next_observation[:-1][follows], rows.observation[1:][follows]
    )
    assert (
        (rows.next_observation[:-1][~follows] != rows.observation[1:][~follows])
        .any(-1)
        .all()
    )
    assert rows.extras["qpos"].dtype == np.float64


def test_same_seed_same_rows_and_the_cache_is_used(tmp_path, monkeypatch):
    env_id = ENVS[0]
    one = source.load(config(tmp_path / "a", f"gym/{env_id}/medium-replay"))
    two = source.load(config(tmp_path / "b", f"{env_id}/medium-replay"))
    assert one.info == two.info and one.info["name"] == f"gym/{env_id}/medium-replay"
    assert one.info["rows"] == 1500 and one.info["gymnasium"]
    for left, right in zip(
        trajectories.flatten(one).values(), trajectories.flatten(two).values()
    ):
        np.testing.assert_array_equal(left, right)
    other = source.load(config(tmp_path / "a", f"{env_id}/medium-replay", seed=1))
    assert (other.action != one.action).any()
    monkeypatch.setattr(source, "collect", None)  # from now on only the cache
    again = source.load(config(tmp_path / "a", f"{env_id}/medium-replay"))
    np.testing.assert_array_equal(again.action, one.action)
    assert cache.directory(str(tmp_path / "a")) == tmp_path / "a"


def test_medium_expert_is_a_concatenation():
    env_id = ENVS[0]
    rows = source.collect(env_id, "medium-expert", 2001, seed=0)
    medium = source.collect(env_id, "medium", 1000, seed=0)
    expert = source.collect(env_id, "expert", 1001, seed=0)
    np.testing.assert_array_equal(rows.action[:1000], medium.action)
    np.testing.assert_array_equal(rows.observation[1000:], expert.observation)
    assert set(rows.info["policies"]) == {"medium", "expert"}


@pytest.mark.parametrize("env_id", ENVS)
def test_levels_are_ordered_and_near_their_mark(env_id):
    means = {
        level: source.collect(env_id, level, 5000, seed=1).info["normalized_score"]
        for level in ("random", "medium", "expert")
    }
    assert -3 < means["random"] < 5
    assert 20 < means["medium"] < 75
    assert means["medium"] + 10 < means["expert"] < 140


@pytest.mark.parametrize("env_id", ENVS)
def test_noiseless_policies_return_what_their_manifest_says(env_id):
    facts = policies.weights(env_id)["expert"]
    found = gym.rollout(env_id, lambda s, r: policies.act(facts, s), 3, seed=5)
    wanted = facts["evaluation"].mean()
    assert abs(np.median(found["returns"]) - wanted) < 0.1 * wanted


def test_rollout_counts_only_living_episodes():
    """Finished episodes see reward 0 and a still observation; memory is passed on."""
    seen = []

    def policy(memory, observations, rewards):
        seen.append((observations, rewards))
        return memory + 1, np.array([[1.0] * 3, [-1.0] * 3, [0.0] * 3])

    found = gym.rollout("Hopper-v4", policy, 3, seed=0, memory=0)
    assert len(seen) == found["lengths"].max() < 1000
    assert len(set(found["lengths"])) > 1  # else nothing is tested below
    rewards = np.stack([r for _, r in seen])
    first = int(found["lengths"].argmin())
    short = found["lengths"][first]
    assert (rewards[short + 1 :, first] == 0).all()
    assert all((o[first] == seen[short][0][first]).all() for o, _ in seen[short:])
    paid = rewards[1 : short + 1, first].sum()  # one step late, as the policy sees it
    assert paid == pytest.approx(found["returns"][first], rel=1e-5)
    assert seen[0][0].dtype == seen[0][1].dtype == np.float32
    again = gym.rollout("Hopper-v4", policy, 3, seed=0, memory=0)
    np.testing.assert_array_equal(again["returns"], found["returns"])


def test_rollout_refuses_diverged_policies():
    with pytest.raises(UserError, match="not finite"):
        gym.rollout("Hopper-v4", lambda s, r: np.full((2, 3), np.nan), 2, seed=0)


@pytest.mark.parametrize("env_id,wanted", [("Hopper", 3717), ("HalfCheetah", 4167)])
def test_known_policies_score_as_published(shared_data, env_id, wanted):
    path = shared_data / "mujoco" / f"expert_policy_{env_id}.npz"
    if not path.exists():
        pytest.skip(f"{path} not found")
    policy = {k.removeprefix("GaussianPolicy."): v for k, v in np.load(path).items()}
    mean = policy["obsnorm.Standardizer.mean_1_D"]
    std = np.sqrt(policy["obsnorm.Standardizer.meansq_1_D"] - mean**2) + 1e-6

    def act(observations, _):
        x = (observations - mean) / std
        for i in (0, 2):
            layer = f"hidden.FeedforwardNet.layer_{i}.AffineLayer."
            x = np.tanh(x @ policy[layer + "W"] + policy[layer + "b"])
        return x @ policy["out.AffineLayer.W"] + policy["out.AffineLayer.b"]

    found = gym.rollout(f"{env_id}-v4", act, 4, seed=0)
    np.testing.assert_allclose(found["returns"].mean(), wanted, rtol=0.06)
    assert (found["lengths"] == 1000).all()


@pytest.mark.slow
def test_behaviour_training_writes_policies_that_load(tmp_path, monkeypatch, capsys):
    from importlib import util

    path = policies.WEIGHTS.parents[2] / "configs" / "behaviour.py"
    spec = util.spec_from_file_location("behaviour_config", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config("smoke")
    behaviour.train(settings, tmp_path / "run")
    assert "ETA" in capsys.readouterr().out
    monkeypatch.setattr(policies, "WEIGHTS", tmp_path / "weights")
    policies.select(tmp_path / "run", tmp_path / "weights")
    found = policies.weights(settings.env)
    assert {"medium", "expert"} <= set(found)
    assert policies.act(found["medium"], np.zeros((5, 11))).shape == (5, 3)
    assert "Hopper-v4 medium" in policies.table()
