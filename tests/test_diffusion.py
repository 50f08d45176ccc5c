"""Schedules and losses of diffusion by hand, and networks by what they must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.losses import diffusion
from jaxrec.models.denoiser import MLP, Condition, EntityTransformer
from jaxrec.models.unet import UNet

SPEC = FrozenConfigDict(ConfigDict(diffusion.SPEC))


def test_cosine_by_hand():
    """Numbers of the closed form, and the clipped last beta: abar_99 / 1000."""
    abar = diffusion.cosine(100)
    np.testing.assert_allclose(abar[[0, 1, 50]], [1, 0.99937, 0.49384], atol=1e-5)
    np.testing.assert_allclose(abar[[99, 100]], [2.43e-4, 2.43e-7], rtol=5e-3)
    assert (np.diff(abar) < 0).all()


def test_linear_is_rescaled_to_its_number_of_steps():
    """Without the factor 100 steps would end at .36."""
    plain = np.cumprod(1 - np.linspace(1e-4, 0.02, 100))
    assert plain[-1] == pytest.approx(0.36, abs=0.01)
    assert diffusion.linear(100)[-1] == pytest.approx(2e-5, rel=0.5)
    ddpm = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(diffusion.linear(1000)[1:], ddpm, rtol=1e-4)


def drawn(key, last):
    """(k, noise) that `x0_loss` draws."""
    key_level, key_noise = jax.random.split(key)
    k = int(jax.random.randint(key_level, (), 1, last + 1))
    return k, np.asarray(jax.random.normal(key_noise, (2,)), np.float64)


def test_x0_loss_by_hand():
    x0, weight = jnp.array([0.5, -1.0]), jnp.array([3.0, 1.0])
    abar = diffusion.cosine(10).astype(np.float64)
    network = lambda x, level: 2 * x + level  # noqa: E731
    key = lambda: jax.random.key(5)  # noqa: E731
    k, noise = drawn(key(), 10)
    x = np.sqrt(abar[k]) * np.array([0.5, -1.0]) + np.sqrt(1 - abar[k]) * noise
    error = (2 * x + k / 10 - np.array([0.5, -1.0])) ** 2
    bars = jnp.asarray(diffusion.cosine(10))
    found = diffusion.x0_loss(network, key(), x0, bars)
    np.testing.assert_allclose(found, error.mean(), rtol=1e-4)
    found = diffusion.x0_loss(network, key(), x0, bars, weight)
    np.testing.assert_allclose(found, (3 * error[0] + error[1]) / 4, rtol=1e-4)
    found = diffusion.x0_loss(network, key(), x0, bars, None, "snr_difference")
    snr = abar[1:] / (1 - abar[1:])  # of k = 1 ..
    c = snr[k - 2] - snr[k - 1] if k > 1 else snr[0]
    np.testing.assert_allclose(found, c * error.mean(), rtol=1e-3)


def test_weight_zero_hides_a_number_from_the_loss():
    network = lambda x, level: 0.3 * x  # noqa: E731
    bars, weight = jnp.asarray(diffusion.cosine(10)), jnp.array([1.0, 0.0])

    def loss(last):
        x0 = jnp.array([0.5, last])
        return diffusion.x0_loss(network, jax.random.key(0), x0, bars, weight)

    assert loss(1.0) == loss(-7.0) != 0
    assert diffusion.weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0


def test_preconditioning_by_hand():
    """At sigma = sd: c_skip = 1/2, c_out = sd / sqrt 2, c_in = 1 / (sd sqrt 2)."""
    heard = []

    def network(x, level):
        heard.append((float(x[0]), float(level)))
        return jnp.ones_like(x)

    found = diffusion.precondition(network, SPEC)(jnp.array([3.0]), jnp.array(0.5))
    np.testing.assert_allclose(found, 1.5 + 0.5 / np.sqrt(2), rtol=1e-6)
    want = (3.0 / (0.5 * np.sqrt(2)), np.log(0.5) / 4)
    np.testing.assert_allclose(heard[0], want, rtol=1e-6)


def test_a_consistency_network_is_the_identity_at_sigma_min():
    wild = lambda x, level: 100 * jnp.ones_like(x)  # noqa: E731
    f = diffusion.precondition(wild, SPEC, consistency=True)
    x = jnp.array([0.7, -3.0])
    np.testing.assert_array_equal(f(x, jnp.array(SPEC.sigma_min)), x)
    assert np.abs(f(x, jnp.array(1.0)) - x).min() > 1


def test_edm_loss_is_least_at_the_exact_denoiser():
    """Over many draws; at the optimum of s ~ N(0, sd^2) the network gives 0."""
    keys = lambda: jax.random.split(jax.random.key(0), 4_000)  # noqa: E731
    x0 = 0.5 * jax.random.normal(jax.random.key(1), (4_000, 1))

    def loss(c):
        network = lambda x, level: c * x  # noqa: E731
        one = lambda key, x: diffusion.edm_loss(network, key, x, SPEC)  # noqa: E731
        return np.mean(jax.vmap(one)(keys(), x0))

    # E (x0 - D)^2 = sigma^2 sd^2 / (sigma^2 + sd^2): the weighted loss is 1.
    assert loss(0.0) == pytest.approx(1.0, abs=0.08)
    assert loss(0.3) > loss(0.0) + 0.03 and loss(-0.3) > loss(0.0) + 0.03


def exact_flow(x, level):
    """F of the consistency function of s ~ N(0, sd^2), x at sqrt(sigma^2 + sd^2)."""
    sigma, sd, least = jnp.exp(4 * level), SPEC.sigma_data, SPEC.sigma_min
    spread = jnp.sqrt(sigma**2 + sd**2)
    end = jnp.sqrt((sd**2 + least**2) / (sd**2 + sigma**2)) * x * spread
    skip = sd**2 / ((sigma - least) ** 2 + sd**2) * x * spread
    return (end - skip) / jnp.maximum((sigma - least) * sd / spread, 1e-9)


def test_consistency_loss_vanishes_at_the_exact_flow_of_its_teacher():
    """The EDM teacher of that Gaussian is F = 0; distillation follows its flow."""
    spec = FrozenConfigDict(ConfigDict(diffusion.SPEC | dict(levels=80)))
    teacher = lambda x, level: jnp.zeros_like(x)  # noqa: E731
    x0 = 0.5 * jax.random.normal(jax.random.key(1), (256, 3))

    def loss(network):
        def one(key, x):
            args = network, network, key, x, spec, None, teacher
            return diffusion.consistency_loss(*args)

        return np.mean(jax.vmap(one)(jax.random.split(jax.random.key(0), 256), x0))

    assert loss(exact_flow) < 1e-3 < 5e-3 < loss(teacher)


def test_consistency_target_has_no_gradient():
    x0 = jnp.array([0.4, -0.4])

    def loss(scale, average):
        network = lambda x, level: scale * x  # noqa: E731
        other = lambda x, level: average * x  # noqa: E731
        return diffusion.consistency_loss(network, other, jax.random.key(0), x0, SPEC)

    of_scale, of_average = jax.grad(loss, (0, 1))(0.3, 0.2)
    assert of_scale != 0 and of_average == 0


def jit(f):
    return jax.jit(f, compiler_options=dict(xla_backend_optimization_level=0))


NETWORKS = dict(
    mlp=(MLP(width=16), (5,)),
    entities=(EntityTransformer(width=16, num_heads=2, num_layers=1), (4, 3)),
    beside=(
        EntityTransformer(width=16, num_heads=2, num_layers=1, aligned=False),
        (4, 3),
    ),
    unet=(UNet(widths=(4, 8), num_heads=2), (5, 7, 2)),
)


def condition_of(shape, lead=()):
    generator = np.random.default_rng(9)
    normal = lambda *s: generator.normal(size=(*lead, *s)).astype(np.float32)  # noqa: E731
    parts = dict(vector=normal(3), seen=normal(*shape) > 0)
    if len(shape) == 2:
        parts |= dict(tokens=normal(4, 6))
        parts |= dict(mask=np.broadcast_to(np.arange(4) < 3, (*lead, 4)))
    if len(shape) == 3:
        parts |= dict(canvas=normal(*shape))
    return Condition(**{name: jnp.asarray(x) for name, x in parts.items()})


def moved(params):
    """Parameters off their start, where the last layer is zero."""
    generator = np.random.default_rng(2)
    noise = lambda x: generator.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(lambda x: x + 0.3 * noise(x), params)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    """Zero at first; one example is a row of a batch; c, level and x all count, and a
    dropped condition does not."""
    network, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    level = jnp.array([0.3, 0.8])
    many = condition_of(shape, lead=(2,))
    params = jit(network.init)(jax.random.key(1), x, level, many)
    apply = jit(network.apply)
    assert not np.any(apply(params, x, level, many))
    params = moved(params)
    found = apply(params, x, level, many)
    assert found.shape == x.shape
    one = jax.tree.map(lambda y: y[1], many)
    here = jnp.ones(())
    row = apply(params, x[1], level[1], one, here)
    np.testing.assert_allclose(row, found[1], atol=1e-5)
    first = jax.tree.map(lambda y: y[0], many)
    base = np.asarray(apply(params, x[0], level[0], first, here))
    for other in (
        apply(params, x[0], level[0], one, here),
        apply(params, x[0], level[1], first, here),
        apply(params, x[1], level[0], first, here),
    ):
        assert np.abs(other - base).max() > 1e-3
    away = jnp.zeros(())
    none = apply(params, x[0], level[0], first, away)
    assert np.abs(none - base).max() > 1e-3
    dropped = apply(params, x[0], level[0], one, away)
    np.testing.assert_array_equal(none, dropped)


@pytest.mark.parametrize("name", ["entities", "beside"])
def test_masked_tokens_are_not_seen(name):
    network, shape = NETWORKS[name]
    x, c = jnp.ones(shape), condition_of(shape)
    params = jit(network.init)(jax.random.key(1), x, jnp.ones(()), c)
    params = moved(params)
    apply = jit(network.apply)
    found = apply(params, x, jnp.ones(()), c)
    for slot, same in ((3, True), (0, False)):
        other = c._replace(tokens=c.tokens.at[slot].add(5.0))
        changed = np.abs(apply(params, x, jnp.ones(()), other) - found).max()
        assert (changed == 0) == same


def test_entities_without_slots_commute_with_permutations():
    network = EntityTransformer(width=16, num_heads=2, num_layers=2, slots=False)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    c = condition_of((4, 3))
    params = jit(network.init)(jax.random.key(1), x, jnp.ones(()), c)
    params = moved(params)
    order = np.array([2, 0, 3, 1])
    there = c._replace(tokens=c.tokens[order], mask=c.mask[order])
    apply = jit(network.apply)
    found = apply(params, x[order], jnp.ones(()), there)
    want = apply(params, x, jnp.ones(()), c)[order]
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_what_is_outside_the_grid_is_not_a_cell():
    """A 5 x 7 grid inside a padded one: its corner and its edge tell themselves."""
    network, shape = NETWORKS["unet"]
    x, c = jnp.zeros(shape), condition_of(shape)
    empty = c._replace(canvas=c.canvas * 0, seen=c.seen & False, vector=c.vector * 0)
    params = jit(network.init)(jax.random.key(1), x, jnp.ones(()), empty)
    params = moved(params)
    found = np.asarray(jit(network.apply)(params, x, jnp.ones(()), empty))
    assert np.abs(found[0, 0] - found[2, 3]).max() > 1e-2
