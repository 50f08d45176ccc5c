"""Every loss of jaxrec/losses/value.py against numbers worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import value


def array(*numbers):
    return jnp.array(numbers, jnp.float32)


def test_bellman_target_stops_at_terminals_only():
    r, v = jnp.float32(1.0), jnp.float32(10.0)
    assert value.bellman_target(r, jnp.float32(0.0), v, 0.9) == pytest.approx(10.0)
    assert value.bellman_target(r, jnp.float32(1.0), v, 0.9) == pytest.approx(1.0)
    slope = jax.grad(value.bellman_target, 2)(r, jnp.float32(0.0), v, 0.9)
    assert slope == 0.0  # the target is a constant


def test_critic_sums_both_squared_errors():
    assert value.critic(array(1.0, 4.0), jnp.float32(2.0)) == pytest.approx(1.0 + 4.0)


@pytest.mark.parametrize("q, y", [((2, 3), (3,)), ((2,), (1,)), ((2, 1), ())])
def test_a_forgotten_vmap_is_no_broadcast(q, y):
    with pytest.raises(AssertionError):
        value.critic(jnp.zeros(q), jnp.zeros(y))
    with pytest.raises(AssertionError):
        value.bellman_target(jnp.zeros((4, 1)), jnp.zeros(4), jnp.zeros(4), 0.9)


def test_td3bc_lambda_on_three_rows():
    # mean |q| = (1 + 3 + 6) / 3 = 10/3; 2.5 / (10/3) = 0.75
    q = array(1.0, -3.0, 6.0)
    assert value.td3bc_lambda(q, 2.5) == pytest.approx(0.75)
    np.testing.assert_array_equal(jax.grad(value.td3bc_lambda)(q, 2.5), np.zeros(3))


def test_td3bc_actor():
    # -0.75 * 2 + ((0.5 - 0)^2 + (0 - 1)^2) / 2 = -1.5 + 0.625
    got = value.td3bc_actor(
        jnp.float32(2.0), array(0.5, 0.0), array(0.0, 1.0), jnp.float32(0.75)
    )
    assert got == pytest.approx(-0.875)


@pytest.mark.parametrize("u, tau, want", [(2.0, 0.7, 2.8), (-2.0, 0.7, 1.2)])
def test_expectile(u, tau, want):
    assert value.expectile(jnp.float32(u), tau) == pytest.approx(want)


def test_expectile_half_is_half_the_squared_error():
    u = array(-3.0, -0.5, 0.0, 2.0)
    got = jax.vmap(value.expectile, (0, None))(u, 0.5)
    np.testing.assert_allclose(got, 0.5 * np.square(u))


def test_expectile_near_one_is_minimised_by_the_maximum():
    q, grid = array(0.0, 1.0, 5.0), jnp.linspace(-1.0, 6.0, 701)

    def best(tau):
        def loss(v):
            return jnp.sum(jax.vmap(value.expectile, (0, None))(q - v[None], tau))

        return float(grid[jnp.argmin(jax.vmap(loss)(grid))])

    assert best(0.5) == pytest.approx(2.0, abs=0.01)  # the mean
    # tau = 0.999: 0.999 (5 - v) = 0.001 (v + v - 1), so v = 4.991
    assert best(0.999) == pytest.approx(4.991, abs=0.01)


def test_advantage_weight_and_its_cap():
    one = jnp.float32(1.0)
    assert value.advantage_weight(one, one, 3.0) == pytest.approx(1.0)
    assert value.advantage_weight(2 * one, one, 3.0) == pytest.approx(math.exp(3))
    assert value.advantage_weight(3 * one, one, 3.0) == 100.0  # exp(6) = 403
    assert value.advantage_weight(1e4 * one, one, 3.0) == 100.0  # exp overflows
    assert jax.grad(value.advantage_weight)(2 * one, one, 3.0) == 0.0


def test_gaussian_log_prob():
    # Two dimensions, std 1 and 2, one deviation off in the second:
    # -log 2 - 1/2 - log(2 pi)
    got = value.gaussian_log_prob(
        array(0.0, 3.0), array(0.0, 1.0), array(0.0, math.log(2.0))
    )
    assert got == pytest.approx(-math.log(2) - 0.5 - math.log(2 * math.pi))


def test_tanh_gaussian_density_integrates_to_one():
    """Change of variables: the mass of a fine grid of u, carried over to a."""
    mean, log_std = array(0.3), array(-0.2)
    noise = jnp.linspace(-6.0, 6.0, 20_001)[:, None]
    a, log_pi = jax.vmap(value.tanh_gaussian, (None, None, 0))(mean, log_std, noise)
    a, density = np.asarray(a[:, 0], np.float64), np.exp(np.asarray(log_pi, np.float64))
    assert np.trapezoid(density, a) == pytest.approx(1.0, abs=1e-3)
    # By hand at u = 0.3: log N(0; 0, 1) - log std - log(1 - tanh(0.3)^2)
    want = -0.5 * math.log(2 * math.pi) + 0.2 - math.log(1 - math.tanh(0.3) ** 2)
    _, middle = value.tanh_gaussian(mean, log_std, array(0.0))
    assert middle == pytest.approx(want, abs=1e-6)


def test_tanh_gaussian_is_finite_where_the_action_rounds_to_one():
    a, log_pi = value.tanh_gaussian(array(40.0), array(0.0), array(0.0))
    assert a[0] == 1.0
    # 1 - tanh(u)^2 ~ 4 exp(-2 u)
    want = -0.5 * math.log(2 * math.pi) - (math.log(4.0) - 80.0)
    assert log_pi == pytest.approx(want, rel=1e-6)


def test_sac_actor_takes_the_smaller_critic():
    got = value.sac_actor(array(3.0, 1.0), jnp.float32(-2.0), jnp.float32(0.5))
    assert got == pytest.approx(-2.0)


def test_entropy_temperature_rises_when_entropy_is_below_target():
    # log pi = 5 is an entropy of -5, below the target of -3: slope -(5 - 3) lifts alpha
    slope = jax.grad(value.entropy_temperature)
    assert slope(jnp.float32(0.0), jnp.float32(5.0), -3.0) == pytest.approx(-2.0)
    assert slope(jnp.float32(0.0), jnp.float32(1.0), -3.0) == pytest.approx(2.0)


def test_cql_regulariser_of_a_hand_made_table():
    # Importance weights: exp(q - log mu) = 2/0.5, 3/0.25, 4/1 -> 4 + 12 + 4 = 20
    q = jnp.log(array(2.0, 3.0, 4.0))
    log_mu = jnp.log(array(0.5, 0.25, 1.0))
    got = value.cql_regulariser(q, log_mu, jnp.float32(1.0))
    assert got == pytest.approx(math.log(20.0) - 1.0)
    # The slope in q is the weighted softmax, and -1 for the data's action.
    slope = jax.grad(value.cql_regulariser)(q, log_mu, jnp.float32(1.0))
    np.testing.assert_allclose(slope, [0.2, 0.6, 0.2], rtol=1e-6)


def test_cql_regulariser_ignores_a_constant_shift_of_q():
    q, log_mu, q_data = array(1.0, -2.0, 0.5), array(0.1, 0.2, 0.3), jnp.float32(0.7)
    base = value.cql_regulariser(q, log_mu, q_data, 2.0)
    moved = value.cql_regulariser(q + 100.0, log_mu, q_data + 100.0, 2.0)
    assert moved == pytest.approx(float(base), abs=1e-4)


def test_cql_regulariser_temperature_and_left_out_actions():
    q, zero = array(1.0, 3.0), array(0.0, 0.0)
    # T -> 0: the maximum
    got = value.cql_regulariser(q, zero, jnp.float32(0.0), 0.01)
    assert got == pytest.approx(3.0, abs=1e-4)
    # An infinite density takes the second action out: log exp(1) = 1
    only_first = array(0.0, jnp.inf)
    got = value.cql_regulariser(q, only_first, jnp.float32(0.0))
    assert got == pytest.approx(1.0)
    slope = jax.grad(value.cql_regulariser)(q, only_first, jnp.float32(0.0))
    np.testing.assert_allclose(slope, [1.0, 0.0])


def test_mcq_target_is_the_smaller_of_the_critics_maxima():
    q = jnp.array([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    assert value.mcq_target(q) == 4.0


def test_mcq_critic():
    q, y = array(1.0, 2.0), jnp.float32(0.0)  # squared errors 1 + 4
    q_ood = jnp.array([[1.0, 2.0], [3.0, 4.0]])  # [critic, state]
    y_ood = array(1.0, 1.0)  # per state: 0 + 4, 1 + 9
    half = array(0.5, 0.5)
    got = value.mcq_critic(q, y, q_ood, y_ood, half, 0.9)
    assert got == pytest.approx(0.9 * 5.0 + 0.1 * 7.0)
    first_only = value.mcq_critic(q, y, q_ood, y_ood, array(1.0, 0.0), 0.9)
    assert first_only == pytest.approx(0.9 * 5.0 + 0.1 * 4.0)
    plain = value.mcq_critic(q, y, q_ood, y_ood, half, 1.0)
    assert plain == value.critic(q, y)  # lam = 1 is the critic of SAC


def test_vae_loss():
    # Reconstruction off by 0.5 and 0: 0.25. KL of N(1, 1): 0.5; of N(0, e^2):
    # (e^2 - 1) / 2 - 1
    got = value.vae(array(0.5, 1.0), array(0.0, 1.0), array(1.0, 0.0), array(0.0, 1.0))
    assert got == pytest.approx(0.25 + 0.5 + (math.exp(2) - 1) / 2 - 1, rel=1e-6)
    perfect = value.vae(array(0.2), array(0.2), array(0.0), array(0.0))
    assert perfect == 0.0
