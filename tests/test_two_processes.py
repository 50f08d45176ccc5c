"""Two processes, started by launch/gpu.sh, are one run; killed, they go on as one."""

import json
import os
import shutil
import signal

import pytest
from process_pairs import (
    assert_close,
    assert_same,
    finish,
    launch,
    members,
    outcome,
    wait_for,
)

STREAMED = "--config.device_data_limit=0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with two devices."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(folder, processes=1, cpu=2))
    return folder


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """The quick run's share of what the slow ones do at length."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    finish(launch(both, "--config.train.steps=40"))
    finish(launch(alone, "--config.train.steps=40", processes=1, cpu=2))
    assert_same(outcome(both, 40), outcome(alone, 40))


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_is_the_same(whole, tmp_path):
    """SIGKILL of one process: the script ends the other, and starts both."""
    folder = tmp_path / "killed"
    process = launch(folder, "--grace=30")
    # While a checkpoint is being written or soon after.
    wait_for(lambda: list((folder / "train").glob("checkpoints/60*")), process)
    os.kill(members(folder)[1], signal.SIGKILL)
    error = finish(process)
    assert "starting again (1 of 3)" in error and "resuming at step" in error
    assert_same(outcome(folder), outcome(whole))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["device"] == "cpu x2"


@pytest.mark.slow
def test_a_signal_to_one_process_or_all_saves_one_step(whole, tmp_path):
    """Rows are streamed: each process reads its half of each batch."""
    folder = tmp_path / "stopped"

    def steps(least):
        names = [x.name for x in (folder / "train/checkpoints").glob("[0-9]*")]
        return any(name.isdigit() and int(name) >= least for name in names)

    process = launch(folder, STREAMED)
    wait_for(lambda: steps(40), process)
    os.kill(members(folder)[1], signal.SIGTERM)  # not to the leader
    _, error = process.communicate(timeout=600)
    assert process.returncode == 143, error
    assert "saved at step" in error and "Traceback" not in error
    # One process with one device goes on from the checkpoint of two.
    shutil.copytree(folder, tmp_path / "moved")
    finish(launch(tmp_path / "moved", processes=1, cpu=1))
    assert_close(outcome(tmp_path / "moved"), outcome(whole))
    process = launch(folder, STREAMED)
    wait_for(lambda: steps(100), process)
    process.terminate()  # the script tells both
    _, error = process.communicate(timeout=600)
    assert process.returncode == 143, error
    assert "saved at step" in error and "resuming at step" in error
    finish(launch(folder, STREAMED))
    undisturbed = tmp_path / "undisturbed"
    finish(launch(undisturbed, STREAMED))
    assert_same(outcome(folder), outcome(undisturbed))
    # Rows that arrive split give another program than rows gathered on the devices.
    assert_close(outcome(folder), outcome(whole))
    # The same command again trains nothing, and all processes agree on that.
    assert "nothing to train" in finish(launch(folder, STREAMED))


@pytest.mark.slow
def test_a_fault_of_the_input_is_told_once(tmp_path):
    process = launch(tmp_path / "run", "--config.train.data.window=5")
    _, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "starting again" not in error and "Traceback" not in error
    assert "td3bc learns from single transitions" in error


GAMES = (
    "--config=configs/sidiff.py:smoke",
    "--config.data.source=meeting",
    "--config.data.name=two_on_5",
    "--config.data.settings=",
    "--config.train.steps=20",
    "--config.train.log_every=10",
    "--config.train.checkpoint_every=10",
    "--config.eval.episodes=16",
)


@pytest.mark.slow
def test_games_are_shared_out_over_processes(tmp_path):
    """Games and replay live half on each process, and are played as on one."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    finish(launch(both, run=GAMES))
    finish(launch(alone, run=GAMES, processes=1, cpu=2))
    assert_close(outcome(both, 20), outcome(alone, 20))


TABLE = (
    "--config=configs/ce.py:smoke",
    "--config.mesh.data=1",
    "--config.mesh.model=2",
    "--config.rules=items",
    "--config.train.log_every=20",
    "--config.train.checkpoint_every=20",
    "--peer_timeout=20",
)


@pytest.mark.slow
def test_a_table_lives_half_on_each_process(tmp_path):
    """With a kill on the way: what is saved are the halves of both."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    data = f"--config.data.data_dir={tmp_path}/data"
    finish(launch(alone, data, run=TABLE, processes=1, cpu=2))
    process = launch(both, data, run=TABLE)
    wait_for((both / "train/checkpoints/60").is_dir, process)
    os.kill(members(both)[1], signal.SIGKILL)
    assert "resuming at step" in finish(process)
    # Softmax sums come over the wire, in another order.
    assert_close(outcome(both), outcome(alone), limit=1e-4)
