"""Made-up run folders for the tests of reports."""

import csv
import json
from pathlib import Path

import numpy as np

from jaxrec import report

SCORE = "eval/normalized_score"


def write_run(
    path: Path,
    seed: int,
    last: dict,
    name: str = "td3bc",
    num_seeds: int = 1,
    data: str = "gym/Hopper-v4/medium",
    finished: bool = True,
    best: dict | None = None,
    **fields,
) -> Path:
    """A run folder with one stage whose curves rise linearly to `last` at step 40."""
    config = dict(name=name, seed=seed, num_seeds=num_seeds, stages=["train"])
    config |= dict(workdir=str(path), data=dict(name=data), train=dict(steps=40))
    config["train"] |= fields
    stage = path / "train"
    stage.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for step in (10, 20, 30, 40) if finished else (10, 20):
        line = {"step": step, "wall": 0.1 * step}
        for metric, value in last.items():
            scaled = (np.array(value, float) * step / 40).tolist()
            line[metric] = scaled
        lines.append(json.dumps(line) + "\n")
    (stage / "metrics.jsonl").write_text("".join(lines))
    if finished:
        facts = dict(last=last, best=best or {}, steps=40, seconds=2.0, parameters=1234)
        facts |= dict(steps_per_second=20.0, compile_seconds=1.0)
        info = dict(name=data, version="7", env_id="Hopper-v4")
        summary = dict(stages=dict(train=facts), device="cpu", seed=seed)
        summary |= dict(num_seeds=num_seeds, data=info)
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_main(*arguments) -> int:
    return report.main([str(argument) for argument in arguments])
