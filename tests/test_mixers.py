"""Mixers: monotone, consistent with the agents' own choices, and their identities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.models import mixers

A, N, DS = 3, 4, 5  # agents, actions, size of the state


def inputs(seed=0, batch=64):
    draw = np.random.default_rng(seed)
    q = draw.normal(size=(batch, A, N)).astype(np.float32)
    world = draw.normal(size=(batch, DS)).astype(np.float32)
    return jnp.asarray(q), jnp.asarray(world)


def mixed(mixer, seed=1):
    """joint int[B, A] -> the team's value of these actions, and the agents' values."""
    q, world = inputs()
    zeros = jnp.zeros((len(q), A))
    params = mixer.init(jax.random.key(seed), zeros, zeros, zeros.astype(int), world)

    def value(joint, q=q):
        taken = jnp.take_along_axis(q, joint[..., None], axis=-1)[..., 0]
        return mixer.apply(params, taken, q.max(-1), joint, world)[..., 0]

    return value, q, params


def all_joint(value, q):
    """Values [N^A, B] of all joint actions, and these [N^A, A]."""
    joints = np.array(list(itertools.product(range(N), repeat=A)))
    batched = jax.jit(jax.vmap(lambda j: value(jnp.broadcast_to(j, (len(q), A)))))
    return np.asarray(batched(jnp.asarray(joints))), joints


def test_sum_and_apart():
    value, q, _ = mixed(mixers.Sum())
    joint = jnp.asarray(np.random.default_rng(2).integers(0, N, (len(q), A)))
    rows, agents = np.arange(len(q))[:, None], np.arange(A)[None]
    taken = np.asarray(q)[rows, agents, joint]
    np.testing.assert_allclose(value(joint), taken.sum(-1), rtol=1e-5)
    same = mixers.Apart().apply({}, taken, taken, joint, None)
    np.testing.assert_array_equal(same, taken)


@pytest.mark.parametrize("seed", range(3))
def test_qmix_is_monotone_by_finite_differences(seed):
    mixer = mixers.QMix(embed=8, hyper_width=16)
    q, world = inputs(seed)
    q = q[..., 0]
    action = jnp.zeros(q.shape, int)
    params = mixer.init(jax.random.key(seed), q, q, action, world)
    total = jax.jit(lambda q: mixer.apply(params, q, q, action, world)[..., 0])
    base, moved = np.asarray(total(q), float), 0
    for agent in range(A):
        for step in (0.01, 1.0, 10.0):
            more = np.asarray(total(q.at[:, agent].add(step)), float)
            assert (more >= base - 1e-5).all()
            moved += (more > base + 1e-5).mean()
    assert moved > 6  # of 9: it does depend on them
    # And it is no sum: the slope for one agent changes with the state.
    slopes = jax.grad(lambda q: total(q).sum())(q)
    assert np.asarray(slopes).std(0).min() > 1e-3


@pytest.mark.parametrize(
    "mixer",
    [
        mixers.Sum(),
        mixers.QMix(embed=8, hyper_width=16),
        mixers.QPlex(N, heads=2, width=16),
    ],
)
def test_best_alone_is_best_together(mixer):
    value, q, _ = mixed(mixer)
    values, joints = all_joint(value, q)
    alone = np.asarray(q).argmax(-1)
    together = joints[values.argmax(0)]
    top = np.sort(values, axis=0)
    clear = top[-1] - top[-2] > 1e-5  # no tie within float32
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(alone[clear], together[clear])
    best = value(jnp.asarray(alone))
    np.testing.assert_allclose(best, values.max(0), rtol=1e-5, atol=1e-5)


def test_qplex_identities():
    """Q_tot = sum_i (V'_i + lambda_i A_i), recomputed in NumPy from the parameters."""
    heads = 2
    value, q, params = mixed(mixers.QPlex(N, heads=heads, width=16))
    world = np.asarray(inputs()[1], float)
    p = jax.tree.map(lambda x: np.asarray(x, float), params["params"])

    def hyper(name, x):
        first, second = p[name]["hidden"], p[name]["out"]
        hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
        return hidden @ second["kernel"] + second["bias"]

    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    joint = np.random.default_rng(3).integers(0, N, (len(q), A))
    qs = np.asarray(q, float)
    taken = np.take_along_axis(qs, joint[..., None], -1)[..., 0]
    w = np.abs(hyper("weight", world)) + 1e-10
    v = hyper("value", world)
    advantage = w * taken + v - (w * qs.max(-1) + v)
    assert (advantage <= 1e-9).all() and (advantage < -0.01).any()
    both = np.concatenate([world, np.eye(N)[joint].reshape(len(q), -1)], -1)
    lam = sum(
        (np.abs(hyper(f"key_{h}", world)) + 1e-10)
        * sigmoid(hyper(f"agent_{h}", world))
        * sigmoid(hyper(f"action_{h}", both))
        for h in range(heads)
    )
    assert (lam > 0).all()
    wanted = (w * qs.max(-1) + v + lam * advantage).sum(-1)
    np.testing.assert_allclose(value(jnp.asarray(joint)), wanted, rtol=1e-4, atol=1e-5)
    # With everybody greedy it is the sum of the values alone.
    greedy = qs.argmax(-1)
    best = (w * qs.max(-1) + v).sum(-1)
    np.testing.assert_allclose(value(jnp.asarray(greedy)), best, rtol=1e-4, atol=1e-5)


def test_qplex_stops_the_gradient_of_advantages():
    """d Q_tot / d Q_i = w_i, whatever lambda is."""
    value, q, params = mixed(mixers.QPlex(N, heads=2, width=16))
    joint = jnp.zeros((len(q), A), int)
    slopes = jax.grad(lambda q: value(joint, q).sum())(q)
    np.testing.assert_array_equal(slopes[..., 1:], 0)
    assert (np.asarray(slopes[..., 0]) > 0).all()
