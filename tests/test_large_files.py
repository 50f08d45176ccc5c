"""Ten million transitions in memory-mapped files: read, and trained from, in little."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ROWS, BLOCK = 10_000_000, 100_000
SIZES = dict(observation=(17,), next_observation=(17,), action=(6,), reward=())


def write(folder):
    """A folder of .npy files, 1.7 GB: episodes of 1,000 steps that time out."""

    def column(name, shape, dtype):
        path = folder / f"{name}.npy"
        shape = (ROWS, *shape)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    draw = np.random.default_rng(0)
    block = {
        name: draw.uniform(-1, 1, (BLOCK, *shape)).astype(np.float32)
        for name, shape in SIZES.items()
    }
    block["next_observation"] = np.roll(block["observation"], -1, axis=0)
    for name, shape in SIZES.items():
        array = column(name, shape, np.float32)
        for start in range(0, ROWS, BLOCK):
            array[start : start + BLOCK] = block[name]
    column("terminal", (), bool)
    column("timeout", (), bool)[999::1000] = True


AT_EXIT = """
import atexit, sys
def tell():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    print(*(int(status[k].split()[0]) >> 10 for k in ("VmHWM", "RssAnon")),
          file=sys.stderr)
atexit.register(tell)
"""


def measured(script, *arguments):
    """(all output, MiB that were ever resident, mapped files among them, MiB held at
    the end without these) of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT + script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    most, held = map(int, done.stderr.splitlines()[-1].split())
    return done.stderr + done.stdout, most, held


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("large")
    write(path)
    yield path
    for file in path.iterdir():  # not left to pytest, which keeps three runs
        file.unlink()


@pytest.mark.slow
def test_statistics_are_taken_in_chunks(folder):
    script = """
import sys
from ml_collections import ConfigDict
from jaxrec.data import npz, trajectories
config = dict(path=sys.argv[1], time_limit=0, window=0, seed=0)
config |= dict(valid_fraction=0.0, top=1.0)
config = ConfigDict(config)
print(trajectories.dataset(npz.load(config), config).info["num_episodes"])
"""
    output, _, held = measured(script, str(folder))
    assert int(output.splitlines()[-1]) == ROWS // 1000
    assert held < 600  # the columns together are 1,640


@pytest.mark.slow
def test_a_run_from_mapped_files_stays_below_four_gib(folder, tmp_path):
    script = """
import runpy
runpy.run_module("jaxrec.main", run_name="__main__")
"""
    out = tmp_path / "run"
    output, most, _ = measured(
        script,
        "--config=configs/td3bc.py",
        "--config.data.source=npz",
        f"--config.data.path={folder}",
        "--config.train.steps=400",
        "--config.train.eval_every=200",
        "--config.train.checkpoint_every=200",
        "--config.train.log_every=100",
        "--config.eval.fqe_steps=50",
        f"--workdir={out}",
    )
    stage = json.loads((out / "summary.json").read_text())["stages"]["train"]
    assert stage["steps"] == 400 and np.isfinite(stage["last"]["train/loss"])
    assert "streamed from the host" in output
    print(f"at most {most} MiB resident")
    assert most < 4096
