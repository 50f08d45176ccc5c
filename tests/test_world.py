"""World transformers: what a prediction may see, their loss, what is learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import loader, toy
from jaxrec.losses import world as losses
from jaxrec.methods import (
    imagination,
    world_evaluator,
    world_rollout,
    world_transformer,
)
from jaxrec.models.world import WorldTransformer
from jaxrec.types import UserError

K = 5
SMALL = dict(width=16, num_layers=1, num_heads=2, members=2)
STEPS = 200  # of `trained`


@functools.cache
def data():
    return toy_world.dataset(K)


def make(**changes):
    settings = world_transformer.HPARAMS | SMALL | dict(steps=STEPS, batch_size=64)
    settings = ConfigDict(settings | changes)
    settings.optim.lr = 3e-3
    return world_transformer.make(FrozenConfigDict(settings), data().info)


@functools.cache
def compiled(**changes):
    """(method, first state, jitted train_step); tests share the few they need."""
    method = make(**changes)
    state = jax.jit(method.init)(jax.random.key(0), batch_of(), {})
    return method, state, jax.jit(method.train_step)


# Own states for three steps, one trunk; a single member that sees the batch as it is.
UNROLLED = (("bootstrap", False), ("predict_terminal", True), ("share_trunk", True))
UNROLLED = (*UNROLLED, ("unroll", 3))
SINGLE = (("bootstrap", False), ("bounds_weight", 0.0), ("members", 1))
SINGLE = (*SINGLE, ("head", "deterministic"), ("correction", "none"))


def batch_of(step=0):
    batch = loader.host_batch(data(), 64, np.uint32(0), step)
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def network(share_trunk=False):
    """(apply, s, a): two layers on four windows; apply is (s, a, mask, newest)."""
    key_init, key_s, key_a = jax.random.split(jax.random.key(0), 3)
    s = jax.random.normal(key_s, (4, K, 3))
    a = jax.random.normal(key_a, (4, K, 2))
    module = WorldTransformer(3, 16, 2, 2, share_trunk=share_trunk, termination=True)
    params = jax.jit(module.init)(key_init, s, a, jnp.ones((4, K), bool))
    apply = jax.jit(functools.partial(module.apply, params), static_argnames="newest")
    return apply, s, a


def same(found, wanted, upto=None):
    """Whether all outputs of the steps before `upto` agree bit for bit."""
    pairs = zip(found[:4], wanted[:4], strict=True)
    return all(np.array_equal(x[:, :upto], y[:, :upto]) for x, y in pairs)


@pytest.mark.parametrize(
    "share_trunk", [pytest.param(False, marks=pytest.mark.slow), True]
)
@pytest.mark.parametrize(
    "t", [2, *(pytest.param(t, marks=pytest.mark.slow) for t in (0, K - 1))]
)
def test_causal(share_trunk, t):
    apply, s, a = network(share_trunk)
    mask = jnp.ones((4, K), bool)
    before = apply(s, a, mask)
    changed = apply(s, a.at[:, t].add(1.0), mask)
    assert same(changed, before, t)
    for x, y in zip(changed[:4], before[:4], strict=True):
        assert np.abs(x[:, t] - y[:, t]).max() > 1e-4  # it does see its own action
    if t:
        # The prediction of s_t is made at t - 1: it must not see s_t.
        assert same(apply(s.at[:, t].add(1.0), a, mask), before, t)


def test_the_newest_step_alone_is_the_last_of_all():
    apply, s, a = network()
    mask = jnp.arange(K)[None, :] >= jnp.array([0, 1, 3, 4])[:, None]
    every, last = apply(s, a, mask), apply(s, a, mask, newest=True)
    for x, y in zip(every[:4], last[:4], strict=True):
        np.testing.assert_allclose(x[:, -1:], y, atol=1e-5)


def test_padding_is_ignored_in_predictions_and_training():
    apply, s, a = network()
    mask = jnp.arange(K)[None, :] >= jnp.array([1, 2, 3, 4])[:, None]
    clean = apply(s, a, mask)
    garbage = apply(
        jnp.where(mask[..., None], s, 1e6), jnp.where(mask[..., None], a, jnp.nan), mask
    )
    for x, y in zip(garbage[:4], clean[:4], strict=True):
        np.testing.assert_array_equal(np.asarray(x)[mask], np.asarray(y)[mask])

    _, state, step = compiled(**dict(UNROLLED))
    batch = batch_of()
    batch["mask"] = batch["mask"] & (jnp.arange(K) >= 2)[None, :]
    spoilt = dict(batch)
    for name in ("observation", "action", "reward", "next_observation", "terminal"):
        x = batch[name]
        kept = batch["mask"].reshape(batch["mask"].shape + (1,) * (x.ndim - 2))
        spoilt[name] = jnp.where(kept, x, 7.0)
    found = [step(state, b, jax.random.key(1))[0].params for b in (batch, spoilt)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_losses_by_hand():
    mean, target = jnp.array([[1.0, 0.0], [5.0, 5.0]]), jnp.array([[3.0, 1.0]] * 2)
    weight = jnp.array([1.0, 0.0])
    total, count = losses.gaussian_nll(mean, jnp.zeros((2, 2)), target, weight)
    assert (total, count) == (5.0, 1.0)  # at unit variance the squared error
    assert losses.squared_error(mean, target, weight) == (5.0, 1.0)
    double = jnp.full((2, 2), jnp.log(2.0))
    total, _ = losses.gaussian_nll(mean, double, target, jnp.ones(2))
    np.testing.assert_allclose(total, (5 + 20) / 2 + 4 * np.log(2), rtol=1e-6)
    found = losses.reward_error(jnp.array([1.0, jnp.inf]), jnp.zeros(2), weight)
    assert found == (1.0, 1.0)
    total, count = losses.terminal_bce(
        jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]), jnp.ones(2)
    )
    np.testing.assert_allclose(total, np.log(2) + np.log1p(np.exp(2)), rtol=1e-6)
    assert count == 2.0


def test_steps_without_a_true_next_state_teach_the_reward_only():
    _, state, step = compiled(**dict(SINGLE))
    batch, key = batch_of(), jax.random.key(1)
    batch["valid_next"] = batch["valid_next"].at[:, ::2].set(0.0)
    one = step(state, batch, key)[1]
    wrong = batch["next_observation"].at[:, ::2].add(100.0)
    other = step(state, dict(batch, next_observation=wrong), key)[1]
    assert one["loss"] == other["loss"]
    wrong = batch["reward"].at[:, ::2].add(1.0)
    other = step(state, dict(batch, reward=wrong), key)[1]
    assert one["state_loss"] == other["state_loss"]
    assert abs(one["reward_loss"] - other["reward_loss"]) > 1e-3


def test_unrolled_steps_see_the_models_own_states():
    method, state, step = compiled(**dict(SINGLE))
    _, _, unrolled = compiled(**dict(SINGLE), unroll=3)
    batch, key = batch_of(), jax.random.key(1)
    batch["mask"] = jnp.ones((64, K), bool)
    batch["valid_next"] = jnp.ones((64, K))
    config, scales = method.config, state.extra.scales
    shape = config.width, config.num_layers, config.num_heads
    module = WorldTransformer(4, *shape, gaussian=False)
    params = jax.tree.map(lambda x: x[0], state.params)

    @jax.jit
    def outputs(s):
        s = scales.standardise(s)
        return module.apply(params, s, batch["action"], batch["mask"])

    s, extra = batch["observation"], 0.0
    rewards = scales.standardise_reward(batch["reward"])
    for j in (K - 2, K - 1):
        guess = s[:, j - 1] + scales.delta_std[None] * outputs(s).mean[:, j - 1]
        s = s.at[:, j].set(guess)
        target, out = batch["next_observation"][:, j] - guess, outputs(s)
        error = target / scales.delta_std[None] - out.mean[:, j]
        extra += jnp.mean(jnp.sum(jnp.square(error), axis=-1))
        extra += jnp.mean(jnp.square(rewards[:, j] - out.reward[:, j]))
    plain, three = step(state, batch, key)[1], unrolled(state, batch, key)[1]
    np.testing.assert_allclose(three["loss"] - plain["loss"], extra, rtol=1e-4)


@functools.cache
def trained():
    """(method, first state, last state, losses) on the toy system."""
    method = make(width=32)
    first = jax.jit(method.init)(jax.random.key(0), batch_of(), {})
    batches = [batch_of(step) for step in range(STEPS)]
    batches = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    keys = jax.random.split(jax.random.key(1), STEPS)

    def body(state, inputs):
        state, metrics = method.train_step(state, *inputs)
        return state, metrics["loss"]

    last, found = jax.jit(lambda s: jax.lax.scan(body, s, (batches, keys)))(first)
    return method, first, last, found


@pytest.mark.slow
def test_error_of_fifty_steps_shrinks_with_training():
    method, first, last, found = trained()
    assert np.isfinite(found).all() and found[-10:].mean() < found[:10].mean() - 1
    held_out = data().evals["valid"]
    rows = np.flatnonzero(held_out["timestep"] == 0)
    window = imagination.windows(held_out, rows, K)
    action = np.stack([held_out["action"][row : row + 50] for row in rows])
    truth, state = [], held_out["observation"][rows]
    for h in range(50):
        state, _ = toy.step(state, action[:, h])
        truth.append(state)
    never = world_evaluator.Evaluator(world_evaluator.pairwise_diff, frozenset())

    @jax.jit
    def error(state):
        found = world_rollout.rollout(
            method.predict,
            state,
            state.extra.scales,
            window,
            action,
            jax.random.key(2),
            evaluator=never,
        )
        wrong = found["next_observation"] - np.stack(truth, 1)
        wrong = wrong / state.extra.scales.observation_std[None, None]
        return jnp.sqrt(jnp.mean(jnp.square(wrong), axis=(0, 2)))

    before, after = error(first), error(last)
    assert after[49] < 0.5 * before[49]
    assert after[0] < 0.1 and after[9] < 0.5 * before[9]


@pytest.mark.slow
def test_uncertainty_is_larger_off_the_data():
    method, _, last, _ = trained()
    held_out = data().evals["valid"]
    window = imagination.windows(held_out, np.arange(20, 100), K)
    far = dict(window, action=window["action"].copy())
    far["action"][:, -1] = 3 * np.sign(far["action"][:, -1])
    u = jax.jit(lambda w: world_evaluator.pairwise_diff(method.predict(last, w)))
    assert u(far).mean() > 1.5 * u(window).mean()


@pytest.mark.parametrize("changes", [SINGLE, UNROLLED], ids=["single", "unrolled"])
def test_options_learn(changes):
    _, state, step = compiled(**dict(changes))
    found = []
    for number in range(30):
        state, metrics = step(state, batch_of(), jax.random.key(number))
        found.append(metrics["loss"])
    assert np.isfinite(found).all() and np.mean(found[-3:]) < np.mean(found[:3])


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(preset="paper"), "share_trunk.*u_kind.*quantile.*correction"),
        (dict(preset="best"), "best"),
        (dict(head="mixture"), "mixture"),
        (dict(unroll=K + 1), "data.window"),
        (dict(num_heads=3), "multiple"),
        (dict(correction="pray"), "pray"),
    ],
)
def test_settings_that_cannot_work(changes, words):
    with pytest.raises(UserError, match=words):
        make(**changes)


def test_transitions_are_refused():
    info = data().info | {"window": 0}
    config = FrozenConfigDict(world_transformer.HPARAMS | dict(steps=1, batch_size=1))
    with pytest.raises(UserError, match="data.window"):
        world_transformer.make(config, info)
