"""Logs with long histories: planted recall, KuaiRand, Last.fm, hashed items."""

import jax.numpy as jnp
import numpy as np
import pytest
from log_files import config, load
from ml_collections import ConfigDict

from jaxrec import defaults, evaluators, recommender_evaluators
from jaxrec.data import lifelong, plays
from jaxrec.data.sources import SOURCES
from jaxrec.types import Method, TrainState, UserError

SMALL = dict(
    num_users=40,
    num_items=60,
    lags=(5, 40, 90),
    train_lags=(3, 50),
    pairs=2,
    tasks=5,
    recalled=20,
    min_length=60,
    median_length=90,
    max_length=300,
    groups=4,
    valid=0.1,
    test=0.1,
)


LAGS = (0, *SMALL["lags"])


def histories(log):
    return [log.item[log.user == u] for u in np.unique(log.user)]


def tasks(items, pairs):
    """[(time, lag)] of the recalls, by the letter: marker, x, ..., cue, x."""
    found = []
    for cue, marker in pairs.items():
        place = np.flatnonzero(np.isin(items, (marker, cue)))
        # One task at a time, and none is left open.
        assert items[place].tolist() == [marker, cue] * (len(place) // 2)
        for start, asked in place.reshape(-1, 2):
            assert items[start + 1] == items[asked + 1]
            assert items[asked + 1] > 44  # the rarest 20 of 60, after 4 marks
            found.append((asked + 1, asked - start))
    return found


def test_the_item_a_lag_before_is_the_one_after_the_cue():
    log = lifelong.load(SMALL)
    pairs = lifelong.cues(lifelong.settings(SMALL))
    assert pairs == {2: 1, 4: 3}
    lags, longest = {0: [], 1: [], 2: []}, []
    for items, part in zip(histories(log), histories(log._replace(item=log.part))):
        found = tasks(items, pairs)
        assert len({t for t, _ in found}) == len(found) <= 2 * 5
        if part[0] == 0:
            longest.append(max((lag for _, lag in found), default=0))
        lags[part[0]] += [lag for _, lag in found]
        assert part[0] == 0 or len(items) >= 110
    assert set(lags[1]) == set(lags[2]) == {5, 40, 90}
    training = np.array(lags[0])
    assert len(training) > 100 and training.min() >= 3 and training.max() <= 50
    # More short ones than log-uniform, half of them up to the square root of 3 x 50.
    assert 0.55 < (training <= 12).mean() < 0.95
    assert min(longest) <= 5 and sorted(longest)[-5] >= 20
    again, other = lifelong.load(SMALL), lifelong.load(SMALL | dict(seed=1))
    np.testing.assert_array_equal(log.item, again.item)
    assert not np.array_equal(log.item, other.item)


def test_a_window_shorter_than_the_lag_tells_nothing_of_the_item():
    """Of tasks, x is drawn apart from all else: a habit never repeats a planted x."""
    log = lifelong.load(SMALL | dict(num_users=400, recalled=5, tail=0.0))
    pairs, same, chance = lifelong.cues(lifelong.settings(SMALL)), [], []
    for items in histories(log):
        for time, lag in tasks(items, pairs):
            if lag < 40:
                continue
            window = items[time - 20 : time]
            same.append((window == items[time]).mean())
            chance.append((window == 60 + (items[time] - 59) % 5).mean())
    assert len(same) > 200
    assert abs(np.mean(same) - np.mean(chance)) < 4 * np.std(same) / len(same) ** 0.5


def test_habits_are_chained_skewed_and_of_uneven_lengths():
    log = lifelong.load(SMALL | dict(num_users=200, lags=(), tasks=0, tail=1.0))
    length = np.bincount(log.user)
    assert length.min() >= 60 and length.max() > 2 * np.median(length)
    count = np.sort(np.bincount(log.item)[1:])[::-1]
    assert count[:6].sum() > 2 * count[-6:].sum()
    pairs = np.zeros((65, 65))
    for items in histories(log):
        np.add.at(pairs, (items[:-1], items[1:]), 1)
    best = pairs.max(1)[1:].sum() / pairs.sum()
    assert 0.4 < best < 0.8  # half of the events follow from the one before
    asked = np.bincount(log.user, log.scored)
    part = log.part[np.unique(log.user, return_index=True)[1]]
    assert (asked[part > 0] == 2).all() and (asked == length)[part == 0].all()
    assert np.bincount(part).tolist() == [160, 20, 20]


def test_settings_that_cannot_be_are_refused():
    for wrong, match in (
        (dict(min_length=30), "min_length=30: at least 52"),
        (dict(train_lags=(9, 8)), r"train_lags=\(9, 8\): the shortest"),
        (dict(train_lags=(9,)), r"train_lags=\(9,\): the shortest"),
        (dict(lags=(1,)), "each 2 or more"),
        (dict(lags=(5, 5)), "each once"),
        (dict(recalled=61), "recalled=61: 1 to the num_items=60"),
        (dict(seed=-1), "seed=-1: 0 or more"),
        (dict(groups=0), "groups=0: 1 or more"),
    ):
        with pytest.raises(UserError, match=match):
            lifelong.settings(SMALL | wrong)


def dataset(tmp_path, seq_len=128):
    section = ConfigDict(defaults.RECOMMENDER_DATA)
    section.update(source="synthetic_lifelong", data_dir=str(tmp_path))
    section.seq_len = seq_len
    section.lifelong = ConfigDict(SMALL)
    return SOURCES["synthetic_lifelong"](section)


def remembering(window, data):
    """A method that scores the item after the last marker of the cue that it sees in a
    window of `window` events."""

    def scores(state, items, length, timestep):
        place = jnp.arange(items.shape[1])[None]
        last = jnp.maximum(length - 1, 0)[:, None]
        seen = (place < length[:, None]) & (place >= length[:, None] - window)
        cue = jnp.take_along_axis(items, last, axis=1)
        y = jnp.zeros((len(items), data.info["vocab"]))
        for number, marker in data.info["cues"].items():
            at = jnp.max(jnp.where(seen & (items == marker), place, -1), 1)[:, None]
            x = jnp.take_along_axis(items, at + 1, axis=1)[:, 0]
            known = (cue[:, 0] == number) & (at[:, 0] >= 0)
            y = y.at[jnp.arange(len(items)), x].add(1.0 * known)
        return y

    return Method(None, None, scores=scores)


def test_recall_by_lag_tells_who_remembers(tmp_path):
    data = dataset(tmp_path)
    run = ConfigDict(dict(eval=dict(batch_size=32)))
    state = TrainState(jnp.zeros(()), {}, None)
    results = {}
    for window in (128, 64, 0):
        method = remembering(window, data)
        make = evaluators.make("recall_by_lag", run, method, data)
        results[window] = make(state, None)
    names = [f"{part}/lag_{lag}/hr@10" for part in ("valid", "test") for lag in LAGS]
    assert list(results[128]) == names
    # The marker is an event before x: 64 events before a recall at lag 63 see it.
    assert [results[128][n] for n in names] == [0, 1, 1, 1] * 2
    assert [results[64][n] for n in names] == [0, 1, 1, 0] * 2
    # Without a score all items tie in the middle.
    assert set(results[0].values()) == {0.0}
    none = data._replace(info={k: v for k, v in data.info.items() if k != "cues"})
    assert evaluators.make("recall_by_lag", run, method, none)(state, None) == {}
    # A method that sees 64 events is asked at the same lags.
    short = dataset(tmp_path, seq_len=64)
    for name in ("valid", "test"):
        lags = recommender_evaluators.planted_lags(data, name)
        np.testing.assert_array_equal(
            lags, recommender_evaluators.planted_lags(short, name)
        )
        assert set(lags) == set(LAGS)


HEAD = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,play_time_ms"


def kuairand(folder):
    rows = {
        "log_standard_4_08_to_4_21_1k.csv": [
            (7, 30, 1_649_000_003_000, 1, 0),
            (7, 10, 1_649_000_001_000, 1, 1),
            (7, 20, 1_649_000_002_000, 0, 0),  # shown, not clicked
            (8, 10, 1_649_000_005_000, 1, 0),
            (7, 40, 1_648_000_000_000, 1, 0),
            (8, 30, 1_648_000_000_000, 1, 0),
        ],
        "log_standard_4_22_to_5_08_1k.csv": [
            (7, 40, 1_650_500_000_000, 1, 0),
            (8, 30, 1_650_500_000_000, 1, 0),
            (8, 40, 1_650_500_000_500, 1, 0),
        ],
        "log_random_4_22_to_5_08_1k.csv": [(9, 99, 1_650_500_000_000, 1, 0)],
    }
    for name, found in rows.items():
        lines = [f"{u},{v},20220408,1200,{t},{c},{k},9" for u, v, t, c, k in found]
        (folder / name).write_text("\n".join([HEAD, *lines]) + "\n")


def by_user(log):
    order = np.lexsort((log.time, log.user))
    return {
        u: log.item[order][log.user[order] == u].tolist()
        for u in np.unique(log.user).tolist()
    }


def test_kuairand_drops_what_was_not_clicked_and_reads_both_logs(tmp_path):
    kuairand(tmp_path)
    log = plays.kuairand(config("kuairand", tmp_path))
    assert by_user(log) == {7: [40, 10, 30, 40], 8: [30, 10, 30, 40]}
    assert log.kind.sum() == 1 and log.time.min() == 1_648_000_000.0
    assert log.facts["notes"] == dict(shown=9)
    one = tmp_path / "log_standard_4_22_to_5_08_1k.csv"
    assert by_user(plays.kuairand(config("kuairand", one))) == {7: [40], 8: [30, 40]}
    data = load("kuairand", tmp_path, tmp_path)
    test = data.evals["test"]["item"][data.drawn["test"]]
    assert data.info["item_ids"][test].tolist() == [40, 40]
    # The window of a history longer than the cut is its end.
    short = load("kuairand", tmp_path, tmp_path, seq_len=1)
    assert short.window == 2
    one.write_text(HEAD + "\n1,2,3,4,5,0,0,9\n")
    with pytest.raises(UserError, match="no is_click is 1 among 1 events"):
        plays.kuairand(config("kuairand", one))
    one.write_text(HEAD + "\n1,2,3,4,5,yes,0,9\n")
    with pytest.raises(UserError, match="'is_click' is 'yes', not a whole number"):
        plays.kuairand(config("kuairand", one))


def test_lastfm1k(tmp_path, capsys):
    rows = [
        ("user_000001", "2009-05-04T23:08:57Z", "a1", "Deep Dish", "", "Say Hello"),
        ("user_000001", "2009-05-04T13:54:10Z", "a2", "坂本龍一", "t2", "Composition"),
        ("user_000001", "2009-05-04T13:52:04Z", "a2", "坂本龍一", "t3", 'Mc2 "Live"'),
        ("user_000002", "2006-01-01T00:00:00Z", "a1", "Deep Dish", "t2", "x"),
    ]
    name = "userid-timestamp-artid-artname-traid-traname.tsv"
    (tmp_path / name).write_text("".join("\t".join(row) + "\n" for row in rows))
    log = plays.lastfm1k(config("lastfm1k", tmp_path))
    assert by_user(log) == {"user_000001": ["t3", "t2"], "user_000002": ["t2"]}
    assert log.time.max() == 1_241_445_250.0
    assert "1 of 4 plays have no track_id: left out" in "".join(capsys.readouterr())
    artists = plays.lastfm1k(config("lastfm1k", tmp_path, name="artist"))
    assert by_user(artists)["user_000001"] == ["a2", "a2", "a1"]
    with pytest.raises(UserError, match="data.name='album': one of track, artist"):
        plays.lastfm1k(config("lastfm1k", tmp_path, name="album"))


@pytest.mark.parametrize(
    "head", ["", "user_id\tartist_id\talbum_id\ttrack_id\ttimestamp\n"]
)
def test_lfm1b(tmp_path, head):
    rows = [(31435736, 2, 4, 4, 1385212958), (31435736, 2, 4, 5, 1385212642)]
    rows += [(9, 1, -1, 4, 1385212642)]
    lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "LFM-1b_LEs.txt").write_text(head + lines)
    log = plays.lfm1b(config("lfm1b", tmp_path))
    assert by_user(log) == {9: [4], 31435736: [5, 4]}
    albums = plays.lfm1b(config("lfm1b", tmp_path, name="album"))
    assert by_user(albums) == {31435736: [4, 4]}


@pytest.mark.parametrize("name", [int, "B{:04}".format])
def test_hashed_items_are_few_and_a_function_of_the_id(name):
    ids = np.array([name(i) for i in range(1, 2001)])
    log = lifelong.load(SMALL)._replace(item=ids)
    code = plays.hashed(log, 500).item
    assert code.min() >= 1 and code.max() <= 500
    assert 485 <= len(np.unique(code)) <= 497  # 500 (1 - e^-4) = 491
    part = plays.hashed(log._replace(item=ids[::-2]), 500)
    np.testing.assert_array_equal(part.item, code[::-2])
    assert part.facts["notes"]["hashed_from"] == 1000


def test_a_source_with_hashed_items(tmp_path):
    kuairand(tmp_path)
    data = load("kuairand", tmp_path, tmp_path, hash_items=2)
    assert data.info["num_items"] <= 2
    assert data.info["protocol"]["hashed_from"] == 3
    assert load("kuairand", tmp_path, tmp_path).info["num_items"] == 3
    with pytest.raises(UserError, match="hash_items=-1"):
        load("kuairand", tmp_path, tmp_path, hash_items=-1)
