"""Own logs as a tensorflow-datasets builder: nothing is lost, nothing is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from log_files import config, load, rows

from jaxrec.data import events, tfds_events
from jaxrec.types import UserError

pytest.importorskip("tensorflow_datasets")
REPOSITORY = Path(__file__).parents[1]
START = 1_700_000_000.123457  # s; float32 would be off by up to a minute


def log(words=False, **more):
    session, item, time, kind = map(np.array, zip(*rows()))
    if words:
        session, item = (np.char.add("ä", x.astype(str)) for x in (session, item))
    facts = dict(name="mine", purchase="a buy") | more.pop("facts", {})
    return events.make(session, item, START + time / 3, kind, facts=facts, **more)


def assert_same(found, wanted):
    for name in ("session", "item", "kind", "user", "part", "scored"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other, name)
    np.testing.assert_allclose(found.time, wanted.time, rtol=0, atol=1e-6)


@pytest.mark.parametrize("words", [False, True])
def test_what_is_written_is_read(tmp_path, words, monkeypatch):
    monkeypatch.setattr(tfds_events, "SHARD", 70)  # several files
    monkeypatch.setattr(tfds_events, "BLOCK", 30)
    wanted = log(words)
    wanted = wanted._replace(user=wanted.session[::-1])
    titles = {item: f"Title {item}" for item in np.unique(wanted.item).tolist()}
    kinds = (np.unique(wanted.item)[:2], np.array(["new", "old"]))
    wanted.facts.update(titles=titles, attributes=kinds)
    path = tfds_events.write(wanted, tmp_path, "mine")
    assert len(list(path.glob("mine-train.array_record-*"))) > 1
    assert [f.name for f in path.parent.iterdir()] == ["1.0.0"]  # nothing temporary
    found = tfds_events.load(config("tfds", tmp_path, name="mine"))
    assert_same(found, wanted)
    assert found.facts["titles"] == titles and found.facts["purchase"] == "a buy"
    for one, other in zip(found.facts["attributes"], kinds):
        np.testing.assert_array_equal(one, other)
    data = load("tfds", tmp_path, tmp_path, name="mine", split="random_session")
    assert data.info["protocol"]["counts"]["read"]["events"] == len(wanted.item)
    assert data.info["titles"][1] == titles[data.info["item_ids"][1].item()]
    assert "tensorflow" not in sys.modules


def test_splits_histories_and_orders_without_times_are_kept(tmp_path):
    session, item, _, kind = map(np.array, zip(*rows()))
    part = {0: session <= 20, 1: (session > 20) & (session <= 30), 2: session > 30}
    parts = {
        number: events.make(
            session[mask], item[mask], None, kind[mask], scored=item[mask] > 1
        )
        for number, mask in part.items()
    }
    wanted = events.concatenate(parts)
    tfds_events.write(wanted, tmp_path, "mine")
    found = tfds_events.load(config("tfds", tmp_path, name="mine"))
    assert_same(found, wanted)
    assert found.time.dtype.kind == "i" and found.facts["timestamps"] is False


def test_rows_that_get_lost_are_noticed(tmp_path, monkeypatch):
    """As parquet loses them in tensorflow-datasets 4.9.10."""
    import tensorflow_datasets as tfds

    honest = tfds.core.SequentialWriter.add_examples

    def lossy(self, examples):
        honest(self, {split: found[1:] for split, found in examples.items()})

    monkeypatch.setattr(tfds.core.SequentialWriter, "add_examples", lossy)
    size = len(log().item)
    with pytest.raises(UserError, match=f"has {size - 1} examples of {size} events"):
        tfds_events.write(log(), tmp_path, "mine")
    assert not list(tmp_path.rglob("*.json"))


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="the name 'My-Log' cannot be a builder's"):
        tfds_events.write(log(), tmp_path, "My-Log")
    with pytest.raises(UserError, match="is too large to write"):
        tfds_events.write(
            log()._replace(time=np.full(len(log().item), 1e18)), tmp_path, "late"
        )
    path = tfds_events.write(log(), tmp_path, "mine")
    with pytest.raises(UserError, match="1.0.0 is there: delete it, or choose"):
        tfds_events.write(log(), tmp_path, "mine")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        tfds_events.write(log(), tmp_path / "file", "mine")
    with pytest.raises(UserError, match="data.name is empty: name a builder"):
        load("tfds", tmp_path, tmp_path)
    with pytest.raises(UserError, match="no builder 'yours'; it has mine: name one"):
        load("tfds", tmp_path, tmp_path, name="yours")
    facts = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(
        json.dumps(facts | dict(fileFormat="parquet"))
    )
    with pytest.raises(UserError, match="format parquet: only array_record"):
        load("tfds", tmp_path, tmp_path, name="mine")
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read .*: write it again") as error:
        load("tfds", tmp_path, tmp_path, name="mine")
    assert "\n" not in str(error.value)
    (path / "dataset_info.json").write_text(json.dumps(facts))
    (file,) = path.glob("*array_record-*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read .*: write it again"):
        load("tfds", tmp_path, tmp_path, name="mine")


def test_the_command_exports_and_a_run_would_read_it(tmp_path):
    lines = [",".join(map(str, row[:3])) for row in rows()]
    (tmp_path / "log.csv").write_text("\n".join(["s,i,t", *lines]) + "\n")
    flags = ["--config=configs/ce.py:smoke", "--config.data.source=table"]
    flags += [f"--config.data.path={tmp_path}/log.csv", f"--out={tmp_path}/out"]
    flags += [f"--config.data.columns.{x}" for x in ("session=s", "item=i", "time=t")]

    def command(*more):
        return subprocess.run(
            [sys.executable, "-m", "jaxrec.data.export", *flags, *more],
            cwd=REPOSITORY,
            env=os.environ | dict(JAX_PLATFORMS="cpu"),
            capture_output=True,
            text=True,
        )

    done = command("--name=mine")
    assert done.returncode == 0, done.stderr
    assert f"{len(rows())} events" in done.stdout
    found = tfds_events.load(config("tfds", tmp_path / "out", name="mine"))
    assert list(zip(found.session, found.item, found.time)) == [r[:3] for r in rows()]
    done = command("--config.data.source=simulated")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "data.source='simulated' is no log: one of retailrocket" in done.stderr
