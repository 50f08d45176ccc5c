"""SIGKILL at random moments: the run that is completed afterwards is the same run."""

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


def start(folder):
    command = [
        sys.executable,
        "-m",
        "jaxrec.main",
        "--config=configs/otto.py:smoke",
        "--config.data.source=toy",
        "--config.world.checkpoint_every=50",
        "--config.policy.checkpoint_every=50",
        f"--config.data.data_dir={folder.parent}/data",
        f"--workdir={folder}",
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder):
    process = start(folder)
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
def test_killed_runs_end_like_the_undisturbed_one(tmp_path, kills=20):
    """Kills fall anywhere from the start of the process to its end."""
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(whole)
    length = time.monotonic() - began
    expected = outcome(whole)
    assert len(expected["world/artefact"]) > 5
    chance = random.Random(0)
    number = killed = progressed = 0
    while killed < kills:
        folder = tmp_path / str(number)
        process = start(folder)
        try:
            process.communicate(timeout=chance.uniform(0.2, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            progressed += (folder / "world" / "done.json").exists()
            continue
        assert process.returncode == 0
        assert_same(expected, outcome(folder))
        number += 1
    finish(tmp_path / str(number))
    assert_same(expected, outcome(tmp_path / str(number)))
    assert progressed > 0  # some kills fell into the later stage
