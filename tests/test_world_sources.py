"""Where simulations begin: choices of episodes, starts, windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from toy_world import settings

from jaxrec.data import loader
from jaxrec.methods import imagination

K = 4


@pytest.fixture(scope="module")
def dataset():
    return toy_world.dataset(window=K)


def probabilities(source, returns, **changes):
    return imagination.SOURCES[source](np.asarray(returns, float), settings(**changes))


def test_softmax_source_by_hand_and_at_its_limits():
    returns = [1.0, 3.0, 2.0]  # std sqrt(2/3)
    weight = np.exp(np.asarray(returns) / (0.5 * np.sqrt(2 / 3)))
    found = probabilities("softmax", returns, temperature=0.5)
    np.testing.assert_allclose(found, weight / weight.sum())
    cold = probabilities("softmax", returns, temperature=1e-9)
    np.testing.assert_array_equal(cold, [0, 1, 0])
    np.testing.assert_array_equal(
        cold, probabilities("top_n", returns, top_fraction=0.1)
    )
    hot = probabilities("softmax", returns, temperature=1e12)
    np.testing.assert_allclose(hot, 1 / 3, rtol=1e-6)
    equal = probabilities("softmax", [5.0, 5.0])  # a spread of 0 must not divide
    np.testing.assert_allclose(equal, 0.5)


def test_softmax_top_n_chooses_within_the_best():
    returns = [1.0, 3.0, 2.0, 0.0]
    found = probabilities("softmax_top_n", returns, top_fraction=0.5, temperature=0.5)
    ratio = np.exp(1 / (0.5 * np.std(returns)))
    np.testing.assert_allclose(found, [0, ratio / (1 + ratio), 1 / (1 + ratio), 0])


def test_top_n_at_its_limits():
    returns = np.arange(10.0)
    np.testing.assert_array_equal(
        probabilities("top_n", returns, top_fraction=1.0),
        probabilities("random", returns),
    )
    one = probabilities("top_n", returns, top_fraction=0.01)  # rho M < 1
    np.testing.assert_array_equal(one, np.arange(10) == 9)
    # ceil(0.3 * 10) = 3, although 0.1 + 0.2 > 0.3 in floating point
    three = probabilities("top_n", returns, top_fraction=0.1 + 0.2)
    assert np.count_nonzero(three) == 3


def test_draws_are_uniform_where_the_source_is():
    table = dict(returns=np.zeros(10), length=np.arange(1, 11), first=np.zeros(10))
    config, num = (
        settings(source="softmax", temperature=1e9, action_rule="noise"),
        10_000,
    )
    source, start = imagination.draw(config, table, K, num, jax.random.key(1))
    counts = np.bincount(source, minlength=10)
    assert ((counts - num / 10) ** 2 / (num / 10)).sum() < 27.9  # chi2(9), p = 0.001
    assert (start[source < K] == 0).all()  # L <= K: left at the first step
    last = start[source == 9]  # L = 10: uniform in [0, 6)
    assert set(last) == set(range(6))
    # Rules that do not need the source's actions leave it anywhere.
    free = settings(source="softmax", temperature=1e9, action_rule="retrieval")
    source, start = imagination.draw(free, table, K, num, jax.random.key(1))
    assert set(start[source == 9]) == set(range(10))
    never = table | dict(returns=np.arange(10.0))
    config = settings(source="top_n", top_fraction=0.2)
    source, _ = imagination.draw(config, never, K, 1000, jax.random.key(1))
    assert set(source) == {8, 9}


def test_the_lowest_draw_never_takes_an_excluded_episode(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    table = dict(returns=np.arange(4.0), length=np.full(4, 9), first=np.zeros(4))
    config = settings(source="top_n", top_fraction=0.5)
    source, start = imagination.draw(config, table, K, 3, jax.random.key(0))
    assert set(source) == {2} and set(start) == {0}


def test_windows_are_those_of_the_loader(dataset):
    rows = np.array([0, 2, 50, 51, 120])
    found = imagination.windows(dataset.train, rows, K)
    wanted = loader.gather(dataset.train, rows, K, np)
    for name in ("observation", "action", "mask"):
        np.testing.assert_array_equal(found[name], wanted[name])
