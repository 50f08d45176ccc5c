"""Sweeps: which runs there are, what is left alone, what stops them."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxrec import sweep

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
    assert sweep.values(text) == expected


def test_every_combination_has_a_folder_of_its_own():
    settings = sweep.grid(["a.lr=1,2", "config.b.lr=x/y", "c.name=p"])
    numbers = sweep.seeds("0-1,7")
    found = sweep.points("f.py", Path("out"), settings, numbers, ["--config.steps=3"])
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
    assert last.endswith(f"slurm.sh --array={tmp_path}/runs.txt --time=1:00:00")
    (tmp_path / "runs.txt").write_text("\n".join(lines[1:4]) + "\n")
    job = subprocess.run(
        [*shlex.split(last), "--dry-run"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert "#SBATCH --array=1-3\n" in job
    # The job of the third run reads its own flags, as they were.
    read = next(line for line in job.splitlines() if line.startswith("eval "))
    shown = subprocess.run(
        ["bash", "-c", f"{read}\nprintf '%s\\n' \"${{flags[@]}}\""],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "3"},
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert shown == shlex.split(lines[3])


def pretend(monkeypatch, script):
    """Runs are `script`, with the folder of the run as $1."""
    monkeypatch.setattr(
        sweep, "command", lambda point: ["bash", "-c", script, "-", str(point.workdir)]
    )


def some_points(tmp_path, count=4):
    names = [str(number) for number in range(count)]
    return [sweep.Point(name, tmp_path / name, ()) for name in names]


def test_a_failure_leaves_the_others_but_bad_input_ends_all(tmp_path, monkeypatch):
    every = some_points(tmp_path)
    pretend(
        monkeypatch, "touch $1/ran; [ $(basename $1) != 1 ] || { echo no; exit 5; }"
    )
    failed, stop = sweep.run_all(every, 2)
    assert failed == [every[1]] and not stop.fault
    assert all((point.workdir / "ran").exists() for point in every)
    assert sweep.last_line(every[1]) == "no"
    again = some_points(tmp_path / "again")
    pretend(monkeypatch, "touch $1/ran; exit 2")
    failed, stop = sweep.run_all(again, 1)
    assert failed == again[:1] and stop.fault
    assert not again[1].workdir.exists()


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
