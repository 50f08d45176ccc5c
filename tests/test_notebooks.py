"""Every notebook runs from top to bottom, and is committed as one should be."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 300_000  # bytes
SECONDS = 180

# What IPython does with the last expression of a cell, and shows of pictures.
PRELUDE = """
import sys, types
display = types.ModuleType("IPython.display")
display.Image = lambda *args, **kwargs: open(args[0], "rb").read(6)
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].version_info = (9, 0)  # matplotlib asks
sys.modules["IPython"].get_ipython = lambda: None
sys.modules["IPython.display"] = display
import matplotlib
matplotlib.use("Agg")
"""
# The pictures of a run can be kept to be looked at.
SAVE = """
import matplotlib.pyplot
for number in matplotlib.pyplot.get_fignums():
    matplotlib.pyplot.figure(number).savefig({!r} + f"/{:02}-{{number}}.png")
matplotlib.pyplot.close("all")
"""


def cells(path, kind):
    found = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def plain(code):
    """Without the lines of IPython's own, which fetch and install."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", code, flags=re.M)


def as_script(code, python):
    """With what IPython's own lines do; `%pip` is that of `python`."""
    done = {
        "!": lambda rest: f"shell({rest!r})",
        "%pip ": lambda rest: f"shell({f'{python} -m pip {rest}'!r})",
        "%cd ": lambda rest: f"os.chdir({rest!r})",
    }
    magic = rf"^(\s*)({'|'.join(done)})(.*)$"
    return re.sub(magic, lambda m: m[1] + done[m[2]](m[3]), code, flags=re.M)


def seconds_used():
    """(on the wall, on all cores by processes that ended) up to now."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), used.ru_utime + used.ru_stime


def names(path):
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebooks_are_committed_clean(path):
    found = json.loads(path.read_text())
    assert path.stat().st_size < LIMIT
    assert all(not c.get("outputs") for c in found["cells"])
    text = cells(path, "markdown")
    assert f"blob/main/notebooks/{path.name}" in text[0], "no badge of its own"
    assert sum("pip install" in code for code in cells(path, "code")) == 1
    assert sum("$" in part for part in text) > 0, "no equation"


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebooks_run(tmp_path, path):
    """JAXREC_NOTEBOOK_PLOTS=DIR keeps their pictures."""
    keep = os.environ.get("JAXREC_NOTEBOOK_PLOTS")
    parts = [PRELUDE]
    for number, code in enumerate(cells(path, "code")):
        parts.append(plain(code))
        if keep:
            parts.append(SAVE.format(keep, number))
    script = tmp_path / f"{path.stem}.py"
    script.write_text("\n".join(parts))
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        JAXREC_DATA=str(tmp_path / "data"),
        TMPDIR=str(tmp_path),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    before = seconds_used()
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wall, cores = (b - a for a, b in zip(before, seconds_used()))
    print(f"{path.stem}: {wall:.0f} s, {cores:.0f} s of all cores")
    # The wall's clock counts other work of a busy machine too.
    assert min(wall, cores) < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_the_first_cell_installs_on_colab(tmp_path, path):
    """In a virtual environment that is empty, from this checkout as the repository."""
    code = cells(path, "code")[0]
    url = "https://github.com/jaxrec/jaxrec"
    assert url in code
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "colab"], check=True)
    python = tmp_path / "colab" / "bin" / "python"
    remote = tmp_path / "remote" / "jaxrec"
    remote.parent.mkdir()
    remote.symlink_to(ROOT)
    script = tmp_path / "cell.py"
    script.write_text(
        "import subprocess, sys, types\n"
        "sys.modules['google.colab'] = types.ModuleType('colab')\n"
        "shell = lambda line: subprocess.run(line, shell=True, check=True)\n"
        + as_script(code.replace(url, str(remote)), python)
        + "\nassert os.path.isdir('configs')\n"
        f"shell('{python} -m jaxrec.main --config=configs/ce.py:smoke'\n"
        "      ' --config.data.data_dir=data --workdir=run')\n"
    )
    done = subprocess.run(
        [python, script],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "jaxrec" / "run" / "summary.json").exists()
