"""The commands of README: each is run as it stands there, or its words are checked.

A command that is known to neither list fails: decide what becomes of it.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("JAXREC_SHARED_DATA", ROOT.parent / "shared" / "data"))
README = (ROOT / "README.md").read_text()
# Run as they stand, in this order, after `runs/sqn` was trained in its smoke form.
RUN = (
    "python -m jaxrec.main --config=configs/ce.py --config.data.source=table",
    "python -m jaxrec.recommend",
    "echo ",
    "python -m jaxrec.evaluate",
    "python -m jaxrec.export",
    "launch/gpu.sh --processes=2 --cpu=1",
    "python -m jaxrec.report",
)
# Hours, GPUs, clusters: what they print says that flags and config are good.
DRY = ("launch/gpu.sh", "launch/slurm.sh", "launch/tpu.sh", "python -m jaxrec.sweep")
TRAIN = "python -m jaxrec.main"  # minutes: the config is resolved, its smoke form run
SWEEP = "python -m jaxrec.sweep"  # so is that of the sweep
INSTALL = "pip install -e"  # the network: its extras are looked up
TESTS = "python -m pytest -q"  # these
RESOLVE = """
import sys
from jaxrec import main, settings
main.parse(sys.argv)
settings.resolve(main.CONFIG.value)
"""


def fenced(language):
    """The blocks of README in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def commands():
    """Each command of the bash blocks, as one line without comments."""
    found = []
    for block in fenced("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"(^|\s)#.*", "", line).strip()
            if words:
                found.append(re.sub(r" +", " ", words))
    return found


def kind(command):
    """Which of RUN, DRY, ... it begins with."""
    for group in (RUN, DRY, (TRAIN,), (INSTALL,), (TESTS,)):
        if command.startswith(group):
            return group
    raise AssertionError(f"README has a command that no list in here knows: {command}")


def test_every_command_is_known_and_what_it_names_exists():
    found = commands()
    assert len(found) > 12 and all(map(kind, found))
    unused = [
        start for start in RUN + DRY if not any(c.startswith(start) for c in found)
    ]
    assert not unused, f"README has no such command any more: {unused}"
    for module in set(re.findall(r"-m\s+(jaxrec[\w.]*\w)", README)):
        assert importlib.util.find_spec(module), module
    for file in set(
        re.findall(r"\b((?:configs|launch|notebooks|tests)/\w+\.\w+)", README)
    ):
        assert (ROOT / file).is_file(), file
    for command in found:
        if kind(command) == (INSTALL,):
            setup = ConfigParser()
            setup.read(ROOT / "setup.cfg")
            extras = re.search(r"\[(.*)\]", command)[1].split(",")
            assert set(extras) <= set(setup["options.extras_require"])


def short(command):
    """Its smoke form, without the numbers that would make it long again."""
    smoke = re.sub(r"(configs/\w+\.py)\S*", r"\1:smoke", command)
    long = r"num_seeds|eval\.episodes|train\.(steps|eval_every|batch_size)"
    return re.sub(rf" --config\.({long})=\S+", "", smoke)


def shell(command, folder):
    """What a command prints, run in the folder with this Python."""
    bin = folder / "bin"
    env = os.environ | dict(
        PATH=f"{bin}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        PYTHONPATH=str(ROOT),
        JAX_PLATFORMS="cpu",
        JAXREC_DATA=str(folder / "data"),
        MPLBACKEND="Agg",
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=1_200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout to run in, with a `python` and a small run for those that use one."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "launch", "jaxrec"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"  # a link would lose its virtual environment
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_flags_of_what_takes_long_are_good(folder):
    for command in commands():
        if kind(command) == (TRAIN,):
            words = shlex.split(command)
            args = shlex.join(words[words.index("jaxrec.main") + 1 :])
            shell(f"python -c {shlex.quote(RESOLVE)} {args}", folder)
        elif kind(command) == DRY:
            shown = shell(f"{command} --dry-run", folder)
            assert "jaxrec.main" in shown or "tpu_worker.sh\\ start" in shown
        if "source=shared" in command and not SHARED.is_dir():
            continue
        if command.startswith((TRAIN, SWEEP)) and kind(command) != RUN:
            assert shell(short(command), folder).strip(), command


@pytest.mark.slow
def test_commands_run_as_they_stand(folder):
    small = "--config=configs/sqn.py:smoke --config.train.steps=20 --workdir=runs/sqn"
    shell(f"python -m jaxrec.main {small} '--config.train.evals=()'", folder)
    rows = [
        f"u{user},{(7 * user + k * k) % 120},{k}"
        for user in range(60)
        for k in range(15)
    ]
    (folder / "own.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    found = [command for command in commands() if kind(command) == RUN]
    found.sort(key=lambda command: "report" in command)  # what there is by then
    for command in found:
        assert shell(command, folder).strip(), command
    assert (folder / "report" / "table.md").exists()
    assert (folder / "sqn.export").exists()
    for block in fenced("python"):
        shell(f"python -c {shlex.quote(block)}", folder)
