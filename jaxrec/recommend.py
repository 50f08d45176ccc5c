"""python -m jaxrec.recommend --run=RUN [--history=12,7,99] [--k=10] [--index=faiss]

The items that a trained recommender, of any method that ranks items, puts first after a
history of ids of the log that it was trained on. Without --history a stream: each line
of the standard input is JSON,

    {"history": [12, 7, 99]}    and if you like "k": 5, and "user": "u1" to be echoed

and is answered by {"items": [...], "scores": [...]}, best first, with "titles" where
the log has them. One that is refused is answered by {"error": ...} and makes the exit
status 2. RUN may also be a folder that `jaxrec.export` wrote, which needs no data.

The history is read anew for every answer, its last `data.seq_len` events; encoders that
carry a state take in event by event, however many, with `jaxrec.serve`. In Python:

    recommend.recommend("runs/sqn", [12, 7, 99], k=10)
"""

import argparse
import contextlib
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import exported, finished, logs, recommender, serving, sharding, stream
from jaxrec import index as index_lib
from jaxrec.envs import online
from jaxrec.errors import UserError, fail
from jaxrec.ops import catalogue
from jaxrec.recommender import Recommender
from jaxrec.types import Array

LARGEST = 256  # histories of one call
FEWEST = 16  # items that a program finds, of which k are told


class Item(NamedTuple):
    """A recommended one."""

    id: Any  # of the log
    title: str  # "" where the log has none
    score: float  # in the method's own unit: a logit, a value, a count


def load(run: str | Path, stage: str = "", number: int = 0) -> Recommender:
    """The recommender of a finished run (see `finished`), or of an export's folder.

    Raises UserError for what is neither, for a method that ranks no items, and for a
    stage or a number of an export, which is of one.
    """
    if exported.is_export(run):
        if stage or number:
            raise UserError(
                f"{run} is an export, of one stage and one seed: leave out --stage and "
                "--seed_number, or export another one"
            )
        return exported.load(run)
    found = finished.policy(run, stage, number, split=True)
    model = recommender.make(found.method.scores, found.state, found.info)
    return model._replace(mesh=found.mesh)


def indexed(run: str | Path, kind: str, stage: str = "", number: int = 0) -> Any:
    """As `load`, with an approximate index of the items; see `jaxrec.index`.

    Raises UserError also for methods whose scores are no products with rows of items.
    """
    if exported.is_export(run):
        raise UserError(f"{run} is an export, which keeps no rows of items: give a run")
    found = finished.policy(run, stage, number)
    model = recommender.make(found.method.scores, found.state, found.info)
    if (factors := found.method.factors) is None:
        raise UserError(
            f"the method of {run} does not score by products with rows of items: leave "
            "out --index"
        )
    query = jax.jit(factors.query)
    rows = factors.items(found.state)
    index = index_lib.build(query, *rows, len(model.ids) - 1, kind)
    return model._replace(index=index)


def recommend(run: str | Path, history: Sequence[Any], k: int = 10) -> list[Item]:
    """The best k items after a history of ids: all in one call; see `top` for many."""
    return top(load(run), [history], k)[0]


def top(
    model: Recommender,
    histories: Sequence[Sequence[Any]],
    k: int = 10,
    mask_seen: bool | None = None,
) -> list[list[Item]]:
    """The best k items after each history of ids, the oldest event first.

    `mask_seen`: leave out items of the history; None: as the data's protocol says. An
    answer is shorter than k where fewer items are left. Raises UserError for unknown
    ids and for k beyond the catalogue.
    """
    if not 1 <= k <= len(model.numbers):
        raise UserError(f"k is {k}: give 1 to {len(model.numbers)}, all items")
    numbers = [serving.numbers_of(model, one) if len(one) else [] for one in histories]
    mask = model.mask_seen if mask_seen is None else mask_seen
    found = []
    for first in range(0, len(numbers), LARGEST):
        found += _top(model, numbers[first : first + LARGEST], k, mask)
    return found


def _top(model: Recommender, numbers: list, k: int, mask: bool) -> list[list[Item]]:
    """`top` of some histories of numbers; few shapes, as each is a program."""
    rows, longest = len(numbers), max(map(len, numbers), default=0)
    batch = 1 << (rows - 1).bit_length()
    size = max(1 << max(longest - 1, 0).bit_length(), model.seq_len) if mask else 1
    seen = np.zeros((batch, size), np.int32)
    items = np.zeros((batch, model.seq_len), np.int32)
    length, timestep = np.zeros((2, batch), np.int32)
    for row, one in enumerate(numbers):
        recent = one[-model.seq_len :]
        items[row, : len(recent)], length[row] = recent, len(recent)
        timestep[row] = len(one)
        if mask:
            seen[row, : len(one)] = one
    most = min(max(1 << (k - 1).bit_length(), FEWEST), len(model.numbers))
    args = items, length, timestep, seen
    if model.index is not None:
        args = model.weights, *args, model.popularity, most
        scores, best = index_lib.top(model.index, *args)
    else:
        args = model.scores, model.weights, *args, model.popularity, most
        mesh = sharding.in_use(model.mesh) if model.mesh else contextlib.nullcontext()
        with mesh:
            scores, best = jax.device_get(_best(*args))
    titles = model.titles or [""] * len(model.ids)
    return [
        [
            Item(model.ids[n], titles[n], float(y))
            for n, y in zip(best[row, :k].tolist(), scores[row])
            if np.isfinite(y)
        ]
        for row in range(rows)
    ]


@functools.partial(jax.jit, static_argnums=(0, 7))
def _best(
    scores: Any,
    weights: Any,
    items: Array,
    length: Array,
    timestep: Array,
    seen: Array,
    popularity: Array,
    k: int,
) -> tuple[Array, Array]:
    y = scores(weights, items, length, timestep)
    y = jnp.where((length == 0)[:, None], popularity[None], y)
    return catalogue.top_k(online.pass_over(y, seen), k)


def history_of(model: Recommender, text: str) -> list[Any]:
    """The ids of "12,7,99", whole numbers or words as the log has them; "": none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [
        int(word)
        if word not in model.numbers and re.fullmatch("-?[0-9]+", word)
        else word
        for word in words
    ]


def question(line: str, k: int) -> tuple[dict[str, Any], list[Any], int]:
    """(what to echo, history, k) of a line. Raises UserError for what is none."""
    found = stream.load_line(line)
    if not isinstance(found, dict) or not isinstance(found.get("history"), list):
        raise UserError('no question: give {"history": [12, 7, 99]}')
    k = found.get("k", k)
    if isinstance(k, bool) or not isinstance(k, int):
        raise UserError(f"k is {k!r}: give a whole number")
    echo = {name: found[name] for name in ("user",) if name in found}
    return echo, found["history"], k


def answer(
    model: Recommender, lines: Iterable[str], out: TextIO, k: int, mask: bool | None
) -> tuple[list[float], int]:
    """Answer every line -> (seconds of each, lines refused)."""

    def reply(line: str) -> dict[str, Any]:
        echo, history, count = question(line, k)
        found = top(model, [history], count, mask)[0]
        scores = [round(one.score, 6) for one in found]
        told = echo | dict(items=[one.id for one in found], scores=scores)
        return told | (dict(titles=[o.title for o in found]) if model.titles else {})

    return stream.answer(lines, reply, out)


def table(model: Recommender, history: Sequence[Any], found: Sequence[Item]) -> str:
    """History and recommendations for people."""
    titles = dict(zip(model.ids, model.titles or ()))
    named = [f"{item} {titles.get(item, '')}".strip() for item in history]
    lines = [f"after {', '.join(named)}" if named else "popular, for want of a history"]
    width = max((len(str(one.id)) for one in found), default=0)
    for rank, one in enumerate(found, 1):
        line = f"{rank:>4}  {one.id!s:>{width}}  {one.score:10.4f}  {one.title}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main(
    argv: Sequence[str] | None = None,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> int:
    """Recommend; returns the exit status: 0, or 2 for a fault of the input."""
    flags = finished.parser(
        "jaxrec.recommend", "Top k after a history.", "a finished run, or an export"
    )
    flags.add_argument("--k", type=int, default=10, help="items to recommend")
    flags.add_argument("--history", help="ids, the oldest first: 12,7,99; '' = none")
    flags.add_argument(
        "--mask_seen",
        action=argparse.BooleanOptionalAction,
        help="leave out items of the history; default: as the data's protocol says",
    )
    flags.add_argument(
        "--index", default="", help="faiss: approximate, for large catalogues"
    )
    given = flags.parse_args(argv)
    try:
        where = given.stage, given.seed_number
        if given.index:
            model = indexed(given.run, given.index, *where)
        else:
            model = load(given.run, *where)
        if given.history is not None:
            history = history_of(model, given.history)
            found = top(model, [history], given.k, given.mask_seen)[0]
            print(table(model, history, found), file=out or sys.stdout)
            return 0
        top(model, [model.ids[1:2]], given.k, given.mask_seen)  # compiled beforehand
        lines = stream.until_stopped(sys.stdin if lines is None else lines)
        seconds, refused = answer(
            model, lines, out or sys.stdout, given.k, given.mask_seen
        )
        what = f"{len(seconds)} histories"
        logs.say(stream.told(what, seconds, refused, "a history"))
    except UserError as error:
        return fail(error)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
