"""On-line evaluation by simulated users: what policies see, earn and are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.envs import online, tabular_users, users
from jaxrec.types import UserError

SMALL = dict(num_items=30, num_categories=5)
PEOPLE = users.make(SMALL)
TABULAR = tabular_users.make(dict(num_items=8))


def test_online_reward_of_the_optimal_policy_is_its_value():
    world = TABULAR.facts["tables"]
    q = tabular_users.optimal_q(world, 1.0)
    table = jnp.asarray(q, jnp.float32)

    def scores(items, length, timestep):
        last = jnp.take_along_axis(items, jnp.maximum(length - 1, 0)[:, None], axis=1)
        return table[jnp.where(length > 0, last[:, 0], 0)]

    policy = online.from_scores(scores, avoid_shown=False)
    steps = tabular_users.horizon(world)
    found = online.evaluate(policy, TABULAR, jax.random.key(0), 20_000, steps, 3)
    error = found["reward_std"] / np.sqrt(20_000)
    assert abs(found["reward"] - q[0].max()) < 4 * error
    np.testing.assert_allclose(
        found["length"], found["clicks"] + found["purchases"], rtol=1e-5
    )


def test_policies_see_events_from_the_left_and_what_was_shown():
    # Everybody takes everything: the history is what the policy chose, 1, 2, 3, ...
    people = users.make(SMALL | dict(bias=100.0, leave_bias=-100.0))

    def policy(items, length, timestep, key, shown):
        place = jnp.arange(4)[None]
        first = jnp.maximum(timestep - 4, 0)[:, None] + 1
        wanted = jnp.where(place < length[:, None], first + place, 0)
        back = timestep[:, None] - jnp.arange(online.SHOWN)[None]
        right = (items == wanted).all(axis=1) & (shown == jnp.maximum(back, 0)).all(1)
        right = right & (length == jnp.minimum(timestep, 4))
        return jnp.where(right, timestep + 1, 30)

    found = online.evaluate(policy, people, jax.random.key(0), 5, 12, 4)
    assert found["length"] == 12
    assert found["clicks"] + found["purchases"] == 12
    assert found["coverage"] == pytest.approx(12 / 30)  # never item 30
    wanted = online.gini(jnp.array([5.0] * 12 + [0.0] * 18))
    assert found["gini"] == pytest.approx(float(wanted)) == pytest.approx(0.6)


def test_gini_by_hand():
    assert online.gini(jnp.ones(4)) == pytest.approx(0)
    assert online.gini(jnp.array([0.0, 0, 8, 0])) == pytest.approx(0.75)
    assert online.gini(jnp.array([3.0, 1])) == pytest.approx(0.25)


def test_from_scores_passes_over_shown_items_and_samples():
    score = jnp.array([[-jnp.inf, 1.0, 3, 2], [-jnp.inf, 1, 3, 2]])
    scores = lambda items, length, timestep: score  # noqa: E731
    none = jnp.zeros((2, 2), jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(2, int)
    shown = jnp.array([[2, 0, 0], [2, 1, 3]], jnp.int32)
    act = online.from_scores(scores)
    assert act(*none, jax.random.key(0), shown).tolist() == [3, 2]
    act = online.from_scores(scores, avoid_shown=False)
    assert act(*none, jax.random.key(0), shown).tolist() == [2, 2]
    act = online.from_scores(scores, temperature=2.0, avoid_shown=False)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = jax.vmap(lambda key: act(*none, key, shown)[0])(keys)
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, jax.nn.softmax(score[0] / 2), atol=0.02)


def test_better_policies_earn_more_and_foresight_beats_greed():
    people, key, num = users.make(), jax.random.key(7), 400
    hidden = online.evaluate_hidden
    oracles = jax.vmap(lambda f: hidden(online.oracle(people, f), people, key, num))
    oracles = oracles(jnp.array([0.0, 4.0]))
    found = [
        online.evaluate(online.random_policy(people.num_items), people, key, num),
        hidden(online.logging_policy(people), people, key, num),
        {name: value[0] for name, value in oracles.items()},
        {name: value[1] for name, value in oracles.items()},
    ]
    for worse, better in zip(found, found[1:]):
        spread = np.hypot(worse["reward_std"], better["reward_std"]) / np.sqrt(num)
        assert better["reward"] - worse["reward"] > 4 * spread
    # The greedy one loses its users sooner.
    assert found[3]["length"] > 1.2 * found[2]["length"]


def test_evaluation_is_a_function_of_the_key():
    policy = online.random_policy(30)
    run = jax.jit(lambda key: online.evaluate(policy, PEOPLE, key, 50, 8))
    for one, other in zip(*(run(jax.random.key(0)).values() for _ in range(2))):
        np.testing.assert_array_equal(one, other)
    assert run(jax.random.key(0))["reward"] != run(jax.random.key(1))["reward"]


def test_no_user_is_both_logged_and_judged():
    # Users who look once and give their mark as a reward, so a stream shows itself.
    def reset(key, num):
        mark = jax.random.uniform(key, (num,))
        return tabular_users.State(mark, jnp.ones(num, bool))

    def step(key, state, item):
        yes = state.alive
        feedback = users.Feedback(yes, ~yes, state.item, yes)
        return state._replace(alive=~yes), feedback

    def behave(key, state):
        return jnp.ones(len(state.item), jnp.int32), jnp.ones(len(state.item))

    marked = TABULAR._replace(reset=reset, step=step, behave=behave)

    def judged(key):
        act = online.random_policy(8)
        return online.evaluate(act, marked, key, 1, 1)["reward"]

    def logged(key):
        return online.rollout(marked, key, 1, 1)["reward"][0, 0]

    keys = lambda: jax.vmap(jax.random.key)(jnp.arange(100))  # noqa: E731
    marks = [np.asarray(jax.vmap(stream)(keys())) for stream in (judged, logged)]
    for mark in marks:
        assert len(np.unique(mark)) == 100
    assert not np.intersect1d(*marks).size


@pytest.mark.parametrize("name", ["num_users", "horizon", "seq_len"])
def test_impossible_evaluations_are_refused(name):
    policy = online.random_policy(30)
    with pytest.raises(UserError, match=f"{name}=0"):
        online.evaluate(policy, PEOPLE, jax.random.key(0), **{name: 0})
