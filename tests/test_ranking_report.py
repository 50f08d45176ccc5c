"""The recommenders' table and its paired tests, from run folders made by hand."""

import json

import numpy as np
import pytest

from jaxrec import ranking_report, statistics

EVENTS = 60
KIND = (np.arange(EVENTS) % 4 == 0).astype(np.int8)
SESSION = np.arange(EVENTS) // 5


def write_run(folder, name, ranks, kinds=("purchase", "click"), step=200):
    """A finished run of len(ranks) seeds; `ranks`: float[S, EVENTS] at `step`."""
    ranks = np.asarray(ranks, np.float32)
    gain = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)
    metrics = {"test/ndcg@10": gain.mean(1).tolist()}
    for kind, number in (("click", 0), ("purchase", 1)):
        if kind in kinds:
            chosen = gain[:, KIND == number]
            metrics[f"test/{kind}/ndcg@10"] = chosen.mean(1).tolist()
    config = dict(name=name, seed=0, num_seeds=len(ranks), stages=["train"])
    config["train"] = dict(method=name)
    worse = {name: [0.0] * len(ranks) for name in metrics}
    stage = dict(last=worse, best={}, steps=300)
    stage["selected"] = metrics | {"step": [step] * len(ranks)}
    (folder / "train" / "arrays").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(dict(stages=dict(train=stage))))
    many = len(ranks)
    np.savez(
        folder / "train" / "arrays" / f"{step}.npz",
        **{
            "test/rank": ranks,
            "test/kind": np.tile(KIND, (many, 1)),
            "test/session": np.tile(SESSION, (many, 1)),
        },
    )
    return gain


def draw(seed, best):
    return np.random.default_rng(seed).integers(best, 30, (3, EVENTS))


def test_table_and_differences_are_those_of_the_ranks(tmp_path, capsys):
    a = write_run(tmp_path / "a", "ce", draw(0, 3))
    b = write_run(tmp_path / "b", "sqn", draw(1, 1))
    out = tmp_path / "out"
    flags = [str(tmp_path / "a"), str(tmp_path / "b"), f"--out={out}", "--against=ce"]
    assert ranking_report.main(flags) == 0
    text = capsys.readouterr().out
    middle, low, high = statistics.estimate(b[:, KIND == 1].mean(1))
    assert f"{middle:.4g}"[:5] in text
    csv = (out / "ranking.csv").read_text().splitlines()
    names = csv[0].split(",")
    row = dict(zip(names, csv[2].split(",")))
    assert row[""] == "sqn" and row["seeds"] == "3"
    assert np.isclose(float(row["purchase ndcg@10"]), middle)
    assert np.isclose(float(row["purchase ndcg@10_low"]), low)
    assert row["purchase hr@5"] == ""  # not measured: no number
    x, y = b.mean(0), a.mean(0)
    found = ranking_report.paired_rows(
        ranking_report.runs.experiments(
            [
                ranking_report.runs.read_run(tmp_path / "a"),
                ranking_report.runs.read_run(tmp_path / "b"),
            ]
        ),
        "ce",
        "test",
    )
    assert len(found) == 1
    assert np.isclose(found[0]["all"][0], (x - y).mean())
    want = (x - y)[KIND == 1].mean()
    assert np.isclose(found[0]["purchase"][0], want)
    assert found[0]["all"][1] < found[0]["all"][0] < found[0]["all"][2]


def test_without_a_folder_the_tables_are_printed_alone(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "runs" / "a", "ce", draw(0, 3))
    monkeypatch.chdir(tmp_path)
    assert ranking_report.main(["runs"]) == 0
    assert "ce" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_no_purchases_no_numbers(tmp_path, capsys):
    write_run(tmp_path / "a", "ce", draw(0, 3), kinds=("click",))
    assert ranking_report.main([str(tmp_path / "a"), f"--out={tmp_path}/out"]) == 0
    assert "nan" not in capsys.readouterr().out


FAULTS = [
    "cut off",
    "other arrays",
    "unknown",
    "missing",
    "other events",
    "no ranking",
    "no folder",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_compared_is_told_in_one_line(tmp_path, capsys, fault):
    write_run(tmp_path / "a", "ce", draw(0, 3))
    write_run(tmp_path / "b", "sqn", draw(1, 1))
    against, words = "ce", "rank different events"
    if fault == "unknown":
        against, words = "cee", "one of ce, sqn"
    elif fault == "missing":
        (tmp_path / "b/train/arrays/200.npz").unlink()
        words = "200.npz is missing"
    elif fault == "cut off":
        path = tmp_path / "b/train/arrays/200.npz"
        path.write_bytes(path.read_bytes()[:300])
        words = f"{path} is damaged (File is not a zip file): delete {tmp_path}/b/train"
    elif fault == "other arrays":
        path = tmp_path / "b/train/arrays/200.npz"
        np.savez(path, other=np.zeros(3))
        words = f"{path} is damaged ('test/rank is not a file in the archive'): delete"
    elif fault == "other events":
        path = tmp_path / "b/train/arrays/200.npz"
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"test/session": arrays["test/session"] + 1})
    elif fault == "no folder":
        (tmp_path / "out").write_text("")
        words = "choose another --out"
    else:
        for name in "ab":
            path = tmp_path / name / "summary.json"
            path.write_text(path.read_text().replace("test/ndcg", "test/loss"))
        words = "no run ranks a test set"
    flags = [str(tmp_path), f"--out={tmp_path}/out", f"--against={against}"]
    assert ranking_report.main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0]


def edit_summary(folder, change):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    change(summary["stages"])
    path.write_text(json.dumps(summary))


def test_without_a_selected_step_all_seeds_are_compared_at_the_last(tmp_path):
    gain = write_run(tmp_path / "a", "ce", draw(0, 3), step=300)
    edit_summary(tmp_path / "a", lambda stages: stages["train"].pop("selected"))
    run = ranking_report.runs.read_run(tmp_path / "a")
    found = ranking_report.runs.gains(run, "train", "test")[0]
    np.testing.assert_allclose(found, gain, rtol=1e-6)


def test_a_row_has_one_name_in_both_tables(tmp_path, capsys):
    """One stage of two ranks: the experiment's name is enough; seeds are all runs'."""
    for place, name, seeds in (("a", "otto", 3), ("b", "otto", 1), ("c", "ce", 3)):
        write_run(tmp_path / place, name, draw(ord(place), 3)[:seeds])
        world = dict(world=dict(last={"world/mse": 1.0}, best={}, steps=10))
        edit_summary(tmp_path / place, lambda stages, more=world: stages.update(more))
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(seed=3)))
    flags = [str(tmp_path), f"--out={tmp_path}/out", "--against=otto"]
    assert ranking_report.main(flags) == 0
    text = capsys.readouterr().out
    assert "world" not in text and "train" not in text
    csv = (tmp_path / "out" / "ranking.csv").read_text().splitlines()
    assert {line.split(",")[0]: line.split(",")[-1] for line in csv[1:]} == dict(
        ce="3", otto="4"
    )


def test_rewards_of_simulated_users_are_compared_seed_by_seed(tmp_path, capsys):
    given = dict(a=[3.0, 4.0, 5.0], b=[3.5, 4.4, 5.6])
    for place, name in (("a", "ce"), ("b", "sqn")):
        write_run(tmp_path / place, name, draw(0, 3))
        more = {"users/reward": given[place]}
        edit_summary(
            tmp_path / place,
            lambda stages, more=more: stages["train"]["selected"].update(more),
        )
    flags = [str(tmp_path), f"--out={tmp_path}/out"]
    assert ranking_report.main([*flags, "--against=ce"]) == 0
    text = capsys.readouterr().out
    assert "coverage" not in text  # measured nowhere
    csv = (tmp_path / "out" / "ranking.csv").read_text().splitlines()
    row = dict(zip(csv[0].split(","), csv[2].split(",")))
    assert np.isclose(float(row["reward"]), 4.5)
    # Differences 0.5, 0.4, 0.6: mean 0.5, 4.302653 x 0.1 / sqrt(3) = 0.2484.
    assert "0.5 [0.2516, 0.7484]" in text
    p = statistics.paired_t(np.array(given["b"]), np.array(given["a"]))[3]
    assert f"{p:.4f}" in text and 0.01 < p < 0.02
