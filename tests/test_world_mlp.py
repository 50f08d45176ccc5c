"""The MLP ensemble as a world model: its loss, its rows, what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import held_out
from jaxrec.data import loader, toy
from jaxrec.losses import world as losses
from jaxrec.methods import world_mlp
from jaxrec.types import UserError

SMALL = dict(widths=(32,), decays=(1e-5, 1e-5), members=3)


def make(info, **overrides):
    settings = world_mlp.HPARAMS | SMALL | dict(steps=600, batch_size=64) | overrides
    settings = ConfigDict(settings)
    settings.optim.lr = 3e-3
    return world_mlp.make(FrozenConfigDict(settings), info)


@functools.cache
def data(window=0):
    return toy_world.dataset(window)


def batch_of(window, step=0):
    batch = loader.host_batch(data(window), 64, np.uint32(0), step)
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def trained():
    """(method, first state, last state, losses) after 600 steps on the toy system."""
    method = make(data().info)
    first = jax.jit(method.init)(jax.random.key(0), batch_of(0), {})
    batches = [batch_of(0, step) for step in range(600)]
    batches = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    keys = jax.random.split(jax.random.key(1), 600)

    def body(state, inputs):
        state, metrics = method.train_step(state, *inputs)
        return state, metrics

    last, metrics = jax.jit(lambda s: jax.lax.scan(body, s, (batches, keys)))(first)
    return method, first, last, metrics


def held_out_rows(window):
    rows = {name: x[:64] for name, x in data(window).evals["valid"].items()}
    if not window:
        return rows | dict(weight=np.ones(64, np.float32))
    return next(iter(held_out.batches(data(window), "valid", 64)))


@pytest.mark.slow
def test_learns_the_toy_system_and_stays_finite():
    method, first, last, metrics = trained()
    assert int(last.step) == 600
    assert all(np.isfinite(x).all() for x in metrics.values())
    assert metrics["loss"][-10:].mean() < metrics["loss"][:10].mean() - 0.5
    batch, key = held_out_rows(0), jax.random.key(0)
    before, after = (method.eval_step(s, batch, key) for s in (first, last))
    for name in ("nll", "state_mse_error", "reward_mae"):
        assert after[name] < before[name]
    assert after["state_mse_error"] / after["count"] < 0.3


@pytest.mark.slow
def test_prediction_is_near_the_truth_in_the_datas_units():
    method, _, last, _ = trained()
    rows = held_out_rows(0)
    window = world_mlp.as_windows(rows)
    found = method.predict(last, window)
    scales = last.extra.scales
    guess = rows["observation"] + found.mean.mean(0) * scales.delta_std[None]
    truth, reward = toy.step(rows["observation"], rows["action"])
    still = np.abs(rows["observation"] - truth).mean()
    assert np.abs(guess - truth).mean() < 0.5 * still
    error = np.abs(found.reward.mean(0) - reward).mean()
    assert error < 0.5 * np.abs(reward - reward.mean()).mean()
    assert found.log_var.shape == (3, 64, rows["observation"].shape[1] + 1)


def test_predictions_need_the_newest_step_alone():
    method, _, last, _ = trained()
    short = world_mlp.as_windows(held_out_rows(0))
    past = {name: jnp.full_like(x, 3) for name, x in short.items()}
    names = ("observation", "action", "mask")
    long = {n: jnp.concatenate([past[n], short[n]], axis=1) for n in names}
    a, b = method.predict(last, short), method.predict(last, long)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert method.context == 1


@pytest.mark.parametrize("window", (0, 1, 5))
def test_takes_transitions_and_windows(window):
    method = make(data(window).info)
    batch = batch_of(window)
    state = jax.jit(method.init)(jax.random.key(0), batch, {})
    state, metrics = jax.jit(method.train_step)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    sums = method.eval_step(state, held_out_rows(window), jax.random.key(2))
    assert sums["count"] == 64


def test_window_of_one_equals_transitions():
    method = make(data().info)
    steps, key = jax.jit(method.train_step), jax.random.key
    state = jax.jit(method.init)(key(0), batch_of(0), {})
    a, b = (steps(state, batch_of(window), key(1))[0].params for window in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def plain():
    """(state, jitted step) without bootstrap: the step depends on the batch alone."""
    method = make(data(5).info, bootstrap=False)
    state = jax.jit(method.init)(jax.random.key(0), batch_of(5), {})
    return state, jax.jit(method.train_step)


def gradient(batch):
    """The parameters after one step, which stand for the gradient."""
    state, step = plain()
    return step(state, batch, jax.random.key(1))[0].params


def test_masked_steps_do_not_matter():
    batch = dict(batch_of(5))
    assert not batch["mask"].all()
    changed = dict(batch)
    for name in ("observation", "action", "next_observation", "reward"):
        mask = batch["mask"].reshape(
            batch["mask"].shape + (1,) * (batch[name].ndim - 2)
        )
        changed[name] = np.where(mask, batch[name], batch[name] + 7)
    jax.tree.map(np.testing.assert_array_equal, gradient(batch), gradient(changed))


def test_unknown_next_states_do_not_matter_but_their_rewards_do():
    batch = dict(batch_of(5))
    batch["valid_next"] = batch["valid_next"] * (np.arange(64) % 2)[:, None]
    wrong = np.where(batch["valid_next"][..., None] > 0, 0.0, 50.0)
    state = dict(batch, next_observation=batch["next_observation"] + wrong)
    jax.tree.map(np.testing.assert_array_equal, gradient(batch), gradient(state))
    reward = dict(batch, reward=batch["reward"] + wrong[..., 0])
    same = jax.tree.map(np.array_equal, gradient(batch), gradient(reward))
    assert not all(jax.tree.leaves(same))


def test_loss_by_hand():
    """Mean over dimensions of (d - mu)^2 / var + log var, bounds, decay; one member."""
    overrides = dict(members=1, bootstrap=False, decays=(0.1, 0.2))
    method = make(data().info, correction="none", **overrides)
    batch = batch_of(0)
    state = jax.jit(method.init)(jax.random.key(0), batch, {})
    _, metrics = jax.jit(method.train_step)(state, batch, jax.random.key(1))
    found = method.predict(state, world_mlp.as_windows(batch))
    scales = jax.tree.map(np.asarray, state.extra.scales)
    var = np.exp(found.log_var[0])
    batch = jax.tree.map(np.asarray, batch)
    delta = (batch["next_observation"] - batch["observation"]) / scales.delta_std
    reward = (found.reward[0] - batch["reward"]) / scales.reward_std
    error = np.concatenate([found.mean[0] - np.asarray(delta), reward[:, None]], axis=1)
    nll = np.mean(error**2 / var + np.log(var))
    layers = state.params["params"]
    squares = [
        np.sum(np.square(layers[name]["kernel"])) for name in ("layer_0", "head")
    ]
    bounds = 0.01 * 10.5 * error.shape[1]
    want = nll + bounds + 0.5 * np.dot((0.1, 0.2), squares)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)


def test_nll_at_unit_variance_is_the_squared_error():
    total, count = losses.gaussian_nll(
        jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        jnp.ones(2),
    )  # fmt: skip
    assert (total, count) == (30.0, 2.0)


@pytest.mark.slow
def test_members_differ():
    method, _, last, _ = trained()
    kernels = last.params["params"]["layer_0"]["kernel"]
    assert kernels.shape[0] == 3
    assert not np.allclose(kernels[0], kernels[1])


def test_bootstrap_draws_own_rows_for_each_member():
    """From the same start, the same rows keep members equal; own rows do not."""
    _, start, _, _ = trained()
    alike = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), start.params)
    for bootstrap in (False, True):
        method = make(data().info, bootstrap=bootstrap)
        step = jax.jit(method.train_step)
        state, _ = step(start.replace(params=alike), batch_of(0), jax.random.key(1))
        kernels = state.params["params"]["head"]["kernel"]
        assert bool((kernels[0] == kernels[1]).all()) is not bootstrap


def test_termination_head_is_learnt():
    method = make(data().info, predict_terminal=True)
    batch = dict(batch_of(0))
    batch["terminal"] = (batch["action"][:, 0] > 0).astype(np.float32)
    state = jax.jit(method.init)(jax.random.key(0), batch, {})
    keys = jax.random.split(jax.random.key(1), 200)

    @jax.jit
    def steps(state):
        body = lambda state, key: (method.train_step(state, batch, key)[0], None)  # noqa: E731
        return jax.lax.scan(body, state, keys)[0]

    found = method.predict(steps(state), world_mlp.as_windows(batch))
    guess = found.terminal.mean(0) > 0
    assert np.mean(guess == (batch["terminal"] > 0)) > 0.9
    assert (
        trained()[0].predict(trained()[2], world_mlp.as_windows(batch)).terminal is None
    )


def test_simulates_through_the_shared_interface():
    method, _, last, _ = trained()
    found = method.produce(last, data(), jax.random.key(0))
    assert len(found["reward"]) >= len(data().train["reward"])
    assert np.isfinite(found["next_observation"]).all()
    assert found["timestep"].max() > 0


def test_decays_must_fit_the_layers():
    with pytest.raises(UserError, match="2 layers"):
        make(data().info, decays=(1e-5,))
