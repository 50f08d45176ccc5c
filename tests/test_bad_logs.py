"""What users' logs get wrong: one line that says what and where, and nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from log_files import config, counts, load, rows

from configs import baselines
from jaxrec import experiment
from jaxrec.types import UserError

REPOSITORY = Path(__file__).parents[1]
COLUMNS = dict(session="sid", item="what", time="at", event="did")
EASY = dict(split="random_session", drop_unseen_items=0, min_item=1)


def table(path, found=None, names="sid,what,at,did"):
    found = found or [(s, i, t, "buy" if b else "view") for s, i, t, b in rows()]
    lines = [names, *(",".join(map(str, row)) for row in found)]
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(message, *args, **changes):
    with pytest.raises(UserError, match=message) as error:
        load(*args, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_fields_with_impossible_values(tmp_path):
    path = table(tmp_path / "log.csv")
    for changes, message in (
        (dict(preset="papers"), "data.preset='papers': one of paper, recommended"),
        (dict(split="time"), "data.split='time': one of random_session, temporal_q"),
        (dict(split="pre_split"), "comes without a split"),
        (dict(session_by="visitor"), "data.session_by='visitor': user or session"),
        (dict(session_by="user"), "names no users"),
        (dict(seq_len=0), "data.seq_len=0: at least 1"),
        (dict(valid=0.0), "data.valid and data.test are shares above 0"),
        (dict(test=1.0), "data.valid and data.test are shares above 0"),
        (dict(valid=float("nan")), "data.valid and data.test are shares above 0"),
        (dict(min_session=1000), "no events are left after data.min_session=1000"),
        (dict(min_item=1000), "no events are left .* data.min_item=1000"),
        (dict(split="last_days", test_days=400.0), "the train split is empty"),
        (dict(delimiter="ab"), "data.delimiter='ab': one character"),
        (
            dict(delimiter=";"),
            "no column 'did', .*found sid,what,at,did: .*config.data.delimiter",
        ),
        (dict(click_reward=float("nan")), "data.click_reward=nan: a finite number"),
        (dict(session_gap=float("nan")), "data.session_gap=nan: 0 or more"),
        (dict(min_item=-2), "data.min_item=-2: 0 or more, -1 by the preset"),
        (dict(seed=-1), "data.seed=-1: 0 or more"),
        (dict(hash_items=2**63), "data.hash_items=.*: items to hash to, below 2.*31"),
        (dict(session_chunk=2**63), "session_chunk=.*: a whole number below 2.*63"),
    ):
        refused(message, "table", path, tmp_path, COLUMNS, **EASY | changes)
    for changes, message in (
        (dict(COLUMNS, event="at"), "data.columns.time='at': that column already"),
        (dict(COLUMNS, rating="did"), "data.columns.rating='did': that column"),
    ):
        refused(message, "table", path, tmp_path, changes, **EASY)


def test_a_header_with_a_return_inside(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"sid,what,at,did\r1,2,3,view\r1,3,4,view\r")
    refused("line 1 is no header .*: write the names", "table", path, tmp_path, COLUMNS)


def test_paths_that_are_no_logs(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.touch()
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    packed = tmp_path / "torn.csv.gz"
    packed.write_bytes(b"\x1f\x8b\x08torn")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(np.random.default_rng(0).bytes(5_000))
    for path, message in (
        ("", "data.path is empty: name a .csv, .tsv or .parquet file"),
        (
            tmp_path / "none.csv",
            "none.csv' cannot be read .No such file.*: name a .csv",
        ),
        (empty, "empty.csv is empty"),
        (folder, "folder.csv' has no "),
        (packed, "torn.csv.gz is damaged"),
        (binary, "binary.csv"),
        (table(tmp_path / "head.csv", [()]), "no events"),
        ("~no_such_user/x.csv", "data.path='~no_such_user/x.csv'"),
    ):
        refused(message, "table", path, tmp_path, COLUMNS, **EASY)
    logs = ("sasrec", "gru4rec", "recbole", "retailrocket", "yoochoose", "buffer")
    for source in logs:
        refused("data.path is empty: name", source, "", tmp_path)
        refused("empty.csv is (empty|no pickled table)", source, empty, tmp_path)
        refused("binary.csv", source, binary, tmp_path)
        refused("has no ", source, folder, tmp_path)
    refused(
        "data.name='x': one of retailrocket-events", "shared", "", tmp_path, name="x"
    )
    there = str(tmp_path)
    refused("ml-1m is not there", "shared", there, tmp_path, name="ml-1m")


def test_sessions_of_one_event_only(tmp_path):
    path = table(tmp_path / "log.csv", [(s, s % 5, s, "view") for s in range(50)])
    refused("no events are left", "table", path, tmp_path, COLUMNS)
    message = refused(
        "the train split is empty .*none to predict",
        *("table", path, tmp_path, COLUMNS),
        **EASY | dict(min_session=1),
    )
    assert "data.split=random_session" in message
    first = EASY | dict(min_session=1, score_first_event=1)
    assert load("table", path, tmp_path, COLUMNS, **first).train  # from nothing


def test_too_few_sessions_to_split(tmp_path):
    path = table(tmp_path / "log.csv", rows_of([(s, 1) for s in (1, 2, 3)] * 4))
    refused("the test split is empty", "table", path, tmp_path, COLUMNS, **EASY)


def rows_of(pairs):
    return [(s, i, t, "view") for t, (s, i) in enumerate(pairs)]


def test_unsorted_and_duplicate_rows_are_events_in_order(tmp_path):
    found = [(s, i, t, "view") for s, i, t, _ in rows()]
    mixed = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    wanted = load("table", table(tmp_path / "a.csv", found), tmp_path, COLUMNS, **EASY)
    data = load("table", table(tmp_path / "b.csv", mixed), tmp_path, COLUMNS, **EASY)
    for name, column in wanted.train.items():
        np.testing.assert_array_equal(data.train[name], column)
    twice = table(tmp_path / "c.csv", [row for row in found for _ in range(2)])
    data = load("table", twice, tmp_path, COLUMNS, **EASY)
    assert counts(data)[0] == 2 * len(found)  # a repeated view is an event


def test_one_bad_line_among_many(tmp_path):
    found = [(s, i, t, "view") for s, i, t, _ in rows(num=20_000)]
    found[70_000] = (3, 4, "yesterday", "view")
    path = table(tmp_path / "log.csv", found)
    refused(
        "log.csv line 70002: column 'at' is 'yesterday', not a time",
        *("table", path, tmp_path, COLUMNS),
    )
    found[70_000] = (3, 4, "nan", "view")
    refused("line 70002", "table", table(path, found), tmp_path, COLUMNS)
    found[70_000] = (3, "", 5, "view")
    refused("line 70002.* empty", "table", table(path, found), tmp_path, COLUMNS)
    assert not list((tmp_path / "cache").rglob("*.npy"))  # nothing half-made is left


def test_a_corrupt_cache_names_its_folder(tmp_path):
    path = table(tmp_path / "log.csv")
    load("table", path, tmp_path, COLUMNS, **EASY)
    (made,) = (tmp_path / "cache").iterdir()
    file = made / "train-item.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\x7f\x7f\x7f\x7f")
    here = str(made)
    for _ in range(2):
        message = refused(
            "train-item.npy is damaged .*checksum.*: delete the folder",
            *("table", path, tmp_path, COLUMNS),
            **EASY,
        )
        assert here in message
    file.write_bytes(content)
    assert load("table", path, tmp_path, COLUMNS, **EASY).train


def test_clicks_alone_have_no_purchase_metrics(tmp_path):
    """And a run goes through, with items in the test that training never saw."""
    found = [(s, i, t, "view") for s, i, t, _ in rows(num=120)]
    found += [(s, 1000 + s, 10_000 * s + 9, "view") for s in range(1, 121)]
    path = table(tmp_path / "log.csv", found)
    run = baselines.get_config("smoke")
    run.stages = ("pop",)
    run.data = config("table", path, tmp_path, COLUMNS, **EASY)
    summary = experiment.run(run, tmp_path / "run")
    metrics = summary["stages"]["pop"]["last"]
    assert metrics["test/ndcg@10"] > 0 and metrics["test/click/hr@10"] > 0
    assert not any("purchase" in name for name in metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    lines = (tmp_path / "run" / "pop" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and "purchase" not in lines
    data = load("table", path, tmp_path, COLUMNS, **EASY)
    assert data.info["protocol"]["counts"]["unseen_test_items"] > 0
    assert counts(data)[3] == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["source=tabel"], "data source 'tabel' is unknown; did you mean table?"),
        (["source=table", "path=LOG"], "data.columns needs the names of `item`"),
        (["columns.sesion=sid"], "sesion"),
        (["columns=sid"], "columns"),
        (
            ["source=table", "path=LOG", "columns.item=x", "columns.session=sid"],
            "no column 'x'; found sid, what, at, did",
        ),
    ],
)
def test_main_exits_with_2_and_one_line(tmp_path, flags, message):
    path = table(tmp_path / "log.csv")
    flags = [f"--config.data.{f}".replace("LOG", str(path)) for f in flags]
    done = subprocess.run(
        [sys.executable, "-m", "jaxrec.main", "--config=configs/ce.py:smoke"]
        + [f"--workdir={tmp_path / 'run'}", *flags],
        cwd=REPOSITORY,
        env=os.environ | dict(JAXREC_DATA=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("jaxrec: error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
