"""Lines of questions in, lines of answers out: what `recommend` and `serve` share."""

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from jaxrec.errors import Interrupted, UserError


def load_line(line: str) -> Any:
    """The object of a line of JSON. Raises UserError for what is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # the second: nested too deep
        raise UserError(f"no JSON ({error}): give one object a line") from error


def answer(
    lines: Iterable[str], reply: Callable[[str], dict[str, Any]], out: TextIO
) -> tuple[list[float], int]:
    """Print the reply to every line -> (seconds of each reply, lines refused).

    A line for which `reply` raises UserError is answered by {"user": ..., "error":
    ...}, the user where the line tells one.
    """
    seconds, refused = [], 0
    for line in lines:
        if not line.strip():
            continue
        begun = time.perf_counter()
        try:
            found = reply(line)
        except UserError as error:
            refused += 1
            found = user_of(line) | dict(error=str(error))
        else:
            seconds.append(time.perf_counter() - begun)
        try:
            print(json.dumps(found), file=out, flush=True)
        except BrokenPipeError:  # nobody listens any more
            break
    return seconds, refused


def user_of(line: str) -> dict[str, Any]:
    """{"user": ...} if the line, which may be refused, tells whom it is about."""
    try:
        return dict(user=json.loads(line)["user"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}


def until_stopped(lines: Iterable[str]) -> Iterator[str]:
    """The lines up to SIGTERM or SIGINT, which wait for the event at hand."""
    waiting, stopped = False, False

    def note(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        if waiting:
            raise Interrupted("stopped", number)

    old = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    rest = iter(lines)
    try:
        while not stopped:
            waiting = True
            line = next(rest, None)
            waiting = False
            if line is None:
                return
            yield line
    except Interrupted:
        return
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def told(what: str, seconds: Sequence[float], refused: int, unit: str) -> str:
    """One line on what was answered and how fast: "3 events, 0 refused; p50 ..."."""
    text = f"{what}, {refused} refused"
    if seconds:
        p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
        text += f"; p50 {p50:.3f} ms, p99 {p99:.3f} ms {unit}"
    return text
