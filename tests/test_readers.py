"""Every format of log files, written as its publishers write it, read back."""

import gzip

import numpy as np
import pytest
from log_files import NUM_ITEMS, NUM_SESSIONS, config, counts, load, rows, sessions

from jaxrec.data import movielens, readers
from jaxrec.types import UserError

ROWS = rows()
DAY_2014 = 16_167 * 86_400  # 2014-04-07


def iso(seconds):
    return str(np.datetime64(int(seconds * 1000), "ms")) + "Z"


def expected(kept=ROWS):
    """{session: items} in order of time."""
    found = {}
    for session, item, *_ in sorted(kept, key=lambda row: (row[0], row[2])):
        found.setdefault(session, []).append(item)
    return found


def read_back(log, field="session"):
    """{session: items} of Events, in the order of times, then rows."""
    found = {}
    for row in np.lexsort((log.time, np.arange(len(log.time)) * 0)):
        session, item = getattr(log, field)[row].item(), log.item[row].item()
        found.setdefault(session, []).append(item)
    return found


def retailrocket(folder, name="events.csv"):
    """Shuffled, with transactions that repeat additions to the cart."""
    lines = []
    for session, item, time, bought in ROWS:
        word = "addtocart" if bought else "view"
        lines.append(f"{time * 1000 + 7},{session},{word},{item},")
        if bought:
            lines.append(f"{time * 1000 + 8},{session},transaction,{item},4711")
    order = np.random.default_rng(0).permutation(len(lines))
    body = "\n".join(["timestamp,visitorid,event,itemid,transactionid"])
    body += "\n" + "\n".join(lines[i] for i in order) + "\n"
    pack = gzip.compress if name.endswith(".gz") else bytes
    (folder / name).write_bytes(pack(body.encode()))


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz"])
def test_retailrocket(tmp_path, name):
    retailrocket(tmp_path, name)
    log = readers.retailrocket(config("retailrocket", tmp_path))
    assert read_back(log) == expected() == read_back(log, "user")
    assert int(log.kind.sum()) == NUM_SESSIONS == sum(r[3] for r in ROWS)
    assert log.time.min() == pytest.approx(10_000.007)  # seconds, from milliseconds
    data = load("retailrocket", tmp_path, tmp_path, preset="paper")
    assert counts(data)[1:] == (NUM_SESSIONS, NUM_ITEMS, NUM_SESSIONS)
    (tmp_path / name).rename(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text(
        "timestamp,visitorid,event,itemid,transactionid\n1,1,wish,1,\n"
    )
    with pytest.raises(UserError, match="an event 'wish': known are view, addtocart"):
        readers.retailrocket(config("retailrocket", tmp_path / "other.csv"))


def yoochoose(folder, shift=DAY_2014, first=214_716_930):
    click, buy = [], []
    for session, item, time, bought in ROWS:
        line = f"{session},{iso(shift + time)},{first + item}"
        (buy if bought else click).append(line + (",12,1" if bought else ",S"))
    buy.append(f"1,{iso(shift + 10_009.5)},{first + 99},0,0")  # never clicked
    (folder / "yoochoose-clicks.dat").write_text("\n".join(click) + "\n")
    (folder / "yoochoose-buys.dat").write_text("\n".join(buy) + "\n")


def test_yoochoose(tmp_path):
    yoochoose(tmp_path)
    log = readers.yoochoose(config("yoochoose", tmp_path))
    found = {s: [i - 214_716_930 for i in x] for s, x in read_back(log).items()}
    wanted = expected()
    wanted[1].append(99)
    assert found == wanted
    assert log.time.max() - log.time.min() == 390_000 + len(wanted[40]) - 1
    # 3 clicks at least and no minimum of events; the sample is smaller than 200,000.
    data = load("yoochoose", tmp_path, tmp_path, preset="paper")
    kept = [s for s, items in expected().items() if len(items) > 3]
    assert counts(data)[1] == len(kept)
    few = load("yoochoose", tmp_path, tmp_path, preset="paper", sample_sessions=11)
    assert counts(few)[1] == 11
    assert counts(few, "read") == counts(data, "read")


@pytest.mark.parametrize("wrong", [dict(first=0), dict(shift=DAY_2014 + 366 * 86_400)])
def test_a_synthetic_yoochoose_is_refused(tmp_path, wrong):
    yoochoose(tmp_path, **wrong)
    with pytest.raises(UserError, match="is not the log of the challenge"):
        readers.yoochoose(config("yoochoose", tmp_path))


def test_yoochoose_without_buys(tmp_path):
    yoochoose(tmp_path)
    (tmp_path / "yoochoose-buys.dat").write_text("")
    with pytest.raises(UserError, match="yoochoose-buys.dat is empty"):
        readers.yoochoose(config("yoochoose", tmp_path))
    (tmp_path / "yoochoose-buys.dat").unlink()
    with pytest.raises(UserError, match="has no yoochoose-buys.dat"):
        readers.yoochoose(config("yoochoose", tmp_path))


MOVIES = {  # id: (title, genres)
    i: (f"Film {i}, The (199{i})", ["Comedy", "War"] if i % 2 else ["Drama"])
    for i in range(1, NUM_ITEMS + 1)
}
MOVIES[2] = ("Misérables, Les (1995)", [])


def ml_100k(folder):
    lines = [f"{u}\t{i}\t{3 + 2 * b}\t{t}" for u, i, t, b in ROWS[::-1]]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    names = movielens.GENRES_100K
    items = [
        "|".join([str(i), title, "01-Jan-1995", "", "http://x/?q"])
        + "".join(f"|{int(name in genres)}" for name in names)
        for i, (title, genres) in MOVIES.items()
    ]
    (folder / "u.item").write_text("\n".join(items) + "\n", "latin-1")


def ml_1m(folder):
    lines = [f"{u}::{i}::{3 + 2 * b}::{t}" for u, i, t, b in ROWS]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    items = [f"{i}::{t}::{'|'.join(g)}" for i, (t, g) in MOVIES.items()]
    (folder / "movies.dat").write_text("\n".join(items) + "\n", "latin-1")


def ml_20m(folder):
    lines = [f"{u},{i},{3 + 2 * b}.0,{t}" for u, i, t, b in ROWS]
    head = ["userId,movieId,rating,timestamp"]
    (folder / "ratings.csv").write_text("\n".join(head + lines) + "\n")
    items = [
        f'{i},"{t}",{"|".join(g) or "(no genres listed)"}'
        for i, (t, g) in MOVIES.items()
    ]
    head = ["movieId,title,genres"]
    (folder / "movies.csv").write_text("\n".join(head + items) + "\n")


@pytest.mark.parametrize("write", [ml_100k, ml_1m, ml_20m])
def test_movielens(tmp_path, write):
    write(tmp_path)
    log = movielens.load(config("movielens", tmp_path))
    assert read_back(log) == expected() == read_back(log, "user")
    assert int(log.kind.sum()) == NUM_SESSIONS  # ratings of 5
    assert log.facts["purchase"] == "a rating of 5 or more"
    again = movielens.load(config("movielens", tmp_path, buy_rating=3.0))
    assert again.kind.all()
    # Titles and genres go with the items through all that drops and renumbers.
    seen = {i: sum(row[1] == i for row in ROWS) for i in MOVIES}
    least = sorted(seen.values())[2]
    data = load("movielens", tmp_path, tmp_path, min_item=least, min_session=1)
    often = [i for i in MOVIES if seen[i] >= least]
    assert data.info["item_ids"].tolist() == [0, *often] and len(often) < NUM_ITEMS
    genres = np.array(sorted({g for _, names in MOVIES.values() for g in names}))
    for number, movie in enumerate(often, 1):
        title, names = MOVIES[movie]
        assert data.info["titles"][number] == title
        assert genres[data.info["attributes"][number]].tolist() == sorted(names)
    assert not data.info["attributes"][0].any() and data.info["titles"][0] == ""
    assert data.info["attributes"].shape == (data.info["vocab"], 3)


def test_a_catalogue_beside_the_file_is_part_of_the_cache(tmp_path):
    ml_20m(tmp_path)
    file = tmp_path / "ratings.csv"
    assert "Film 1" in load("movielens", file, tmp_path).info["titles"][1]
    movies = (tmp_path / "movies.csv").read_text().replace("Film 1", "Movie One")
    (tmp_path / "movies.csv").write_text(movies)
    assert "Movie One" in load("movielens", file, tmp_path).info["titles"][1]


def recbole(folder, name=str):
    head = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines = [f"{u}\t{name(i)}\t{3 + 2 * b}\t{t}.0" for u, i, t, b in ROWS]
    (folder / "x.inter").write_text("\n".join(head + lines) + "\n")
    head = ["item_id:token\tmovie_title:token_seq\tclass:token_seq"]
    lines = [f"{name(i)}\t{t}\t{' '.join(g)}" for i, (t, g) in MOVIES.items()]
    (folder / "x.item").write_text("\n".join([*head, *lines, "new\tNew\tWar"]) + "\n")


@pytest.mark.parametrize("name", [str, "B{:03}".format])
def test_recbole_with_whole_numbers_and_words(tmp_path, name):
    """The catalogue has an item whose id is a word in both cases."""
    recbole(tmp_path, name)
    log = readers.recbole(config("recbole", tmp_path))
    wanted = {
        s: [str(i) if name is str else name(i) for i in x]
        for s, x in expected().items()
    }
    assert {s: [str(i) for i in x] for s, x in read_back(log).items()} == wanted
    data = load("recbole", tmp_path, tmp_path, split="leave_one_out")
    found = dict(zip(data.info["item_ids"].tolist(), data.info["titles"]))
    for movie, (title, genres) in MOVIES.items():
        assert found[movie if name is str else name(movie)] == title
        number = data.info["titles"].index(title)
        assert data.info["attributes"][number].sum() == len(genres)
    assert data.info["attributes"].sum() == sum(len(g) for _, g in MOVIES.values())


def test_sasrec_pairs_and_histories(tmp_path):
    wanted = expected()
    pairs = [f"{s} {i}" for s, items in wanted.items() for i in items]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs) + "\n")
    whole = [" ".join(map(str, [s, *items])) for s, items in wanted.items()]
    (tmp_path / "whole.txt").write_text("\n".join(whole) + "\n")
    for name in ("pairs.txt", "whole.txt"):
        log = readers.sasrec(config("sasrec", tmp_path / name))
        assert read_back(log) == wanted and log.facts["timestamps"] is False
    data = load("sasrec", tmp_path / "whole.txt", tmp_path)
    found = sessions(data.evals["test"], data.info["item_ids"])
    assert found == list(wanted.values())
    (tmp_path / "alone.txt").write_text("1 2\n3\n")
    with pytest.raises(UserError, match="line 2 has no item"):
        readers.sasrec(config("sasrec", tmp_path / "alone.txt"))


def test_gru4rec_folder_is_split_before(tmp_path):
    """The same id in both files is two sessions; training's end validates."""
    head = ["SessionId\tItemId\tTime"]
    for name, part in (("train_full", ROWS[:120]), ("test", ROWS[110:])):
        lines = [f"{s}\t{i}\t{t}.125" for s, i, t, _ in part]
        (tmp_path / f"x_{name}.txt").write_text("\n".join(head + lines) + "\n")
    (tmp_path / "x_train_tr.txt").write_text("not this one\n")
    log = readers.gru4rec(config("gru4rec", tmp_path))
    assert log.part.tolist() == [0] * 120 + [2] * (len(ROWS) - 110)
    fields = dict(split="pre_split", min_session=0, min_item=0, drop_unseen_items=0)
    data = load("gru4rec", tmp_path, tmp_path, **fields)
    ids = data.info["item_ids"]
    assert sessions(data.evals["test"], ids) == list(expected(ROWS[110:]).values())
    train = list(expected(ROWS[:120]).values())
    last = len(train) - round(len(train) * 0.1)
    assert sessions(data.train, ids) == train[:last]
    assert sessions(data.evals["valid"], ids) == train[last:]
    one = load("gru4rec", tmp_path / "x_train_full.txt", tmp_path, min_item=1)
    assert counts(one, "read") == (120, len(train), NUM_ITEMS, 0)
