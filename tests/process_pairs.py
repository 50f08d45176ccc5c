"""Two processes of one run, started by launch/gpu.sh on the CPU; what they leave."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[1]
FLAGS = (
    "--config=configs/td3bc.py:smoke",
    "--config.data.source=toy",
    "--config.train.data.valid_fraction=0.2",
    "--config.train.evals=('held_out',)",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=20",
    "--config.train.steps_per_call=10",
    "--peer_timeout=20",
)


def launch(folder, *flags, processes=2, cpu=1, run=FLAGS):
    """launch/gpu.sh with `processes` of `cpu` CPU devices each."""
    command = ["bash", "launch/gpu.sh", f"--processes={processes}", f"--cpu={cpu}"]
    if run is FLAGS:
        flags = (*flags, f"--config.data.data_dir={folder.parent}/data")
    return subprocess.Popen(
        [*command, *run, *flags, f"--workdir={folder}"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return error


def outcome(folder, step=200):
    """(arrays of the last state, lines of metrics without clocks)"""
    lines = [json.loads(x) for x in (folder / "train/metrics.jsonl").open()]
    path = folder / f"train/checkpoints/{step}"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.metadata(path).metadata,
    )
    state = ocp.load(path, shapes)
    arrays = [np.asarray(x) for x in jax.tree.leaves(state)]
    return arrays, [{k: v for k, v in x.items() if k != "wall"} for x in lines]


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    for a, b in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(ours, theirs, limit=1e-5):
    for a, b in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=limit, atol=limit / 10)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a == pytest.approx(b, rel=limit)


def members(folder):
    """Process ids of the two, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes()
        except OSError:
            continue
        if f"--workdir={folder}".encode() in words and b"jaxrec.main" in words:
            if number := re.search(rb"(?:JAX_PROCESS_ID|SLURM_PROCID)=(\d)", environ):
                found[int(number[1])] = int(path.name)
    return found


def wait_for(there, process, seconds=600):
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
