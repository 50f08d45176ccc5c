"""Reports: tables of made-up runs."""

import json
import subprocess
import sys

import pytest
from toy_runs import SCORE, read_csv, run_main, write_run

from jaxrec import report
from jaxrec import runs as runs_lib
from jaxrec.errors import UserError


def test_runs_and_seed_lists_are_pooled(tmp_path, capsys):
    write_run(tmp_path / "a", 0, {SCORE: [1.0, 2.0]}, num_seeds=2, best={SCORE: [4, 4]})
    write_run(tmp_path / "b", 2, {SCORE: 3.0}, best={SCORE: 7.0})
    (tmp_path / "a" / "train" / "config.json").write_text("{}")  # no run of its own
    assert run_main(tmp_path, f"--out={tmp_path / 'out'}") == 0
    (row,) = read_csv(tmp_path / "out" / "table.csv")
    assert (row["experiment"], row["seeds"], row["steps"]) == ("td3bc", "3", "40")
    assert row["data"] == "gym/Hopper-v4/medium 7 Hopper-v4"
    assert float(row["last"]) == 2.0 and float(row["best"]) == 5.0
    assert float(row["last_low"]) == pytest.approx(2 - 2.484138, abs=1e-6)
    assert float(row["last_high"]) == pytest.approx(2 + 2.484138, abs=1e-6)
    markdown, errors = capsys.readouterr()
    assert errors == ""
    assert "2 [-0.4841, 4.484]" in markdown
    assert (tmp_path / "out" / "table.md").read_text() == markdown


def test_groups_are_labelled_by_what_differs(tmp_path):
    for seed in (0, 1):
        for alpha in (1.0, 2.5):
            folder = tmp_path / f"{alpha}-{seed}"
            write_run(folder, seed, {SCORE: alpha}, alpha=alpha, width=256)
    write_run(tmp_path / "iql", 0, {SCORE: 9.0}, name="iql", tau=0.7)
    runs = [runs_lib.read_run(path) for path in runs_lib.find_runs([str(tmp_path)])]
    groups = runs_lib.group_runs(runs)
    names = {label: sorted(r.config["seed"] for r in g) for label, g in groups.items()}
    assert names == {
        "iql": [0],
        "td3bc train.alpha=1.0": [0, 1],
        "td3bc train.alpha=2.5": [0, 1],
    }


def test_many_differing_fields_are_cut_to_those_that_tell(tmp_path):
    for number, method in enumerate(("bc", "iql", "td3bc")):
        fields = {f"field{i}": number for i in range(5)} | {f"of_{method}": 1}
        write_run(tmp_path / method, 0, {SCORE: 1.0}, name="x", method=method, **fields)
    runs = [runs_lib.read_run(path) for path in runs_lib.find_runs([str(tmp_path)])]
    labels = [f"x train.method={method}" for method in ("bc", "iql", "td3bc")]
    assert list(runs_lib.group_runs(runs)) == labels


def test_a_seed_is_not_counted_twice(tmp_path, capsys):
    write_run(tmp_path / "a", 0, {SCORE: [1.0, 2.0, 3.0]}, num_seeds=3)
    write_run(tmp_path / "b", 2, {SCORE: 9.0})
    assert run_main(tmp_path, tmp_path / "a", f"--out={tmp_path / 'out'}") == 0
    (row,) = read_csv(tmp_path / "out" / "table.csv")
    assert (row["seeds"], float(row["last"])) == ("3", 2.0)
    assert f"warning: {tmp_path / 'b'} left out" in capsys.readouterr().err


def test_metrics_shown_without_a_headline(tmp_path):
    last = {"train/loss": 1.0, "train/q": 5.0, "valid/ndcg@10": 0.25, "test/hr@5": 0.5}
    run, out = write_run(tmp_path / "a", 0, last), tmp_path / "out"
    assert run_main(run, f"--out={out}") == 0
    shown = [row["metric"] for row in read_csv(out / "table.csv")]
    assert shown == ["test/hr@5", "train/loss", "valid/ndcg@10"]
    assert (out / "valid_ndcg@10.png").is_file() and (out / "train_loss.png").is_file()
    assert run_main(run, f"--out={out}", "--metrics=train/q") == 0
    (row,) = read_csv(out / "table.csv")
    assert (row["metric"], row["last"], row["last_low"]) == ("train/q", "5.0", "")


def test_world_models_are_shown_horizon_by_horizon(tmp_path):
    last = {f"world/rmse@{h}": 0.1 * h for h in (10, 1, 5)}
    last |= {"world/spearman": 0.5, "train/loss": 1.0, "train/q": 2.0}
    run, out = write_run(tmp_path / "a", 0, last), tmp_path / "out"
    assert run_main(run, f"--out={out}") == 0
    shown = [row["metric"] for row in read_csv(out / "table.csv")]
    wanted = [f"world/rmse@{h}" for h in (1, 5, 10)]
    assert shown == ["train/loss", *wanted, "world/spearman"]
    text = report.final_table(json.loads((run / "summary.json").read_text()))
    assert [line.split()[1] for line in text.splitlines()[1:6]] == shown


def test_broken_and_unfinished_runs(tmp_path, capsys):
    write_run(tmp_path / "good", 0, {SCORE: 50.0})
    stopped = write_run(tmp_path / "stopped", 1, {SCORE: 60.0}, finished=False)
    with (stopped / "train" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "eval/norm')  # the line a kill cuts short
    cut, old, odd = (
        write_run(tmp_path / name, 2, {SCORE: 70.0}) for name in ("cut", "old", "odd")
    )
    (cut / "summary.json").write_text('{"stages": {')
    (old / "config.json").write_text("[1, 2]")
    (odd / "summary.json").write_text('{"stages": [1]}')
    out = tmp_path / "out"
    assert run_main(tmp_path, f"--out={out}") == 0
    errors = capsys.readouterr().err.splitlines()
    for error, told in zip(
        errors,
        (
            f"{cut}/summary.json is cut off or no JSON: run it again; left out",
            f"{odd}: its files are not as a run writes them, run it again; left out",
            f"{old}/config.json holds no object of fields: run it again; left out",
            f"{stopped}: unfinished, left out; --unfinished shows it",
        ),
        strict=True,
    ):
        assert error == f"jaxrec: warning: {told}"
    assert [row["last"] for row in read_csv(out / "table.csv")] == ["50.0"]

    assert run_main(tmp_path, f"--out={out}", "--unfinished") == 0
    good, half = read_csv(out / "table.csv")
    assert (good["seeds"], good["last"]) == ("1", "50.0")
    assert half["experiment"] == "td3bc seed=1 (unfinished)"
    assert (half["steps"], half["last"], half["best"]) == ("20", "30.0", "")


def test_a_seed_that_is_not_finite_is_named(tmp_path, capsys):
    write_run(tmp_path / "a", 0, {SCORE: [1.0, None, 3.0]}, num_seeds=3)
    assert run_main(tmp_path / "a", f"--out={tmp_path / 'out'}") == 0
    (row,) = read_csv(tmp_path / "out" / "table.csv")
    assert (row["seeds"], row["last"]) == ("2", "2.0")
    assert f"{SCORE} of 1 seeds is not finite" in capsys.readouterr().err


def test_comparison_over_tasks(tmp_path, capsys):
    for method, level in (("bc", 10.0), ("iql", 20.0)):
        for task in ("gym/a", "gym/b"):
            for seed in (0, 1):
                folder = tmp_path / method / task / str(seed)
                last = {SCORE: level + seed}
                write_run(folder, seed, last, name=method, data=task, best=last)
    write_run(tmp_path / "c", 0, {SCORE: 99.0}, name="iql", data="gym/c")
    arguments = [tmp_path, f"--out={tmp_path / 'out'}", f"--iqm={SCORE}"]
    assert run_main(*arguments) == 0
    output = capsys.readouterr()
    # Four scores 10, 10, 11, 11 without lowest and highest: 10.5.
    assert (
        "| bc     | eval/normalized_score | 2     | 4     | 10.5 [10, 11]" in output.out
    )
    assert "| 20.5 [20, 21]" in output.out
    assert "| bc | iql | eval/normalized_score | 0 [0, 0]" in output.out
    assert "left out: gym/c" in output.err
    pages = [path.read_text() for path in (tmp_path / "out").glob("*.html")]
    assert len(pages) == 5
    assert all("All methods over tasks" in x and "10.5 [10, 11]" in x for x in pages)
    assert run_main(*arguments, "--task=data.nam") == 2
    assert "nearest: data.name" in capsys.readouterr().err


def test_errors_are_one_line_and_status_2(tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    run = write_run(tmp_path / "a", 0, {SCORE: 1.0})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, text in [
        ((tmp_path / "missing", out), f"no such folder: {tmp_path / 'missing'}"),
        ((tmp_path / "empty", out), "no runs"),
        ((run, out, "--metrics=eval/normalised_score"), f"nearest: {SCORE}"),
        ((run, f"--out={tmp_path / 'file'}"), "choose another --out"),
    ]:
        assert run_main(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("jaxrec: error: ") and text in line
    with pytest.raises(UserError, match="no such folder"):
        report.report(["missing"], tmp_path)


def test_import_is_light():
    code = "import sys, jaxrec.report; print({'jax', 'matplotlib'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "set()\n", found.stderr


def test_stages_of_one_run_are_methods_of_the_comparison(tmp_path):
    """Base and variant as two stages: a paired comparison without a second run."""
    for task in ("a", "b"):
        for seed in (0, 1):
            folder = tmp_path / f"{task}{seed}"
            folder.mkdir()
            config = dict(name="study", seed=seed, num_seeds=1, data=dict(name=task))
            config["stages"] = ["base", "more"]
            stage = dict(steps=10, best={})
            stages = {
                "base": stage | {"last": {"eval/normalized_score": 10.0 + seed}},
                "more": stage | {"last": {"eval/normalized_score": 20.0 + seed}},
            }
            summary = dict(name="study", stages=stages, seed=seed, num_seeds=1)
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "summary.json").write_text(json.dumps(summary))
    text = report.report(
        [str(tmp_path)], tmp_path / "out", iqm_metric="eval/normalized_score"
    )
    lines = [line for line in text.splitlines() if line.startswith("| base")]
    assert any("10.5" in line for line in lines)
    assert any("| more" in line and "| 0 [0, 0]" in line for line in lines)
