"""launch/slurm.sh and launch/tpu.sh for real, on stand-ins for Slurm and gcloud.

The scripts, their jobs and the two processes are real; sbatch, srun, scontrol and
gcloud are those of `fake_cluster`, which run them here.
"""

import json
import os
import shlex
import signal
import subprocess
import sys

import fake_cluster
import process_pairs
import pytest
from process_pairs import assert_same, finish, launch, members, outcome, wait_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with two devices."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(folder, processes=1, cpu=2))
    return folder


def start(fake, name, *flags, folder):
    return subprocess.Popen(
        ["bash", f"launch/{name}", *flags, *process_pairs.FLAGS, f"--workdir={folder}"]
        + [f"--config.data.data_dir={folder.parent}/data"],
        cwd=process_pairs.ROOT,
        env=fake_cluster.install(fake),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def checkpoint(folder, step):
    return lambda: (folder / f"train/checkpoints/{step}").is_dir()


@pytest.mark.slow
def test_a_slurm_job_is_requeued_at_its_limit_and_after_a_loss(whole, tmp_path):
    (tmp_path / "bin").mkdir()
    folder = tmp_path / "run"
    process = start(tmp_path / "bin", "slurm.sh", "--processes=2", folder=folder)
    wait_for(checkpoint(folder, 40), process)
    job = int((tmp_path / "bin/job.pid").read_text())
    os.kill(job, signal.SIGUSR1)  # the time limit is near
    wait_for((tmp_path / "bin/requeues").exists, process)
    wait_for(checkpoint(folder, 120), process)
    os.kill(next(iter(slurm_tasks(folder))), signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    log = (tmp_path / "bin/log").read_text()
    assert process.returncode == 0, output + log
    assert (tmp_path / "bin/requeues").read_text().split() == ["0", "1"]
    assert "saved at step" in log
    assert_same(outcome(folder), outcome(whole))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["device"] == "cpu x2"


def slurm_tasks(folder):
    """Process ids of the tasks; the last first."""
    return [number for _, number in sorted(members(folder).items(), reverse=True)]


@pytest.mark.slow
def test_a_preempted_slice_is_created_anew(whole, tmp_path):
    """The run notices first: gcloud calls the slice READY for a while."""
    fake = tmp_path / "bin"
    fake.mkdir()
    folder = tmp_path / "run"
    words = shlex.quote(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link = f"mkdir -p venv/bin && printf %s {words} >venv/bin/python"
    link += " && chmod +x venv/bin/python"
    flags = ("slice", "--zone=z", "--type=t", "--wait=1", f"--install={link}")
    process = start(fake, "tpu.sh", *flags, "--delete", folder=folder)
    wait_for(checkpoint(folder, 60), process)
    (fake / "gone").touch()
    os.kill(members(folder)[1], signal.SIGKILL)  # the other ends by itself
    wait_for(lambda: calls(fake).count("tpu-vm scp") == 2, process)
    (fake / "state").write_text("PREEMPTED\n")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "starting again (1 of 3)" in output, output
    assert "slice was taken away" in output and "resuming at step" in output
    assert calls(fake).count("tpu-vm create") == 2
    assert calls(fake)[-1] == "tpu-vm delete"
    assert_same(outcome(folder), outcome(whole))


def calls(fake):
    return [" ".join(line.split()[:2]) for line in (fake / "calls").open()]
