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

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import finished, logs, serving, snapshots, stream
from jaxrec.errors import UserError, fail
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
    found = stream.load_line(line)
    if not isinstance(found, dict) or ("item" in found) == ("items" in found):
        raise UserError('no event: give {"user": ..., "item": ...} or "items": [...]')
    user = found.get("user")
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise UserError(f"user {user!r} is no id: give an integer or a text")
    items = found["items"] if "items" in found else [found["item"]]
    if not isinstance(items, list):
        raise UserError(f"items {items!r} is no list: give [...]")
    return user, items


def serve(
    model: Model, served: Served, lines: Iterable[str], out: TextIO, k: int
) -> tuple[Served, list[float], int]:
    """Answer every line -> (Served, seconds of each event, events refused)."""

    def reply(line: str) -> dict[str, Any]:
        nonlocal served
        user, items = event(line)
        served, best = advance(model, served, user, serving.numbers_of(model, items), k)
        return dict(user=user, items=[model.ids[n] for n in best])

    seconds, refused = stream.answer(lines, reply, out)
    return served, seconds, refused


def warmed(model: Model, served: Served, k: int) -> Served:
    """The same, with the program of an event compiled: the first one need not wait."""
    none, one = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    states, _, _ = serving.advance_rows(model, served.states, none, one, none, k)
    return served._replace(states=states)


def main(
    argv: Sequence[str] | None = None,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> int:
    """Serve; returns the exit status: 0, or 2 for a fault of the input."""
    flags = finished.parser(
        "jaxrec.serve", "Top k from a stream of events.", "folder of a finished run"
    )
    flags.add_argument("--k", type=int, default=10, help="items to recommend")
    flags.add_argument("--states", default="", help="snapshot to go on from, .npz")
    given = flags.parse_args(argv)
    try:
        if given.states:
            snapshots.check_place(given.states)
        model = serving.load(given.run, given.stage, given.seed_number)
        serving.check_k(model, given.k)
        served = warmed(model, start(model, given.states), given.k)
        logs.say(f"model {model.version}, {len(served.rows)} users known")
        lines = stream.until_stopped(sys.stdin if lines is None else lines)
        served, seconds, refused = serve(
            model, served, lines, sys.stdout if out is None else out, given.k
        )
        what = f"{len(seconds)} events of {len(served.rows)} users"
        logs.say(stream.told(what, seconds, refused, "an event"))
        if given.states:
            snapshots.save(given.states, served.states, list(served.rows))
    except UserError as error:
        return fail(error)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
