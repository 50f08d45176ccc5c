"""launch/tpu.sh on a stand-in for gcloud, and the worker that it starts there."""

import subprocess
import time
from pathlib import Path

import fake_cluster
import pytest
from test_launch import ROOT, RUN


@pytest.fixture
def fake(tmp_path):
    """The folder of the stand-ins; the run there tells five lines and is done."""
    fake_cluster.install(tmp_path)
    python = 'for n in 1 2 3 4 5; do echo "line $n"; done; /bin/sleep 0.2\n'
    for name, text in (("python", python), ("sleep", "exec /bin/sleep 0.02\n")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def tpu(fake, *flags):
    """(status, output, what gcloud was asked: describe, ssh and so on)"""
    flags = ("slice", "--zone=z", "--type=t", "--wait=1", "--install=true", *flags)
    done = subprocess.run(
        ["bash", "launch/tpu.sh", *flags, *RUN],
        cwd=ROOT,
        env=fake_cluster.environment(fake),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    calls = [line.split()[1] for line in (fake / "calls").open()]
    return done.returncode, done.stdout, calls


def shown(output):
    return [line[-1] for line in output.splitlines() if line.startswith("line ")]


def test_a_first_creation_that_fails_is_told_at_once(fake):
    (fake / "fail-create").write_text("no such type t\n")
    status, output, calls = tpu(fake)
    assert status == 1 and "no such type t" in output
    assert calls == ["describe", "create"]


@pytest.mark.parametrize(
    "name", ["my/exp.py:smoke", "configs/td3bc.py", "configs/my.py"]
)
def test_a_config_of_another_folder_is_refused_before_a_slice_is_made(fake, name):
    """Also where the checkout has another file of that name."""
    path = fake / "here" / name.partition(":")[0]
    path.parent.mkdir(parents=True)
    path.touch()
    flags = ("slice", "--zone=z", "--type=t", "--install=true", "--workdir=runs/x")
    done = subprocess.run(
        ["bash", str(ROOT / "launch/tpu.sh"), *flags, f"--config={name}"],
        cwd=fake / "here",
        timeout=60,
        env=fake_cluster.environment(fake),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--config={name}: workers get no such file, put" in done.stderr
    assert not (fake / "calls").exists()


def test_later_creations_are_tried_again(fake):
    (fake / "state").write_text("PREEMPTED\n")
    (fake / "fail-create").write_text("no capacity\n" * 2)
    (fake / "fail-scp").write_text("Connection refused\n")  # no sshd yet
    (fake / "fail-delete").write_text("unavailable\n")
    status, output, calls = tpu(fake)
    assert status == 0 and shown(output) == list("12345"), output
    assert calls.count("create") == 3 and calls.count("delete") == 2
    assert calls.count("scp") == 2


def test_a_lost_network_is_waited_out(fake):
    (fake / "fail-describe").write_text("Unable to find the server\n" * 2)
    (fake / "state").write_text("READY\n")
    status, output, calls = tpu(fake)
    assert status == 0 and shown(output) == list("12345"), output
    assert "Unable to find the server" in output and "create" not in calls


def test_a_broken_connection_loses_and_repeats_no_line(fake):
    (fake / "cut").write_text("2")
    status, output, calls = tpu(fake)
    assert status == 0 and shown(output) == list("12345"), output
    assert calls.count("scp") == 1  # it is followed, not started again


def test_a_request_in_the_queue_is_waited_for(fake):
    (fake / "queue").write_text("ACCEPTED\nWAITING_FOR_RESOURCES\nACTIVE\n")
    status, output, calls = tpu(fake, "--queued")
    assert status == 0 and "(WAITING_FOR_RESOURCES)" in output, output
    assert shown(output) == list("12345") and "create" not in calls


def test_a_suspended_request_is_made_anew(fake):
    (fake / "queue").write_text("SUSPENDED\n")
    status, output, calls = tpu(fake, "--queued", "--delete")
    assert status == 0 and shown(output) == list("12345"), output
    assert calls.count("create") == 1 and calls.count("delete") == 2


def test_a_lost_process_is_started_again_but_no_fault_of_the_input(fake):
    text = "echo line 1; [ -e once ] || { touch once; exit 75; }; exit 2\n"
    (fake / "python").write_text(f"#!/bin/sh\n{text}")
    status, output, calls = tpu(fake)
    assert status == 2 and shown(output) == ["1", "1"], output
    assert "status 75: starting again (1 of 3)" in output and calls.count("scp") == 2


@pytest.mark.parametrize("taken", [True, False])
def test_a_run_that_saved_goes_on_where_its_slice_was_taken_away(fake, taken):
    """SIGTERM comes with a preemption, and with --stop."""
    text = f"""#!/bin/sh
[ "$JAX_PROCESS_ID" = 0 ] || exit 0
echo line 1
[ ! -e "$FAKE/once" ] || exit 0
touch "$FAKE/once"
until [ -e "$FAKE/followed" ]; do /bin/sleep 0.05; done
{'echo PREEMPTED >"$FAKE/state"' if taken else ""}
exit 143
"""
    (fake / "python").write_text(text)
    status, output, calls = tpu(fake)
    assert status == (0 if taken else 143), output
    assert shown(output) == ["1"] * (1 + taken)
    assert calls.count("create") == 1 + taken


def test_a_failed_installation_ends_it(fake):
    status, output, calls = tpu(fake, "--setup=false")
    assert status == 1 and "its commands failed with status 1" in output, output
    assert calls.count("scp") == 1


def worker(fake, *words):
    done = subprocess.run(
        ["bash", str(ROOT / "launch/tpu_worker.sh"), *words],
        cwd=fake,
        env=fake_cluster.environment(fake),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_worker_has_one_session(fake):
    (fake / "python").write_text("#!/bin/sh\necho line\nexec /bin/sleep 100\n")
    assert worker(fake, "start")[0] == 0
    first = int((fake / "pid").read_text())
    assert worker(fake, "start")[0] == 0
    second = int((fake / "pid").read_text())
    try:
        assert first != second and not alive(first) and alive(second)
        assert worker(fake, "alive")[0] == 0
        assert worker(fake, "kill")[0] == 0 and not alive(second)
        assert worker(fake, "alive")[0] != 0
        assert worker(fake, "follow")[1].splitlines()[-1] == "status:75"
    finally:
        worker(fake, "kill")


def alive(number):
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_a_worker_leaves_alone_what_is_not_its_session(fake):
    """As after a reboot, when the number in `pid` is that of another process."""
    other = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    try:
        (fake / "pid").write_text(f"{other.pid}\n")
        (fake / "run.log").write_text("line\n")
        assert worker(fake, "alive")[0] != 0
        status, _, error = worker(fake, "stop")
        assert status == 0 and error == "launch: nothing runs here\n"
        assert worker(fake, "follow")[1] == "1:line\nstatus:75\n"
        assert worker(fake, "kill")[0] == 0 and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_worker_stops_its_run_and_tells_its_status(fake):
    text = "trap 'echo saved; exit 143' TERM\n: >there\n"
    text += "while true; do /bin/sleep 0.05; done\n"
    (fake / "python").write_text(f"#!/bin/sh\n{text}")
    assert worker(fake, "start")[0] == 0
    try:
        while not (fake / "there").exists():
            time.sleep(0.02)
        assert worker(fake, "stop") == (0, "", "")
        lines = worker(fake, "follow")[1].splitlines()
        assert "saved" in lines[-2] and lines[-1] == "status:143"
    finally:
        worker(fake, "kill")


def test_a_worker_without_a_run_says_so(fake):
    status, output, error = worker(fake, "follow")
    assert status == 2 and not output and "nothing was started in" in error
    assert worker(fake, "stop") == (0, "", "launch: nothing runs here\n")
    assert worker(fake, "kill") == (0, "", "")
