"""SIGKILL at random moments: the run that is completed afterwards is the same run."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[1]
# They tell of the machine and the day, not of the run.
CLOCKS = ("seconds", "compile_seconds", "steps_per_second", "flops_per_second")
CLOCKS += ("utilisation", "temporary_bytes", "argument_bytes")
# Of the program, which is not compiled again where the kill came after the last update.
CLOCKS += ("flops_per_update", "output_bytes")


# Not those that need a simulator or another package.
NAMES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "behaviour", "sidiff_smax")
)
KILLS = 4  # of each, or more until one came after a checkpoint


def start(folder, name):
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    command = [
        sys.executable,
        "-m",
        "jaxrec.main",
        f"--config=configs/{name}.py:smoke",
        f"--workdir={folder}",
        "--config.eval.users=20",
    ]
    if "data_dir" in config.data:  # games have none
        command.append(f"--config.data.data_dir={folder.parent}/data")
    if "rows" in config.data:
        command += ["--config.data.source=toy", "--config.data.rows=1000"]
    for stage in config.stages:
        every = max(config[stage].steps // 5, 1)
        command.append(f"--config.{stage}.checkpoint_every={every}")
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, name):
    process = start(folder, name)
    _, error = process.communicate()
    assert process.returncode == 0, error


def outcome(folder):
    """Everything a run leaves, without the clocks."""
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("revision")  # the checkout may move on while this test runs
    result = {"summary": summary}
    for name, stage in summary["stages"].items():
        for clock in CLOCKS:
            stage.pop(clock, None)
        text = (folder / name / "metrics.jsonl").read_text()
        lines = [json.loads(x) for x in text.splitlines()]
        result[f"{name}/lines"] = [
            {k: v for k, v in line.items() if k != "wall"} for line in lines
        ]
        checkpoints = folder / name / "checkpoints"
        last = max(checkpoints.iterdir(), key=lambda p: int(p.name))
        state = ocp.load(last)
        result[f"{name}/state"] = [np.asarray(x) for x in jax.tree.leaves(state)]
        artefact = folder / name / "artefact"
        result[f"{name}/artefact"] = [
            np.load(file) for file in sorted(artefact.glob("*.npy"))
        ]
    return result


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        if isinstance(ours[name], list) and name.endswith(("state", "artefact")):
            assert len(ours[name]) == len(theirs[name])
            for a, b in zip(ours[name], theirs[name]):
                np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert ours[name] == theirs[name], name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_runs_end_like_the_undisturbed_one(tmp_path, name):
    """Kills fall anywhere from the start of the process to its end.

    The first one while nothing is cached, neither data nor programs.
    """
    chance = random.Random(name)
    process = start(tmp_path / "first", name)
    time.sleep(chance.uniform(1.0, 10.0))
    process.kill()
    process.communicate()
    finish(tmp_path / "first", name)
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(whole, name)
    length = time.monotonic() - began
    expected = outcome(whole)
    assert_same(outcome(tmp_path / "first"), expected)
    killed, number, progressed = 1, 0, 0
    while killed < KILLS or not progressed:
        assert killed < 5 * KILLS, "never killed after a checkpoint"
        folder = tmp_path / str(number)
        process = start(folder, name)
        try:
            process.communicate(timeout=chance.uniform(0.0, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            progressed += any(folder.glob("*/checkpoints/*"))
            continue
        assert process.returncode == 0
        assert_same(expected, outcome(folder))
        number += 1
    finish(tmp_path / str(number), name)
    assert_same(expected, outcome(tmp_path / str(number)))
    print(
        f"{name}: {killed} kills, {progressed} of runs with a checkpoint, {number + 1}"
        " runs completed, all the same"
    )
