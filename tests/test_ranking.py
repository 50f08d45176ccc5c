"""The ranking evaluator against a loop, and the choice of a step by validation."""

import math

import jax.numpy as jnp
import numpy as np
import toy_sessions
from ml_collections import ConfigDict

from jaxrec import evaluators, experiment, recommender_evaluators
from jaxrec.types import Method


def popular(state, items, length, timestep):
    """Scores that depend on the history, with ties: distance to the newest item."""
    newest = jnp.take_along_axis(items, jnp.maximum(length - 1, 0)[:, None], 1)
    item = jnp.arange(toy_sessions.VOCAB)[None]
    scores = -jnp.abs(item - newest - 2).astype(jnp.float32)
    exists = (item > 0) & (item <= toy_sessions.NUM_ITEMS)
    return jnp.where(exists, scores, -jnp.inf)


def test_ranking_equals_a_loop_over_events():
    dataset = toy_sessions.dataset(50)
    events = dataset.evals["valid"]
    rows = np.flatnonzero(events["timestep"] > 0)
    for mask_seen in (False, True):
        dataset.info["mask_seen"] = mask_seen
        config = ConfigDict(dict(eval=dict(batch_size=16)))
        method = Method(None, None, scores=popular)
        evaluate = recommender_evaluators.ranking(
            config, method, dataset._replace(drawn={"valid": rows})
        )
        found = evaluate(None, None)
        hits = {0: [], 1: []}
        gains, ranks = [], []
        for row in rows:
            t = events["timestep"][row]
            history = events["item"][row - min(t, toy_sessions.SEQ_LEN) : row]
            score = -np.abs(np.arange(toy_sessions.VOCAB) - history[-1] - 2.0)
            score[0] = score[toy_sessions.NUM_ITEMS + 1 :] = -np.inf
            if mask_seen:
                score[events["item"][row - t : row]] = -np.inf  # all of it
            target = events["item"][row]
            equal = (score == score[target]).sum() - 1
            rank = 1 + (score > score[target]).sum() + equal / 2
            ranks.append(rank)
            hits[events["kind"][row]].append(rank <= 5)
            gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
        np.testing.assert_allclose(found["valid/ndcg@10"], np.mean(gains), rtol=1e-5)
        np.testing.assert_allclose(
            found["valid/purchase/hr@5"], np.mean(hits[1]), rtol=1e-6
        )
        np.testing.assert_allclose(
            found["valid/click/hr@5"], np.mean(hits[0]), rtol=1e-6
        )
        assert found["valid/count"] == len(rows)
        np.testing.assert_allclose(found["valid/rank"], ranks)
        np.testing.assert_array_equal(found["valid/kind"], events["kind"][rows])
        first = np.maximum.accumulate(
            np.where(events["timestep"] == 0, np.arange(len(events["item"])), 0)
        )
        np.testing.assert_array_equal(found["valid/session"], first[rows])


def test_the_step_is_chosen_by_validation_for_each_seed():
    lines = [
        {"step": 10, "wall": 1.0, "valid/ndcg@10": [0.1, 0.3], "test/hr@5": [0.5, 0.6]},
        {"step": 15, "wall": 1.5, "train/loss": [1.0, 1.0]},
        {"step": 20, "wall": 2.0, "valid/ndcg@10": [0.2, 0.2], "test/hr@5": [0.7, 0.9]},
    ]
    found = experiment.metrics_summary(lines, "valid/ndcg@10")
    assert found["selected"] == {
        "step": [20, 10],
        "valid/ndcg@10": [0.2, 0.3],
        "test/hr@5": [0.7, 0.6],
    }
    assert found["last"]["test/hr@5"] == [0.7, 0.9]
    middle, low, high = found["selected_interval"]["test/hr@5"]
    assert np.isclose(middle, 0.65) and low < middle < high
    one = [
        {"step": s, "valid/loss": v, "test/x": t} for s, v, t in [(1, 3, 7), (2, 1, 8)]
    ]
    assert experiment.metrics_summary(one, "valid/loss")["selected"]["test/x"] == 8
    assert "selected" not in experiment.metrics_summary(one)


def test_evaluators_of_other_methods_say_so_and_measure_nothing(capsys):
    dataset = toy_sessions.dataset(20)
    for name in evaluators.NEEDS:
        evaluate = evaluators.make(name, ConfigDict(), Method(None, None), dataset)
        assert evaluate(None, None) == {}
        assert f"{name}: this method has no" in capsys.readouterr().err
