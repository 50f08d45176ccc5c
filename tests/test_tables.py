"""Tables with a map of columns, and the sets beside the project with their counts."""

import gzip

import numpy as np
import pytest
from log_files import NUM_ITEMS, NUM_SESSIONS, config, counts, load, rows, sessions

from jaxrec.data import readers, shared
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
        log = readers.table(config("table", where, columns=COLUMNS, **more))
        found = zip(log.session, log.item, log.time, log.kind)
        assert [tuple(int(x) for x in row) for row in found] == ROWS
        assert log.user is None and log.facts["name"] == "log"


def test_words_that_are_purchases_and_words_that_are_left_out(tmp_path, capsys):
    path = table(tmp_path / "log.csv")
    base = dict(columns=COLUMNS)
    log = readers.table(config("table", path, purchase="view", **base))
    assert int(log.kind.sum()) == len(ROWS) - NUM_SESSIONS
    log = readers.table(config("table", path, ignore="addtocart", **base))
    assert len(log.item) == len(ROWS) - NUM_SESSIONS and not log.kind.any()
    assert "no event is a purchase (data.purchase); found view" in (
        "".join(capsys.readouterr())
    )
    log = readers.table(config("table", path, columns=COLUMNS | dict(event="")))
    assert not log.kind.any()
    rated = COLUMNS | dict(event="", rating="sid")
    log = readers.table(config("table", path, columns=rated, buy_rating=20.0))
    assert log.kind.tolist() == [int(row[0] >= 20) for row in ROWS]


def test_parquet_with_times_categories_and_missing_values(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path, found = tmp_path / "log.parquet", columns()
    at = np.array(found["at"]).astype("datetime64[s]")

    def read(**changes):
        pq.write_table(pa.table(found | changes), path)
        return readers.table(config("table", path, columns=COLUMNS))

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
    with pytest.raises(UserError, match="'nope'; found did, at, sid, what"):
        readers.table(config("table", path, columns=COLUMNS | dict(item="nope")))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="is no readable parquet file"):
        readers.table(config("table", path, columns=COLUMNS))


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


def test_columns_that_are_not_named_or_not_there(tmp_path):
    path = table(tmp_path / "log.csv")
    for few in ({}, dict(session="sid"), dict(item="what")):
        with pytest.raises(UserError, match="needs the names of `item` and of `sess"):
            readers.table(config("table", path, columns=few))
    with pytest.raises(UserError, match="no column 'x', 'y'; found did, at, sid, what"):
        readers.table(config("table", path, columns=dict(item="x", session="y")))


def test_counts_of_retailrocket_events(shared_data):
    """Those of the data README and of spec 4.1."""
    here = config("shared", shared_data, name="retailrocket-events")
    log = shared.load(here)
    assert len(log.item) == 104_776 and int(log.kind.sum()) == 2_408 + 126
    assert [np.unique(x).size for x in (log.session, log.user, log.item)] == [
        19_173,
        18_206,
        38_187,
    ]


def test_counts_of_prepared_sets(shared_data, tmp_path):
    def prepared(name, **changes):
        return load("shared", shared_data, tmp_path, name=name, **changes)

    data = prepared("retailrocket-events")
    assert counts(data) == (54_260, 10_166, 8_180, counts(data)[3])
    assert data.info["protocol"]["counts"]["test"]["sessions"] <= 1_017
    paper = prepared("retailrocket-events", preset="paper")
    assert counts(paper)[0] > 54_260  # once, not iterated
    data = prepared("retailrocket-clicks")
    found = data.info["protocol"]["counts"]
    assert found["test"]["predicted"] == 15_132
    assert len(data.drawn["test"]) == 15_132
    assert (data.evals["test"]["remaining"][data.drawn["test"]] == 0).all()
    data = prepared("ml-100k")
    assert counts(data, "read") == (100_000, 943, 1_682, 21_201)
    assert len(data.drawn["test"]) == len(data.drawn["valid"]) == 943
    assert data.info["titles"][1] == "Toy Story"
    assert data.info["attributes"].any(axis=1).sum() == 1_682
