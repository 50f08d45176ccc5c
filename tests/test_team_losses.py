"""Lambda returns and the objectives of PPO against numbers by hand and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import teams as losses

REWARD = np.array([1.0, 0.0, 2.0], np.float32)
DONE = np.array([False, False, True])
NEVER = np.zeros(3, bool)
VALUE = np.array([0.5, 1.0, 1.5, 9.0], np.float32)


def test_lambda_returns_by_hand():
    """G_2 = 2; G_1 = .99 (.4 1.5 + .6 2); G_0 = 1 + .99 (.4 1 + .6 1.782)."""
    found = losses.lambda_returns(REWARD, DONE, NEVER, VALUE, 0.99, 0.6)
    np.testing.assert_allclose(found, [2.454508, 1.782, 2.0], rtol=1e-6)


def test_one_step_and_monte_carlo():
    gamma = 0.9
    one = losses.lambda_returns(REWARD, NEVER, NEVER, VALUE, gamma, 0.0)
    np.testing.assert_allclose(one, REWARD + gamma * VALUE[1:], rtol=1e-6)
    whole = losses.lambda_returns(REWARD, NEVER, NEVER, VALUE, gamma, 1.0)
    last = [2 + gamma * 9]
    last = [gamma * last[0], *last]
    last = [1 + gamma * last[0], *last]
    np.testing.assert_allclose(whole, last, rtol=1e-6)
    ended = losses.lambda_returns(REWARD, DONE, NEVER, VALUE, gamma, 1.0)
    np.testing.assert_allclose(ended, [1 + gamma**2 * 2, gamma * 2, 2], rtol=1e-6)


def forward_view(reward, done, cut, value, gamma, lam):
    """Sum over n of the n-step returns, in float64: the definition, not a recursion."""
    steps = len(reward)
    found = np.zeros(steps)
    for t in range(steps):
        if cut[t]:
            found[t] = value[t]
            continue
        # The episode of t ends with its last step, or is cut before a step.
        partial, discount, weight = 0.0, 1.0, 1.0
        for n in range(t, steps):
            if cut[n]:  # all that is left stands on the value of this state
                found[t] += weight * (partial + discount * value[n])
                weight = 0.0
                break
            partial += discount * reward[n]
            discount *= gamma
            if done[n]:
                found[t] += weight * partial
                weight = 0.0
                break
            if n + 1 < steps and not cut[n + 1]:
                found[t] += weight * (1 - lam) * (partial + discount * value[n + 1])
                weight *= lam
            elif n + 1 == steps:
                found[t] += weight * (partial + discount * value[n + 1])
                weight = 0.0
    return found


def test_lambda_returns_are_the_mixture_of_n_step_returns():
    draw = np.random.default_rng(0)
    for _ in range(20):
        reward = draw.normal(size=12)
        done = draw.random(12) < 0.2
        cut = done & (draw.random(12) < 0.5)
        value = draw.normal(size=13)
        wanted = forward_view(reward, done, cut, value, 0.97, 0.7)
        args = [jnp.asarray(x, jnp.float32) for x in (reward, value)]
        found = losses.lambda_returns(args[0], done, cut, args[1], 0.97, 0.7)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        gae = losses.advantages(args[0], done, cut, args[1], 0.97, 0.7)
        np.testing.assert_allclose(gae, wanted - value[:-1], rtol=1e-4, atol=1e-4)


def test_advantages_by_their_own_recursion():
    """delta = (1.4, .35, .5) with gamma = .9 and the end behind the third step."""
    found = losses.advantages(REWARD, DONE, NEVER, VALUE, 0.9, 0.5)
    two = 0.5
    one = (0.9 * 1.5 - 1.0) + 0.9 * 0.5 * two
    zero = (1 + 0.9 * 1.0 - 0.5) + 0.9 * 0.5 * one
    np.testing.assert_allclose(found, [zero, one, two], rtol=1e-6)


def test_targets_are_constants():
    grads = jax.grad(
        lambda v: losses.lambda_returns(REWARD, DONE, NEVER, v, 0.9, 0.5).sum()
    )(jnp.asarray(VALUE))
    np.testing.assert_array_equal(grads, 0)


def test_td_is_a_weighted_mean():
    q, g = jnp.array([1.0, 2.0, 5.0]), jnp.array([0.0, 4.0, 9.0])
    assert losses.td(q, g, jnp.array([1.0, 1.0, 0.0])) == pytest.approx(2.5)
    assert losses.td(q, g, jnp.zeros(3)) == 0


@pytest.mark.parametrize(
    "ratio, advantage, wanted, slope",
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped, no gradient
        (0.5, 2.0, -1.0, -1.0),  # going back is free
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_clipped_policy(ratio, advantage, wanted, slope):
    """Gradients are by log_prob: -rho A where nothing is clipped."""
    value, grad = jax.value_and_grad(losses.clipped_policy)(
        jnp.log(ratio), jnp.float32(0.0), jnp.float32(advantage), 0.2
    )
    assert value == pytest.approx(wanted, rel=1e-5)
    assert grad == pytest.approx(slope, rel=1e-5)


def test_clipped_value_and_huber():
    assert losses.huber(jnp.float32(0.5), 1.0) == pytest.approx(0.125)
    assert losses.huber(jnp.float32(-3.0), 1.0) == pytest.approx(2.5)
    # The value moved 1.0, of which 0.2 count: |1.2 - 3| beats |2 - 3|.
    found = losses.clipped_value(2.0, 1.0, 3.0, 0.2, 10.0)
    assert found == pytest.approx(0.5 * 1.8**2, rel=1e-6)
    found = losses.clipped_value(2.0, 1.0, 0.0, 0.2, 10.0)
    assert found == pytest.approx(0.5 * 2.0**2, rel=1e-6)


def test_entropy_counts_legal_actions_alone():
    logits = jnp.array([0.0, 0.0, -1e9])
    value, grad = jax.value_and_grad(losses.entropy)(logits)
    assert value == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)
    p = np.array([0.2, 0.3, 0.5])
    wanted = -(p * np.log(p)).sum()
    assert losses.entropy(jnp.log(jnp.asarray(p))) == pytest.approx(wanted, rel=1e-5)
