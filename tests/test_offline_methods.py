"""BC, TD3+BC, IQL, CQL and MCQ: mechanics of an update, and known answers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import seeds
from jaxrec.losses import value
from jaxrec.methods import bc, cql, iql, mcq, td3bc
from jaxrec.models import control
from jaxrec.types import UserError

MODULES = dict(bc=bc, td3bc=td3bc, iql=iql, cql=cql, mcq=mcq)
CRITICS = ("td3bc", "iql", "cql", "mcq")
OD, AD, B = 4, 2, 32
INFO = dict(
    observation_size=OD,
    action_size=AD,
    observation_mean=np.full(OD, 0.5, np.float32),
    observation_std=np.full(OD, 2.0, np.float32),
    return_min=0.0,
    return_max=17.0,
)


# Settings that suit every test below, so that each method compiles once.
EASY = dict(cql=dict(weight=0.02), iql=dict(return_range=17.0), mcq=dict(vae_width=32))


def make(name, **overrides):
    config = ConfigDict(MODULES[name].HPARAMS)
    config.update(dict(widths=(32, 32), steps=1000, batch_size=B))
    for field in config:
        if field.endswith("optim"):
            config[field].lr = 3e-3
    config.update(EASY.get(name, {}))
    config.update(overrides)
    return MODULES[name].make(FrozenConfigDict(config), INFO)


def batch_of(seed=0, rows=B):
    draw = np.random.default_rng(seed)
    arrays = dict(
        observation=draw.normal(size=(rows, OD)),
        action=draw.uniform(-1, 1, size=(rows, AD)),
        reward=draw.normal(size=rows),
        next_observation=draw.normal(size=(rows, OD)),
        terminal=draw.uniform(size=rows) < 0.2,
        valid_next=np.ones(rows),
        weight=np.ones(rows),
    )
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


@functools.cache
def started(name):
    method = make(name)
    state = jax.jit(method.init)(jax.random.key(0), batch_of(), {})
    return method, state, jax.jit(method.train_step)


def step_once(name, state, batch, key=1):
    return started(name)[2](state, batch, jax.random.key(key))


def distance(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in leaves)


@pytest.mark.parametrize("name", MODULES)
def test_shapes_and_finite(name):
    method, state, _ = started(name)
    batch = batch_of()
    state, metrics = step_once(name, state, batch)
    assert int(state.step) == 1
    assert "loss" in metrics
    sums = jax.jit(method.eval_step)(state, batch, jax.random.key(2))
    assert sums["count"] == B
    for scalars in (metrics, sums):
        chex.assert_shape(list(scalars.values()), ())
        chex.assert_tree_all_finite(scalars)


@pytest.mark.parametrize("name", MODULES)
def test_act_is_deterministic_in_range_and_uses_the_states_statistics(name):
    method, state, _ = started(name)
    observation = batch_of()["observation"]
    action = method.act(state, observation, jax.random.key(0))
    chex.assert_shape(action, (B, AD))
    assert jnp.max(jnp.abs(action)) <= 1.0
    np.testing.assert_array_equal(
        action, method.act(state, observation, jax.random.key(9))
    )
    # Statistics are taken from the state, not from what make() was told.
    moved = state.replace(extra=state.extra.replace(mean=state.extra.mean + 1.0))
    np.testing.assert_allclose(
        method.act(moved, observation + 1.0, jax.random.key(0)), action, atol=1e-6
    )


@pytest.mark.parametrize("name", ["bc", "td3bc"])
def test_windows_are_refused(name):
    config = ConfigDict(MODULES[name].HPARAMS | dict(steps=10, batch_size=B))
    with pytest.raises(UserError, match=f"^{name} learns from .*data.window=5 must"):
        MODULES[name].make(FrozenConfigDict(config), INFO | dict(window=5))


def test_who_standardises_observations():
    for name, want in dict(bc=2.001, td3bc=2.001, iql=1.0, cql=1.0, mcq=1.0).items():
        _, state, _ = started(name)
        np.testing.assert_allclose(state.extra.scale, want)


@pytest.mark.parametrize("name", MODULES)
def test_eval_step_ignores_padding(name):
    method, state, _ = started(name)
    batch, junk = batch_of(), batch_of(seed=5)
    weight = jnp.concatenate([jnp.ones(B), jnp.zeros(B)])
    padded = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), batch, junk)
    key = jax.random.key(0)
    whole = method.eval_step(state, batch, key)
    with_junk = method.eval_step(state, padded | dict(weight=weight), key)
    for field in whole:
        np.testing.assert_allclose(whole[field], with_junk[field], rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_loss_falls_on_one_batch(name):
    """Every row is terminal, so that the targets stand still and can be fitted."""
    _, state, step = started(name)
    batch = batch_of() | dict(terminal=jnp.ones(B))
    part = {"bc": "loss", "cql": "td_loss", "iql": "critic_loss"}.get(name, "loss")
    losses = []
    for key in jax.random.split(jax.random.key(0), 300):
        state, metrics = step(state, batch, key)
        losses.append(metrics[part])
    assert losses[9] < losses[0]
    assert np.mean(losses[-20:]) < 0.5 * losses[0]


@pytest.mark.parametrize("name", CRITICS)
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


@pytest.mark.parametrize("shape", [(256, 256), (17, 256), (256, 1), (6, 256)])
def test_orthogonal_kernels(shape):
    net = control.MLP((shape[1],), 1, "orthogonal")
    params = net.init(jax.random.key(0), jnp.zeros((1, shape[0])))["params"]
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert kernel.shape == shape
    gram = kernel @ kernel.T if shape[0] <= shape[1] else kernel.T @ kernel
    np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-4)
    assert np.abs(params["Dense_0"]["bias"]).max() == 0


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


# Each of the others takes as long to compile again: with -m slow.
@pytest.mark.parametrize(
    "name",
    [
        "td3bc",
        *(pytest.param(m, marks=pytest.mark.slow) for m in MODULES if m != "td3bc"),
    ],
)
def test_seeds_at_once_equal_one_by_one(name):
    method, _, one_step = started(name)
    num, batch = 2, batch_of()
    batches = jax.tree.map(lambda *x: jnp.stack(x), batch, batch_of(seed=1))
    keys = seeds.keys(3, num)
    state = jax.jit(seeds.vmap_init(method.init, num))(keys, batch, {})
    step = jax.jit(seeds.vmap_step(method.train_step, num))
    for number in range(2):
        state, metrics = step(state, batches, seeds.fold(keys, number))
    for s in range(num):
        alone = jax.jit(method.init)(jax.random.key(3 + s), batch, {})
        own = jax.tree.map(lambda x, s=s: x[s], batches)
        for number in range(2):
            key = jax.random.fold_in(jax.random.key(3 + s), number)
            alone, own_metrics = one_step(alone, own, key)
        assert distance(seeds.pick(state, s, num).params, alone.params) < 1e-4
        np.testing.assert_allclose(
            metrics["loss"][s], own_metrics["loss"], rtol=1e-3, atol=1e-4
        )


# A bandit with a known answer: reward 1 - (a_0 - 0.3)^2 ends the episode at once. The
# data's actions are N(-0.2, 0.3): cloning gives -0.2, and a learner of values must come
# nearer 0.3. For TD3+BC |Q| is about 1, so it minimises 2.5 (a - 0.3)^2 + (a + 0.2)^2 /
# 2 with the mean over two dimensions: a = 0.217.
BEST, MEAN, TD3BC = 0.3, -0.2, 0.217


@pytest.mark.parametrize("name", MODULES)
def test_bandit(name):
    rows, draw = 2048, np.random.default_rng(0)
    action = np.clip(draw.normal(MEAN, 0.3, size=(rows, AD)), -1, 1)
    data = jax.tree.map(np.asarray, batch_of(rows=rows)) | dict(
        action=action.astype(np.float32),
        reward=(1 - np.square(action[:, 0] - BEST)).astype(np.float32),
        terminal=np.ones(rows, np.float32),
    )
    method, state, step = started(name)
    for key in jax.random.split(jax.random.key(1), 1000):
        index = draw.integers(rows, size=B)
        state, _ = step(state, {k: x[index] for k, x in data.items()}, key)
    seen = data["observation"][:500]
    action = float(jnp.mean(method.act(state, seen, jax.random.key(2))[:, 0]))
    if name == "bc":
        assert action == pytest.approx(MEAN, abs=0.05)
    elif name == "td3bc":
        assert action == pytest.approx(TD3BC, abs=0.1)
    else:
        assert MEAN + 0.15 < action < BEST + 0.15
