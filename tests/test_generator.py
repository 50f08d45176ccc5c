"""State generators of all kinds: one interface, isolation, and what they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.methods import generator
from jaxrec.models.denoiser import MLP, Condition
from jaxrec.types import UserError

SAMPLERS = ("ddim", "euler", "consistency")
ALL = [("diffusion", name) for name in SAMPLERS] + [("regressor", ""), ("vae", "")]


def jit(f):
    return jax.jit(f, compiler_options=dict(xla_backend_optimization_level=0))


def settings(kind="diffusion", sampler="", **changes):
    config = ConfigDict(generator.HPARAMS)
    config.update(dict(kind=kind, latent=2) | changes)
    if sampler:
        config.diffusion.sampler = sampler
    return FrozenConfigDict(config)


def make(*args, shape=(2,), **changes):
    return generator.make(settings(*args, **changes), MLP(32), shape)


def types_of_users(key, num):
    """States of two types, hidden half of the time: (x0 [num, 2], c [num, 1]).

    c = 0: either (-.8, .8) or (.8, -.8), evenly; c = +-1: the one or the other.
    """
    key_type, key_seen = jax.random.split(key)
    sign = jax.random.rademacher(key_type, (num,), jnp.float32)
    seen = jax.random.bernoulli(key_seen, 0.5, (num,))
    x0 = 0.8 * jnp.stack([sign, -sign], axis=1)
    return x0, jnp.where(seen, sign, 0.0)[:, None]


@functools.cache
def trained(kind, sampler):
    """(generator, averaged params) after 1,200 updates."""
    made, optimiser = make(kind, sampler), optax.adam(3e-3)
    params = made.init(jax.random.key(0), Condition(jnp.zeros(1)))
    first = (params, params, optimiser.init(params))

    def update(state, at):
        params, average, opt = state
        step, key = at
        key, key_data = jax.random.split(key)
        x0, c = types_of_users(key_data, 128)

        def loss(params):
            keys = jax.random.split(key, 128)
            one = lambda k, x, c: made.loss(params, average, k, x, Condition(c))  # noqa: E731
            return jnp.mean(jax.vmap(one)(keys, x0, c))

        grads = jax.grad(loss)(params)
        updates, opt = optimiser.update(grads, opt)
        params = optax.apply_updates(params, updates)
        return (params, generator.ema(0.99, average, params, step), opt), None

    steps = jnp.arange(1_200), jax.random.split(jax.random.key(1), 1_200)
    (_, average, _), _ = jax.jit(lambda s: jax.lax.scan(update, s, steps))(first)
    return made, average


def samples(kind, sampler, c, num=400):
    made, average = trained(kind, sampler)
    one = lambda key: made.sample(average, key, Condition(jnp.full(1, c)))  # noqa: E731
    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(2), num)))


@pytest.mark.slow
@pytest.mark.parametrize("kind,sampler", ALL)
def test_two_types_of_users(kind, sampler):
    """Seen, all name the type; hidden, diffusion splits evenly where the regressor
    gives the mean."""
    clear = samples(kind, sampler, 1.0)
    assert np.abs(clear - np.array([0.8, -0.8])).mean() < 0.15
    hidden = samples(kind, sampler, 0.0)
    if kind == "regressor":
        assert np.abs(hidden).max() < 0.15
        return
    share = (hidden[:, 0] > 0).mean()
    assert 0.35 < share < 0.65
    assert np.abs(np.abs(hidden) - 0.8).mean() < 0.25
    # Both numbers of a sample are of one type.
    assert (np.sign(hidden[:, 0]) == -np.sign(hidden[:, 1])).mean() > 0.9


@pytest.mark.slow
def test_one_step_is_the_regressor():
    """K = 1 from noise gives E[s | c]: 0 where the type is hidden."""
    made, average = trained("diffusion", "ddim")
    config = ConfigDict(settings().to_dict())
    config.diffusion.steps = 1
    single = generator.make(FrozenConfigDict(config), MLP(32), (2,))
    keys = jax.random.split(jax.random.key(3), 100)
    for c in (0.0, 1.0):
        one = lambda key: single.sample(average, key, Condition(jnp.full(1, c)))  # noqa: E731, B023
        found = np.asarray(jax.vmap(one)(keys))
        np.testing.assert_allclose(found, samples("regressor", "", c, 100), atol=0.15)
        keys = jax.random.split(jax.random.key(4), 100)


SLOW = ("consistency", "ddim")


@pytest.mark.parametrize(
    "kind,sampler",
    [
        pytest.param(*one, marks=pytest.mark.slow) if one[1] in SLOW else one
        for one in ALL
    ],
)
def test_interface(kind, sampler):
    """Gradients in params alone, jit and vmap, batches by lead, known values kept."""
    made = make(kind, sampler)
    c = Condition(jnp.array([[0.3], [-0.7]]))
    first = jax.tree.map(lambda x: x[0], c)
    params = jit(made.init)(jax.random.key(0), first)
    params = jax.tree.map(lambda x: x + 0.1, params)
    x0 = jnp.array([0.5, -0.5])

    def loss(params, average, x):
        one = jax.tree.map(lambda x: x[0], c)
        return made.loss(params, average, jax.random.key(1), x, one)

    grads, of_average = jit(jax.grad(loss, (0, 1)))(params, params, x0)
    assert sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads)) > 0
    assert all(not np.any(g) for g in jax.tree.leaves(of_average))
    one = lambda key, c: made.sample(params, key, c)  # noqa: E731
    keys = lambda: jax.random.split(jax.random.key(2), 2)  # noqa: E731
    rows = jit(jax.vmap(one))(keys(), c)
    assert rows.shape == (2, 2) and np.abs(rows).max() <= 1
    single = jit(one)
    for row in range(2):
        alone = single(keys()[row], jax.tree.map(lambda x: x[row], c))  # noqa: B023
        np.testing.assert_allclose(alone, rows[row], atol=1e-5)
    known = jnp.array([[0.25, 9.0]] * 2), jnp.array([[True, False]] * 2)

    def together(made, known):
        many = lambda key: made.sample(params, key, c, (2,), known)  # noqa: E731
        return np.asarray(jit(many)(jax.random.key(4)))

    kept, plain = together(made, known), together(made, None)
    assert kept.shape == plain.shape == (2, 2)
    np.testing.assert_array_equal(kept[:, 0], [0.25, 0.25])
    assert np.abs(kept[:, 1]).max() <= 1
    free = make(kind, sampler, clamp_known=False)
    np.testing.assert_array_equal(together(free, known), plain)


def test_a_condition_dropped_in_training_teaches_nothing_of_it():
    """With drop near 1 the gradient at the condition's weights vanishes, alone."""
    c = Condition(jnp.array([2.0]))

    def grads(drop):
        made = make("diffusion", "ddim", drop=drop)
        params = jit(made.init)(jax.random.key(0), c)
        params = jax.tree.map(lambda x: x + 0.1, params)
        args = params, jax.random.key(1), jnp.array([0.5, -0.5]), c
        return jit(jax.grad(made.loss))(params, *args)["params"]["in"]["kernel"]

    dropped, told = grads(0.999_999), grads(0.0)
    assert not np.any(dropped[-1]) and np.any(dropped[:-1]) and np.any(told[-1])


def test_guidance_zero_is_the_conditional_and_above_moves_away_from_none():
    c = Condition(jnp.array([2.0]))
    plain = make("diffusion", "ddim")
    params = jit(plain.init)(jax.random.key(0), c)
    rng = np.random.default_rng(5)
    noise = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(lambda x: x + 0.1 * noise(x), params)

    def end(weight, drop=0.1):
        made = make("diffusion", "ddim", guidance=weight, drop=drop)
        return np.asarray(jit(made.sample)(params, jax.random.key(1), c))

    np.testing.assert_array_equal(end(0.0), end(0.0, drop=0.0))
    assert np.abs(end(1.0) - end(0.0)).max() > 1e-3


def test_ema():
    old, new = dict(w=jnp.array([1.0])), dict(w=jnp.array([3.0]))
    late = jnp.array(10**6)
    assert generator.ema(0.0, old, new, late)["w"][0] == 3.0
    np.testing.assert_allclose(generator.ema(0.75, old, new, late)["w"], [1.5])
    # At update 0 d = 1/10: young averages forget.
    np.testing.assert_allclose(generator.ema(0.999, old, new, 0)["w"], [2.8], rtol=1e-6)


def test_kl_by_hand():
    """KL(N(1, 4) || N(0, 1)) = (4 + 1 - 1 - ln 4) / 2."""
    one, zero = jnp.ones(1), jnp.zeros(1)
    found = generator.gaussian_kl(one, jnp.log(4 * one), zero, zero)
    np.testing.assert_allclose(found, (4 - np.log(4)) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(kind="gan"), ["'gan'", "diffusion"]),
        (dict(drop=1.0), ["drop=1.0"]),
        (dict(ema=1.0), ["ema=1.0"]),
        (dict(guidance=2.0, drop=0.0), ["guidance=2.0", "drop"]),
        (dict(diffusion=dict(steps=0)), ["steps=0"]),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(UserError) as error:
        make(**changes)
    assert all(word in str(error.value) for word in words)
