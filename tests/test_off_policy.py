"""Estimates from the logging policy's impressions, against what is earned in truth."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec import off_policy, ope
from jaxrec.types import Dataset, Method

# The log knows items 3 to 22 of 30, as 1 to 20.
KNOWN = np.arange(3, 23)
INFO = dict(users=dict(num_items=30), seq_len=5, item_ids=np.array([0, *KNOWN]))


def by_score(score):
    """A method that scores the same in every state."""
    row = jnp.full(128, -jnp.inf).at[1:21].set(jnp.asarray(score, jnp.float32))

    def scores(state, items, length, timestep):
        return jnp.broadcast_to(row[None], (len(items), 128))

    return Method(None, None, scores=scores)


def measure(score, users=500, info=INFO):
    config = ConfigDict(dict(eval=dict(users=users, seed=1)))
    evaluate = off_policy.evaluator(config, by_score(score), Dataset({}, {}, info))
    return {k.removeprefix("off_policy/"): v for k, v in evaluate(None, None).items()}


@pytest.fixture(scope="module")
def found():
    return measure(np.arange(20))


def test_the_truth_lies_in_the_intervals_and_weights_average_to_one(found):
    assert found["mean_weight"] == pytest.approx(1, abs=0.15)
    assert 100 < found["effective_rows"] < found["rows"] <= 500 * off_policy.ROUNDS
    assert found["truth"] > 0
    for name in ("ips", "snips", "dr", "sndr"):
        assert found[f"{name}_low"] < found["truth"] < found[f"{name}_high"], name
        assert abs(found[name] / found["truth"] - 1) < 0.2, name


def test_another_order_of_items_is_another_policy(found):
    other = measure(-np.arange(20))
    assert abs(other["truth"] / found["truth"] - 1) > 0.05
    assert other["ips_low"] < other["truth"] < other["ips_high"]


def test_weights_are_the_policys_probability_over_the_propensity():
    rows = dict(
        item=np.array([2, 5, 1, 3]),
        propensity=np.array([0.5, 0.25, 0.1, 0.2]),
        reward=np.array([1.0, 0.0, 1.0, 0.2]),
        best=np.array([[2, 4], [5, 2], [3, 4], [1, 3]]),
    )
    found = off_policy.estimates(rows, 5)
    weight = np.array([1.0, 2.0, 0.0, 2.5])
    assert found["ips"] == pytest.approx(np.mean(weight * rows["reward"]))
    assert found["max_weight"] == 2.5
    log = ope.Log(rows["item"] - 1, np.zeros(4, int), rows["reward"], None)
    q = ope.ridge(log, 5, 1)
    v = [(q[i, a - 1] + q[i, b - 1]) / 2 for i, (a, b) in enumerate(rows["best"])]
    own = q[range(4), rows["item"] - 1]
    want = np.mean(v) + np.mean(weight * (rows["reward"] - own))
    assert found["dr"] == pytest.approx(want)


def test_data_without_users_give_no_numbers(capsys):
    assert measure(np.arange(20), info={}) == {}
    assert "no simulator of users" in capsys.readouterr().err
