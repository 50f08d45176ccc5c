"""Uncertainty of an ensemble, by hand, and the search for neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods import world_evaluator
from jaxrec.methods.world_model import Prediction


def test_uncertainty_of_three_members_by_hand():
    mean = jnp.array([[[0.0, 0.0]], [[3.0, 0.0]], [[0.0, 3.0]]])  # centre (1, 1)
    log_var = jnp.log(jnp.array([[[1.0, 4.0]], [[9.0, 16.0]], [[1.0, 1.0]]]))
    prediction = Prediction(mean, log_var, jnp.zeros((3, 1)), None)
    kinds = world_evaluator.U_KINDS
    # |(2, -1)| = sqrt 5; variances (2, 2); sigma of member 1 is (3, 4)
    np.testing.assert_allclose(kinds["pairwise-diff"](prediction), [5**0.5], rtol=1e-6)
    np.testing.assert_allclose(kinds["ensemble_std"](prediction), [2**0.5], rtol=1e-6)
    np.testing.assert_allclose(kinds["aleatoric"](prediction), [5.0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["pairwise-diff", "ensemble_std"])
def test_equal_members_have_no_uncertainty(kind):
    mean = jax.random.normal(jax.random.key(0), (1, 64, 5)) / 3

    @jax.jit  # fused with a product, as in a rollout
    def u(mean):
        mean = jnp.repeat(mean * 1.1, 3, axis=0) * 0.7
        return world_evaluator.U_KINDS[kind](Prediction(mean, mean, mean, None))

    assert (np.asarray(u(mean)) == 0).all()


def test_nearest_rows_against_brute_force():
    key_query, key_table = jax.random.split(jax.random.key(3))
    query = jax.random.normal(key_query, (20, 3))
    table = jax.random.normal(key_table, (50, 3))
    gap = np.linalg.norm(np.asarray(query)[:, None] - np.asarray(table)[None], axis=-1)
    found = world_evaluator.nearest_rows(query, table)
    np.testing.assert_array_equal(found, gap.argmin(1))
    distance = world_evaluator.nearest_distance(query, table)
    np.testing.assert_allclose(distance, gap.min(1), rtol=1e-5)
