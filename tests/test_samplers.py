"""Samplers against a Gaussian whose exact denoiser, and often whose end, is known.

s ~ N(0.3, 0.5^2). Every deterministic sampler maps noise to states by a line here, so
its spread is the slope of that line: worked in NumPy with float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import samplers
from jaxrec.losses import diffusion
from jaxrec.samplers import Start
from jaxrec.types import UserError

MEAN, STD = 0.3, 0.5
NOISE = np.linspace(-3, 3, 13).astype(np.float32)


def spec(**changes):
    config = ConfigDict(diffusion.SPEC | dict(clip=0.0))
    config.update(changes)
    return FrozenConfigDict(config)


def exact_vp(config):
    """E[s | x_k] under the cosine schedule."""
    abar, v = jnp.asarray(diffusion.schedule(config)), STD**2

    def denoise(x, k):
        a = abar[k]
        return MEAN + jnp.sqrt(a) * v / (a * v + 1 - a) * (x - jnp.sqrt(a) * MEAN)

    return denoise


def exact_ve(x, sigma):
    """E[s | s + sigma e]."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def line(x, y):
    """(value at 0, slope) of points on a line, which they must be."""
    slope, start = np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)
    assert np.abs(np.asarray(y) - (start + slope * np.asarray(x))).max() < 1e-4
    return start, slope


@pytest.mark.parametrize(
    "steps,std",
    [(1, 0.0001), (2, 0.199), (3, 0.285), (5, 0.362), (10, 0.427), (100, 0.492)],
)
def test_ddim_has_the_spread_of_the_closed_form(steps, std):
    config = spec(steps=steps)
    found = samplers.ddim(exact_vp(config), config, Start(NOISE))
    start, slope = line(NOISE, found)
    np.testing.assert_allclose([start, slope], [0.3, std], atol=7e-4)


@pytest.mark.parametrize(
    "high,steps,mean,std",
    [
        (5.0, 3, 0.285, 0.250),
        (5.0, 5, 0.280, 0.331),
        (5.0, 18, 0.273, 0.452),
        (80.0, 3, None, 0.098),
        (80.0, 18, None, 0.423),
    ],
)
def test_euler_has_the_spread_of_the_closed_form(high, steps, mean, std):
    config = spec(sampler="euler", steps=steps, sigma_max=high)
    found = samplers.euler(exact_ve, config, Start(NOISE))
    start, slope = line(NOISE, found)
    assert abs(slope - std) < 7e-4
    if mean is not None:
        assert abs(start - mean) < 7e-4


def ode_end(high):
    """Where the exact flow carries `high` e: (value at 0, slope)."""
    shrink = STD / np.sqrt(STD**2 + high**2)
    return MEAN - shrink * MEAN, shrink * high


def test_both_ode_solvers_reach_the_exact_flow_and_heun_sooner():
    away = {}
    for name, steps in [("euler", 18), ("heun", 18), ("euler", 600), ("heun", 60)]:
        config = spec(sampler=name, steps=steps)
        sampler = samplers.SAMPLERS[name]
        found = line(NOISE, sampler(exact_ve, config, Start(NOISE)))
        away[name, steps] = np.abs(np.array(found) - ode_end(5.0)).max()
    assert away["heun", 18] < away["euler", 18] / 5
    assert away["euler", 600] < 3e-3 and away["heun", 60] < 1e-3


def test_heun_calls_its_network_2n_minus_1_times():
    calls = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return exact_ve(x, sigma)

    config = spec(sampler="heun", steps=4)
    samplers.heun(denoise, config, Start(NOISE)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 7 and min(calls) == pytest.approx(0.002)


def test_edm_grid_by_hand():
    grid = diffusion.karras(spec(), 3)
    np.testing.assert_allclose(grid, [5, 0.28308, 0.002], rtol=1e-4)
    assert diffusion.karras(spec(), 1).tolist() == [5.0]


def test_ddpm_is_the_posterior_of_ho_et_al():
    """Mean and variance of 100 steps, propagated in NumPy by equation 7."""
    config = spec(sampler="ddpm", steps=100)
    abar = diffusion.cosine(100).astype(np.float64)
    mean, var = 0.0, 1.0
    for k in range(100, 0, -1):
        a, b = abar[k], abar[k - 1]
        beta = 1 - a / b
        gain = np.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)  # x0_hat = MEAN + gain (x-..)
        of_x0, of_x = np.sqrt(b) * beta / (1 - a), np.sqrt(1 - beta) * (1 - b) / (1 - a)
        slope = of_x0 * gain + of_x
        mean = slope * mean + of_x0 * MEAN * (1 - gain * np.sqrt(a))
        var = slope**2 * var + beta * (1 - b) / (1 - a)
    np.testing.assert_allclose([mean, np.sqrt(var)], [0.300, 0.482], atol=1e-3)
    key, other = jax.random.split(jax.random.key(1))
    noise = jax.random.normal(key, (40_000,))
    found = samplers.ddpm(exact_vp(config), config, Start(noise, other))
    np.testing.assert_allclose(np.mean(found), mean, atol=0.01)
    np.testing.assert_allclose(np.std(found), np.sqrt(var), atol=0.006)


def test_eta_lies_between_ddim_and_ddpm():
    config = spec(steps=10)
    noise = np.zeros(20_000, np.float32)

    def spread(eta):
        start = Start(noise, jax.random.key(2))
        config = spec(steps=10, eta=eta)
        return float(np.std(samplers.ddim(exact_vp(config), config, start)))

    assert spread(0.0) < 1e-6 < 0.1 < spread(0.5) < spread(1.0)
    start = Start(noise, jax.random.key(2))
    ddpm = samplers.ddpm(exact_vp(config), config, start)
    assert spread(1.0) == pytest.approx(float(np.std(ddpm)), abs=1e-6)


def network(x, level):
    """Some function of both."""
    return 0.5 * jnp.tanh(x + level)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_signature_same_key_same_state_jit_and_vmap(name):
    config = spec(sampler=name, steps=2, clip=1.0)
    one = lambda key: samplers.sample(config, network, key, (3,))  # noqa: E731
    keys = lambda: jax.random.split(jax.random.key(3), 4)  # noqa: E731
    loop = jnp.stack([one(key) for key in keys()])
    assert loop.shape == (4, 3) and np.abs(loop).max() <= 1
    np.testing.assert_allclose(jax.vmap(one)(keys()), loop, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys()), loop, atol=1e-5)
    np.testing.assert_array_equal(one(keys()[0]), loop[0])
    assert np.abs(loop[0] - loop[1]).max() > 1e-3


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_known_values_are_kept_and_the_rest_knows_of_them(name, steps):
    config = spec(sampler=name, steps=steps)
    truth, mask = jnp.array([0.9, -0.2, 0.0]), jnp.array([True, True, False])
    other = lambda x, level: network(x[::-1], level)  # noqa: E731

    def end(known=None):
        return samplers.sample(config, other, jax.random.key(4), (3,), known)

    found, changed, free = end((truth, mask)), end((-truth, mask)), end()
    np.testing.assert_array_equal(found[:2], truth[:2])
    assert np.isfinite(found[2]) and found[2] != 0
    assert np.abs(free[:2] - truth[:2]).min() > 1e-3
    if steps > 1:  # the third is made from the first
        assert abs(changed[2] - found[2]) > 1e-3


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_known_values_follow_their_forward_process(name):
    """What the network sees of a known value is sqrt(abar) s + sqrt(1 - abar) e."""
    config = spec(sampler=name, steps=3)
    seen = []

    def denoise(x, noise):
        jax.debug.callback(lambda *a: seen.append(a), x, noise, ordered=True)
        return jnp.zeros_like(x)

    truth, e = 0.9, np.float32(1.3)
    known = (jnp.full(1, truth), jnp.ones(1, bool))
    samplers.SAMPLERS[name](denoise, config, Start(jnp.full(1, e), known=known))
    jax.effects_barrier()
    assert len(seen) == 3
    abar = diffusion.cosine(100)
    for x, noise in seen:
        a = abar[int(noise)] if name == "ddim" else None
        want = (
            truth + noise * e if a is None else np.sqrt(a) * truth + np.sqrt(1 - a) * e
        )
        np.testing.assert_allclose(x[0], want, rtol=1e-4)


def test_guidance():
    given, none = (lambda x, level: x + 1), (lambda x, level: x - level)
    x, level = jnp.arange(3.0), jnp.ones(())
    assert samplers.guided(given, none, 0.0) is given
    np.testing.assert_allclose(samplers.guided(given, none, -1.0)(x, level), x - 1)
    np.testing.assert_allclose(samplers.guided(given, none, 2.0)(x, level), x + 5)


def test_step_grid_by_hand():
    assert samplers.step_grid(100, 3).tolist() == [100, 67, 33, 0]
    assert samplers.step_grid(100, 2).tolist() == [100, 50, 0]
    assert samplers.step_grid(100, 100).tolist() == list(range(100, -1, -1))


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(sampler="dddim"), ["'dddim'", "ddim"]),
        (dict(steps=0), ["steps=0", "1 to 100"]),
        (dict(steps=101), ["steps=101"]),
        (dict(sigma_min=0.0), ["sigma_min=0.0"]),
        (dict(eta=1.5), ["eta=1.5", "0 to 1"]),
        (dict(schedule="cos"), ["'cos'", "cosine"]),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(UserError) as error:
        diffusion.check(spec(**changes))
    assert all(word in str(error.value) for word in words)
