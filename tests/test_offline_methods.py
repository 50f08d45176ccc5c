"""BC, TD3+BC, IQL, CQL and MCQ: mechanics of an update, and known answers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from toy_offline import (
    AD,
    INFO,
    MODULES,
    B,
    batch_of,
    distance,
    started,
    step_once,
)

from jaxrec import seeds
from jaxrec.models import control
from jaxrec.types import UserError


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


@pytest.mark.parametrize("shape", [(256, 256), (17, 256), (256, 1), (6, 256)])
def test_orthogonal_kernels(shape):
    net = control.MLP((shape[1],), 1, "orthogonal")
    params = net.init(jax.random.key(0), jnp.zeros((1, shape[0])))["params"]
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert kernel.shape == shape
    gram = kernel @ kernel.T if shape[0] <= shape[1] else kernel.T @ kernel
    np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-4)
    assert np.abs(params["Dense_0"]["bias"]).max() == 0


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("cql", "mcq") else name
        for name in MODULES
    ],
)
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
