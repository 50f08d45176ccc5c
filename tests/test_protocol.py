"""Sessions, splits and flat arrays of events, against loops written independently."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import events, presets, protocol
from jaxrec.types import UserError

PLAIN = presets.PAPER | dict(
    min_session=0, valid=0.1, test=0.1, click_reward=0.2, buy_reward=1.0
)
PLAIN |= dict(preset="paper", seed=0, seq_len=10)


def make(rows, **more):
    """Events of rows (session, item, time) or (session, item, time, kind)."""
    rows = [(*row, 0)[:4] for row in rows]
    session, item, time, kind = map(np.array, zip(*rows))
    return events.make(session, item, time, kind, **more)


def prepare(log, **changes):
    arrays, facts = protocol.prepare(log, PLAIN | changes)
    return protocol.assemble(arrays, facts | dict(version="1"))


def sequences(flat, ids):
    """The sessions of flat arrays, as lists of the log's own ids."""
    found = []
    for item, step in zip(flat["item"].tolist(), flat["timestep"].tolist()):
        if step == 0:
            found.append([])
        found[-1].append(ids[item].item() if item else None)
    return found


def parts(data):
    """{part: sessions}, of training and of the held-out sets."""
    flat = dict(train=data.train) | dict(data.evals)
    return {p: sequences(f, data.info["item_ids"]) for p, f in flat.items()}


LOG = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 8), st.integers(0, 30)),
    min_size=1,
    max_size=80,
)


def by_session(rows):
    """{session: its rows in order of time, ties as they come}."""
    found = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return {s: sorted(found[s], key=lambda row: row[2]) for s in sorted(found)}


def filtered(rows, least, often, iterate):
    """Sessions first, then items, once or until nothing changes."""
    while True:
        before = len(rows)
        sizes = {s: len(r) for s, r in by_session(rows).items()}
        rows = [row for row in rows if sizes[row[0]] >= least]
        count = {}
        for row in rows:
            count[row[1]] = count.get(row[1], 0) + 1
        rows = [row for row in rows if count[row[1]] >= often]
        if not iterate or len(rows) == before:
            return rows


@settings(max_examples=80, deadline=None)
@given(LOG, st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_minima_of_sessions_then_items(rows, least, often, iterate):
    expected = filtered(rows, least, often, iterate)
    numbered = [(s, i, t) for s, i, t in rows]
    changes = dict(min_session=least, min_item=often, iterate=iterate)
    if not expected:
        with pytest.raises(UserError, match="no events are left after data.min_sess"):
            protocol.prepare(make(numbered), PLAIN | changes)
        return
    try:
        data = prepare(make(numbered), split="leave_one_out", **changes)
    except UserError as error:  # no session of three events: nothing is held out
        sizes = [len(r) for r in by_session(expected).values()]
        assert max(sizes) < 3 and "split is empty" in str(error)
        return
    counts = data.info["protocol"]["counts"]["kept"]
    assert counts["events"] == len(expected)
    assert counts["sessions"] == len(by_session(expected))
    assert counts["items"] == len({row[1] for row in expected})


def test_visitors_then_items_once_is_not_iterated():
    """A session may shrink below the minimum by the filter on items, spec 4.2."""
    rows = [("a", 1, 0), ("a", 1, 1), ("a", 2, 2), ("b", 1, 3), ("b", 2, 4)]
    rows += [(c, 1, t) for c in "cdefghijklmn" for t in range(3)]
    rows = [(s, i, t) for t, (s, i, _) in enumerate(rows)]
    once = prepare(make(rows), min_session=3, min_item=2, iterate=False)
    counts = once.info["protocol"]["counts"]
    # "b" goes first; then item 2 has one event left and goes, "a" keeps two.
    assert counts["kept"] == dict(events=38, sessions=13, items=1, purchases=0)
    again = prepare(make(rows), min_session=3, min_item=2, iterate=True)
    counts = again.info["protocol"]["counts"]
    assert counts["kept"] == dict(events=36, sessions=12, items=1, purchases=0)


def walks(num=200, seed=0, items=30):
    generator = np.random.default_rng(seed)
    rows = []
    for session in range(num):
        start = generator.integers(0, 10**6)
        for step in range(generator.integers(1, 9)):
            # An item names its session, to see where it goes.
            item = session * 100 + step if items is None else generator.integers(items)
            rows.append((session, int(item), int(start) + step // 2, step % 3 == 2))
    return rows


@pytest.mark.parametrize("split", ["random_session", "temporal_quantile"])
def test_whole_sessions_in_one_part_each(split):
    rows = walks(items=None)
    arranged = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    arranged.sort(key=lambda row: row[1] % 100)  # only ties need an order
    data = prepare(make(arranged), split=split, valid=0.2, test=0.3)
    found = parts(data)
    assert [len(found[p]) for p in protocol.PARTS] == [100, 40, 60]
    whole = {s: [r[1] for r in rows] for s, rows in by_session(rows).items()}
    flat = [tuple(x) for p in protocol.PARTS for x in found[p]]
    assert sorted(flat) == sorted(map(tuple, whole.values()))
    last = {s: r[-1][2] for s, r in by_session(rows).items()}
    when = {p: [last[x[0] // 100] for x in found[p]] for p in protocol.PARTS}
    ordered = max(when["train"]) <= min(when["valid"])
    ordered &= max(when["valid"]) <= min(when["test"])
    assert ordered == (split == "temporal_quantile")
    other = parts(prepare(make(arranged), split=split, valid=0.2, test=0.3, seed=1))
    assert (other == found) == (split == "temporal_quantile")
    again = parts(prepare(make(arranged), split=split, valid=0.2, test=0.3))
    assert again == found


def test_last_days():
    day = 86_400
    rows = [(s, s, s * day // 2 + t) for s in range(10) for t in range(2)]
    found = parts(prepare(make(rows), split="last_days", test_days=1.0))
    assert found["test"] == [[8, 8], [9, 9]] and found["valid"] == [[6, 6], [7, 7]]


@pytest.mark.parametrize("timed, want", [(True, [2, 0, 1]), (False, [0, 1, 2])])
def test_sessions_are_in_order_of_their_last_training_event(timed, want):
    """Users 1, 2, 3: the last two events of each are held out, so 9, 4, 5 count."""
    times = {1: [1, 9, 20, 21], 2: [3, 4, 50, 51], 3: [2, 5, 30, 31]}
    rows = [(user, 7 + n, t) for user, ts in times.items() for n, t in enumerate(ts)]
    data = prepare(make(rows, facts=dict(timestamps=timed)), split="leave_one_out")
    np.testing.assert_array_equal(data.info["session_order"], want)


def test_leave_one_out_looks_back_and_never_forward():
    rows = [("a", i, i) for i in (1, 2, 3, 4)] + [("b", i, i) for i in (5, 6)]
    data = prepare(make(rows), split="leave_one_out", score_first_event=False)
    assert parts(data) == dict(
        train=[[1, 2], [5, 6]],  # "b" is too short to be held out
        valid=[[1, 2, 3], [5, 6]],
        test=[[1, 2, 3, 4], [5, 6]],
    )
    for part, item, step in (("valid", 3, 2), ("test", 4, 3)):
        flat, drawn = data.evals[part], data.drawn[part]
        assert flat["item"][drawn].tolist() == [item]
        assert flat["timestep"][drawn].tolist() == [step]
        assert flat["done"][drawn].tolist() == [1.0]
        assert flat["next_item"][drawn].tolist() == [0]
        assert flat["remaining"][drawn].tolist() == [0]
    assert data.train["next_item"].tolist() == [2, 0, 6, 0]
    assert data.info["item_count"][:7].tolist() == [0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("first", [True, False])
def test_score_first_event(first):
    data = prepare(make(walks()), score_first_event=first)
    for part, flat in (dict(train=data.train) | dict(data.evals)).items():
        wanted = [i for i, t in enumerate(flat["timestep"].tolist()) if first or t > 0]
        assert data.drawn[part].tolist() == wanted
        predicted = data.info["protocol"]["counts"][part]["predicted"]
        assert predicted == len(wanted)


@pytest.mark.parametrize("drop", [True, False])
def test_items_that_training_never_saw(drop):
    day = 86_400
    rows = [("a", 1, 0), ("a", 2, 1), ("v", 1, 7.5 * day), ("v", 2, 7.6 * day)]
    rows += [("t", 1, 9 * day), ("t", 99, 9 * day + 1), ("t", 2, 9 * day + 2)]
    rows += [("u", 98, 9 * day), ("u", 1, 9 * day + 5)]
    data = prepare(
        make(rows),
        split="last_days",
        drop_unseen_items=drop,
        score_first_event=False,
    )
    assert data.info["num_items"] == (2 if drop else 4)
    assert parts(data)["test"] == (
        [[1, 2], [1]] if drop else [[1, 99, 2], [98, 1]]
    )  # "u" keeps one event, which is a first and is not predicted
    assert len(data.drawn["test"]) == (1 if drop else 3)
    assert data.info["protocol"]["counts"]["unseen_test_items"] == 2
    unseen = data.info["item_count"][1 : data.info["num_items"] + 1] == 0
    assert unseen.sum() == (0 if drop else 2)


@pytest.mark.parametrize("rewards", [(0.2, 1.0), (1.0, 1.0), (1.0, 5.0)])
def test_rewards_against_a_loop(rewards):
    """Kinds are kept apart from rewards, so that equal rewards are allowed."""
    rows = walks()
    click, buy = rewards
    data = prepare(make(rows), click_reward=click, buy_reward=buy)
    seen = {}
    for flat in (data.train, *data.evals.values()):
        ends = np.flatnonzero(flat["done"]) + 1
        for start, end in zip([0, *ends[:-1]], ends):
            kind = flat["kind"][start:end].tolist()
            reward = [buy if k else click for k in kind]
            np.testing.assert_allclose(flat["reward"][start:end], reward)
            to_go = [sum(reward[i:]) for i in range(len(reward))]
            np.testing.assert_allclose(
                flat["reward_to_go"][start:end], to_go, rtol=1e-6
            )
            assert flat["remaining"][start:end].tolist() == list(range(len(kind)))[::-1]
            if flat is data.train:
                for step, value in enumerate(to_go):
                    seen.setdefault(step, []).append(value)
    mean = [np.mean(seen[step]) for step in sorted(seen)]  # of training alone
    np.testing.assert_allclose(data.info["mean_return"], mean, rtol=1e-5)
    kinds = [row[3] for row in rows]
    assert data.info["protocol"]["counts"]["kept"]["purchases"] == sum(kinds)
    assert data.info["rewards"] == rewards


def test_reward_to_go_by_hand():
    rows = [(s, 1, t, t == 2) for s in range(10) for t in range(3)]
    data = prepare(make(rows))
    np.testing.assert_allclose(data.train["reward_to_go"][:3], [1.4, 1.2, 1.0])


@settings(max_examples=50, deadline=None)
@given(LOG, st.integers(0, 9), st.integers(0, 4))
def test_gaps_and_chunks_end_sessions(rows, gap, chunk):
    expected = []
    for own in by_session(rows).values():
        pieces = [[own[0]]]
        for before, row in zip(own, own[1:]):
            if gap and row[2] - before[2] > gap:
                pieces.append([])
            pieces[-1].append(row)
        for piece in pieces:
            size = chunk or len(piece)
            expected += [piece[i : i + size] for i in range(0, len(piece), size)]
    if len(expected) < 10:
        return
    data = prepare(make(rows), session_gap=gap / 60, session_chunk=chunk)
    found = [tuple(x) for sessions in parts(data).values() for x in sessions]
    assert sorted(found) == sorted(tuple(r[1] for r in x) for x in expected)


def test_ties_keep_the_order_of_rows_and_time_the_rest():
    rows = [(s, i, t) for s in range(10) for i, t in ((7, 5), (8, 5), (3, 1), (9, 5))]
    found = parts(prepare(make(rows)))
    assert found["train"] == [[3, 7, 8, 9]] * 8


def test_a_sample_of_sessions_is_seeded_and_of_those_with_enough_clicks():
    rows = [(s, s, t, t >= s % 4) for s in range(80) for t in range(4)]
    changes = dict(min_clicks=3, sample_sessions=12)
    one = prepare(make(rows), **changes)
    found = {x[0] for sessions in parts(one).values() for x in sessions}
    assert len(found) == 12 and {s % 4 for s in found} == {3}
    assert parts(prepare(make(rows), **changes)) == parts(one)
    assert parts(prepare(make(rows), seed=1, **changes)) != parts(one)
    with pytest.raises(UserError, match="data.min_clicks=5: lower them"):
        prepare(make(rows), min_clicks=5)


def test_an_item_bought_but_never_clicked_has_a_number():
    rows = [(s, i, i, i == 3) for s in range(10) for i in (1, 2, 3)]
    data = prepare(make(rows))
    assert data.info["num_items"] == 3
    assert data.info["item_count"][1:4].tolist() == [8, 8, 8]


def test_a_user_in_two_files_is_two_sessions():
    """Else the test's events would join those of training."""
    rows = [(s, i, i) for s in range(10) for i in (1, 2, 3, 4)]
    user = np.array([s for s, *_ in rows]) % 5
    part = np.array([2 * (i > 2) for _, i, _ in rows])
    log = make(rows, user=user, part=part)
    found = parts(prepare(log, split="pre_split", session_by="user", valid=0.2))
    assert found["test"] == [[3, 3, 4, 4]] * 5
    assert found["train"] + found["valid"] == [[1, 1, 2, 2]] * 5
