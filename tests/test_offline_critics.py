"""The critics of TD3+BC, IQL, CQL and MCQ: targets, and who moves what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_offline import (
    CRITICS,
    B,
    batch_of,
    distance,
    make,
    started,
    step_once,
)

from jaxrec.losses import value
from jaxrec.methods import iql
from jaxrec.models import control
from jaxrec.types import UserError


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "cql" else name
        for name in CRITICS
    ],
)
def test_targets_move_by_tau(name):
    method, state, _ = started(name)
    if name == "td3bc":  # its targets move at every second update
        state = state.replace(step=state.step + 1)
    after, _ = step_once(name, state, batch_of())
    new = after.params if name == "td3bc" else after.params["critic"]
    want = jax.tree.map(lambda p, t: 0.005 * p + 0.995 * t, new, state.target_params)
    assert distance(after.target_params, want) < 1e-6
    assert distance(after.target_params, state.target_params) > 0


def test_td3bc_actor_moves_every_second_update():
    _, state, _ = started("td3bc")
    first, _ = step_once("td3bc", state, batch_of())
    second, _ = step_once("td3bc", first, batch_of(), 2)
    assert distance(first.params["actor"], state.params["actor"]) == 0
    assert distance(first.params["critic"], state.params["critic"]) > 0
    assert distance(first.target_params, state.target_params) == 0
    assert distance(second.params["actor"], first.params["actor"]) > 0


@pytest.mark.parametrize("name", CRITICS)
def test_terminal_rows_do_not_look_ahead(name):
    """A terminal row's next observation changes nothing but CQL's and MCQ's sampling,
    which `valid_next` turns off; elsewhere it does change the critics."""
    method, state, _ = started(name)
    batch = batch_of() | dict(terminal=jnp.ones(B), valid_next=jnp.zeros(B))
    other = batch | dict(next_observation=batch["next_observation"] + 3.0)
    a, _ = step_once(name, state, batch)
    b, _ = step_once(name, state, other)
    assert distance(a.params, b.params) == 0
    alive, seen = dict(terminal=jnp.zeros(B)), dict(valid_next=jnp.ones(B))
    a, _ = step_once(name, state, batch | alive)
    b, _ = step_once(name, state, other | alive)
    assert distance(a.params["critic"], b.params["critic"]) > 1e-5
    if name in ("cql", "mcq"):
        a, _ = step_once(name, state, batch | seen)
        b, _ = step_once(name, state, other | seen)
        assert distance(a.params["critic"], b.params["critic"]) > 1e-6


def test_td3bc_critics_are_the_same_with_and_without_an_actor_update():
    _, state, _ = started("td3bc")
    without, _ = step_once("td3bc", state, batch_of())
    with_actor, _ = step_once("td3bc", state.replace(step=state.step + 1), batch_of())
    assert distance(with_actor.params["actor"], without.params["actor"]) > 0
    assert distance(with_actor.params["critic"], without.params["critic"]) == 0


@pytest.mark.parametrize("name", ["cql", "mcq"])
def test_only_the_critics_own_loss_moves_them(name):
    _, state, _ = started(name)
    method = make(name, critic_optim=dict(lr=0.0))
    after, _ = jax.jit(method.train_step)(state, batch_of(), jax.random.key(0))
    assert distance(after.params["critic"], state.params["critic"]) == 0
    assert distance(after.params["actor"], state.params["actor"]) > 0


def test_iql_critics_ignore_the_policy():
    _, state, _ = started("iql")
    other = jax.tree.map(lambda x: x + 1.0, state.params["actor"])
    other = state.replace(params=state.params | dict(actor=other))
    a, _ = step_once("iql", state, batch_of())
    b, _ = step_once("iql", other, batch_of())
    assert distance(a.params["critic"], b.params["critic"]) == 0
    assert distance(a.params["value"], b.params["value"]) == 0


def test_iql_scales_rewards_by_the_range_of_returns():
    assert iql.reward_scale(1000.0, dict(return_min=-50, return_max=150)) == 5.0
    assert iql.reward_scale(1000.0, dict(return_min=150, return_max=200)) == 5.0
    assert iql.reward_scale(0.0, dict(return_min=0, return_max=0)) == 1.0
    with pytest.raises(UserError, match="return_range=0"):
        iql.reward_scale(1000.0, dict(return_min=0, return_max=0))


def test_cql_gives_one_result_however_many_actions_at_once():
    _, state, _ = started("cql")
    method = make("cql", actions_at_once=30)
    a, one_by_one = step_once("cql", state, batch_of())
    b, at_once = jax.jit(method.train_step)(state, batch_of(), jax.random.key(1))
    np.testing.assert_allclose(one_by_one["gap"], at_once["gap"], rtol=1e-5)
    assert distance(a.params, b.params) < 1e-5


def test_mcq_with_lam_one_is_the_soft_critic():
    """lam = 1: the proposals do not matter, the loss is the plain Bellman error."""
    _, state, _ = started("mcq")
    batch = batch_of() | dict(terminal=jnp.ones(B))
    method = make("mcq", lam=1.0)
    _, metrics = jax.jit(method.train_step)(state, batch, jax.random.key(1))
    q = control.Critics((32, 32)).apply(
        state.params["critic"], batch["observation"], batch["action"]
    )
    want = jnp.mean(jax.vmap(value.critic, (1, 0))(q, batch["reward"]))
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
