"""Adapters to the package jaxmarl; what needs the package skips where it is absent."""

import sys

import jax
import numpy as np
import pytest

from jaxrec.envs import teams
from jaxrec.types import UserError


@pytest.mark.parametrize("kind", ["smax", "mpe"])
def test_the_missing_extra_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "jaxmarl", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[marl\]'") as error:
        teams.make(kind, "3m")
    assert "\n" not in str(error.value)


@pytest.fixture
def lenient():
    """The package broadcasts over ranks and reuses keys, which our tests refuse."""
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        yield


def played(team, steps=110, games=4):
    """Random legal play: outcomes [steps, games], and the last states."""

    def advance(states, key):
        key_act, key_step = jax.random.split(key)
        actions = jax.vmap(team.random)(jax.random.split(key_act, games), states)
        keys = jax.random.split(key_step, games)
        states, outcome = jax.vmap(team.step)(keys, states, actions)
        seen = jax.vmap(lambda s: (team.observe(s), team.world(s), team.active(s)))
        return states, (outcome, seen(states))

    @jax.jit
    def run(key):
        key_start, key_play = jax.random.split(key)
        states = jax.vmap(team.reset)(jax.random.split(key_start, games))
        return jax.lax.scan(advance, states, jax.random.split(key_play, steps))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


@pytest.mark.slow
def test_smax(lenient):
    pytest.importorskip("jaxmarl")
    team = teams.make("smax", "3m")
    assert (team.num_agents, team.obs_size, team.state_size) == (3, 75 + 3, 60)
    assert team.num_actions == 8 and team.limit == 101
    outcome, (seen, world, active) = played(team)
    assert world.min() >= 0 and world.max() <= 1 and np.abs(seen).max() <= 2
    assert not seen[~active].any() and (~active).any()
    together = outcome.won.astype(int) + outcome.truncated
    assert outcome.done.any() and (together <= outcome.done).all()
    assert (outcome.kills <= 3).all() and outcome.reward.max() <= 20
    with pytest.raises(UserError, match="no scenario '3n': did you mean 3m"):
        teams.make("smax", "3n")


@pytest.mark.slow
def test_spread(lenient):
    pytest.importorskip("jaxmarl")
    team = teams.make("mpe", "simple_spread")
    assert team.num_agents == 3 and team.num_actions == 5
    outcome, (seen, world, _) = played(team, steps=2 * team.limit)
    np.testing.assert_array_equal(outcome.done.sum(0), 2)
    np.testing.assert_array_equal(outcome.truncated, outcome.done)
    assert (outcome.reward < 0).all() and world.min() >= 0 and world.max() <= 1
    with pytest.raises(UserError, match="no team game 'tag'"):
        teams.make("mpe", "tag")
