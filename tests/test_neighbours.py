"""Neighbours of items and of sessions against implementations with dictionaries."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from test_baselines import (
    MAKE,
    NUM_ITEMS,
    VOCAB,
    drawn_histories,
    drawn_sessions,
    info_of,
    score,
    scores_of,
)

from jaxrec.methods import item_knn, popularity


def dense(found: dict[int, float], sessions: list[list[int]]) -> np.ndarray:
    """What `counted` makes of scores: the largest is 1, popularity breaks ties."""
    count = np.bincount(sum(sessions, []), minlength=VOCAB)
    y = popularity.TIE * count / count.max()
    top = max(found.values(), default=0.0)
    for item, value in found.items():
        y[item] += value / top
    y[0] = y[NUM_ITEMS + 1 :] = -np.inf
    return y


def item_knn_by_hand(sessions, history, size, damping, alpha, last):
    sets = [set(s) for s in sessions]
    support = {i: sum(i in s for s in sets) for i in range(VOCAB)}
    found: dict[int, float] = {}
    for i in history[-last:]:
        near = []
        for j in range(VOCAB):
            both = sum(i in s and j in s for s in sets)
            if both and i != j:
                n_i, n_j = support[i] + damping, support[j] + damping
                near.append((-both / (n_i**alpha * n_j ** (1 - alpha)), j))
        for value, j in sorted(near)[:size]:
            found[j] = found.get(j, 0.0) - value
    return found


def session_knn_by_hand(sessions, history, k, sample_size, weights):
    """`weights(history, session set)` -> (similarity, factor of the score)."""
    place = range(len(sessions) - 1, -1, -1)
    sample = [z for z in place if set(sessions[z]) & set(history)][:sample_size]
    weighted = [(z, *weights(history, set(sessions[z]))) for z in sample]
    found: dict[int, float] = {}
    for z, near, factor in sorted(
        weighted, key=lambda row: (-round(row[1], 6), -row[0])
    )[:k]:
        for item in set(sessions[z]):
            found[item] = found.get(item, 0.0) + near * factor
    return found


def cosine(history, other):
    own = set(history)
    return len(own & other) / math.sqrt(len(own) * len(other)), 1.0


def jaccard(history, other):
    own = set(history)
    return len(own & other) / len(own | other), 1.0


def vector(weigh, decay):
    def weights(history, other):
        n = len(history)
        place = {item: weigh(i, n) for i, item in enumerate(history, 1)}
        near = sum(w for item, w in place.items() if item in other) / len(place)
        ago = next(s for s, item in enumerate(history[::-1], 1) if item in other)
        return near, decay(ago)

    return weights


BY_HAND = {
    "same": vector(lambda i, n: 1.0, lambda s: 1.0),
    "div": vector(lambda i, n: i / n, lambda s: 1 / s),
    "linear": vector(lambda i, n: 1 - 0.1 * (n - i), lambda s: 1 - 0.1 * s),
    "log": vector(
        lambda i, n: 1 / math.log10(n - i + 1.7), lambda s: 1 / math.log10(s + 1.7)
    ),
    "quadratic": vector(lambda i, n: (i / n) ** 2, lambda s: 1 / s**2),
}


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("damping, alpha, last", [(0, 0.5, 1), (20, 0.5, 3), (5, 1, 2)])
def test_item_knn_equals_dictionaries(size, damping, alpha, last):
    sessions, histories = drawn_sessions(1), drawn_histories(2)
    y = score(
        "item_knn",
        sessions,
        histories,
        neighbours=size,
        damping=float(damping),
        alpha=float(alpha),
        history=last,
    )
    for row, history in zip(y, histories, strict=True):
        found = item_knn_by_hand(sessions, history, size, damping, alpha, last)
        np.testing.assert_allclose(row, dense(found, sessions), rtol=1e-5, atol=1e-8)


def test_item_knn_tables_do_not_depend_on_the_chunk():
    config, info = SimpleNamespace(**item_knn.HPARAMS), info_of(drawn_sessions(1))
    one, other = (
        item_knn.item_tables(config, info),
        item_knn.item_tables(config, info, 7),
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("k, sample_size", [(3, 5), (10, 20), (100, 500)])
@pytest.mark.parametrize("similarity", [cosine, jaccard])
def test_sknn_equals_dictionaries(k, sample_size, similarity):
    sessions, histories = drawn_sessions(3), drawn_histories(4)
    changed = dict(k=k, sample_size=sample_size, similarity=similarity.__name__)
    y = score("sknn", sessions, histories, **changed)
    for row, history in zip(y, histories, strict=True):
        found = session_knn_by_hand(sessions, history, k, sample_size, similarity)
        np.testing.assert_allclose(row, dense(found, sessions), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("idf", [0.0, 2.0])
@pytest.mark.parametrize("k, sample_size", [(3, 5), (10, 20)])
@pytest.mark.parametrize("decay", list(BY_HAND))
def test_vsknn_equals_dictionaries(decay, k, sample_size, idf):
    sessions, histories = drawn_sessions(5), drawn_histories(6)
    changed = dict(k=k, sample_size=sample_size, weighting=decay, idf=idf)
    y = score("vsknn", sessions, histories, score_weighting=decay, **changed)
    events = np.bincount(sum(sessions, []), minlength=VOCAB)
    for row, history in zip(y, histories, strict=True):
        weights = BY_HAND[decay]
        found = session_knn_by_hand(sessions, history, k, sample_size, weights)
        for item in found:
            found[item] *= 1 + idf * math.log(len(sessions) / events[item])
        np.testing.assert_allclose(row, dense(found, sessions), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["sknn", "vsknn"])
def test_recent_is_what_ended_last_not_what_stands_last(name):
    """Sessions in any order of rows, with their places in time: as in that order."""
    sessions, histories = drawn_sessions(5), drawn_histories(6)
    make, hparams = MAKE[name]
    config = FrozenConfigDict(hparams | dict(k=3, sample_size=5))
    place = np.random.default_rng(12).permutation(len(sessions)).astype(np.int32)
    info = info_of([sessions[i] for i in place]) | dict(session_order=place)
    y = scores_of(make(config, info), histories)
    want = score(name, sessions, histories, k=3, sample_size=5)
    np.testing.assert_array_equal(y, want)
    unordered = scores_of(make(config, info | dict(session_order=None)), histories)
    assert not np.allclose(unordered, want)


def test_vsknn_worked_by_hand():
    """History 1, 2, weights 1/2 and 1 over |d| = 2. Oldest first, the sessions are
    {1, 3}: (1/2) / 2 = 1/4, last match 2 ago: 1/4 x 1/2 = 1/8.
    {1, 2, 4}: (1/2 + 1) / 2 = 3/4, last match 1 ago: 3/4.
    {2, 5}: 1 / 2 = 1/2, last match 1 ago: 1/2.
    {6, 7}: nothing shared. With all: 1: 7/8, 2: 10/8, 3: 1/8, 4: 6/8, 5: 4/8.
    With the two most recent candidates the first is out: 1: 6/8, 3: 0.
    With k = 1 only the second counts: 1, 2 and 4: 6/8.
    """
    sessions = [[1, 3], [1, 2, 4], [2, 5], [6, 7]]

    def row(**changed):
        return score("vsknn", sessions, [[1, 2]], **changed)[0, 1:8]

    close = dict(rtol=0, atol=2e-6)
    want = np.array([7, 10, 1, 6, 4, 0, 0]) / 10
    np.testing.assert_allclose(row(), want, **close)
    want = np.array([6, 10, 0, 6, 4, 0, 0]) / 10
    np.testing.assert_allclose(row(k=2, sample_size=2), want, **close)
    np.testing.assert_allclose(row(k=1), [1, 1, 0, 1, 0, 0, 0], **close)
