"""Reports: statistics against hand numbers, and tables and plots of made-up runs."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from jaxrec import plots, report, statistics
from jaxrec import runs as runs_lib
from jaxrec.errors import UserError

SCORE = "eval/normalized_score"


def write_run(
    path: Path,
    seed: int,
    last: dict,
    name: str = "td3bc",
    num_seeds: int = 1,
    data: str = "gym/Hopper-v4/medium",
    finished: bool = True,
    best: dict | None = None,
    **fields,
) -> Path:
    """A run folder with one stage whose curves rise linearly to `last` at step 40."""
    config = dict(name=name, seed=seed, num_seeds=num_seeds, stages=["train"])
    config |= dict(workdir=str(path), data=dict(name=data), train=dict(steps=40))
    config["train"] |= fields
    stage = path / "train"
    stage.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for step in (10, 20, 30, 40) if finished else (10, 20):
        line = {"step": step, "wall": 0.1 * step}
        for metric, value in last.items():
            scaled = (np.array(value, float) * step / 40).tolist()
            line[metric] = scaled
        lines.append(json.dumps(line) + "\n")
    (stage / "metrics.jsonl").write_text("".join(lines))
    if finished:
        facts = dict(last=last, best=best or {}, steps=40, seconds=2.0, parameters=1234)
        facts |= dict(steps_per_second=20.0, compile_seconds=1.0)
        info = dict(name=data, version="7", env_id="Hopper-v4")
        summary = dict(stages=dict(train=facts), device="cpu", seed=seed)
        summary |= dict(num_seeds=num_seeds, data=info)
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_main(*arguments) -> int:
    return report.main([str(argument) for argument in arguments])


def test_t_interval_by_hand():
    # sd of 1, 2, 3 is 1; t(0.975, 2) = 4.302653; 4.302653 / sqrt(3) = 2.484138
    mean, half = statistics.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert half == pytest.approx(2.484138, abs=1e-6)
    # sd of 1..5 is 1.581139; t(0.975, 4) = 2.776445; over sqrt(5): 1.963243
    _, halves = statistics.interval(
        np.arange(1.0, 6.0)[:, None] * np.array([[1.0, 2.0]])
    )
    np.testing.assert_allclose(halves, [1.963243, 3.926486], atol=1e-5)


def test_one_seed_has_no_interval():
    mean, low, high = statistics.estimate(np.array([3.0]))
    assert mean == 3.0 and np.isnan(low) and np.isnan(high)


def test_iqm_by_hand():
    assert statistics.iqm(np.arange(1.0, 9.0)) == 4.5  # of 3, 4, 5, 6
    assert statistics.iqm(np.array([100.0, 0.0, 2.0, 1.0, 3.0])) == 2.0  # of 1, 2, 3
    assert statistics.iqm(np.array([5.0, 1.0, 3.0])) == 3.0  # floor(3 / 4) = 0 cut
    rows = np.array([[0.0, 1, 3, 9], [4.0, 8, 0, 2]])
    np.testing.assert_array_equal(statistics.iqm(rows), [2.0, 3.0])


def test_bootstrap_is_stratified():
    # Within each task nothing varies, so nor may the interval; drawing from all six
    # scores at once would give a wide one.
    tasks = [np.zeros(3), np.full(3, 10.0)]
    assert statistics.bootstrap_iqm(tasks) == (5.0, 5.0, 5.0)
    # Two seeds 0 and 1: their mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert statistics.bootstrap_iqm([np.array([0.0, 1.0])]) == (0.5, 0.0, 1.0)
    value, low, high = statistics.bootstrap_iqm([np.array([4.0]), np.array([0.0, 2.0])])
    assert value == 2.0 and np.isnan(low) and np.isnan(high)


def test_probability_of_improvement_by_hand():
    # Task 1: of six pairs two won, two tied, two lost: 1/2. Task 2: all won: 1.
    xs = [np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0])]
    ys = [np.array([2.0, 2.0]), np.array([1.0, 2.0])]
    value, low, high = statistics.improvement(xs, ys)
    assert value == pytest.approx(0.75)
    # Task 1 alone reaches 0 and 1 with probability 1/27 > 2.5%.
    assert (low, high) == (pytest.approx(0.5), pytest.approx(1.0))
    assert statistics.improvement(ys, xs)[0] == pytest.approx(0.25)


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
    broken = write_run(tmp_path / "broken", 2, {SCORE: 70.0})
    (broken / "summary.json").write_text('{"stages": {')
    out = tmp_path / "out"
    assert run_main(tmp_path, f"--out={out}") == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"jaxrec: warning: {broken}: broken run")
    assert errors[1].startswith(f"jaxrec: warning: {stopped}: unfinished")
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
    assert run_main(*arguments, "--task=data.nam") == 2
    assert "nearest: data.name" in capsys.readouterr().err


def ink(path: Path, colour: tuple[float, float, float]) -> int:
    """Pixels of a colour in a PNG, whose size is checked."""
    pixels = image.imread(path)
    assert pixels.shape[:2] == (800, 1200)
    return int((np.abs(pixels[..., :3] - colour).max(-1) < 0.02).sum())


BLUE, ORANGE, GREEN = (0.122, 0.467, 0.706), (1.0, 0.498, 0.055), (0.173, 0.627, 0.173)
BAND = tuple(1 - 0.15 * (1 - c) for c in BLUE)


def test_learning_curves_are_drawn(tmp_path):
    for name in ("bc", "iql"):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}{seed}", seed, {SCORE: 9.0 + seed}, name=name)
    out = tmp_path / "out"
    assert run_main(tmp_path / "bc*", f"--out={out}") == 0
    picture = out / "eval_normalized_score.png"
    assert ink(picture, BLUE) > 1000 and ink(picture, ORANGE) == 0
    assert ink(picture, BAND) > 1000
    assert run_main(tmp_path, f"--out={out}") == 0
    assert ink(picture, ORANGE) > 1000 and ink(picture, GREEN) == 0
    write_run(tmp_path / "other", 0, {SCORE: 9.0}, name="iql", data="gym/other")
    assert run_main(tmp_path, f"--out={out}") == 0  # a panel a task, a line a method
    assert ink(picture, ORANGE) > 1000 and ink(picture, GREEN) == 0
    assert not list(out.glob("*.tmp"))


def test_curve_pools_seeds_at_common_steps(tmp_path):
    a = write_run(tmp_path / "a", 0, {SCORE: [4.0, 8.0]}, num_seeds=2)
    b = write_run(tmp_path / "b", 2, {SCORE: 12.0})
    lines = (b / "train" / "metrics.jsonl").read_text().splitlines()
    (b / "train" / "metrics.jsonl").write_text("\n".join([lines[1], lines[3]]))
    runs = [runs_lib.read_run(path) for path in (a, b)]
    steps, mean, half = plots.curve(runs, "train", SCORE)
    np.testing.assert_array_equal(steps, [20, 30, 40])
    np.testing.assert_allclose(mean, [4.0, 6.0, 8.0])  # b's step 30 is interpolated
    # Seeds 4, 8, 12 at step 40: sd 4, so four times the half width of 1, 2, 3.
    np.testing.assert_allclose(half, np.array([2, 3, 4]) * 2.484138, rtol=1e-6)
    assert plots.curve(runs, "train", "no/such") is None


def test_plots_of_one_run(tmp_path):
    last = {SCORE: [50.0, 60.0], "train/loss": [1.0, 2.0], "train/q": [3.0, 4.0]}
    run = write_run(tmp_path / "a", 0, last, num_seeds=2)
    assert report.plot_run(run) == [run / "plots" / "train.png"]
    drawn = ink(run / "plots" / "train.png", BLUE)
    # Three panels of four: nothing in the fourth.
    assert image.imread(run / "plots" / "train.png")[420:, 640:, :3].min() == 1.0
    more = {f"train/m{i:02}": [1.0, 2.0] for i in range(plots.PANELS)}
    other = write_run(tmp_path / "b", 0, last | more, num_seeds=2)
    names = [path.name for path in report.plot_run(str(other))]
    assert names == ["train.png", "train-2.png"]
    assert drawn > 1000 and ink(other / "plots" / "train-2.png", BLUE) > 1000


def test_final_table(tmp_path):
    last = {SCORE: [1.0, 2.0, 3.0], "train/loss": [0.5, 0.5, 0.5], "train/q": [1, 2, 3]}
    run = write_run(tmp_path / "a", 0, last, num_seeds=3, best={SCORE: [4.0, 4.0, 4.0]})
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["reference"] = dict(random=-20.27, expert=3234.3, source="D4RL")
    text = report.final_table(summary)
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines]
    assert cells[0] == ["stage", "metric", "last", "best"]
    assert cells[1] == ["train", SCORE, "2 [-0.4841, 4.484]", "4 [4, 4]"]
    assert cells[2] == ["train", "train/loss", "0.5 [0.5, 0.5]", "-"]
    assert cells[3:] == [
        ["train: 40 steps, 2 s, 20 steps/s, 1,234 parameters"],
        ["mean [95% interval] over 3 seeds"],
        ["scores 0 and 100: D4RL's -20.27 and 3234"],
        ["gym/Hopper-v4/medium 7 Hopper-v4, cpu"],
    ]


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
