"""Ranks among drawn items, against NumPy and against what chance gives."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recommenders as toy

from jaxrec import evaluators, sampled_ranking
from jaxrec.types import Method


def test_candidates_are_others_each_once_and_none_of_the_history():
    target, seen = np.array([3, 7]), np.array([[1, 2, 0], [9, 9, 9]])
    found = sampled_ranking.candidates(jax.random.key(0), target, seen, 12)
    for row, own, history in zip(np.asarray(found), target, seen):
        assert row[0] == own
        want = set(range(1, 13)) - {own, *history}
        assert sorted(row[1:][row[1:] > 0]) == sorted(want)  # fewer than 1,000: all


def test_candidates_are_drawn_evenly():
    target, seen = jnp.full(400, 5), jnp.zeros((400, 1), jnp.int32)
    found = sampled_ranking.candidates(jax.random.key(1), target, seen, 4_000)
    assert found.shape == (400, 1_001) and (np.asarray(found)[:, 1:] != 5).all()
    count = np.bincount(np.asarray(found)[:, 1:].reshape(-1), minlength=4_001)
    assert count[0] == count[5] == 0
    others = np.delete(count, [0, 5])
    assert abs(others.mean() - 400 * 1_000 / 3_999) < 1e-6
    assert others.min() > 50 and others.max() < 160  # std 8.7


def test_with_few_items_it_is_the_full_ranking():
    """Of 20 items all are drawn: ranks among those that the history does not hold."""
    dataset = toy.data()
    vocab = dataset.info["vocab"]
    worth = np.random.default_rng(0).normal(size=vocab).astype(np.float32)

    def scores(state, items, length, timestep):
        return jnp.broadcast_to(worth[None], (len(items), vocab))

    method = Method(None, None, scores=scores)
    config = importlib.import_module("configs.ce").get_config("smoke")
    evaluate = evaluators.make("sampled_1000", config, method, dataset)
    found = evaluate(None, jax.random.key(0))
    ranks = []
    for row in dataset.drawn.get("valid", range(len(dataset.evals["valid"]["item"]))):
        step = dataset.evals["valid"]["timestep"][row]
        items = dataset.evals["valid"]["item"][row - min(step, 5) : row + 1]
        others = set(range(1, 21)) - set(items.tolist())
        ranks.append(1 + sum(worth[i] > worth[items[-1]] for i in others))
    ranks = np.array(ranks)
    for k in (5, 10, 20):
        assert found[f"valid/sampled_1000/hr@{k}"] == pytest.approx(np.mean(ranks <= k))
        gain = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0).mean()
        assert found[f"valid/sampled_1000/ndcg@{k}"] == pytest.approx(gain, rel=1e-5)
