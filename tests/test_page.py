"""The page of an experiment: whole, escaped, and alone in the world."""

import json
import re
from html.parser import HTMLParser

import numpy as np
from toy_runs import SCORE, run_main, write_run

from jaxrec import page

VOID = {"meta", "link", "br", "img", "input"}


class Checker(HTMLParser):
    """Every element of HTML is closed by its own end; SVG closes itself."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    """(checker, text) of a page; words of the style and of pictures left in."""
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert all(link.startswith("#") for link in checker.links), "not self-contained"
    assert not re.search(r"url\((?!#)|@import|<script", text)
    return checker, " ".join(checker.text)


def test_a_page_of_each_experiment(tmp_path):
    runs = tmp_path / "runs"
    for seed, score in ((0, 40.0), (1, 50.0), (2, 60.0)):
        write_run(runs / f"a{seed}", seed, {SCORE: score, "train/loss": 1.0})
    other = dict(name="iql <b>", lr=0.1)
    path = write_run(runs / "b", 0, {SCORE: 30.0, "train/loss": 2.0}, **other)
    summary = json.loads((path / "summary.json").read_text())
    summary |= dict(versions=dict(jax="0.9.9"), revision="0123456789abcdef")
    (path / "summary.json").write_text(json.dumps(summary))
    assert run_main(runs, f"--out={tmp_path}/out") == 0
    pages = sorted(path.name for path in (tmp_path / "out").glob("*.html"))
    assert pages == ["iql_b.html", "td3bc.html"]
    _, text = read(tmp_path / "out" / "td3bc.html")
    assert "50 [25.16, 74.84]" in text  # 50 -+ 4.303 * 10 / sqrt(3)
    assert text.count("a0") == 1 and "a2" in text
    checker, text = read(tmp_path / "out" / "iql_b.html")
    assert "iql <b>" in text and "b" not in checker.open
    assert "train.lr" in text and "0.1" in text
    assert "0.9.9" in text and "0123456789ab" in text and "abcdef" not in text
    assert "Hopper-v4" in text
    assert "Held-out sessions" not in text  # these runs keep no ranks


def test_the_spread_over_sessions(tmp_path):
    """Sessions of which the model ranks all, half and none of the events first."""
    path = write_run(tmp_path / "run", 0, {"test/ndcg@10": 0.5}, name="ce")
    rank = np.array([1, 1, 1, 99, 99, 99], np.float32)
    arrays = {"test/rank": rank, "test/kind": np.zeros(6, np.int8)}
    arrays["test/session"] = np.array([0, 0, 7, 7, 9, 9], np.int32)
    (path / "train" / "arrays").mkdir()
    np.savez(path / "train" / "arrays" / "40.npz", **arrays)
    assert run_main(path, f"--out={tmp_path}/out") == 0
    _, text = read(tmp_path / "out" / "ce.html")
    assert "3 sessions" in text and "in 33% of them; median 0.500" in text


def test_damaged_ranks_cost_their_picture_alone(tmp_path, capsys):
    path = write_run(tmp_path / "run", 0, {"test/ndcg@10": 0.5}, name="ce")
    ranks = path / "train" / "arrays" / "40.npz"
    ranks.parent.mkdir()
    ranks.write_bytes(b"PK\3\4 as a copy leaves it that was cut off")
    assert run_main(path, f"--out={tmp_path}/out") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: {ranks} is damaged" in line
    assert f"delete {path}/train and {path}/summary.json and give the command" in line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "table.csv", "ce.html", "test_ndcg@10.png"}
    assert "Held-out sessions" not in read(tmp_path / "out" / "ce.html")[1]


def test_methods_are_compared_field_by_field():
    one = {"train.method": "ce", "train.ce.lr": 1, "train.ce.tied": True, "seed": 3}
    other = {"train.method": "sqn", "train.sqn.lr": 1, "train.sqn.gamma": 0.5}
    one, other = page.fields(one), page.fields(other)
    assert one["train.METHOD.lr"] == other["train.METHOD.lr"] == "1"
    assert one["train.METHOD.tied"] == "true" and other["train.METHOD.gamma"] == "0.5"
    assert "seed" not in one and one["train.method"] == '"ce"'


def test_names_of_files():
    assert page.slug("ce data.name=a/b (x)") == "ce_data.name=a_b_x"
    assert page.slug("//") == "experiment"
    assert len(page.slug("x" * 300)) == 100
