"""Sweeps: which runs there are, what is left alone, what stops them."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxrec import grid, settings, sweep

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/td3bc.py:smoke"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,2.5", ["1", "2.5"]),
        ("(1,2),(3,)", ["(1,2)", "(3,)"]),
        ("('a,b',),'c,d'", ["('a,b',)", "'c,d'"]),
        ("", [""]),
    ],
)
def test_commas_inside_of_a_value_are_its_own(text, expected):
    assert grid.values(text) == expected


def test_every_combination_has_a_folder_of_its_own():
    settings = grid.parse(["a.lr=1,2", "config.b.lr=x/y", "c.name=p"])
    numbers = grid.seeds("0-1,7")
    found = grid.points("f.py", Path("out"), settings, numbers, ["--config.steps=3"])
    assert len({point.workdir for point in found}) == len(found) == 6
    assert found[5].name == "a.lr=2,b.lr=x%2Fy,name=p/seed=7"
    assert found[5].flags == (
        *("--config=f.py", "--config.steps=3", "--config.a.lr=2"),
        *("--config.b.lr=x/y", "--config.c.name=p", "--config.seed=7"),
        "--workdir=out/a.lr=2,b.lr=x%2Fy,name=p/seed=7",
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seeds=2-0"], "--seeds=2-0: give numbers"),
        (["--seeds=1,1"], "--seeds=1,1: give numbers"),
        (["--grid=lr"], "--grid=lr: give FIELD=VALUE"),
        (["--grid=lr=1,"], "--grid=lr=1,: give FIELD=VALUE"),
        (["--grid=lr=1,1"], "a value comes twice"),
        (["--grid=lr=1,1.0"], "a value comes twice"),
        (["--grid=seed=1,2"], "seeds are given by --seeds"),
        (["--grid=a/../../b=1,2"], "give FIELD=VALUE"),
        (["--seeds=0-99999999999"], "--seeds=0-99999999999: give numbers"),
        (["--seeds=0-4000000000"], "at most 10,000 of them, below 2^32"),
        (["--seeds=5000000000"], "below 2^32"),
        (["--slurm=--gpus=1 'x"], "No closing quotation"),
        (["--config.seed=4"], "--config.seed=4: --seeds gives that field already"),
        (["--config.lr=5", "--grid=lr=1,2"], "--grid gives that field already"),
        (["--steps=3"], "unknown argument --steps=3"),
        (["--config.train.steps"], "unknown argument --config.train.steps: runs take"),
        (["--config.seed", "--config.a=4"], "unknown argument --config.seed: runs"),
        (["--jobs=0"], "--jobs=0: it must be 1"),
        (["--config=none.py"], "no config file none.py"),
    ],
)
def test_bad_input_gets_one_line(flags, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sweep.main([CONFIG, "--out=none", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxrec: error: ") and error.count("\n") == 1
    assert message in error


def test_finished_runs_are_left_alone_and_slurm_gets_the_others(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    done = tmp_path / "alpha=1" / "seed=0"
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    flags = [CONFIG, f"--out={tmp_path}", "--grid=train.td3bc.alpha=1,2", "--dry-run"]
    assert sweep.main(flags) == 0
    first, report = capsys.readouterr().out.splitlines()
    assert shlex.split(first)[1:3] == ["-m", "jaxrec.main"] and "alpha=2" in first
    assert report == f"python -m jaxrec.report {tmp_path} --out={tmp_path}/report"
    assert sweep.main([*flags, "--seeds=0-1", "--slurm=--time=1:00:00"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 + 1 + 1 + 1  # cat, runs, END, the script, the report
    *_, last, _ = lines
    *_, array, limit = shlex.split(last)
    assert array.startswith(f"--array={tmp_path}/runs-") and limit == "--time=1:00:00"
    Path(array.removeprefix("--array=")).write_text("\n".join(lines[1:4]) + "\n")
    job = subprocess.run(
        [*shlex.split(last), "--dry-run"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert "#SBATCH --array=1-3\n" in job
    # The job of the third run reads its own flags, as they were.
    monkeypatch.setenv("PATH", program(tmp_path, "srun", "printf '%s\\n' \"$@\""))
    shown = subprocess.run(
        ["bash", "-c", job.partition("\n")[2].removesuffix("END\n")],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert shown[-4:] == shlex.split(lines[3])


def program(tmp_path, name, script):
    """A PATH where `name` is that script of sh."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


def finished(workdir, **changes):
    """A folder as a finished run of CONFIG leaves it, without what it learnt."""
    config = importlib.import_module("configs.td3bc").get_config("smoke")
    config.update_from_flattened_dict(changes)
    workdir.mkdir(parents=True)
    written = json.dumps(settings.resolve(config).to_dict())
    (workdir / "config.json").write_text(written)
    (workdir / "summary.json").write_text("{}")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.train.steps=7"], ""),
        (["--config.train.steps=7", "--config.train.batch_size=64"], ""),
        (["--config.train.steps=7", "--config.mesh.model=2"], ""),
        (["--config.train.steps=99"], "(train.steps is 7 there, 99 here)"),
        ([], "(train.steps is 7 there, "),
        (
            ["--config.train.steps=7", "--config.train.stps=7"],
            'Did you mean "steps" instead',
        ),
        (["--config.train.steps=0"], "train.steps is 0: must be positive"),
    ],
)
def test_runs_of_other_settings_are_not_taken_for_these(
    flags, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    finished(tmp_path / "seed=0", **{"train.steps": 7})
    status = sweep.main([CONFIG, f"--out={tmp_path}", *flags])
    output, error = capsys.readouterr()
    if message:
        assert status == 2 and not output and error.count("\n") == 1
        assert message in error
        assert "there" not in message or error.endswith(": use another --out\n")
    else:
        assert status == 0 and "1 runs, 1 finished" in error
        assert output.startswith("python -m jaxrec.report")


def test_a_run_that_never_began_binds_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    finished(tmp_path / "seed=0", **{"train.steps": 7})
    (tmp_path / "seed=0" / "summary.json").unlink()
    flags = [CONFIG, f"--out={tmp_path}", "--config.train.steps=99", "--dry-run"]
    assert sweep.main(flags) == 0
    (tmp_path / "seed=0" / "train").mkdir()
    (tmp_path / "seed=0" / "train" / "metrics.jsonl").write_text("{}\n")
    assert sweep.main(flags) == 2
    assert "train.steps is 7 there, 99 here" in capsys.readouterr().err


def test_the_folder_of_a_run_is_no_folder_of_runs(tmp_path, capsys, monkeypatch):
    """The report would not look below it."""
    monkeypatch.chdir(ROOT)
    finished(tmp_path / "run")
    assert sweep.main([CONFIG, f"--out={tmp_path}/run", "--dry-run"]) == 2
    assert f"--out={tmp_path}/run is itself a run: choose" in capsys.readouterr().err


def test_each_submission_has_a_list_of_its_own(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", program(tmp_path, "sbatch", "cat >/dev/null"))
    out = tmp_path / "runs"
    flags = [CONFIG, f"--out={out}", "--seeds=0-1", "--slurm"]
    assert sweep.main(flags) == 0
    assert "when they are done" in capfd.readouterr().out
    (first,) = out.glob("*.txt")
    before = first.read_text()
    assert before.count("\n") == 2
    finished(out / "seed=0")
    assert sweep.main(flags) == 0
    (second,) = set(out.glob("*.txt")) - {first}
    assert second.read_text() == before.splitlines(keepends=True)[1]
    assert first.read_text() == before
    program(tmp_path, "sbatch", "cat >/dev/null; exit 3")
    capfd.readouterr()
    assert sweep.main(flags) == 3
    assert not capfd.readouterr().out and set(out.glob("*.txt")) == {first, second}


def pretend(monkeypatch, script):
    """Runs are `script`, with the folder of the run as $1."""
    monkeypatch.setattr(
        sweep, "command", lambda point: ["bash", "-c", script, "-", str(point.workdir)]
    )


def some_points(tmp_path, count=4):
    names = [str(number) for number in range(count)]
    return [sweep.Point(name, tmp_path / name, ()) for name in names]


@pytest.mark.parametrize("status", [5, 2])  # 2: also of a loss that is not finite
def test_a_failure_leaves_the_others(tmp_path, monkeypatch, status):
    every = some_points(tmp_path)
    fails = f"[ $(basename $1) != 1 ] || {{ echo no; exit {status}; }}"
    pretend(monkeypatch, f"touch $1/ran; {fails}")
    failed, stop = sweep.run_all(every, 2)
    assert failed == [every[1]] and not stop.signal_number
    assert all((point.workdir / "ran").exists() for point in every)
    assert sweep.last_line(every[1]) == "no"


def test_a_signal_is_passed_on_and_nothing_new_starts(tmp_path, monkeypatch):
    every = some_points(tmp_path)
    pretend(monkeypatch, 'trap "touch $1/saved; exit 143" TERM; touch $1/ran; '
            "while true; do sleep 0.05; done")  # fmt: skip

    def send():
        while not all((point.workdir / "ran").exists() for point in every[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    failed, stop = sweep.run_all(every, 2)
    assert not failed and stop.signal_number == signal.SIGTERM
    assert all((point.workdir / "saved").exists() for point in every[:2])
    assert not any(point.workdir.exists() for point in every[2:])


@pytest.mark.slow
def test_a_sweep_for_real(tmp_path):
    """Two runs and their report; the same command again trains nothing."""
    command = [sys.executable, "-m", "jaxrec.sweep", CONFIG, f"--out={tmp_path}/runs"]
    command += ["--config.data.source=toy", f"--config.data.data_dir={tmp_path}"]
    command += ["--grid=train.td3bc.alpha=1,2.5", "--config.train.evals=()"]
    environ = os.environ | {"JAX_PLATFORMS": "cpu"}
    keep = dict(cwd=ROOT, env=environ, capture_output=True, text=True)
    first = subprocess.run(command, **keep)
    assert first.returncode == 0, first.stderr
    assert "2 runs, 0 finished" in first.stderr
    again = subprocess.run(command, **keep)
    assert "2 runs, 2 finished" in again.stderr and again.stdout == first.stdout
    report = [sys.executable, *shlex.split(first.stdout)[1:]]
    table = subprocess.run(report, **keep).stdout
    assert "train.td3bc.alpha=1.0" in table and "train.td3bc.alpha=2.5" in table
