"""The toy game by hand, and what a roll-out of many games holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data import teams as source
from jaxrec.envs import episodes, meeting
from jaxrec.envs import teams as envs
from jaxrec.envs.battle_city.scenarios import SCENARIOS
from jaxrec.envs.meeting import State
from jaxrec.methods import teams
from jaxrec.types import UserError

E, T = 6, 20


@functools.cache
def game():
    return envs.make("meeting", "three_on_7", dict(limit=5))


@functools.cache
def random_chunk():
    """20 steps of 6 games at random; the policy keeps a count in `hidden`."""
    team = game()

    def policy(key, states, view, hidden):
        action = teams.random_actions(key, view.legal)
        return action, hidden + 1.0, dict(steps=hidden)

    games = teams.start(team, jax.random.key(0), E, jnp.zeros((E, 3)))
    run = jax.jit(lambda games, key: teams.play(team, policy, games, key, T))
    first = run(games, jax.random.key(1))
    return jax.tree.map(np.asarray, (first, run(first[0], jax.random.key(2))))


def test_the_game_by_hand():
    team = game()
    state = State(jnp.array([0, 1, 6]), jnp.int32(3))
    np.testing.assert_array_equal(team.legal(state), [[1, 0, 1], [1, 1, 1], [1, 1, 0]])
    seen = np.asarray(team.observe(state))
    np.testing.assert_array_equal(seen[:, 7:10], [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(seen[:, :7].argmax(1), [0, 1, 6])
    np.testing.assert_array_equal(seen[:, 10:], np.eye(3))
    world = np.asarray(team.world(state))
    np.testing.assert_array_equal(world[:-1].reshape(3, 7).argmax(1), [0, 1, 6])
    assert world[-1] == pytest.approx(0.4)
    state, outcome = team.step(jax.random.key(0), state, jnp.array([2, 0, 1]))
    assert state.pos.tolist() == [1, 1, 5] and state.step == 4 and not outcome.done
    after, outcome = team.step(jax.random.key(0), state, jnp.array([0, 0, 1]))
    assert outcome.truncated and outcome.done and not outcome.won and after.step == 0
    near = State(jnp.array([2, 2, 3]), jnp.int32(4))
    after, outcome = team.step(jax.random.key(0), near, jnp.array([0, 0, 1]))
    assert outcome.won and outcome.reward == 1 and not outcome.truncated
    starts = jax.vmap(team.reset)(jax.random.split(jax.random.key(3), 500)).pos
    assert not (starts == starts[:, :1]).all(1).any() and set(np.unique(starts)) == {
        *range(7)
    }


def test_a_chunk_is_what_happened():
    (games, chunk), (_, following) = random_chunk()
    team = game()
    assert chunk.action.shape == (T, E, 3) and chunk.fresh.shape == (T + 1, E)
    assert chunk.fresh[0].all()
    np.testing.assert_array_equal(chunk.fresh[1:], chunk.done)
    assert chunk.done.any() and chunk.cut.any() and (chunk.done & ~chunk.cut).any()
    for t, e in np.ndindex(T, E):
        state = jax.tree.map(lambda x: x[t, e], chunk.state)  # noqa: B023
        legal = np.asarray(team.legal(state))
        assert legal[np.arange(3), chunk.action[t, e]].all()
        moved = state.pos + (chunk.action[t, e] == 2) - (chunk.action[t, e] == 1)
        met = (moved == moved[0]).all()
        assert chunk.reward[t, e] == met
        assert chunk.done[t, e] == (met or state.step == 4)
        if not chunk.done[t, e]:
            np.testing.assert_array_equal(chunk.state.pos[t + 1, e], moved)
    # Memories are those of the episode, and go on over the border of chunks.
    np.testing.assert_array_equal(
        chunk.seen["steps"][..., 0], chunk.state.step.astype(float)
    )
    for last, first in zip(jax.tree.leaves(chunk[:2]), jax.tree.leaves(following[:2])):
        np.testing.assert_array_equal(last[-1], first[0])
    np.testing.assert_array_equal(games.hidden, following.hidden)


def test_running_score():
    """Against the mean of the finished episodes, which are fewer than it looks at."""
    (games, chunk), _ = random_chunk()
    found = jax.tree.map(float, teams.score(games))
    won = chunk.reward[chunk.done]
    assert found["win_rate"] == pytest.approx(won.mean(), abs=0.05)
    assert found["episode_return"] == pytest.approx(won.mean(), abs=0.05)
    left = np.where(chunk.done[::-1].argmax(0) == 0, 0.0, games.returned)
    np.testing.assert_allclose(games.returned, left)
    none = teams.start(game(), jax.random.key(0), 2, ())
    assert teams.score(none)["win_rate"] == 0


def test_views_of_any_number_of_axes():
    (_, chunk), _ = random_chunk()
    view = jax.jit(lambda s: teams.views(game(), s))(chunk.state)
    assert view.observation.shape == (T + 1, E, 3, 13) and view.legal.dtype == bool
    one = jax.tree.map(lambda x: jnp.asarray(x[4, 2]), chunk.state)
    np.testing.assert_array_equal(view.observation[4, 2], game().observe(one))
    np.testing.assert_allclose(view.world[4, 2], game().world(one), rtol=1e-6)
    np.testing.assert_array_equal(
        teams.views(game(), one).legal, np.asarray(view.legal[4, 2])
    )


def test_episodes_of_the_baselines():
    """The script wins always, standing still never; each episode counts once."""
    team = game()._replace(limit=5)
    scripted = lambda seen, key: (  # noqa: E731
        seen[0],
        jax.vmap(team.scripted)(jax.random.split(key, 40), seen[1]),
    )
    found = episodes.play(team, scripted, (), 40, jax.random.key(0))
    summary = episodes.summary(found)
    assert summary["win_rate"] == summary["return"] == summary["base_alive"] == 1
    assert 1 <= summary["length"] <= 3 and summary["truncated"] == 0
    still = lambda seen, key: (seen[0], jnp.zeros((40, 3), int))  # noqa: E731
    summary = episodes.summary(episodes.play(team, still, (), 40, jax.random.key(0)))
    assert summary["win_rate"] == 0 and summary["length"] == 5
    assert summary["truncated"] == 1


def test_battle_city_behind_the_face_of_teams():
    team = envs.make("battle_city", "2t_vs_4e_open7")
    shapes = jax.eval_shape(team.reset, jax.random.key(0))
    seen = jax.eval_shape(lambda s: teams.views(team, s), shapes)
    assert seen.observation.shape == (2, team.obs_size) and team.num_actions == 6
    assert seen.world.shape == (team.state_size,) and team.limit == 200
    assert seen.active.shape == (2,) and seen.legal.shape == (2, 6)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_views_of_every_scenario(name):
    """No leaf of a state is empty, also where there is no base: none could be saved."""
    city = envs.make("battle_city", name)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.eval_shape(jax.vmap(city.reset), keys)
    assert all(x.size for x in jax.tree.leaves(states))
    view = jax.eval_shape(lambda s: teams.views(city, s), states)
    assert view.observation.shape == (3, city.num_agents, city.obs_size)
    assert view.world.shape == (3, city.state_size)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(name="four_on_5"), "no scenario 'four_on_5': use .*three_on_7"),
        (dict(settings=dict(cell=3)), "no 'cell': use agents, cells, limit, near"),
        (dict(settings=dict(agents=1)), "agents=1: it must be 2 or more"),
        (dict(settings=dict(cells="x")), "cells='x'"),
        (dict(kind="battle_city"), "no scenario 'two_on_5': did you mean 2t_vs"),
    ],
)
def test_bad_games_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        envs.make(**dict(kind="meeting", name="two_on_5") | given)


def test_settings_as_text():
    found = source.parse("agents=3, difficulty=hard,aim_prob=0.5,ice=True")
    assert found == dict(agents=3, difficulty="hard", aim_prob=0.5, ice=True)
    assert source.parse("") == source.parse({}) == {}
    for wrong in ("agents", "agents=", "=3"):
        with pytest.raises(UserError, match="names with values"):
            source.parse(wrong)
    assert meeting.HPARAMS["limit"] == 8
