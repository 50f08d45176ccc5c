"""Every notebook runs from top to bottom, and is committed as one should be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 300_000  # bytes

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
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
