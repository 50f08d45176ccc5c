"""Runs of a grid of settings and seeds: python -m jaxrec.sweep --config=... --out=DIR.

    python -m jaxrec.sweep --config=configs/td3bc.py --out=runs/alpha \\
        --grid=train.td3bc.alpha=1,2.5,4 --seeds=0-2 --config.train.steps=20000

One run for each combination of the values of every --grid and each seed, in
DIR/<field=value,...>/seed=<n>, one after the other (--jobs at a time) or, with --slurm,
as a job array. Flags --config.FIELD=VALUE are given to all. The same command again goes
on: finished runs are left alone, others resume; where one that is there has other
settings, it is refused, as jaxrec.main would. At its end it tells the report's command.
Exit status: 0 all runs are finished (or handed to Slurm); 1 some failed, which keeps
none of the others from being done; 2 a fault of the input; 128 + N stopped by signal N;
that of sbatch, where it failed. JAX is imported only where there are runs to compare
with.
"""

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from jaxrec import grid
from jaxrec.errors import UserError, fail
from jaxrec.grid import Point

SLURM = Path(__file__).parents[1] / "launch" / "slurm.sh"


def compare(every: Sequence[Point]) -> None:
    """Raises UserError for the first run that is there with other settings."""
    there = [point for point in every if (point.workdir / "config.json").exists()]
    if not there:
        return
    from jaxrec import main, settings, workdir  # JAX

    for point in filter(lambda point: workdir.begun(point.workdir), there):
        config = settings.resolve(main.read_config(list(point.flags)))
        workdir.check_config(point.workdir, config, "use another --out")


def command(point: Point) -> list[str]:
    """What runs it."""
    return [sys.executable, "-m", "jaxrec.main", *point.flags]


class Stop:
    """The first signal to stop is passed on to the runs at work; none starts then."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()

    def note(self, number: int, frame: object) -> None:
        self.signal_number = self.signal_number or number
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)

    def start(self, point: Point) -> subprocess.Popen | None:
        """In a session of its own, so that a Ctrl-C comes once; its log beside it."""
        with self.lock:
            if self.signal_number:
                return None
            point.workdir.mkdir(parents=True, exist_ok=True)
            with (point.workdir / "log.txt").open("a") as log:
                process = subprocess.Popen(
                    command(point), stdout=log, stderr=log, start_new_session=True
                )
            self.running.add(process)
            if self.signal_number:  # it came meanwhile
                process.send_signal(signal.SIGTERM)
            return process


def run_all(todo: Sequence[Point], jobs: int) -> tuple[list[Point], Stop]:
    """Do the runs, `jobs` at a time; those that failed."""
    stop, failed, done = Stop(), [], itertools.count(1)

    def one(point: Point) -> None:
        if (process := stop.start(point)) is None:
            return
        began = time.monotonic()
        status = process.wait()
        stop.running.discard(process)
        if status and not stop.signal_number:
            failed.append(point)
        told = "done" if status == 0 else f"exit status {status}: {last_line(point)}"
        seconds = time.monotonic() - began
        say(f"{next(done)}/{len(todo)} {point.name}: {told} ({seconds:.0f} s)")

    old = {n: signal.signal(n, stop.note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return failed, stop


def last_line(point: Point) -> str:
    """What a failed run said at last."""
    lines = (point.workdir / "log.txt").read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)


def submit(todo: Sequence[Point], out: Path, flags: Sequence[str], dry: bool) -> int:
    """Hand the runs to launch/slurm.sh as one job array; its exit status.

    Each submission has a list of its own: a task reads its line again whenever it
    starts, also when a later submission lists fewer runs.
    """
    if not SLURM.exists():
        raise UserError(f"no {SLURM}: install the package from its checkout, with -e")
    lines = "".join(shlex.join(point.flags) + "\n" for point in todo)
    array = out / f"runs-{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
    words = ["bash", str(SLURM), f"--array={array}", *flags]
    if dry:
        print(
            f"cat >{shlex.quote(str(array))} <<'END'\n{lines}END\n{shlex.join(words)}"
        )
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with array.open("x") as file:
        file.write(lines)
    environ = os.environ | {"PYTHON": sys.executable}
    if status := subprocess.run(words, env=environ).returncode:
        array.unlink()
    return status


def folder(text: str) -> Path:
    """For argparse: not the current folder by an empty text."""
    if not text:
        raise argparse.ArgumentTypeError("give a folder")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The flags but those of the config."""
    found = argparse.ArgumentParser(
        "jaxrec.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("--config", required=True, help="file, as of jaxrec.main")
    found.add_argument("--out", required=True, type=folder, help="folder of all runs")
    found.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=VALUE,VALUE",
        help="a field of the config and its values; may be repeated",
    )
    found.add_argument(
        "--seeds", default="0", help="such as 0-2,7; default %(default)s"
    )
    found.add_argument("--jobs", type=int, default=1, help="runs at a time")
    found.add_argument(
        "--slurm",
        nargs="?",
        const="",
        metavar="FLAGS",
        help="submit a job array with these flags of launch/slurm.sh",
    )
    found.add_argument(
        "--dry-run", action="store_true", help="print the commands, run nothing"
    )
    return found


def work(argv: Sequence[str] | None) -> int:
    """The sweep; its exit status."""
    flags, more = parser().parse_known_args(argv)
    for word in more:
        # absl would take the next flag as the value of one without "=".
        if not word.startswith("--config.") or "=" not in word:
            raise UserError(f"unknown argument {word}: runs take --config.FIELD=VALUE")
    settings = grid.parse(flags.grid)
    for word in more:
        field = word.removeprefix("--config.").partition("=")[0]
        if field == "seed" or field in settings:
            by = "--seeds" if field == "seed" else "--grid"
            raise UserError(f"{word}: {by} gives that field already, leave one out")
    if flags.jobs < 1:
        raise UserError(f"--jobs={flags.jobs}: it must be 1 or more")
    if not Path(flags.config.partition(":")[0]).is_file():
        raise UserError(f"no config file {flags.config}: see configs/")
    try:
        slurm = None if flags.slurm is None else shlex.split(flags.slurm)
    except ValueError as error:
        raise UserError(f"--slurm={flags.slurm}: {error}") from error
    if any((flags.out / name).exists() for name in ("config.json", "summary.json")):
        raise UserError(f"--out={flags.out} is itself a run: choose another --out")
    numbers = grid.seeds(flags.seeds)
    every = grid.points(flags.config, flags.out, settings, numbers, more)
    compare(every)
    todo = [point for point in every if not point.finished]
    say(f"{len(every)} runs, {len(every) - len(todo)} finished")
    report = f"python -m jaxrec.report {shlex.quote(str(flags.out))} --out="
    report += shlex.quote(str(flags.out / "report"))
    if todo and slurm is not None:
        status = submit(todo, flags.out, slurm, flags.dry_run)
        if status == 0:
            print(f"# when they are done: {report}")
        return status
    if flags.dry_run:
        for point in todo:
            print(shlex.join(command(point)))
        print(report)
        return 0
    failed, stop = run_all(todo, flags.jobs)
    if stop.signal_number:
        say("stopped; the same command goes on")
        return 128 + stop.signal_number
    if failed:
        say(f"{len(failed)} failed; mend the cause, and the same command goes on")
        return 1
    print(report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`work`, with faults of the input as one line."""
    try:
        return work(argv)
    except UserError as error:
        return fail(error)
    except OSError as error:
        return fail(f"{error}; choose another --out")


if __name__ == "__main__":
    sys.exit(main())
