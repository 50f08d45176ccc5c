"""Simulated users: probabilities, boredom, leaving, exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.envs import tabular_users, users
from jaxrec.types import UserError

SMALL = dict(num_items=30, num_categories=5)


def compiled(people):
    """The same functions, each one program: quicker where a test calls them often."""
    return people._replace(
        reset=jax.jit(people.reset, static_argnums=1),
        step=jax.jit(people.step),
        behave=jax.jit(people.behave),
        preview=jax.jit(people.preview),
    )


EAGER = users.make(SMALL), tabular_users.make(dict(num_items=8))
PEOPLE, TABULAR = map(compiled, EAGER)


def walked(people, num=64):
    """The state of `num` users with some history."""
    key = jax.random.key(3)
    state = people.reset(jax.random.fold_in(key, 0), 64)
    for number in range(1, 7):
        key_act, key_step = jax.random.split(jax.random.fold_in(key, number))
        state, _ = people.step(key_step, state, people.behave(key_act, state)[0])
    return jax.tree.map(lambda leaf: leaf[:num], state)


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("people, fast", list(zip(EAGER, (PEOPLE, TABULAR))))
def test_step_is_a_function_of_its_arguments_under_jit_and_vmap(people, fast):
    state = walked(fast)
    item = 1 + jnp.arange(64, dtype=jnp.int32) % people.num_items
    keys = lambda: jax.random.split(jax.random.key(0), 3)  # noqa: E731
    plain = [people.step(key, state, item) for key in keys()]
    equal(plain[0], people.step(keys()[0], state, item))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plain)
    batched = jax.jit(jax.vmap(people.step, in_axes=(0, None, None)))
    batched = batched(keys(), state, item)
    for one, other in (
        (stacked, batched),
        (plain[0], fast.step(keys()[0], state, item)),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            one,
            other,
        )
    assert not np.array_equal(plain[0][1].click, plain[1][1].click)


@pytest.mark.parametrize(
    "people", [pytest.param(PEOPLE, marks=pytest.mark.slow), TABULAR]
)
def test_outcomes_follow_the_previewed_probabilities(people):
    state = walked(people, num=6)
    state = state._replace(alive=jnp.array([True] * 5 + [False]))
    preview = people.preview(state)
    for probability in preview:
        assert probability.shape == (6, people.num_items + 1)
        assert (probability >= 0).all() and (probability <= 1).all()
        assert (probability[:, 0] == 0).all() and (probability[5] == 0).all()
    assert (preview.click + preview.purchase <= 1 + 1e-6).all()
    item = jnp.array([1, 2, 3, 4, 5, 6], jnp.int32)
    keys = jax.random.split(jax.random.key(1), 20_000)
    step = jax.jit(jax.vmap(people.step, in_axes=(0, None, None)))
    after, seen = step(keys, state, item)
    for found, probability in zip((seen.click, seen.purchase, seen.left), preview):
        wanted = np.asarray(probability)[np.arange(6), np.asarray(item)]
        error = np.sqrt(wanted * (1 - wanted) / len(keys))
        assert (np.abs(found.mean(0) - wanted) <= 5 * error + 1e-4).all()
    np.testing.assert_allclose(seen.reward, 0.2 * seen.click + seen.purchase)
    assert not (seen.click & seen.purchase).any()
    np.testing.assert_array_equal(after.alive, state.alive[None] & ~seen.left)
    # Those who had left are as they were.
    for new, old in zip(after, state):
        np.testing.assert_array_equal(
            new[:, 5], np.broadcast_to(old[5], new[:, 5].shape)
        )
    # Nothing is nothing: item 0 gives no event.
    _, none = people.step(jax.random.key(2), state, jnp.zeros(6, jnp.int32))
    assert not (none.click | none.purchase).any()


@pytest.mark.parametrize("people", [PEOPLE, TABULAR])
def test_propensities_are_a_distribution_and_that_of_the_draws(people):
    state = walked(people, num=4)
    every = np.asarray(people.propensities(state))
    np.testing.assert_allclose(every.sum(1), 1, rtol=1e-5)
    assert (every[:, 1:] > 0).all() and (every[:, 0] == 0).all()
    keys = jax.random.split(jax.random.key(5), 20_000)
    item, propensity = jax.jit(jax.vmap(people.behave, in_axes=(0, None)))(keys, state)
    np.testing.assert_allclose(propensity, every[np.arange(4), item], rtol=1e-4)
    for user in range(4):
        count = np.bincount(item[:, user], minlength=people.num_items + 1)
        error = np.sqrt(every[user] * (1 - every[user]) * len(keys))
        assert (np.abs(count - len(keys) * every[user]) <= 5 * error).all()


def test_boredom_grows_with_repetition_and_fades():
    # No drift and no click: what changes an item's chance is boredom alone.
    people = compiled(users.make(SMALL | dict(wander=0.0, drift=0.0, leave_bias=-50.0)))
    state = people.reset(jax.random.key(0), 16)
    category = people.facts["hidden"]["category"]
    same = np.flatnonzero(category[1:] == category[1])[1] + 1
    other = np.flatnonzero(category[1:] != category[1])[0] + 1
    shown = jnp.full(16, 1, jnp.int32)

    def chance(state, item):
        preview = people.preview(state)
        return np.asarray((preview.click + preview.purchase)[:, item])

    before = [chance(state, item) for item in (1, same, other)]
    for number in range(4):
        state, _ = people.step(jax.random.key(number), state, shown)
        after = [chance(state, item) for item in (1, same, other)]
        assert (after[0] < before[0]).all() and (after[1] < before[1]).all()
        np.testing.assert_allclose(after[2], before[2], rtol=1e-4)
        before = after
    tired = chance(state, 1)
    for number in range(10, 14):
        state, _ = people.step(
            jax.random.key(number), state, jnp.full(16, other, jnp.int32)
        )
        assert (chance(state, 1) > tired).all()
        tired = chance(state, 1)


def test_frustration_intent_and_clickbait():
    people = PEOPLE
    hidden = people.facts["hidden"]
    state = people.reset(jax.random.key(0), 64)
    pleasing = int(np.argmax(hidden["satisfaction"][1:]) + 1)
    bait = int(np.argmin(hidden["satisfaction"][1:]) + 1)
    assert hidden["satisfaction"][pleasing] > 0 > hidden["satisfaction"][bait]
    for item, sign in ((pleasing, -1), (bait, 1)):
        shown = jnp.full(64, item, jnp.int32)
        after, seen = people.step(jax.random.key(1), state, shown)
        event = np.asarray(seen.click | seen.purchase)
        assert event.any() and not event.all()
        assert (np.sign(after.frustration[event]) == sign).all()
        assert (after.frustration[~event] > 0).all()
        # A click builds intent up, a purchase in the category is then likelier.
        clicked = np.asarray(seen.click & after.alive)
        intent = after.intent[:, hidden["category"][item]]
        assert (intent[clicked] == 1).all() and (intent[~event] == 0).all()
        share = [
            p.purchase[:, item] / (p.click + p.purchase)[:, item]
            for p in (people.preview(state), people.preview(after))
        ]
        assert (share[1][clicked] > share[0][clicked]).all()
    calm = people.preview(state).leave[:, 1:]
    angry = people.preview(state._replace(frustration=state.frustration + 2))
    assert (angry.leave[:, 1:] > calm).all()


def test_purchase_satisfies_the_intent():
    people = compiled(
        users.make(SMALL | dict(buy_bias=50.0, bias=50.0, leave_bias=-50.0))
    )
    state = people.reset(jax.random.key(0), 4)
    state = state._replace(intent=state.intent + 3)
    after, seen = people.step(jax.random.key(1), state, jnp.ones(4, jnp.int32))
    assert seen.purchase.all()
    category = people.facts["hidden"]["category"][1]
    assert (after.intent[:, category] == 0).all()
    assert (np.delete(after.intent, category, axis=1) > 2).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_values_solve_their_equations(gamma):
    world = tabular_users.tables(dict(num_items=8, world=2))
    best = tabular_users.optimal_q(world, gamma)
    logged = tabular_users.policy_q(world, gamma)
    assert (best[:, 0] == -np.inf).all() and best.dtype == np.float64
    best, logged = best[:, 1:], logged[:, 1:]
    reward, stay = world.reward[:, 1:], gamma * (1 - world.hazard[1:])
    for i in range(9):
        for j in range(8):
            wanted = reward[i, j] + stay[j] * best[j + 1].max()
            assert abs(best[i, j] - wanted) < 1e-10
            mean = world.behaviour[j + 1, 1:] @ logged[j + 1]
            assert abs(logged[i, j] - reward[i, j] - stay[j] * mean) < 1e-10
    assert (best >= logged - 1e-12).all()
    if gamma == 0:
        np.testing.assert_allclose(best, reward)
    else:
        assert (best > logged).all()
    greedy = np.zeros((9, 9))
    greedy[np.arange(9), 1 + best.argmax(1)] = 1
    np.testing.assert_allclose(
        tabular_users.policy_q(world, gamma, greedy)[:, 1:], best, atol=1e-10
    )


@pytest.mark.parametrize(
    "make, wrong, message",
    [
        (users.make, dict(items=3), "no 'items'"),
        (users.make, dict(num_items=0), "num_items=0"),
        (users.make, dict(log_popular=0.5, log_neighbours=0.5), "no exploration"),
        (tabular_users.make, dict(width=3), "no 'width'"),
        (tabular_users.make, dict(num_items=1), "num_items=1"),
        (tabular_users.make, dict(hazard_low=0.0), "hazard_low=0.0"),
        (tabular_users.make, dict(purchase_high=1.5), "purchase_high=1.5"),
        (tabular_users.make, dict(popular=2.0), "popular=2.0"),
    ],
)
def test_impossible_populations_are_refused(make, wrong, message):
    with pytest.raises(UserError, match=message) as error:
        make(wrong)
    assert "\n" not in str(error.value)


def test_impossible_discounts_are_refused():
    with pytest.raises(UserError, match="gamma=1.5"):
        tabular_users.optimal_q(TABULAR.facts["tables"], 1.5)
