"""Steps of a simulation: windows, members, ends, and what the evaluator does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import FrozenConfigDict
from toy_world import linear, settings

from jaxrec.envs import gym
from jaxrec.methods import (
    imagination,
    world_evaluator,
    world_rollout,
    world_rows,
    world_transformer,
)
from jaxrec.methods.world_model import Extra, Prediction, Scales
from jaxrec.types import TrainState

NEVER = world_evaluator.Evaluator(world_evaluator.pairwise_diff, frozenset())


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=4)


def told(deltas, rewards, scale=1.0):
    """A model that says deltas[E, H, od] and rewards[E, H], whatever the action.

    The step is read from the last state dimension, a clock that deltas raise by one.
    """
    deltas, rewards = jnp.asarray(deltas), jnp.asarray(rewards)
    clock = jnp.ones((*deltas.shape[:2], 1))
    deltas = jnp.concatenate([deltas, clock], -1) / scale
    size = deltas.shape[-1]
    scales = Scales(
        observation_mean=jnp.full(size, 3.0),
        observation_std=jnp.full(size, 2.0),
        delta_std=jnp.full(size, scale),
        reward_mean=jnp.zeros(()),
        reward_std=jnp.ones(()),
    )
    state = TrainState(jnp.zeros((), jnp.int32), None, None, extra=Extra(scales))

    def predict(state, window):
        step = jnp.round(window["observation"][:, -1, -1]).astype(jnp.int32)
        step = jnp.clip(step, 0, deltas.shape[1] - 1)
        mean = deltas[:, step]
        return Prediction(mean, mean * 0, rewards[:, step], rewards[:, step] - 1)

    return predict, state


def simulate(predict, state, start, horizon=3, planned=None, **changes):
    """Rollouts from float32[B, od], with windows of one step; actions are 0 if None."""
    start = jnp.asarray(start, jnp.float32)
    if planned is None:
        planned = jnp.zeros((len(start), horizon, 2))
    window = dict(
        observation=start[:, None],
        action=jnp.zeros((len(start), 1, planned.shape[-1])),
        mask=jnp.ones((len(start), 1), bool),
    )
    found = world_rollout.rollout(
        predict,
        state,
        state.extra.scales,
        window,
        planned,
        jax.random.key(0),
        **dict(evaluator=NEVER) | changes,
    )
    return {name: np.asarray(x) for name, x in found.items()}


def evaluator(correction, **changes):
    made = world_evaluator.make(settings(correction=correction))
    return made._replace(**changes)


def test_a_simulated_step_is_a_fresh_forward_of_its_window(dataset):
    small = dict(steps=1, batch_size=2, width=16, num_layers=1, num_heads=2, members=2)
    config = FrozenConfigDict(world_transformer.HPARAMS | small)
    method = world_transformer.make(config, dataset.info)
    rows = np.array([1, 60, 130])  # the first window has two padded slots
    window = imagination.windows(dataset.train, rows, 4)
    state = jax.jit(lambda key: method.init(key, window, {}))(jax.random.key(0))
    predict = jax.jit(method.predict)
    actions = jnp.asarray(dataset.train["action"][rows[:, None] + np.arange(6)])
    found = world_rollout.rollout(
        predict,
        state,
        state.extra.scales,
        window,
        actions,
        jax.random.key(1),
        evaluator=NEVER,
    )
    past = {name: jnp.asarray(window[name]) for name in ("observation", "action")}
    s = jnp.concatenate([past["observation"], found["next_observation"]], axis=1)
    a = jnp.concatenate([past["action"][:, :-1], actions], axis=1)
    mask = np.concatenate([window["mask"], np.ones((3, 6), bool)], axis=1)
    for h in range(6):
        fresh = dict(observation=s[:, h : h + 4], action=a[:, h : h + 4])
        said = predict(state, fresh | {"mask": mask[:, h : h + 4]})
        delta = jnp.mean(said.mean, axis=0) * state.extra.scales.delta_std[None]
        np.testing.assert_allclose(
            found["next_observation"][:, h], s[:, h + 3] + delta, atol=1e-5
        )
        np.testing.assert_allclose(
            found["reward"][:, h], jnp.mean(said.reward, axis=0), atol=1e-5
        )
        np.testing.assert_array_equal(found["observation"][:, h], s[:, h + 3])
    np.testing.assert_array_equal(found["action"], actions)


def test_exact_models_simulate_the_true_system(dataset):
    predict, state = linear(dataset, (0.0, 0.0))
    start = dataset.train["observation"][[0, 70]]
    found = simulate(predict, state, start, horizon=8)
    true = start
    for h in range(8):
        true, reward = toy_world.toy.step(true, np.zeros((2, 2), np.float32))
        np.testing.assert_allclose(found["next_observation"][:, h], true, atol=1e-5)
        np.testing.assert_allclose(found["reward"][:, h], reward, atol=1e-5)


def test_members_of_a_rollout():
    predict, state = told([[[0.0]] * 9, [[2.0]] * 9, [[4.0]] * 9], [[1.0] * 9] * 3)
    start = np.zeros((300, 2))
    mean = simulate(predict, state, start, 8, member="mean")
    assert (np.diff(mean["observation"][..., 0]) == 2).all()
    every = simulate(predict, state, start, 8, member="per_step")
    moves = np.diff(every["observation"][..., 0])
    assert set(moves.ravel()) == {0, 2, 4} and moves.std(axis=1).max() > 0
    counts = np.array([(moves == size).sum() for size in (0, 2, 4)])
    assert ((counts - 700) ** 2 / 700).sum() < 13.8  # chi2(2), p = 0.001
    same = simulate(predict, state, start, 8, member="per_traj")
    moves = np.diff(same["observation"][..., 0])
    assert (moves == moves[:, :1]).all() and set(moves[:, 0]) == {0, 2, 4}


# The evaluator


# Deltas of two members in one dimension; u = half their gap: 0.5, 2, 0.5
DELTAS = [[[0.0], [0.0], [0.0]], [[1.0], [4.0], [1.0]]]
REWARDS = [[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]  # means 2, 4, 6


def corrected(correction, horizon=3, **changes):
    predict, state = told(DELTAS, REWARDS)
    changes = dict(theta=1.0) | changes
    tools = world_rollout.Tools(nearest=lambda s: s.at[:, 0].set(-7.0))
    found = simulate(
        predict,
        state,
        np.zeros((1, 2)),
        horizon,
        evaluator=evaluator(correction, **changes),
        tools=tools,
    )
    return {name: x[0] for name, x in found.items()}


def test_no_correction():
    found = corrected("none")
    np.testing.assert_allclose(found["uncertainty"], [0.5, 2, 0.5])
    np.testing.assert_allclose(found["next_observation"][:, 0], [0.5, 2.5, 3.0])
    np.testing.assert_allclose(found["reward"], [2, 4, 6])
    assert found["keep"].all() and not found["changed"].any()


def test_truncate_cuts_before_the_step_and_is_no_death():
    found = corrected("truncate")
    np.testing.assert_array_equal(found["keep"], [True, False, False])
    np.testing.assert_array_equal(found["cut"], [False, True, False])
    assert not found["terminal"].any()
    rows = {name: x[None] for name, x in found.items()}
    rows = world_rows.columns(rows, np.array([0]), np.array([0]))
    rows = world_rows.finish(rows)
    # The row before the cut keeps its next state: a target may bootstrap from it.
    np.testing.assert_array_equal(rows["terminal"], [0.0])
    np.testing.assert_array_equal(rows["valid_next"], [1.0])
    np.testing.assert_array_equal(rows["cut"], [1.0])
    np.testing.assert_allclose(rows["next_observation"], [[0.5, 1.0]])


def test_other_corrections_by_hand():
    found = corrected("drop")
    np.testing.assert_array_equal(found["keep"], [True, False, True])
    assert not found["cut"].any()
    found = corrected("relabel")
    np.testing.assert_allclose(found["reward"], [2, 2, 6])
    np.testing.assert_array_equal(found["changed"], [False, True, False])
    found = corrected("penalise", penalty=10.0)
    np.testing.assert_allclose(found["reward"], [2, 4 - 10 * 2, 6])
    found = corrected("relabel+penalise", penalty=10.0)
    np.testing.assert_allclose(found["reward"], [2, 2 - 10 * 2, 6])
    found = corrected("project")
    np.testing.assert_allclose(found["next_observation"][:, 0], [0.5, -7, -6.5])
    np.testing.assert_allclose(found["observation"][2, 0], -7)
    np.testing.assert_array_equal(found["changed"], [False, True, False])


def test_the_sum_of_u_counts_too():
    # Sums 0.5, 2.5, 3.0: steps are low from where the sum exceeds kappa.
    for kappa, kept in ((0.4, 0), (0.5, 1), (2.4, 1), (2.9, 2), (3.0, 3)):
        found = corrected("truncate", theta=np.inf, kappa=kappa)
        assert found["keep"].sum() == kept, kappa


# Ends


def ends(env_id, kind="auto", has_head=False):
    return imagination.termination(
        settings(termination=kind), {"env_id": env_id}, has_head
    )


@pytest.mark.parametrize(
    "env_id, dimension, alive, dead",
    [
        ("Hopper-v4", 0, (0.701, 1e6), (0.7, -1.0)),
        ("Hopper-v4", 1, (-0.199, 0.199), (-0.2, 0.2)),
        ("Hopper-v4", 5, (-99.9, 99.9), (-100.0, 100.0)),
        ("Walker2d-v4", 0, (0.801, 1.999), (0.8, 2.0)),
        ("Walker2d-v4", 1, (-0.999, 0.999), (-1.0, 1.0)),
        ("Walker2d-v4", 9, (99.9,), (100.0,)),
        ("HalfCheetah-v4", 3, (-99.9, 99.9), (100.0, -100.0)),
        ("Ant-v4", 0, (0.2, 1.0), (0.199, 1.001)),
    ],
)
def test_ends_at_their_boundaries_in_raw_units(env_id, dimension, alive, dead):
    """The state arrives at the value by a delta in standardised units."""
    family = gym.family(env_id)
    size = dict(hopper=11, walker2d=17, halfcheetah=17, ant=27)[family]
    values = (*alive, *dead)
    goal = np.zeros((len(values), 2, size), np.float32)
    goal[..., 0] = dict(hopper=1.0, walker2d=1.0, halfcheetah=0.0, ant=0.5)[family]
    goal[:, 0, dimension] = values
    _, state = told([[np.zeros(size - 1)]], [[0.0]], scale=0.5)

    def predict(state, window):  # goes where the action says, from the origin
        mean = (window["action"][:, -1] - window["observation"][:, -1])[None] / 0.5
        return Prediction(mean, mean * 0, mean[..., 0], None)

    found = simulate(predict, state, goal[:, 0] * 0, 2, planned=goal, ends=ends(env_id))
    reached = found["next_observation"][:, 0, dimension]
    np.testing.assert_array_equal(reached, np.float32(values))
    is_dead = np.isin(values, dead)
    np.testing.assert_array_equal(found["terminal"][:, 0], is_dead)
    # The row of the end is kept, as a terminal one; nothing follows it.
    assert found["keep"][:, 0].all()
    np.testing.assert_array_equal(found["keep"][:, 1], ~is_dead)


def test_learned_ends_follow_the_mean_logit():
    # Logits are rewards - 1: members -0.5 and 0.7, then 1 and -2, mean 0.1 and -0.5
    predict, state = told(np.zeros((2, 2, 1)), [[2.0, 0.5], [-1.0, 1.7]])
    start = np.array([[0.0, 0.0], [0.0, 1.0]])
    found = simulate(predict, state, start, 2, ends=ends("", "learned", True))
    np.testing.assert_array_equal(found["terminal"][:, 0], [False, True])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["state", "reward"])
def test_what_is_not_finite_ends_a_rollout(bad, where):
    deltas, rewards = np.ones((2, 3, 1)), np.ones((2, 3))
    (deltas if where == "state" else rewards)[:, 1] = bad
    predict, state = told(deltas, rewards)
    found = simulate(predict, state, np.zeros((2, 2)), 3)
    np.testing.assert_array_equal(found["keep"], [[True, False, False]] * 2)
    assert not found["terminal"][found["keep"]].any()
    assert np.isfinite(found["next_observation"][found["keep"]]).all()


def test_rollouts_are_cut_where_no_actions_are_left():
    predict, state = told(np.ones((1, 3, 1)), np.ones((1, 3)))
    available = jnp.array([[True, True, False], [True, True, True]])
    found = simulate(predict, state, np.zeros((2, 2)), 3, available=available)
    np.testing.assert_array_equal(found["keep"], available)
    assert not found["terminal"].any()
