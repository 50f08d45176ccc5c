"""What a run writes while it works: metrics.jsonl, TensorBoard, the progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import boards
from jaxrec.errors import UserError


class MetricsFile:
    """`metrics.jsonl` of a stage, one JSON object a line; TensorBoard beside it.

    Opening it for a run that resumes at `step` cuts the lines after that step (they
    will be written again) and a line torn by a kill.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        lines = [line for line in read(self.path) if line["step"] <= step]
        self.start = time.monotonic() - (lines[-1]["wall"] if lines else 0.0)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.rename(self.path)
        self.file = self.path.open("a")
        self.board = boards.open_board(folder)

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        clocks: Mapping[str, float] | None = None,
    ) -> None:
        """Add a line; values are scalars, or float[S] with several seeds.

        `clocks`: what the curves alone show, as it differs from run to run.
        """
        wall = round(time.monotonic() - self.start, 3)
        values = {name: plain(value) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, "wall": wall} | values) + "\n")
        self.file.flush()
        if self.board is not None:
            boards.scalars(self.board, step, values | dict(clocks or {}))

    def histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
        """Distributions of what evaluators measured of each event, all seeds as one."""
        if self.board is not None:
            boards.histograms(self.board, step, arrays)

    def sync(self) -> None:
        """Force the lines to disk, so that a checkpoint is never ahead of them."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """End of the stage."""
        self.sync()
        self.file.close()
        if self.board is not None:
            self.board.close()


class Nowhere:
    """Takes the place of a `MetricsFile` in processes that do not lead."""

    def write(self, step: int, metrics: Any, clocks: Any = None) -> None: ...

    def histograms(self, step: int, arrays: Mapping[str, Any]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Means:
    """Sums of the training metrics since the last line of the log."""

    def __init__(self, pending: dict[str, Any]) -> None:
        self.count = pending.get("count", 0)
        self.sums = {k: np.asarray(v) for k, v in pending.get("sums", {}).items()}

    def add(self, metrics: dict[str, Any], last_step: int) -> None:
        """Add the metrics [n, ...] of one call; stop at a loss that is not finite."""
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        size = len(metrics["loss"])
        finite = np.isfinite(metrics["loss"]).reshape(size, -1).all(-1)
        if not finite.all():
            step = last_step - size + int(np.argmin(finite)) + 1
            raise UserError(
                "loss is not finite at step 1, before anything was learnt: look at the "
                "data and at the sizes in the config"
                if step == 1
                else f"loss is not finite at step {step}: lower the learning rate or "
                "look at the data near that step; checkpoints before it are kept"
            )
        for name, value in metrics.items():
            total = value.astype(np.float64).sum(0)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += size

    def flush(self) -> dict[str, Any]:
        """Means since the last flush, as `train/<name>`."""
        means = {f"train/{k}": v / self.count for k, v in self.sums.items()}
        self.count, self.sums = 0, {}
        return means

    def pending(self) -> dict[str, Any]:
        """JSON form, exact, for the checkpoint."""
        return {
            "count": self.count,
            "sums": {name: value.tolist() for name, value in self.sums.items()},
        }


def plain(value: Any) -> float | list[float | None] | None:
    """JSON has no NaN: it becomes null. Digits enough to tell float32 apart."""
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [plain(x) for x in array]
    return float(f"{array:.9g}") if math.isfinite(array) else None


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; [] when there is none."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break  # torn by a kill; what follows cannot be whole either
    return lines


def say(text: str) -> None:
    """A line for people, on standard error: standard output is for results."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar with rate, ETA and the headline metric; plain lines off a terminal."""

    def __init__(self, label: str, total: int, start: int = 0) -> None:
        self.label, self.total, self.first = label, total, start
        self.begun = self.shown = time.monotonic()
        self.paused = 0.0
        self.terminal = sys.stderr.isatty()
        self.every = 0.1 if self.terminal else 10.0

    def update(self, step: int, text: str = "") -> None:
        """Show `step` of the total, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self.shown < self.every and step < self.total:
            return
        self.shown = now
        # Evaluation and compilation pauses would make the rate lie.
        rate = (step - self.first) / max(now - self.begun - self.paused, 1e-9)
        left = (self.total - step) / max(rate, 1e-9)
        line = (
            f"{self.label} {step}/{self.total}  {rate:.4g}/s  "
            f"ETA {clock(left)}  {text}".rstrip()
        )
        if self.terminal:
            done = round(20 * step / max(self.total, 1))
            bar = "#" * done + "-" * (20 - done)
            sys.stderr.write(f"\r\x1b[K[{bar}] {line}")
            if step >= self.total:
                sys.stderr.write("\n")
            sys.stderr.flush()
        else:
            print(line, file=sys.stderr, flush=True)

    def pause(self, seconds: float) -> None:
        """Leave these seconds out of the rate."""
        self.paused += seconds


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(min(seconds, 10**7)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Numpy arrays as a compressed .npz, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(part, path)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all: to a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
