"""Losses of the Q-learning recommenders against numbers worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import recommender as losses
from jaxrec.losses import softmax

GAMMA, ACTION = 0.5, 2
Q = jnp.array([0.30, 0.10, 0.50, -0.20])
Q_NEXT = jnp.array([0.20, 0.60, 0.40, 0.0])
Q_TARGET_NEXT = jnp.array([0.10, 0.35, 0.90, 0.20])
Q_TARGET = jnp.array([0.25, 0.15, 0.45, 0.05])
LOGITS = jnp.array([1.0, 0.0, 2.0, -1.0])
NEGATIVES = jnp.array([0, 3])
CE = 0.4401897


def ce():
    return softmax.cross_entropy(LOGITS[None], jnp.array([ACTION]))[0]


def td(reward, done, index=None):
    best = jnp.argmax(Q_NEXT) if index is None else index
    y = losses.target(reward, done, Q_TARGET_NEXT[best], GAMMA)
    return y, losses.td(Q[ACTION], y)


@pytest.mark.parametrize(
    "reward,done,y,l_q,sqn,sac,eval_y,eval_l",
    [
        (1.0, 0.0, 1.175, 0.2278125, 0.6680022, 0.4479073, 1.05, 0.15125),
        (1.0, 1.0, 1.0, 0.125, 0.5651897, 0.3450948, 1.0, 0.125),
        (0.2, 0.0, 0.375, 0.0078125, 0.4480022, 0.2279073, 0.25, 0.03125),
        (0.2, 1.0, 0.2, 0.045, 0.4851897, 0.2650948, 0.2, 0.045),
    ],
)
def test_sqn_sac_and_eval_by_hand(reward, done, y, l_q, sqn, sac, eval_y, eval_l):
    found, loss = td(reward, done)
    np.testing.assert_allclose([found, loss], [y, l_q], rtol=1e-6)
    np.testing.assert_allclose(ce(), CE, rtol=1e-6)
    np.testing.assert_allclose(ce() + loss, sqn, rtol=1e-6)
    np.testing.assert_allclose(Q[ACTION] * ce() + loss, sac, rtol=1e-6)
    np.testing.assert_allclose(td(reward, done, 0), [eval_y, eval_l], rtol=1e-6)


def snqn(done):
    y = losses.negative_target(0.0, Q_TARGET[jnp.argmax(Q)], GAMMA)
    loss = losses.negatives(Q[NEGATIVES], y)
    return y, loss, td(1.0, done)[1] + loss


def test_snqn_by_hand():
    y, loss, _ = snqn(0.0)
    np.testing.assert_allclose([y, loss], [0.225, 0.093125], rtol=1e-6)
    np.testing.assert_allclose(ce() + snqn(0.0)[2], 0.7611272, rtol=1e-6)
    # The end of the session masks the next state, not the negatives.
    np.testing.assert_allclose(ce() + snqn(1.0)[2], 0.6583147, rtol=1e-6)
    # Unless asked to.
    args = -0.5, Q_TARGET[jnp.argmax(Q)], GAMMA
    masked = [float(losses.negative_target(*args, done)) for done in (0.0, 1.0)]
    np.testing.assert_allclose(masked, [-0.275, -0.5], rtol=1e-6)


def test_sa2c_by_hand():
    a = losses.advantage(Q[ACTION], Q[NEGATIVES])
    np.testing.assert_allclose(a, 0.3, rtol=1e-6)
    share = jax.nn.softmax(LOGITS)[ACTION]
    np.testing.assert_allclose(share, 0.6439143, rtol=1e-6)
    for smooth, beta, done, want in [
        (0, 0.05, 0.0, 0.4529944),
        (0, 0.05, 1.0, 0.3501819),
        (1, 0.05, 0.0, 1.6415066),
        (1, 0.25, 0.0, 0.6610708),
    ]:
        rho = losses.importance(share, beta, smooth, 0.1, 10.0)
        actor = jnp.clip(a, 0.0, 10.0) * rho * ce()
        np.testing.assert_allclose(actor + snqn(done)[2], want, rtol=1e-6)
    below = losses.advantage(Q[3], Q[jnp.array([0, 2])])
    np.testing.assert_allclose(below, -0.4, rtol=1e-6)
    assert jnp.clip(below, 0.0, 10.0) == 0


def test_smorl_by_hand():
    q = jnp.array([Q, [0.0, 0.2, 0.1, 0.3], [0.5, 0.0, 0.2, 0.1]])
    q_next = jnp.array([Q_NEXT, [0.1, 0, 0.5, 0.2], [0.3, 0.1, 0.2, 0.6]])
    q_target = jnp.array([Q_TARGET_NEXT, [0.2, 0.1, 0.4, 0.3], [0.5, 0.4, 0.3, 0.2]])
    reward = jnp.array([1.0, 0.7, 1.0])

    def loss(weights):
        best = jnp.argmax(weights @ q_next)
        y = losses.target(reward, 0.0, q_target[:, best], GAMMA)
        return best, y, losses.smorl(q[:, ACTION], y, weights)

    best, y, value = loss(jnp.ones(3))
    assert best == 2
    np.testing.assert_allclose(y, [1.45, 0.9, 1.15], rtol=1e-6)
    np.testing.assert_allclose([value, ce() + value], [1.2225, 1.6626897], rtol=1e-6)
    best, _, value = loss(jnp.array([1.0, 0.0, 0.0]))
    assert best == 1
    np.testing.assert_allclose(value, td(1.0, 0.0)[1], rtol=1e-6)


def test_nothing_flows_through_targets_and_weights():
    def total(q, q_next):
        y = losses.target(1.0, 0.0, q_next, GAMMA)
        n = losses.negative_target(0.0, q_next, GAMMA)
        weight = losses.advantage(q, jnp.stack([q_next, q_next]))
        rho = losses.importance(jax.nn.sigmoid(q), 0.1, 1.0, 0.1, 10.0)
        penalty = losses.vpq_penalty(jnp.stack([q, q_next]), 10.0)
        return y + n + weight + rho + penalty + losses.proxy(0.3, q)

    grads = jax.grad(total, argnums=(0, 1))(0.4, 0.7)
    assert grads == (0.0, 0.0)


def test_negatives_are_uniform_over_the_other_items():
    actions = jnp.repeat(jnp.array([1, 4, 9]), 4000)
    keys = jax.random.split(jax.random.key(0), len(actions))
    drawn = jax.jit(jax.vmap(lambda key, a: losses.sample_negatives(key, a, 9, 5)))(
        keys, actions
    )
    for action in (1, 4, 9):
        chosen = np.asarray(drawn[actions == action]).ravel()
        counts = np.bincount(chosen, minlength=10)
        assert counts[0] == counts[action] == 0 and len(counts) == 10
        others = np.delete(counts, [0, action])
        expected = len(chosen) / 8
        assert ((others - expected) ** 2 / expected).sum() < 24.3  # 99.9%, 7 d.f.


def test_vpq_weights_and_penalty():
    weights = losses.convex_weights(jax.random.key(1), 15)
    assert weights.min() > 0
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    assert losses.vpq_penalty(jnp.array([0.7]), 10.0) == 1.0
    heads = jnp.array([0.1, 0.3, 0.5])
    np.testing.assert_allclose(
        losses.vpq_penalty(heads, 10.0), 1 / (1 + 10 * np.std([0.1, 0.3, 0.5])), 1e-6
    )
    assert losses.vpq_penalty(heads, 20.0) < losses.vpq_penalty(heads, 10.0)


def test_batches_agree_with_numpy():
    """Selection, gathering and every loss on random heads, mapped over rows."""
    rows, items, count = 64, 12, 5
    draw = np.random.default_rng(3)
    q, q_next, q_target, q_target_next, logits = draw.normal(
        size=(5, rows, items)
    ).astype(np.float32)
    action = draw.integers(items, size=rows)
    chosen = draw.integers(items, size=(rows, count))
    reward = draw.choice([0.2, 1.0], rows).astype(np.float32)
    done = draw.integers(2, size=rows).astype(np.float32)
    frequency = draw.uniform(0.01, 0.5, rows).astype(np.float32)

    @jax.vmap
    def found(q, q_next, q_target, q_target_next, y, a, negatives, r, d, beta):
        target = losses.target(r, d, q_target_next[jnp.argmax(q_next)], GAMMA)
        same = losses.negative_target(-0.5, q_target[jnp.argmax(q)], GAMMA)
        ce = softmax.cross_entropy(y[None], a[None])[0]
        weight = losses.advantage(q[a], q[negatives])
        rho = losses.importance(jnp.exp(-ce), beta, 0.5, 0.1, 10.0)
        td = losses.td(q[a], target)
        return td, losses.negatives(q[negatives], same), weight, rho, ce

    got = found(
        *(q, q_next, q_target, q_target_next, logits),
        *(action, chosen, reward, done, frequency),
    )
    for i in range(rows):
        y = reward[i]
        if not done[i]:
            y += 0.5 * q_target_next[i, q_next[i].argmax()]
        same = -0.5 + 0.5 * q_target[i, q[i].argmax()]
        share = np.exp(logits[i]) / np.exp(logits[i]).sum()
        values = [q[i, action[i]], *q[i, chosen[i]]]
        rho = np.sqrt(np.clip(share[action[i]] / frequency[i], 0.1, 10.0))
        want = (
            0.5 * (y - q[i, action[i]]) ** 2,
            sum(0.5 * (same - q[i, j]) ** 2 for j in chosen[i]),
            values[0] - np.mean(values),
            rho,
            -np.log(share[action[i]]),
        )
        np.testing.assert_allclose([g[i] for g in got], want, rtol=2e-5, atol=1e-6)


def test_gradients_reach_the_trained_values_alone():
    y = jnp.float32(1.2)
    np.testing.assert_allclose(jax.grad(losses.td)(0.5, y), 0.5 - 1.2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(losses.td)(0.5, y, 1.0), 2 * (0.5 - 1.2), 1e-6)
    np.testing.assert_allclose(jax.grad(losses.proxy)(0.5, 0.3), 0.2, rtol=1e-6)
    slopes = jax.grad(losses.negatives)(Q[NEGATIVES], 0.225)
    np.testing.assert_allclose(slopes, Q[NEGATIVES] - 0.225, rtol=1e-6)
    slopes = jax.grad(losses.smorl)(jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 0, 2]))
    np.testing.assert_allclose(slopes, [1.0, 0.0, 2.0])  # a head of weight 0 rests


def test_negatives_in_any_order_and_none_at_all():
    y = jnp.float32(0.225)
    there, back = losses.negatives(Q, y), losses.negatives(Q[::-1], y)
    np.testing.assert_allclose(there, back, rtol=1e-6)
    assert losses.negatives(jnp.zeros(0), y) == 0  # SNQN without them is SQN
    assert losses.advantage(Q[ACTION], jnp.zeros(0)) == 0
    draw = functools.partial(losses.sample_negatives, num_items=9, count=8)
    one, two = draw(jax.random.key(0), 4), draw(jax.random.key(1), 4)
    assert (one != two).any()
    only = losses.sample_negatives(jax.random.key(2), jnp.int32(2), 2, 6)
    np.testing.assert_array_equal(only, np.ones(6))  # of two items, the other


def test_fixed_point_of_the_advantage():
    """Negatives at gamma max Q under a positive that is best: A = 0.4545 Q (n = 10)."""
    best = jnp.float32(0.8)
    found = losses.advantage(best, jnp.full(10, GAMMA * best))
    np.testing.assert_allclose(found, 10 / 11 * (1 - GAMMA) * best, rtol=1e-6)
