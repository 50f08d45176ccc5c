"""Forms of a state: nothing of what an agent does not see gets into its condition."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxrec.envs import teams as envs
from jaxrec.methods import state_forms, state_inference, teams
from jaxrec.types import UserError

SEEN = dict(entities="entity", grid="flat", vector="entity")


def settings(form, **fields):
    section = importlib.import_module("configs.sidiff").get_config("smoke").train
    found = section.sidiff.to_dict() | dict(form=form, steps=10, batch_size=8)
    return FrozenConfigDict(found | fields)


def city(form):
    about = dict(radius=2, observation=SEEN[form])
    return envs.make("battle_city", "3t_vs_3t_thicket", about)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=pytest.mark.slow if form == "grid" else ())
        for form in SEEN
    ],
)
def test_an_enemy_out_of_sight_changes_nothing_that_is_given(form):
    """Whatever is drawn from the condition and the known values is then the same."""
    team = city(form)
    made = state_forms.make(settings(form), team)

    @jax.jit
    def given(state):
        states = jax.tree.map(lambda x: x[None], state)
        view = teams.views(team, states)
        hidden = jnp.ones((1, team.num_agents, 4))
        told = made.condition(view.observation, hidden)
        return told, made.known(view.observation), made.encode(states)

    state = jax.tree.map(jnp.asarray, team.reset(jax.random.key(0)))
    first = team.num_agents  # the first enemy, far from all agents at the start
    moved = state._replace(
        pos=state.pos.at[first].add(jnp.array([1, 0], state.pos.dtype)),
        facing=state.facing.at[first].set(3),
        hp=state.hp.at[first].add(1),
        reload=state.reload.at[first].set(2),
        stun=state.stun.at[first].set(1),
    )
    near = state._replace(pos=state.pos.at[first].set(state.pos[0] - jnp.array([1, 0])))
    (told, known, truth), other, seen = map(given, (state, moved, near))
    assert (np.asarray(truth) != np.asarray(other[2])).any()
    for a, b in zip(jax.tree.leaves((told, known)), jax.tree.leaves(other[:2])):
        np.testing.assert_array_equal(a, b)
    changed = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(seen[0]))
    ]
    assert any(changed), "an enemy in sight must change the condition"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["entities", "grid"])
def test_what_is_known_is_true(form):
    team = city(form)
    made = state_forms.make(settings(form), team)

    def later(key):
        start, play = jax.random.split(key)

        def step(state, number):
            act, move = jax.random.split(jax.random.fold_in(play, number))
            return team.step(move, state, team.random(act, state))[0], None

        return jax.lax.scan(step, team.reset(start), jnp.arange(12))[0]

    states = jax.jit(jax.vmap(later))(jax.random.split(jax.random.key(0), 32))
    truth = np.asarray(made.encode(states))[:, None]
    values, mask = map(np.asarray, made.known(teams.views(team, states).observation))
    assert values.shape == mask.shape == (32, 3, *made.shape)
    wanted = np.broadcast_to(truth, values.shape)
    np.testing.assert_allclose(values[mask], wanted[mask], atol=1e-6)
    if form == "grid":
        assert 0.05 < mask.mean() < 0.5
        return
    alive = np.asarray(states.alive)
    enemies = alive[:, None, 3:] & alive[:, :3, None]
    assert 0.01 < mask[:, :, 3:, 0][enemies].mean() < 0.9
    weight = made.weight
    assert (weight[:, state_forms.ALLY] == 0).all() and weight.sum() == 6 * 13


def test_a_form_needs_the_observations_that_it_completes():
    for form, wrong in (("entities", "flat"), ("grid", "entity")):
        team = envs.make("battle_city", "2t_vs_4e_open7", dict(observation=wrong))
        with pytest.raises(UserError, match=f"form '{form}' completes .* not {wrong}"):
            state_forms.make(settings(form), team)
    for seen, shape in (("entity", (6, 14)), ("flat", (7, 7, 16))):
        team = envs.make("battle_city", "2t_vs_4e_open7", dict(observation=seen))
        assert state_forms.make(settings("auto"), team).shape == shape


def test_a_placebo_of_one_game_is_refused():
    """It would be the true state."""
    team = city("entities")
    config = settings("entities", inference="placebo")
    imagine = state_inference.make_imagine(config, state_forms.make(config, team), 1)
    state = jax.tree.map(lambda x: x[None], team.reset(jax.random.key(0)))
    with pytest.raises(UserError, match="num_envs and eval.episodes to 2"):
        imagine(None, jax.random.key(0), state, None, jnp.zeros((1, 3, 4)))
