"""The mean of runs is a run: its parameters, its scores, and what has no mean."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_experiment as toy

from jaxrec import (
    average,
    checkpoint,
    defaults,
    evaluate,
    experiment,
    export,
    finished,
    logs,
    ranking_report,
    recommend,
    recommender,
    report,
    runs,
    warm,
)
from jaxrec.errors import UserError
from jaxrec.methods import ce
from jaxrec.types import TrainState

STEPS = "policy/checkpoints"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """a and b of two stages, of seeds 0 and 1; c is of another method's settings."""
    folder = tmp_path_factory.mktemp("average")
    for name, changes in (
        ("a", {}),
        ("b", {"seed": 1}),
        ("c", {"policy.bc.widths": (4,)}),
    ):
        experiment.run(toy.config(folder, **changes), folder / name)
    return folder


def numpy_mean(*folders, part="params"):
    found = [checkpoint.parameters(folder, part) for folder in folders]
    return {
        k: np.mean([np.asarray(one[k], np.float64) for one in found], 0)
        for k in found[0]
    }


def same(found, want):
    assert found.keys() == want.keys() and found
    for name, array in found.items():
        np.testing.assert_array_equal(array, want[name].astype(array.dtype))


def refused(capsys, *arguments):
    """The one line that the command refuses with; nothing is left behind."""
    capsys.readouterr()
    before = set(arguments[-1].parent.iterdir())
    assert average.main([*map(str, arguments[:-1]), f"--out={arguments[-1]}"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxrec: error: ")
    assert set(arguments[-1].parent.iterdir()) == before
    return line


def test_the_mean_of_two_runs_is_a_finished_run(trained, tmp_path, capsys):
    a, b, out = trained / "a", trained / "b", tmp_path / "mean"
    assert average.main([str(a), str(b), f"--out={out}"]) == 0
    assert f"--run={out}" in capsys.readouterr().out
    assert [x.name for x in tmp_path.iterdir()] == ["mean"]
    want = numpy_mean(a / "policy", b / "policy")
    same(checkpoint.parameters(out / "policy"), want)
    done = json.loads((out / "policy" / "done.json").read_text())
    assert done["averaged"] == [str(x / STEPS / "6") for x in (a, b)]
    assert done["steps"] == 6 and done["last"] == {}
    # All but the parameters is that of the first, the stages before it too.
    config, stage = finished.find(out)
    _, state = finished.restore(config, out, stage)
    _, first = finished.restore(config, a, stage)
    jax.tree.map(
        np.testing.assert_array_equal,
        state.replace(params=None),
        first.replace(params=None),
    )
    assert (out / "rows" / "artefact" / "reward.npy").is_file()
    assert (out / "config.json").read_text() == (a / "config.json").read_text()
    policy = finished.policy(out, acting=True)
    seen = jnp.ones((3, policy.info["observation_size"]))
    key = jax.random.key(0)
    expected = policy.method.act(warm.start(first, want), seen, key)
    np.testing.assert_array_equal(policy.method.act(state, seen, key), expected)
    assert (policy.method.act(first, seen, key.copy()) != expected).any()
    assert evaluate.evaluate(out) == {}  # of no evaluators


def test_checkpoints_of_one_run_are_averaged(trained, tmp_path):
    steps = [trained / "a" / STEPS / step for step in ("3", "6")]
    average.write([*map(str, steps)], tmp_path / "mean")
    want = numpy_mean(*steps)
    same(checkpoint.parameters(tmp_path / "mean" / "policy"), want)
    same(warm.parameters(",".join(map(str, steps))), want)
    same(warm.parameters(str(steps[1])), checkpoint.parameters(trained / "a/policy"))
    three, six = (checkpoint.parameters(step) for step in steps)
    assert any((three[name] != six[name]).any() for name in three)
    for missing, words in (
        ("policy/checkpoints/4", "4 is no checkpoint: of that stage there are 3, 6"),
        ("policy/checkpoints/four", "is not there: name the folder of a stage"),
    ):
        with pytest.raises(UserError, match=words):
            warm.parameters(str(trained / "a" / missing))


def test_earlier_checkpoints_bring_their_own_state(trained, tmp_path):
    third = [trained / x / STEPS / "3" for x in "ab"]
    summary = average.write([*map(str, third)], tmp_path / "mean")
    assert summary["stages"]["policy"]["steps"] == 3
    same(checkpoint.parameters(tmp_path / "mean" / "policy"), numpy_mean(*third))
    assert [x.name for x in (tmp_path / "mean" / STEPS).iterdir()] == ["3"]


def test_targets_have_a_mean_of_their_own(tmp_path):
    """Some methods act by them: averages over time, or a second copy."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        params, target = ({"x": jnp.full(3, v, jnp.float32)} for v in (value, -value))
        for part in (None, {}, target):
            state = TrainState(jnp.int32(1), params, None, part)
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            with checkpoint.opened(tmp_path / name / "checkpoints") as saved:
                checkpoint.save(saved, 1, state, {}).result()
            if not part:
                assert checkpoint.parameters(tmp_path / name, "target_params") == {}
    folders = tmp_path / "a", tmp_path / "b"
    found = warm.mean(folders, "target_params")
    np.testing.assert_array_equal(found["x"], np.full(3, -1.5))
    done = average.replaced(state.target_params, found)
    np.testing.assert_array_equal(done["x"], found["x"])
    assert average.replaced(None, {}) is None


def test_what_has_no_mean_is_refused_in_one_line(trained, tmp_path, capsys):
    a, b, c, out = (*(trained / x for x in "abc"), tmp_path / "mean")
    for arguments, words in (
        ((a,), "a mean needs two or more, none of them twice"),
        ((a, b, a / STEPS / "6"), "none of them twice"),
        ((a, c), "policy.bc.widths is [8] there, [4] here): average runs that differ"),
        ((a, trained / "none"), "holds no run (config.json)"),
        ((a, a / STEPS / "5"), "5 is no checkpoint: of that stage there are 3, 6"),
        ((a, b, "--stage=polcy"), "has no stage 'polcy': name one of rows, policy"),
        ((a / STEPS / "6", b, "--stage=rows"), "is of stage policy, not rows"),
        ((a, b / "rows" / "checkpoints" / "1"), "name those of one stage"),
        ((a, b, "--stage=rows"), "stage policy of"),
    ):
        assert words in refused(capsys, *arguments, out)
    shutil.copytree(b, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "policy" / "done.json").unlink()
    assert "is not finished" in refused(capsys, a, tmp_path / "unfinished", out)
    out.mkdir()
    assert "is there already: name another --out" in refused(capsys, a, b, out)


def test_nothing_is_left_of_a_failure(trained, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "write_json", full)
    line = refused(capsys, trained / "a", trained / "b", tmp_path / "mean")
    assert "cannot write" in line and "(No space left on device): free space" in line
    assert not list(tmp_path.iterdir())


def test_a_mean_is_neither_reported_nor_trained_over(trained, tmp_path, capsys):
    """Its seed is that of the first run, which it must not stand for."""
    below = tmp_path / "runs"
    out = below / "0mean"
    shutil.copytree(trained / "a", below / "a")
    average.write([str(trained / "a"), str(trained / "b")], out)
    policies = trained / "a" / "policy", trained / "b" / "policy"
    assert [run.path.name for run in runs.read_runs([str(below)])] == ["a"]
    capsys.readouterr()
    assert report.main([str(below), f"--out={tmp_path}/report"]) == 0
    shown = capsys.readouterr()
    assert "0mean: a mean, left out; python -m jaxrec.evaluate" in shown.err
    assert "stages" in shown.out
    assert ranking_report.main([str(out)]) == 2
    summary = experiment.run(toy.config(trained), out)
    assert "policy: the mean of " in report.final_table(summary)
    # Nor where nothing but the stages tells that there is a run.
    (out / "summary.json").unlink()
    (out / "rows" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="seed is 0 there, 1 here"):
        experiment.run(toy.config(trained, seed=1), out)
    config = toy.config(trained)
    assert experiment.run(config, out)["stages"] == summary["stages"]
    same(checkpoint.parameters(out / "policy"), numpy_mean(*policies))
    assert not runs.read_runs([str(out)])


@pytest.mark.slow
def test_the_mean_of_recommenders_is_measured_asked_and_exported(tmp_path, capsys):
    """From the command line; two seeds a run, each with its own mean."""
    config = defaults.recommender("ce", ce.HPARAMS, "", steps=2, batch_size=8)
    config.data.update(num_users=60, data_dir=str(tmp_path / "data"))
    config.train.evals, config.num_seeds = ("ranking",), 2
    config.train.ce.encoder.width = 8
    for name, seed in (("a", 0), ("b", 2)):
        config.seed = seed
        experiment.run(config, tmp_path / name)
    command = [sys.executable, "-m", "jaxrec.average", "a", "b", "--out=mean"]
    environ = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1]))
    subprocess.run(command, cwd=tmp_path, env=environ, check=True)
    folders = [tmp_path / name for name in ("a", "b", "mean")]
    want = numpy_mean(*(folder / "train" for folder in folders[:2]))
    same(checkpoint.parameters(folders[2] / "train"), want)
    for number in range(2):
        first = finished.policy(folders[0], number=number)
        state = warm.start(first.state, {k: x[number] for k, x in want.items()})
        expected = recommender.make(first.method.scores, state, first.info)
        found = recommend.load(folders[2], number=number)
        histories = [[], found.ids[1:4]]
        assert recommend.top(found, histories, 5) == recommend.top(
            expected, histories, 5
        )
    assert recommend.main([f"--run={folders[2]}", "--history=", "--k=3"]) == 0
    measured = evaluate.evaluate(folders[2])
    assert len(measured["valid/ndcg@10"]) == 2
    assert export.main([f"--run={folders[2]}", f"--out={tmp_path}/out"]) == 0
    # A run that has another number of seeds.
    config.num_seeds = 1
    experiment.run(config, tmp_path / "one")
    line = refused(capsys, folders[0], tmp_path / "one", tmp_path / "other")
    assert "hold different parameters, which have no mean" in line
