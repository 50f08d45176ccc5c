"""On-line evaluation by simulated users: what policies see, earn and are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec import recommender_evaluators
from jaxrec.envs import online, tabular_users, users
from jaxrec.types import Dataset, Method, UserError

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


def test_one_cold_start_for_all_policies_until_the_first_event():
    scores = lambda items, length, timestep: jnp.full((3, 4), jnp.nan)  # noqa: E731
    popularity = jnp.array([-jnp.inf, 1.0, 3, 2])
    act = online.from_scores(scores, popularity=popularity)
    length, key = jnp.zeros(3, jnp.int32), jax.random.key(0)
    items = jnp.zeros((3, 2), jnp.int32)
    shown = jnp.array([[0, 0, 0], [2, 0, 0], [3, 2, 1]], jnp.int32)
    # The most popular, the next one once that was shown, again from the top.
    assert act(items, length, length, key, shown).tolist() == [2, 3, 2]
    known = lambda items, length, timestep: -popularity[None].repeat(3, 0)  # noqa: E731
    act = online.from_scores(
        lambda *seen: jnp.where(jnp.isinf(known(*seen)), -jnp.inf, known(*seen)),
        popularity=popularity,
    )
    length = jnp.array([0, 1, 2], jnp.int32)
    assert act(items, length, length, key, shown * 0).tolist() == [2, 1, 1]


def test_items_of_the_history_are_passed_over_if_asked():
    score = jnp.array([-jnp.inf, 1.0, 3, 2])[None].repeat(3, 0)
    scores = lambda items, length, timestep: score  # noqa: E731
    items = jnp.array([[2, 0], [2, 3], [0, 0]], jnp.int32)
    length, key = jnp.array([1, 2, 0], jnp.int32), jax.random.key(0)
    none = jnp.zeros((3, 3), jnp.int32)
    act = online.from_scores(scores, mask_seen=True)
    assert act(items, length, length, key, none).tolist() == [3, 1, 2]
    # What was shown gives way to what is left, which may be nothing new.
    shown = jnp.array([[3, 0, 0], [1, 0, 0], [2, 3, 1]], jnp.int32)
    assert act(items, length, length, key, shown).tolist() == [1, 1, 2]
    act = online.from_scores(scores)
    assert act(items, length, length, key, none).tolist() == [2, 2, 2]


def served(scores, horizon, mask_seen=False, seq_len=12, **settings):
    """The evaluator's metrics for a method; the data know items 3 to 12 as 1 to 10."""
    count = np.zeros(128)
    count[1:11] = 5
    count[4] = 50  # the simulator's item 6
    info = dict(
        users=SMALL | settings,
        seq_len=seq_len,
        item_ids=np.array([0, *range(3, 13)]),
        item_count=count,
        mask_seen=mask_seen,
    )
    config = ConfigDict(dict(eval=dict(users=40, horizon=horizon, seed=100)))
    method = Method(None, None, scores=scores)
    return recommender_evaluators.users(config, method, Dataset({}, {}, info))(
        None, None
    )


def favourite(state, items, length, timestep):
    """Item 2 of the data is best and item 3 comes next; nonsense at the start."""
    score = jnp.zeros((len(items), 128)).at[:, 2].set(2.0).at[:, 3].set(1.0)
    return jnp.where((length == 0)[:, None], jnp.nan, score)


def test_the_evaluator_serves_the_popular_item_first():
    found = served(favourite, 1)
    always = lambda *seen: jnp.full(40, 6, jnp.int32)  # noqa: E731
    wanted = online.evaluate(always, users.make(SMALL), jax.random.key(100), 40, 1, 12)
    for name, value in wanted.items():
        assert found[f"users/{name}"] == pytest.approx(float(value)), name
    assert found["users/clicks"] + found["users/purchases"] > 0


def test_the_evaluator_honours_mask_seen():
    # Everybody takes everything. Of ten known items, ten were shown before the
    # eleventh: then the best comes again, unless the history is masked as well.
    everything = dict(bias=100.0, leave_bias=-100.0)
    plain = served(favourite, 3, **everything)
    assert plain["users/coverage"] == pytest.approx(3 / 30)
    narrow = jnp.zeros((40, 128)).at[:, 2].set(1.0)

    def scores(state, items, length, timestep):
        assert items.shape == (40, 2)  # all that is encoded; more is left out
        return narrow

    shown = online.SHOWN
    online.SHOWN = 1  # so that only the mask keeps items from coming again
    try:
        free, masked = (
            served(scores, 9, mask, 2, **everything) for mask in (False, True)
        )
    finally:
        online.SHOWN = shown
    assert free["users/coverage"] == pytest.approx(3 / 30)  # 6, then 4, 3, 4, 3, ...
    assert masked["users/coverage"] == pytest.approx(9 / 30)


def test_the_evaluator_says_why_it_has_no_numbers(capsys):
    assert served(None, 1) == {}
    assert capsys.readouterr().err == "users: this method ranks no items; no numbers\n"
    method = Method(None, None, scores=favourite)
    assert (
        recommender_evaluators.users(None, method, Dataset({}, {}, {}))(None, None)
        == {}
    )
    assert "no simulator of users" in capsys.readouterr().err


@pytest.mark.slow
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
