"""The page of an experiment as a browser shows it, where there is a browser.

It needs the extra `browser` (playwright) and a Chromium: the one that JAXREC_CHROMIUM
names, one on the PATH, or playwright's own. JAXREC_PAGE_SHOTS=DIR keeps the pictures.
"""

import os
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from toy_runs import SCORE, run_main, write_run

WIDTH = 1_200
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def screen():
    api = pytest.importorskip(
        "playwright.sync_api", reason="the extra browser is not installed"
    )
    found = os.environ.get("JAXREC_CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    with api.sync_playwright() as play:
        if not Path(found or play.chromium.executable_path).exists():
            pytest.skip("no Chromium found: install one or set JAXREC_CHROMIUM")
        shown = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield shown.new_page()
        shown.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with a table, curves, seeds, sessions and a field to be escaped."""
    folder = tmp_path_factory.mktemp("page")
    for seed, score in ((0, 40.0), (1, 50.0), (2, 60.0)):
        write_run(folder / "runs" / f"a{seed}", seed, {SCORE: score, "train/loss": 1.0})
    run = write_run(folder / "runs" / "b", 0, {SCORE: 30.0}, lr=0.1, name="<b>" * 30)
    (run / "train" / "arrays").mkdir()
    np.savez(
        run / "train" / "arrays" / "40.npz",
        **{
            "test/rank": np.array([1, 1, 99, 99], np.float32),
            "test/kind": np.zeros(4, np.int8),
            "test/session": np.array([0, 0, 7, 7], np.int32),
        },
    )
    assert run_main(folder / "runs", f"--out={folder}/out") == 0
    return folder / "out"


@pytest.mark.parametrize("width", [WIDTH, 420])
def test_pages_are_whole_on_a_screen(screen, path, tmp_path, width):
    pages = sorted(path.glob("*.html"))
    assert len(pages) == 2
    screen.set_viewport_size(dict(width=width, height=900))
    said = []
    screen.on("console", lambda message: said.append(message.text))
    screen.on("request", lambda request: said.append(request.url))
    for number, one in enumerate(pages):
        said.clear()
        screen.goto(one.as_uri())
        assert said == [one.as_uri()], "the page asks for something, or complains"
        assert screen.locator("h1").is_visible() and screen.locator("table").count() > 1
        # Wide tables scroll in themselves; the page does not.
        assert screen.evaluate("document.documentElement.scrollWidth") <= width
        for picture in screen.locator("svg").all():
            box = picture.bounding_box()
            assert box["width"] > 100 and box["height"] > 50
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert screen.locator("svg").count() > 0
        folder = Path(os.environ.get("JAXREC_PAGE_SHOTS", tmp_path))
        shot = folder / f"page-{width}-{number}.png"
        screen.screenshot(path=shot, full_page=True)
        pixels = matplotlib.image.imread(shot)[..., :3]
        assert pixels.shape[1] == width and pixels.shape[0] >= 900
        colours = np.unique(pixels.reshape(-1, 3).round(2), axis=0)
        assert len(colours) > 20, "an empty picture"
