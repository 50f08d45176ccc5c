"""Tables with a map of columns, and the sets beside the project with their counts."""

import gzip
from collections import Counter

import numpy as np
import pytest
from log_files import NUM_ITEMS, NUM_SESSIONS, config, counts, load, rows, sessions

from jaxrec.data import shared, tables
from jaxrec.types import UserError

ROWS = rows()
COLUMNS = dict(session="sid", item="what", time="at", event="did")
WORDS = {0: "view", 1: "addtocart"}


def columns():
    sid, what, at, bought = map(list, zip(*ROWS))
    return dict(did=[WORDS[b] for b in bought], at=at, sid=sid, what=what)


def table(path, found=None, delimiter=","):
    found = found or columns()
    lines = [found, *zip(*found.values())]
    body = "".join(delimiter.join(map(str, line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.mark.parametrize("end", ["csv", "tsv", "csv.gz", "tsv.gz", "parquet", "psv"])
def test_one_table_in_any_format(tmp_path, end):
    path = tmp_path / f"log.{end}"
    more = dict(delimiter="|") if end == "psv" else {}
    if end == "parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table(columns()), path)
    else:
        table(path, delimiter={"c": ",", "t": "\t", "p": "|"}[end[0]])
    for where in (path, tmp_path) if end != "psv" else (path,):
        log = tables.load(config("table", where, columns=COLUMNS, **more))
        found = zip(log.session, log.item, log.time, log.kind)
        assert [tuple(int(x) for x in row) for row in found] == ROWS
        assert log.user is None and log.facts["name"] == "log"


def test_words_that_are_purchases_and_words_that_are_left_out(tmp_path, capsys):
    path = table(tmp_path / "log.csv")
    base = dict(columns=COLUMNS)
    log = tables.load(config("table", path, purchase="view", **base))
    assert int(log.kind.sum()) == len(ROWS) - NUM_SESSIONS
    log = tables.load(config("table", path, ignore="addtocart", **base))
    assert len(log.item) == len(ROWS) - NUM_SESSIONS and not log.kind.any()
    assert "no event is a purchase (data.purchase); found view" in (
        "".join(capsys.readouterr())
    )
    table(path, columns() | dict(did=["view", "buy", "returned"] * (len(ROWS) // 3)))
    tables.load(config("table", path, **base))
    told = "clicks are returned, view: name in data.ignore what is none"
    assert told in "".join(capsys.readouterr())
    log = tables.load(config("table", path, ignore="returned", **base))
    assert "clicks are" not in "".join(capsys.readouterr())
    assert log.kind.tolist() == [0, 1] * (len(ROWS) // 3)
    assert not tables.load(config("table", path, purchase="", **base)).kind.any()
    table(path)
    with pytest.raises(UserError, match="data.ignore='view,addtocart' leaves no ev"):
        tables.load(config("table", path, ignore="view,addtocart", **base))
    log = tables.load(config("table", path, columns=COLUMNS | dict(event="")))
    assert not log.kind.any()
    rated = COLUMNS | dict(event="", rating="stars")
    table(path, columns() | dict(stars=columns()["sid"]))
    log = tables.load(config("table", path, columns=rated, buy_rating=20.0))
    assert log.kind.tolist() == [int(row[0] >= 20) for row in ROWS]
    with pytest.raises(UserError, match="session='sid': that column already stands"):
        tables.load(config("table", path, columns=rated | dict(rating="sid")))


def test_parquet_with_times_categories_and_missing_values(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path, found = tmp_path / "log.parquet", columns()
    at = np.array(found["at"]).astype("datetime64[s]")

    def read(**changes):
        pq.write_table(pa.table(found | changes), path)
        return tables.load(config("table", path, columns=COLUMNS))

    spelled = [str(t) for t in at]
    for when in (pa.array(at), pa.array(at.astype("datetime64[ns]")), spelled):
        assert read(at=when).time.tolist() == found["at"]
    words = pa.array([f"item {i}" for i in found["what"]]).dictionary_encode()
    assert read(what=words).item.tolist() == [f"item {i}" for i in found["what"]]
    gone = pa.array([None, *found["at"][1:]])
    with pytest.raises(UserError, match="'at' is not a time in row 1: fix or remove"):
        read(at=gone)
    with pytest.raises(UserError, match="'at' is not a time in row 3"):
        read(at=[1.0, 2.0, float("nan"), *found["at"][3:]])
    with pytest.raises(UserError, match="'what' is not there in row 2"):
        read(what=pa.array([1, None, *found["what"][2:]]))
    with pytest.raises(UserError, match="the item of event 0 is a list: give a row"):
        read(what=[[1], *[[2, 3]] * (len(ROWS) - 1)])
    with pytest.raises(UserError, match="'nope'; found did, at, sid, what"):
        tables.load(config("table", path, columns=COLUMNS | dict(item="nope")))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="is no readable parquet file"):
        tables.load(config("table", path, columns=COLUMNS))


def test_ids_that_are_words_and_iso_times(tmp_path):
    found = columns()
    found["sid"] = [f"s-{s}" for s in found["sid"]]
    found["what"] = [f"ä{i}" for i in found["what"]]
    found["at"] = [f"{np.datetime64(t, 's')}.5Z" for t in found["at"]]
    path = table(tmp_path / "log.csv", found)
    changes = dict(split="random_session", drop_unseen_items=0)
    data = load("table", path, tmp_path, COLUMNS, **changes)
    plain = load("table", table(tmp_path / "plain.csv"), tmp_path, COLUMNS, **changes)
    assert data.info["item_ids"].tolist() == ["", *(f"ä{i + 1}" for i in range(6))]
    assert (
        counts(data) == counts(plain) == (*counts(plain)[:2], NUM_ITEMS, NUM_SESSIONS)
    )
    got = sessions(data.train, data.info["item_ids"])
    own = sessions(
        load("table", path, tmp_path, COLUMNS, **changes).train, data.info["item_ids"]
    )  # from the cache
    assert got == own
    whole = {}
    for sid, what in zip(found["sid"], found["what"]):
        whole.setdefault(sid, []).append(what)
    for flat in data.evals.values():
        got += sessions(flat, data.info["item_ids"])
    assert sorted(got) == sorted(whole.values())


@pytest.mark.parametrize("unit, scale", [("milli", 10**3), ("nano", 10**9)])
def test_times_too_late_for_seconds(tmp_path, unit, scale, capsys):
    found = columns()
    at = [1_700_000_000 + t for t in found["at"]]
    path = table(tmp_path / "log.csv", found | dict(at=[t * scale for t in at]))
    log = tables.load(config("table", path, columns=COLUMNS))
    np.testing.assert_allclose(log.time, at, rtol=0, atol=1e-6)
    assert f"are taken as {unit}seconds" in "".join(capsys.readouterr())


def test_columns_that_are_not_named_or_not_there(tmp_path):
    path = table(tmp_path / "log.csv")
    for few in ({}, dict(session="sid"), dict(item="what")):
        with pytest.raises(UserError, match="item` and of `sess.* has did, at, sid"):
            tables.load(config("table", path, columns=few))
    with pytest.raises(UserError, match="no column 'x', 'y'; found did, at, sid, what"):
        tables.load(config("table", path, columns=dict(item="x", session="y")))


@pytest.mark.parametrize(
    "name, size",  # events, sessions, items, purchases: data README and spec 4.1
    [
        ("retailrocket-events", (104_776, 19_173, 38_187, 2_408 + 126)),
        ("retailrocket-clicks", (None, 126_168 + 15_132, 36_968, 0)),
        ("yoochoose-100k", (70_278 + 13_568, 17_794 + 3_416, 2_933, 0)),
        ("ml-1m", (1_000_209, 6_040, 3_706, 226_310)),
        ("ml-100k", (100_000, 943, 1_682, 21_201)),
        ("lastfm", (52_551, 1_090, 3_646, 0)),
        ("beauty", (198_502, 22_363, 12_101, 0)),
    ],
)
def test_counts_of_the_sets_beside_the_project(shared_data, name, size):
    log = shared.load(config("shared", shared_data, name=name))
    found = (len(log.item), *(np.unique(x).size for x in (log.session, log.item)))
    for count, wanted in zip((*found, int(log.kind.sum())), size):
        assert wanted is None or count == wanted
    if name == "retailrocket-clicks":
        assert int((log.part == 0).sum()) == 685_984


def test_retailrocket_iterated(shared_data, tmp_path):
    """Sessions and items of three events, until both hold; counted by a loop."""
    where = shared_data / "retailrocket-events" / "events.tsv.gz"
    lines = gzip.decompress(where.read_bytes()).decode().splitlines()
    head = lines[0].split("\t")
    names = ("session_id", "item_id", "event")
    place = [head.index(name) for name in names]
    kept = [tuple(line.split("\t")[i] for i in place) for line in lines[1:]]
    before = 0
    while before != len(kept):
        before = len(kept)
        for column in (0, 1):
            many = Counter(row[column] for row in kept)
            kept = [row for row in kept if many[row[column]] >= 3]
    words = Counter(event for *_, event in kept)
    data = load("shared", shared_data, tmp_path, name="retailrocket-events")
    assert counts(data) == (54_260, 10_166, 8_180, sum(words.values()) - words["view"])
    assert len(kept) == 54_260 and words["addtocart"] == 1_246
    once = dict(name="retailrocket-events", preset="paper")
    assert counts(load("shared", shared_data, tmp_path, **once))[0] > 54_260


def test_held_out_events_of_real_sets(shared_data, tmp_path):
    data = load("shared", shared_data, tmp_path, name="retailrocket-clicks")
    found, drawn = data.info["protocol"]["counts"], data.drawn["test"]
    assert found["test"]["predicted"] == len(drawn) == 15_132
    assert data.info["num_items"] == 36_968
    assert (data.evals["test"]["remaining"][drawn] == 0).all()
    data = load("shared", shared_data, tmp_path, name="ml-100k")
    assert len(data.drawn["test"]) == len(data.drawn["valid"]) == 943
    assert data.info["titles"][1] == "Toy Story"
    assert data.info["attributes"].any(axis=1).sum() == 1_682
