"""State inference on the hosts: isolation, controls, caching, forms of the state."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxrec.envs import teams as envs
from jaxrec.methods import METHODS, sidiff, state_forms, state_inference, teams
from jaxrec.models.extractor import StateExtractor, as_tokens
from jaxrec.types import UserError

INFO = dict(team=dict(kind="meeting", name="two_on_5", settings={}))


EXTRACTOR = sidiff.HPARAMS["extractor"]


@functools.cache
def team():
    return envs.make(**INFO["team"])


def settings(**fields):
    section = importlib.import_module("configs.sidiff").get_config("smoke").train
    found = section.sidiff.to_dict() | dict(form="vector", steps=10, batch_size=8)
    found["generator"]["drop"] = 0.0
    return FrozenConfigDict(found | fields)


@functools.cache
def run(steps=2, **fields):
    """(method, states after 0 .. `steps` train steps, metrics of the last)."""
    method = METHODS["sidiff"](settings(**fields), INFO)
    states = [jax.jit(lambda key: method.init(key, {}, {}))(jax.random.key(0))]
    step = jax.jit(method.train_step)
    for number in range(steps):
        state, metrics = step(states[-1], {}, jax.random.key(1 + number))
        states.append(state)
    return method, states, jax.device_get(metrics)


def moved(before, after):
    """Whether any number of a tree changed."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after))
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, inference",
    [
        ("qmix", "diffusion"),
        ("mappo", "diffusion"),
        pytest.param("qmix", "regressor", marks=pytest.mark.slow),
        pytest.param("vdn", "vae", marks=pytest.mark.slow),
        pytest.param("qplex", "oracle", marks=pytest.mark.slow),
        pytest.param("indep_q", "placebo", marks=pytest.mark.slow),
        pytest.param("ippo", "regressor", marks=pytest.mark.slow),
        pytest.param("vdn", "none", marks=pytest.mark.slow),
    ],
)
def test_every_host_and_every_inference_learns(host, inference):
    _, states, metrics = run(host=host, inference=inference)
    chex.assert_tree_all_finite(metrics)
    assert int(states[-1].step) == 2 and "loss" in metrics
    assert moved(states[0].params["utility"], states[1].params["utility"])
    assert ("generator" in states[0].params) == (inference in state_inference.LEARNED)
    if "ppo" in host:
        assert metrics["ratio_error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("host", ["qmix", "mappo"])
def test_a_game_without_a_base_is_learnt_from(host):
    """All its tanks are there from the start and none comes back."""
    seen = dict(observation="entity")
    about = dict(kind="battle_city", name="3t_vs_3t_annihilate", settings=seen)
    method = METHODS["sidiff"](settings(host=host, form="entities"), dict(team=about))
    state = jax.jit(lambda key: method.init(key, {}, {}))(jax.random.key(0))
    _, metrics = jax.jit(method.train_step)(state, {}, jax.random.key(1))
    chex.assert_tree_all_finite(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, inference", [("indep_q", "regressor"), ("qmix", "diffusion")]
)
def test_no_gradient_passes_between_generator_and_host(host, inference):
    """The generator is the same whatever the host learns, and the other way round.

    Of one step: the data are the same.
    """
    _, plain, _ = run(1, host=host, inference=inference)
    value = settings().value.to_dict()
    value = FrozenConfigDict(value | dict(optim=value["optim"] | dict(lr=0.0)))
    _, still, _ = run(1, host=host, inference=inference, value=value)
    assert not moved(still[0].params["utility"], still[1].params["utility"])
    assert moved(still[0].params["generator"], still[1].params["generator"])
    chex.assert_trees_all_equal(
        plain[1].params["generator"], still[1].params["generator"]
    )
    rate = settings().generator_optim.to_dict() | dict(lr=0.0)
    rate = FrozenConfigDict(rate)
    _, fixed, _ = run(1, host=host, inference=inference, generator_optim=rate)
    assert not moved(fixed[0].params["generator"], fixed[1].params["generator"])
    for name in ("utility", "mixer"):
        chex.assert_trees_all_equal(plain[1].params[name], fixed[1].params[name])


@pytest.mark.slow
def test_what_the_dead_see_teaches_nothing(monkeypatch):
    """The second agent stands still and is out of the game, from the start."""

    @jax.jit
    def generator(who, what):
        plain = envs.of_meeting("two_on_5", {})
        out = jnp.array([False, True])
        changed = plain._replace(
            observe=lambda s: plain.observe(s).at[who].add(what),
            legal=lambda s: (
                plain.legal(s).at[1].set(jnp.arange(plain.num_actions) == 0)
            ),
            active=lambda s: ~out,
        )
        monkeypatch.setitem(envs.TEAMS, "meeting", lambda name, settings: changed)
        method = METHODS["sidiff"](
            settings(host="indep_q", inference="regressor"), INFO
        )
        state = method.init(jax.random.key(0), {}, {})
        state, _ = method.train_step(state, {}, jax.random.key(1))
        return state.params["generator"]

    assert not moved(generator(1, 0.0), generator(1, 7.0))
    assert moved(generator(0, 0.0), generator(0, 7.0))


def imagined(inference, **fields):
    config = settings(inference=inference, **fields)
    form = state_forms.make(config, team())
    states = jax.vmap(team().reset)(jax.random.split(jax.random.key(0), 6))
    view = teams.views(team(), states)
    hidden = jnp.zeros((6, 2, 16))
    imagine = state_inference.make_imagine(config, form, config.samples)
    average = None
    if inference in state_inference.LEARNED:
        model, _ = state_inference.learner(config, form)
        condition = form.condition(view.observation, hidden)
        one = jax.tree.map(lambda x: x[0, 0], condition)
        average = model.init(jax.random.key(1), one)
    truth = np.asarray(form.encode(states))
    keys = [jax.random.key(n) for n in (2, 2, 3)]
    calls = [np.asarray(imagine(average, k, states, view, hidden), float) for k in keys]
    return truth, calls


def test_oracle_and_placebo_show_the_states_they_should():
    truth, (found, again, _) = imagined("oracle")
    assert found.shape == (6, 2, 1, 11)
    np.testing.assert_allclose(
        found, np.broadcast_to(truth[:, None, None], found.shape), atol=1e-2
    )
    assert set(np.unique(truth[:, :-1])) == {-1.0, 1.0}
    _, (found, _, _) = imagined("placebo")
    for game in range(6):
        own = np.abs(found[game, 0, 0] - truth).max(-1) < 1e-2
        assert own[game - 1]  # another's
    assert not np.allclose(found[:, 0, 0], truth, atol=1e-2)


def test_equal_noise_gives_equal_states():
    _, (first, second, other) = imagined("diffusion", samples=2)
    assert first.shape == (6, 2, 2, 11)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first).max() <= 1
    # An untrained network predicts zero at once, whatever the noise.
    np.testing.assert_array_equal(first, other)


def test_the_gate_opens_after_the_warm_up():
    about = sidiff.describe(settings(warmup=0.3), team(), state_forms.make(
        settings(), team()))  # fmt: skip
    opened = [float(about.opened(jnp.int32(step))) for step in range(6)]
    assert opened == [0, 0, 0, 1, 1, 1]


def test_tokens():
    grid = jnp.arange(2 * 5 * 6 * 3.0).reshape(2, 5, 6, 3)
    found = np.asarray(as_tokens(grid, 3, 4))
    assert found.shape == (2, 4, 48)
    first = np.asarray(grid)[0, :4, :4].reshape(-1)
    np.testing.assert_array_equal(found[0, 0], first)
    corner = found[0, 3].reshape(4, 4, 3)
    np.testing.assert_array_equal(corner[:1, :2], np.asarray(grid)[0, 4:, 4:])
    assert (corner[1:] == 0).all() and (corner[:, 2:] == 0).all()
    assert as_tokens(jnp.ones((2, 33)), 1, 4).shape == (2, 2, 32)
    assert as_tokens(jnp.ones((2, 7, 3)), 2, 4).shape == (2, 7, 3)


@pytest.mark.slow
def test_samples_are_told_apart_and_read():
    extractor = StateExtractor(size=5, width=8, num_heads=2)
    draw = np.random.default_rng(0)
    samples = jnp.asarray(draw.normal(size=(3, 2, 2, 6, 4)), jnp.float32)
    query = jnp.asarray(draw.normal(size=(3, 2, 7)), jnp.float32)
    params = extractor.init(jax.random.key(0), samples, query)
    z = extractor.apply(params, samples, query)
    assert z.shape == (3, 2, 5)
    for other, query_of in ((samples[:, :, ::-1], query), (samples + 1, query),
                            (samples, query + 1)):  # fmt: skip
        changed = extractor.apply(params, other, query_of)
        assert np.abs(np.asarray(changed - z)).max() > 1e-5
    one = extractor.apply(params, samples[1:2], query[1:2])
    np.testing.assert_allclose(one[0], z[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(host="qmxi"), "host 'qmxi' is unknown: use one of indep_q"),
        (dict(inference="magic"), "inference 'magic' is unknown"),
        (dict(form="image"), "form 'image' is unknown"),
        (dict(form="entities"), "form 'entities' is Battle City's: use vector"),
        (dict(host="mappo", resample=True), "set resample=False"),
        (dict(samples=0), "samples is 0"),
        (dict(inference="oracle", resample=True), "nothing is imagined anew"),
        (dict(warmup=5.0), "warmup=5.0: the gate would never open"),
        (dict(extractor=EXTRACTOR | dict(num_heads=3)), "num_heads=3 must divide"),
        (dict(extractor=EXTRACTOR | dict(patch=0)), "patch=0: at least 1"),
        (dict(widths=()), "of the U-Net, one or more"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        METHODS["sidiff"](settings(**fields), INFO)
