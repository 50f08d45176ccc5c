"""The command line as a user meets it, in processes of its own."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEAM = "--config=configs/qmix.py:smoke"
TOY = ("--config=configs/td3bc.py:smoke", "--config.data.source=toy")


def jaxrec(*flags, module="main", env=None, **kwargs):
    """(exit status, standard output, standard error) of one command."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {})
    done = subprocess.run(
        [sys.executable, "-m", f"jaxrec.{module}", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        **kwargs,
    )
    return done.returncode, done.stdout, done.stderr


def assert_one_line(result, *words):
    status, _, error = result
    lines = error.strip().splitlines()
    assert status == 2, error
    assert lines[-1].startswith("jaxrec: error: "), error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[-1], lines[-1]


def test_help_needs_no_jax(tmp_path):
    """A module named jax that fails on import stands before the real one."""
    (tmp_path / "jax.py").write_text("raise RuntimeError('jax was imported')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, output, error = jaxrec("--help", env={"PYTHONPATH": path})
    assert "--config" in output + error and "jax was imported" not in output + error
    assert status in (0, 1)


def test_importing_the_package_imports_no_extras():
    code = (
        "import sys, jaxrec.experiment;"
        "extras = ('gymnasium', 'mujoco', 'h5py', 'minari', 'tensorflow', 'torch',"
        " 'jaxmarl');"
        "print([name for name in extras if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


BAD = (
    (("--config=configs/no_such.py",), ["no_such"]),
    ((TOY[0], "--config.train.methd=iql"), ["methd", "method"]),
    ((TOY[0], "--config.train.actor_optim.lr=1"), ["no field 'actor_optim'"]),
    ((TOY[0], "--config.train.method=tdbc"), ["'tdbc'", "td3bc"]),
    ((TOY[0], "--config.data.source=gim"), ["'gim'", "gym"]),
    ((TOY[0], "--config.train.steps=0"), ["train.steps is 0"]),
    ((TOY[0], "--config.train.steps=many"), ["'many' (see"]),
    (("--config=configs/td3bc.py:smok",), ["smok", "smoke"]),
    ((*TOY, "--config.mesh.model=64"), ["mesh.model"]),
    ((TOY[0], "--config.data.source=npz", "--config.data.path=no.npz"), ["no.npz"]),
    ((), ["--config=configs/otto.py"]),
    (("--config.seed=1", TOY[0]), ["error: put --config=FILE first", "seed=1"]),
    (("--config=configs/otto_study.py:cql,mqc",), ["error: base 'mqc'", "mcq"]),
    ((TOY[0], "--config.data.name=Hoper-v4/medium"), ["Hoper-v4", "Hopper-v4"]),
    ((TEAM, "--config.data.name=2t_vs_4e"), ["2t_vs_4e", "2t_vs_4e_open7"]),
    ((TEAM, "--config.data.settings=agents=7"), ["2 A", "too few for 7"]),
    ((TEAM, "--config.train.qmix.replay=5"), ["replay=5", "multiple of the 8"]),
    ((TOY[0], "--config.data.source=battle_city"), ["configs/qmix.py"]),
)
# Imports once, then a process of its own for each list of flags: what they print.
EACH = """
import json, os, sys
from jaxrec import experiment, main, report
for number, flags in enumerate(json.loads(sys.argv[1])):
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = open(f"{sys.argv[2]}/{number}").read()
        print(json.dumps([status, "", told]), flush=True)  # children inherit the buffer
        continue
    os.dup2(os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY), 2)
    os.dup2(2, 1)
    sys.argv = ["jaxrec.main", *flags]
    main.cli()
"""


def test_bad_input_gets_one_line(tmp_path):
    every = [(*flags, f"--workdir={tmp_path}/run") for flags, _ in BAD]
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(every), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=600,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(BAD), done.stderr
    for result, (_, words) in zip(results, BAD):
        assert_one_line(result, *words)


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(jaxrec(*TOY, f"--workdir={tmp_path}/file/run"), "--workdir")


@pytest.mark.slow
def test_a_checkpoint_that_the_disk_refuses_is_one_line(tmp_path):
    limit = resource.RLIMIT_FSIZE, (20_000, 20_000)
    refused = jaxrec(
        *TOY,
        f"--workdir={tmp_path}/run",
        preexec_fn=lambda: resource.setrlimit(*limit),
    )
    assert_one_line(refused, "cannot write a checkpoint", "(File too large)")


def test_a_run_its_contract_and_its_repetition(tmp_path):
    flags = (*TOY, f"--workdir={tmp_path}/run", f"--config.data.data_dir={tmp_path}")
    # A run that found no data is none: the corrected command takes its folder.
    wrong = ("--config.data.source=npz", "--config.data.path=no.npz")
    assert_one_line(jaxrec(*flags, *wrong), "no.npz")
    status, output, error = jaxrec(*flags)
    assert status == 0, error
    assert "train/loss" in output
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    stage = summary["stages"]["train"]
    assert stage["steps"] == 200 and stage["parameters"] > 10_000
    assert summary["seed"] == 0 and summary["data"]["name"].startswith("toy")
    assert {"compile_seconds", "seconds", "steps_per_second"} <= set(stage)
    found = (run / "train/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(x) for x in found]
    assert [line["step"] for line in lines] == [100, 200]
    assert all("train/loss" in line and "wall" in line for line in lines)
    assert list((run / "plots").glob("*.png"))
    status, again, error = jaxrec(*flags)
    assert status == 0 and again == output and "nothing to train" in error
    other = jaxrec(*flags, "--config.train.td3bc.alpha=1.0")
    assert_one_line(other, "train.td3bc.alpha is 2.5 there, 1.0 here", "--workdir")
