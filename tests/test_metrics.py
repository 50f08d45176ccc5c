import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import metrics

NDCG = {1: 1.0, 2: 0.6309, 3: 0.5, 10: 0.2891}


def info(num_items: int, vocab: int, count: np.ndarray, attributes=None) -> dict:
    return dict(
        num_items=num_items,
        vocab=vocab,
        item_count=count,
        attributes=attributes,
        kinds=("click", "purchase"),
    )


@pytest.mark.parametrize(
    "ties, expected", [("optimistic", 1), ("pessimistic", 2), ("mean", 1.5)]
)
def test_rank_of_tied_scores_by_rule(ties, expected):
    scores = jnp.array([[0.1, 0.5, 0.5, 0.2]])
    assert metrics.rank(scores, jnp.array([1]), ties)[0] == expected


def test_rank_of_constant_nan_and_masked_scores():
    scores = jnp.array(
        [[1.0] * 5, [jnp.nan] * 5, [3.0, jnp.nan, 2.0, 1.0, -jnp.inf], [-jnp.inf] * 5]
    )
    found = metrics.rank(scores, jnp.array([2, 2, 1, 2]))
    np.testing.assert_array_equal(found, [3.0, 5.0, 5.0, 3.0])
    # An item of score NaN stands before the target, never behind.
    assert metrics.rank(scores[2:3], jnp.array([0]))[0] == 2.0


def test_an_unknown_tie_rule_is_named():
    with pytest.raises(ValueError, match="ties='middle'.*mean, optimistic"):
        metrics.rank(jnp.zeros((1, 3)), jnp.array([1]), "middle")


def test_rank_against_sorting():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (40, 17)).astype(np.float32)
    target = generator.integers(0, 17, 40).astype(np.int32)
    for b in range(40):
        order = np.sort(scores[b])[::-1]
        places = 1 + np.flatnonzero(order == scores[b, target[b]])
        for ties, choose in [
            ("optimistic", np.min),
            ("pessimistic", np.max),
            ("mean", np.mean),
        ]:
            found = metrics.rank(scores[b : b + 1], target[b : b + 1], ties)[0]
            assert found == choose(places), (b, ties)


@pytest.mark.parametrize("size, vocab", [(16, 48), (64, 48), (9, 47)])
@pytest.mark.parametrize("masked", [False, True])
def test_chunked_ranks_equal_those_of_the_whole_table(size, vocab, masked):
    """Integer vectors, so that ties are exact."""
    generator = np.random.default_rng(1)
    num_items, rows = 43, 30
    x = generator.integers(-2, 3, (rows, 5)).astype(np.float32)
    table = generator.integers(-2, 3, (vocab, 5)).astype(np.float32)
    bias = generator.integers(-2, 3, vocab).astype(np.float32)
    target = generator.integers(1, num_items + 1, rows).astype(np.int32)
    seen = generator.integers(0, num_items + 1, (rows, 6)).astype(np.int32)
    seen[0, 2] = target[0]  # the target itself is masked: it ranks behind
    y = x @ table.T + bias[None]
    y[:, 0] = y[:, num_items + 1 :] = -np.inf
    if masked:
        np.put_along_axis(y, seen, -np.inf, axis=1)
    for ties in metrics.TIES:
        call = functools.partial(metrics.rank_chunked, size=size, num_items=num_items)
        found, items = jax.jit(
            lambda *a, call=call, ties=ties: call(
                *a, k=40, ties=ties, seen=seen if masked else None
            )
        )(x, table, bias, target)
        np.testing.assert_array_equal(found, metrics.rank(y, target, ties))
        np.testing.assert_array_equal(items, metrics.top_k(y, 40))
    order = np.argsort(-y, axis=1, kind="stable")[:, :40]
    kept = np.take_along_axis(y, order, axis=1) > -np.inf
    np.testing.assert_array_equal(items, np.where(kept, order, 0))
    if masked:
        assert found[0] > num_items - 6


def test_chunked_ranks_hold_no_whole_table():
    rows, vocab, width = 128, 65_536, 16
    call = functools.partial(metrics.rank_chunked, size=1024, num_items=vocab - 1)
    shapes = [(rows, width), (vocab, width), (vocab,)]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    target = jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = jax.jit(call).lower(*args, target).compile()
    assert program.memory_analysis().temp_size_in_bytes < rows * vocab * 4 / 8


def test_ndcg_of_known_ranks():
    facts = metrics.facts(info(5, 6, np.ones(6)))
    for place, expected in NDCG.items():
        batch = dict(
            target=jnp.array([1]),
            kind=jnp.array([0]),
            reward=jnp.array([0.2]),
            weight=jnp.ones(1),
        )
        topk = jnp.zeros((1, 20), jnp.int32)
        sums = metrics.ranking_sums(jnp.array([float(place)]), topk, batch, facts)
        found = metrics.finish(sums, info(5, 6, np.ones(6)))
        assert found["ndcg@10"] == pytest.approx(expected, abs=1e-4)
        assert found["mrr@10"] == pytest.approx(1 / place)
        assert found["ndcg@5"] == (found["ndcg@10"] if place <= 5 else 0.0)


def brute_force(scores, batch, data, session, ks):
    """Every metric by its definition, event by event."""
    found = {}
    num_items, kinds = data["num_items"], data["kinds"]
    count, attributes = data["item_count"], data["attributes"]
    share = np.maximum(count, 1) / count.sum()
    events = [b for b in range(len(scores)) if batch["weight"][b] > 0]
    order = np.argsort(-scores, axis=1, kind="stable")
    place = [1 + list(order[b]).index(batch["target"][b]) for b in range(len(scores))]
    by_count = sorted(range(1, num_items + 1), key=lambda i: -count[i])
    tail = set(by_count[-(-num_items // 10) :])
    for k in ks:
        for number, name in [(None, ""), *enumerate(kinds)]:
            of = [b for b in events if number in (None, batch["kind"][b])]
            prefix = f"{name}/" if name else ""
            hit = [float(place[b] <= k) for b in of]
            gain = [h / np.log2(place[b] + 1) for b, h in zip(of, hit)]
            inverse = [1 / share[batch["target"][b]] for b in of]
            found[f"{prefix}hr@{k}"] = found[f"{prefix}recall@{k}"] = np.mean(hit)
            found[f"{prefix}ndcg@{k}"] = np.mean(gain)
            found[f"{prefix}mrr@{k}"] = np.mean([h / place[b] for b, h in zip(of, hit)])
            found[f"{prefix}corrected_ndcg@{k}"] = np.dot(gain, inverse) / sum(inverse)
            found[f"{prefix}count"] = len(of)
        hits = [b for b in events if place[b] <= k]
        found[f"reward@{k}"] = sum(batch["reward"][b] for b in hits)
        shown = [list(order[b, :k]) for b in events]
        every = sum(shown, [])
        found[f"coverage@{k}"] = len(set(every)) / num_items
        found[f"tail_coverage@{k}"] = len(set(every) & tail) / len(tail)
        found[f"novelty@{k}"] = np.mean([-np.log2(share[s]).mean() for s in shown])
        times = [every.count(i) for i in range(1, num_items + 1)]
        apart = sum(abs(a - b) for a in times for b in times)
        found[f"gini@{k}"] = apart / (2 * num_items * sum(times))
        sessions = {}
        for b, items in zip(events, shown):
            sessions.setdefault(session[b], []).extend(items)
        repeats = [len(items) - len(set(items)) for items in sessions.values()]
        found[f"repetitiveness@{k}"] = np.mean(repeats)
        diversity = []
        for items in shown:
            known = [attributes[i].astype(float) for i in items if attributes[i].any()]
            cosines = [
                np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
                for i, a in enumerate(known)
                for b in known[:i]
            ]
            if cosines:
                diversity.append(1 - np.mean(cosines))
        if diversity:
            found[f"diversity@{k}"] = np.mean(diversity)
    return found


@pytest.mark.parametrize("ks", [(5, 10, 20), (1, 3)])
def test_all_metrics_against_brute_force(ks):
    """37 events in batches of 8: the last batch is filled with rows of weight 0."""
    generator = np.random.default_rng(2)
    events, size, num_items, vocab = 37, 8, 33, 40
    scores = generator.normal(size=(40, vocab)).astype(np.float32)
    scores[:, :6] += 1.0  # recommended often
    scores[:, 0] = scores[:, num_items + 1 :] = -np.inf
    count = np.concatenate([[0], generator.permutation(33) // 2, np.zeros(6)])
    attributes = generator.random((vocab, 4)) < 0.3
    data = info(num_items, vocab, count.astype(float), attributes)
    batch = dict(
        target=generator.integers(1, num_items + 1, 40).astype(np.int32),
        kind=(generator.random(40) < 0.3).astype(np.int32),
        reward=generator.random(40).astype(np.float32),
        weight=(np.arange(40) < events).astype(np.float32),
    )
    session = np.repeat(np.arange(10), 4) * 7
    facts = metrics.facts(data)

    @jax.jit
    def step(scores, batch):
        topk = metrics.top_k(scores, max(ks))
        ranks = metrics.rank(scores, batch["target"])
        return metrics.ranking_sums(ranks, topk, batch, facts, ks), topk

    sums, shown = {}, []
    for first in range(0, 40, size):
        piece = slice(first, first + size)
        new, topk = step(scores[piece], {k: v[piece] for k, v in batch.items()})
        sums = {name: sums.get(name, 0.0) + value for name, value in new.items()}
        shown.append(topk)
    shown = np.concatenate(shown)[:events]
    sums |= metrics.repetition_sums(shown, session[:events], ks)
    found = metrics.finish(sums, data, ks)
    expected = brute_force(scores, batch, data, session, ks)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_a_class_without_events_has_no_metric():
    data = info(5, 6, np.ones(6))
    batch = dict(
        target=jnp.array([1, 2]),
        kind=jnp.array([0, 1]),
        reward=jnp.array([0.2, 1.0]),
        weight=jnp.array([1.0, 0.0]),
    )
    topk = jnp.ones((2, 20), jnp.int32)
    sums = metrics.ranking_sums(jnp.ones(2), topk, batch, metrics.facts(data))
    found = metrics.finish(sums, data)
    assert found["hr@5"] == found["click/hr@5"] == 1.0
    assert not [name for name in found if name.startswith("purchase")]
    assert not [name for name in found if name.startswith(("diversity", "repet"))]
    assert all(np.isfinite(list(found.values())))
    empty = {name: 0.0 * value for name, value in sums.items()}
    assert metrics.finish(empty, data) == {}


def test_corrected_ndcg_of_equally_popular_items_is_ndcg():
    generator = np.random.default_rng(3)
    data = info(30, 32, np.full(32, 7.0))
    scores = jnp.asarray(generator.normal(size=(20, 32)))
    batch = dict(
        target=jnp.asarray(generator.integers(1, 31, 20)),
        kind=jnp.zeros(20, jnp.int32),
        reward=jnp.ones(20),
        weight=jnp.ones(20),
    )
    ranks = metrics.rank(scores, batch["target"])
    sums = metrics.ranking_sums(
        ranks, metrics.top_k(scores, 20), batch, metrics.facts(data)
    )
    found = metrics.finish(sums, data)
    assert 0 < found["ndcg@10"] < 1
    assert found["corrected_ndcg@10"] == pytest.approx(found["ndcg@10"], rel=1e-5)


def test_repetition_of_whole_sessions_adds():
    topk = np.array([[1, 2], [2, 1], [1, 3], [4, 0], [4, 0], [1, 2]])
    session = np.array([0, 0, 0, 9, 9, 12])
    found = metrics.repetition_sums(topk, session, (1, 2))
    # At 1: [1, 2, 1] one repeat, [4, 4] one; at 2: 1 2 2 1 1 3 three, and again one.
    np.testing.assert_array_equal(found["repeats"], [2, 4])
    assert found["sessions"] == 3
    one = metrics.repetition_sums(topk[:3], session[:3], (1, 2))
    two = metrics.repetition_sums(topk[3:], session[3:], (1, 2))
    np.testing.assert_array_equal(one["repeats"] + two["repeats"], found["repeats"])


def test_gini_of_equal_and_single():
    assert metrics.gini(np.full(10, 3.0)) == pytest.approx(0.0)
    assert metrics.gini(np.eye(10)[3]) == pytest.approx(0.9)
