"""python -m jaxrec.serve --run=RUN [--k=10] [--states=FILE.npz]

Recommends from a stream of events. Each line of the standard input is JSON:

    {"user": "u1", "item": 17}            an event; a user not seen before starts here
    {"user": "u2", "items": [4, 17, 3]}   several, such as the history of a new user

and is answered by a line {"user": ..., "items": [k ids, best first]}. Ids are those of
the log that RUN was trained on. An event costs the same after ten events or a million,
see `serving`. One that is refused is answered by {"user": ..., "error": ...}, changes
nothing, and makes the exit status 2. `--states`: read at the start if it is there,
written at the end, also after an interrupt. Latencies go to the standard error stream.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import serving, snapshots
from jaxrec.errors import Interrupted, UserError
from jaxrec.serving import Model, States

FIRST_ROWS = 1_024  # users that the states have room for at the start, then doubled


class Served(NamedTuple):
    """The states of all users, on the device, and the row of each.

    `rows` grows in place, and only after the device has done its part.
    """

    states: States
    rows: dict[str | int, int]


def start(model: Model, path: str = "") -> Served:
    """Nobody, or the users of a snapshot if `path` is there."""
    if not path or not Path(path).exists():
        return Served(serving.empty(model, FIRST_ROWS), {})
    states, users = snapshots.restore(path, model)
    served = Served(states, {user: row for row, user in enumerate(users)})
    return with_room(served, max(FIRST_ROWS, len(users)))


def with_room(served: Served, size: int) -> Served:
    """The same users with room for `size`."""

    def grow(leaf: jax.Array) -> jax.Array:
        extra = size - len(leaf)
        return jnp.pad(leaf, ((0, extra),) + ((0, 0),) * (leaf.ndim - 1))

    return served._replace(states=jax.tree.map(grow, served.states))


def advance(
    model: Model, served: Served, user: str | int, items: np.ndarray, k: int
) -> tuple[Served, np.ndarray]:
    """Take in items int32[n] of a user -> the new Served, items int32[k] to recommend.

    The Served given is used up.
    """
    row = served.rows.get(user, len(served.rows))
    capacity = len(served.states.layers[0].state)
    if row >= capacity:
        served = with_room(served, 2 * capacity)
    states, best = served.states, None
    for first in range(0, len(items), serving.LONGEST):
        piece = items[first : first + serving.LONGEST]
        # Few sizes, as each is a program.
        padded = np.zeros((1, 1 << (len(piece) - 1).bit_length()), np.int32)
        padded[0, : len(piece)] = piece
        place, length = np.array([row], np.int32), np.array([len(piece)], np.int32)
        states, _, best = serving.advance_rows(model, states, place, padded, length, k)
    found = np.asarray(best)[0]
    served.rows[user] = row
    return served._replace(states=states), found


def event(line: str) -> tuple[str | int, list[Any]]:
    """(user, items) of a line. Raises UserError for what is no event."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"no JSON ({error}): give one object a line") from error
    if not isinstance(found, dict) or ("item" in found) == ("items" in found):
        raise UserError('no event: give {"user": ..., "item": ...} or "items": [...]')
    user = found.get("user")
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise UserError(f"user {user!r} is no id: give an integer or a text")
    items = found["items"] if "items" in found else [found["item"]]
    if not isinstance(items, list):
        raise UserError(f"items {items!r} is no list: give [...]")
    return user, items


def user_of(line: str) -> Any:
    """Whom a refused line is about, None if it does not tell."""
    try:
        return json.loads(line).get("user")
    except (ValueError, AttributeError):
        return None


def serve(
    model: Model, served: Served, lines: Iterable[str], out: TextIO, k: int
) -> tuple[Served, list[float], int]:
    """Answer every line -> (Served, seconds of each event, events refused)."""
    seconds, refused = [], 0
    for line in lines:
        if not line.strip():
            continue
        begun = time.perf_counter()
        try:
            user, items = event(line)
            numbers = serving.numbers_of(model, items)
        except UserError as error:
            refused += 1
            answer = {"user": user_of(line), "error": str(error)}
        else:
            served, best = advance(model, served, user, numbers, k)
            seconds.append(time.perf_counter() - begun)
            answer = {"user": user, "items": [model.ids[n] for n in best]}
        try:
            print(json.dumps(answer), file=out, flush=True)
        except BrokenPipeError:  # nobody listens any more
            break
    return served, seconds, refused


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


def warmed(model: Model, served: Served, k: int) -> Served:
    """The same, with the program of an event compiled: the first one need not wait."""
    none, one = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    states, _, _ = serving.advance_rows(model, served.states, none, one, none, k)
    return served._replace(states=states)


def told(seconds: list[float], served: Served, refused: int) -> str:
    """One line on what was served and how fast."""
    text = f"{len(seconds)} events of {len(served.rows)} users, {refused} refused"
    if seconds:
        p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
        text += f"; p50 {p50:.3f} ms, p99 {p99:.3f} ms an event"
    return text


def main(
    argv: Sequence[str] | None = None,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> int:
    """Serve; returns the exit status: 0, or 2 for a fault of the input."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.serve", description="Top k from a stream of events."
    )
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument("--stage", default="", help="of the run; default: its last")
    parser.add_argument("--seed_number", type=int, default=0, help="of its num_seeds")
    parser.add_argument("--k", type=int, default=10, help="items to recommend")
    parser.add_argument("--states", default="", help="snapshot to go on from, .npz")
    given = parser.parse_args(argv)
    try:
        model = serving.load(given.run, given.stage, given.seed_number)
        serving.check_k(model, given.k)
        served = warmed(model, start(model, given.states), given.k)
        say(f"model {model.version}, {len(served.rows)} users known")
        lines = until_stopped(sys.stdin if lines is None else lines)
        served, seconds, refused = serve(
            model, served, lines, sys.stdout if out is None else out, given.k
        )
        say(told(seconds, served, refused))
        if given.states:
            snapshots.save(given.states, served.states, list(served.rows))
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    return 2 if refused else 0


def say(message: str) -> None:
    """To the standard error stream: the other one is for answers."""
    print(f"jaxrec: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
