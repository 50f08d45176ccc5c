"""Errors of imagined states against numbers by hand and known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods import state_error


def test_by_hand():
    x, weight = jnp.array([1.0, -1.0, 5.0]), jnp.array([1.0, 1.0, 0.0])
    samples = jnp.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    assert state_error.squared(x, samples, weight) == pytest.approx(2 + 2)
    # |x_1 - x| = |x_2 - x| = 2, |x_1 - x_2| = sqrt 8: 2 - 2 sqrt 8 / (2 * 2 * 1).
    wanted = 2 - 2 * np.sqrt(8) / 4
    assert state_error.energy(x, samples, weight) == pytest.approx(wanted, rel=1e-6)
    assert state_error.energy(x, samples[:1], weight) == pytest.approx(2)
    # Sample 1: right on both above; sample 2 misses the first; the third is seen.
    counts = state_error.matches(x, samples, weight)
    np.testing.assert_allclose(counts, [0.5, 0.5, 0.5])
    assert state_error.f1(counts) == pytest.approx(0.5)
    assert state_error.f1(jnp.zeros(3)) == 0


def test_the_energy_score_prefers_the_true_spread():
    """Truth of two modes: samples of both beat the mean between and one mode alone."""
    draw = np.random.default_rng(0)
    truth = draw.choice([-1.0, 1.0], (4000, 1)).astype(np.float32)
    both = draw.choice([-1.0, 1.0], (4000, 2, 1)).astype(np.float32)
    middle, one = np.zeros_like(both), np.ones_like(both)
    each = jax.vmap(state_error.energy, (0, 0, None))
    score = lambda samples: each(truth, samples, np.ones(1)).mean()  # noqa: E731
    # E|X - x| = 1, less half of E|X - X'| = 1, is 1/2; the others have no spread.
    assert score(both) == pytest.approx(0.5, abs=0.05)
    assert score(middle) == pytest.approx(1.0, abs=1e-5)
    assert score(one) == pytest.approx(1.0, abs=0.05)


def test_summary_leaves_out_what_was_seen():
    x = jnp.array([[[1.0, 1.0], [-1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    samples = jnp.zeros((2, 1, 2, 2)).at[0, 0, 0, 0].set(1.0)
    weight = jnp.array([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = state_error.summary(x, samples, weight, np.array([0, 2]))
    assert found["unseen_error"] == pytest.approx(2 / 3)
    assert found["unseen_energy"] == pytest.approx(np.sqrt(2))
    assert found["unseen_f1"] == pytest.approx(1.0)
    assert "unseen_f1" not in state_error.summary(x, samples, weight, None)
