"""Learning curves and the plots and table of a run, of made-up runs."""

import json
from pathlib import Path

import numpy as np
from matplotlib import image
from toy_runs import SCORE, run_main, write_run

from jaxrec import plots, report
from jaxrec import runs as runs_lib


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


def test_a_stage_of_one_step_has_one_page(tmp_path):
    last = {f"test/hr@{k}": 0.5 for k in range(1, 12)}
    run = write_run(tmp_path / "a", 0, last)
    assert [path.name for path in report.plot_run(run)] == ["train.png", "train-2.png"]
    path = run / "train" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[-1])
    assert [path.name for path in report.plot_run(run)] == ["train.png"]


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
    # What the validation set chose is told also where only one stage has it.
    chosen = dict(last={"test/x": 1.0}, selected={"test/x": 2.0})
    for order in (("train", "other"), ("other", "train")):
        both = dict(train=summary["stages"]["train"], other=chosen)
        text = report.final_table(dict(stages={name: both[name] for name in order}))
        cells = [line.split() for line in text.splitlines()]
        assert cells[0] == ["stage", "metric", "last", "best", "selected"]
        assert ["other", "test/x", "1", "-", "2"] in cells


def test_recall_by_lag_is_drawn_where_it_was_measured(tmp_path):
    last = {f"test/lag_{lag}/hr@10": y for lag, y in ((0, 0.3), (10, 1.0), (1500, 0.5))}
    run = write_run(tmp_path / "a", 0, last | {"valid/lag_10/hr@10": 0.0})
    (lags, mean, half) = plots.recall(runs_lib.read_run(run))["train"]
    assert lags.tolist() == [10, 1500] and mean.tolist() == [1.0, 0.5]
    assert np.isnan(half).all()  # one seed
    paths = report.plot_run(run)
    assert paths[-1] == run / "plots" / "recall_by_lag.png"
    # A line over the whole width, one marker at its end in the middle of the height.
    pixels = image.imread(paths[-1])[..., :3]
    row, column = np.nonzero(np.abs(pixels - BLUE).max(-1) < 0.02)
    assert column.max() - column.min() > 900
    assert 350 < row[column > column.max() - 3].mean() < 450
    both = {name: [y, y / 2] for name, y in last.items()}
    other = write_run(tmp_path / "b", 0, both, num_seeds=2)
    _, mean, half = plots.recall(runs_lib.read_run(other))["train"]
    assert mean.tolist() == [0.75, 0.375] and (half > 1).all()
