"""The folder of a run: its lock, its config, its provenance, and signals to stop."""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from jaxrec import logs
from jaxrec.errors import Interrupted, UserError
from jaxrec.runs import FREE_FIELDS, flat

# Slurm's way to tell of the end of a job's time is SIGUSR1.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SHOWN = 3  # differences between two configs that are told


def settle_config(workdir: Path, config: FrozenConfigDict) -> None:
    """Write config.json, or compare with the one of the run that is there."""
    if begun(workdir):
        check_config(workdir, config)
    else:
        logs.write_json(workdir / "config.json", config.to_dict())


def begun(workdir: Path) -> bool:
    """Whether a run is there.

    One that ended before it wrote a line, say for a wrong path of the data, is none.
    """
    files = ("summary.json", "*/metrics.jsonl", "*/done.json")
    written = any(any(workdir.glob(file)) for file in files)
    return written and (workdir / "config.json").exists()


def check_config(
    workdir: Path, config: FrozenConfigDict, remedy: str = "use another --workdir"
) -> None:
    """Raises UserError where the run that is there is not of this config."""
    path = workdir / "config.json"
    try:
        theirs = flat(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {remedy}") from error
    ours = flat(json.loads(json.dumps(config.to_dict())))
    different = [
        field
        for field in sorted(ours.keys() | theirs.keys(), key=importance(ours, theirs))
        # A field that was added since, and is not used, makes no other run.
        if (ours.get(field) or None) != (theirs.get(field) or None)
        and field not in FREE_FIELDS
    ]
    if different:
        both = [field for field in different if field in ours and field in theirs]
        shown = [
            f"{field} is {theirs.get(field)} there, {ours.get(field)} here"
            for field in (both or different)[:SHOWN]
        ]
        if more := len(different) - len(shown):
            shown.append(f"and {more} more")
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(shown)}): {remedy}"
        )


def importance(*configs: dict[str, Any]) -> Callable[[str], tuple]:
    """The order in which differences are told: what follows from others comes last."""

    def order(field: str) -> tuple:
        # Another method brings settings that the other config does not have.
        lacking = any(field not in config for config in configs)
        first = field.endswith((".method", "stages", "seed", "num_seeds", "name"))
        return lacking, not first, not field.startswith("data."), field

    return order


TRAIN_AGAIN = (
    "delete it and give the command that trains the run again, which writes it anew"
)


def read_json(
    path: Path, remedy: str = TRAIN_AGAIN, fields: Iterable[str] = ()
) -> dict[str, Any]:
    """A file that the run wrote. Raises UserError, with the remedy, for a damaged one.

    One that lacks some of `fields` is damaged too. The command that trained it writes
    it anew, from the stages or from their last checkpoints.
    """
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        if lacking := [name for name in fields if name not in found]:
            raise ValueError(f"no {lacking[0]}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}): {remedy}"
        ) from error
    return found


def provenance() -> dict[str, Any]:
    """What the numbers of a run depend on besides its config."""
    return {"device": device(), "versions": versions(), "revision": revision()}


def device() -> str:
    """What the run used, such as "cpu x1"."""
    found = jax.devices()
    return f"{found[0].device_kind} x{len(found)}"


def versions() -> dict[str, str]:
    """Of Python and the packages that decide the numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco", "jaxrec")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def revision() -> str:
    """The git revision of the code, "" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Two processes must not write one run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot write to {workdir} ({error.strerror}): choose another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{workdir} is in use by another process: wait for it, or choose "
                "another --workdir"
            ) from error
        yield


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that gives the number of the first of STOP_SIGNALS, else 0.

    The loop looks at it between calls; the same signal once more ends the process at
    once. Another does not: schedulers announce an end in several ways.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number in seen:
            raise Interrupted("stopped at once; what was saved before is kept", number)
        if not seen:
            logs.say("stopping at the next safe point; once more to stop at once")
        seen.append(number)

    old = {n: signal.signal(n, note) for n in STOP_SIGNALS}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
