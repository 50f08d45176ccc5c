"""An approximate index beside the exact top k: the same scores, nearly all items."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import test_recommend as asked
import toy_recommenders as toy
from ml_collections import ConfigDict

from jaxrec import finished, index, recommend
from jaxrec.methods import ce, ranked, windows
from jaxrec.models import recommender as networks
from jaxrec.types import TrainState, UserError

ITEMS, WIDTH = 3_000, 16


def rows():
    """Table and bias with a row of padding and one too many at the end."""
    draw = np.random.default_rng(0)
    # Lengths differ by an order of magnitude: the nearest are not the best.
    length = np.exp(draw.normal(0, 0.8, (ITEMS + 2, 1)))
    return length * draw.normal(size=(ITEMS + 2, WIDTH)), draw.normal(size=ITEMS + 2)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss is not installed: extra `index`")


def test_the_index_finds_the_largest_products(faiss):
    table, bias = rows()
    built = index.build(lambda x: x, table, bias, ITEMS, "faiss")
    x = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
    scores, found = index.search(built, x, 10)
    exact = (x @ table.T + bias)[:, 1 : ITEMS + 1]
    best = 1 + np.argsort(-exact, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best)])
    assert recall > 0.97
    np.testing.assert_allclose(
        scores, np.take_along_axis(exact, found - 1, 1), rtol=1e-4, atol=1e-4
    )
    assert (np.diff(scores, axis=1) <= 0).all()


def test_answers_are_those_of_all_scores(faiss, monkeypatch):
    """Twenty items, all of which the graph proposes."""
    method = toy.build(ce)
    info = toy.data().info | dict(
        item_ids=asked.IDS, titles=asked.TITLES, mask_seen=True
    )
    policy = finished.Policy(method, toy.start(method), info, "train")
    monkeypatch.setattr(finished, "policy", lambda *args: policy)
    histories = [[30, 70, 20], [], [200] * 9 + [10, 20], [10 * n for n in range(1, 21)]]
    exact = recommend.top(recommend.load("run"), histories, 5)
    near = recommend.top(recommend.indexed("run", "faiss"), histories, 5)
    for one, two in zip(exact, near):
        assert asked.ids(one) == asked.ids(two)
        np.testing.assert_allclose(
            [x.score for x in one], [x.score for x in two], rtol=1e-5, atol=1e-6
        )
    policy = policy._replace(method=method._replace(factors=None))
    with pytest.raises(UserError, match="leave out --index"):
        recommend.indexed("run", "faiss")


@pytest.mark.parametrize("head", ["logits", "q"])
def test_factors_are_the_scores_of_their_head(head):
    info = toy.data().info
    config = ConfigDict(ce.HPARAMS)
    network = networks.make(config, info, q_heads=0)
    batch = toy.batch_of()
    history = windows.transition(batch).history
    state = TrainState(0, network.init(jax.random.key(0), *history[:2]), None)
    made = ranked.method(network, info, None, None, head, values=True)
    table, bias = made.factors.items(state)
    y = made.factors.query(state, *history) @ table.T + bias[None]
    scores = made.scores(state, *history)
    exists = np.isfinite(scores)
    assert exists.sum(1).tolist() == [info["num_items"]] * len(y)
    np.testing.assert_allclose(y[exists], scores[exists], rtol=1e-5, atol=1e-6)
    if head == "q":
        taken = np.asarray(scores)[np.arange(len(y)), batch["item"][:, -1]]
        found = made.values(state, batch)["q_data"]
        np.testing.assert_allclose(found, taken, rtol=1e-5, atol=1e-6)


def test_what_is_no_index_is_refused():
    with pytest.raises(UserError, match="index 'hnsw' is unknown: use faiss"):
        index.build(None, *rows(), ITEMS, "hnsw")
    assert ranked.make_factors(SimpleNamespace(temperature=0.1), {}) is None
    plain = SimpleNamespace(temperature=0.0)
    assert ranked.make_factors(plain, dict(gaps=True)) is None
    assert ranked.make_factors(plain, {}) is not None
