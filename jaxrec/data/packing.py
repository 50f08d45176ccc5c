"""Packing: whole histories in rows of L events, without a batch full of padding.

First fit decreasing puts histories into rows; one that is longer than a row goes on in
the next row of the same lane, where the method that learns from it carries its state.
Rows come in strips of `run` rows that are read one after the other, so every history
starts and ends within a strip: batch t is row t mod run of strips that the loader draws
by (seed, t div run), and nothing about the plan is stored. All numbers are ours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec.types import Dataset, UserError

EXAMPLES = ("events", "users", "packed")


class Plan(NamedTuple):
    """`place`: int64[U], the slot of each history's first event, counted through all
    rows; `rows`: their number; `run`: rows of a strip."""

    place: np.ndarray
    rows: int
    run: int


def first_fit(sizes: np.ndarray, capacity: int, used: np.ndarray) -> np.ndarray:
    """int64[N]: the first bin with room for each, larger ones first.

    `used`: what bins that are open already hold; further bins open as needed. Equal
    sizes keep their order. A tree over the bins finds one in O(log N).
    """
    leaves = 1 << max(int(len(sizes) + len(used) - 1).bit_length(), 0)
    room = np.full(2 * leaves, capacity, np.int64)
    room[leaves : leaves + len(used)] -= used
    for node in range(leaves - 1, 0, -1):
        room[node] = max(room[2 * node], room[2 * node + 1])
    room, found = room.tolist(), np.zeros(len(sizes), np.int64)
    for number in np.argsort(-sizes, kind="stable").tolist():
        size, node = int(sizes[number]), 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= size else 2 * node + 1
        found[number] = node - leaves
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return found


def plan(length: np.ndarray, size: int) -> Plan:
    """Where histories of int64[U] >= 1 events go in rows of `size` events.

    Those above `size` start a row, and what is left in their last row is filled with
    shorter ones. A function of the lengths alone.
    """
    rows = -(-length // size)
    long = np.flatnonzero(length > size)
    short = np.flatnonzero(length <= size)
    tail = length[long] - (rows[long] - 1) * size  # events in the last row, 1 .. size
    bins = first_fit(length[short], size, tail)
    count = max(int(bins.max(initial=-1)) + 1, len(long))
    # A chain is what must stay together: the rows of a long history, else one row.
    chain = np.ones(count, np.int64)
    chain[: len(long)] = rows[long]
    run = int(chain.max())
    strip = first_fit(chain, run, np.zeros(0, np.int64))
    first = strip * run + _before(strip, chain)  # its first row
    place = np.zeros(len(length), np.int64)
    place[long] = first[: len(long)] * size
    used = np.zeros(count, np.int64)
    used[: len(long)] = tail
    last = first + chain - 1
    place[short] = last[bins] * size + used[bins] + _before(bins, length[short])
    return Plan(place, (int(strip.max()) + 1) * run, run)


def _before(group: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Sum of the sizes of those of the same group that come before: int64[N]."""
    order = np.argsort(group, kind="stable")
    total = np.cumsum(size[order]) - size[order]
    new = np.diff(group[order], prepend=-1) != 0
    start = np.maximum.accumulate(np.where(new, total, 0))
    found = np.zeros(len(group), np.int64)
    found[order] = total - start
    return found


def pack(
    item: np.ndarray, timestep: np.ndarray, size: int, gap: np.ndarray | None = None
) -> tuple[dict, int]:
    """({name: int32[rows, size]}, run) of histories one after another.

    item: int32[N], 1 and up; timestep: int32[N], 0 at the first event of a history.
    `item` and `next_item` (0 = none: padding, and the last event of a history; so it is
    the mask of the loss), `segment` (0 = padding, behind the events, else the number of
    the history in its row, from 1) and `position` (in the history; where it is 0 a
    state starts anew). `gap`: float32[N], seconds before each event, packed likewise.
    """
    start = np.flatnonzero(timestep == 0)
    length = np.diff(start, append=len(item))
    found = plan(length, size)
    slot = np.repeat(found.place - start, length) + np.arange(len(item))
    flat = np.zeros((4, found.rows * size), np.int32)
    following = np.append(item[1:], 0)
    following[start[1:] - 1] = 0
    begins = (np.asarray(timestep) == 0) | (slot % size == 0)
    flat[0, slot], flat[1, slot], flat[3, slot] = item, following, timestep
    flat[2, slot] = begins
    item, next_item, begins, position = flat.reshape(4, found.rows, size)
    segment = np.where(item > 0, np.cumsum(begins, axis=1), 0).astype(np.int32)
    arrays = dict(item=item, next_item=next_item, segment=segment, position=position)
    if gap is not None:
        arrays["gap"] = np.zeros((found.rows, size), np.float32)
        arrays["gap"].reshape(-1)[slot] = gap
    return arrays, found.run


def view(dataset: Dataset, examples: str, size: int) -> Dataset:
    """The data with another idea of a training example; held-out sets as they were.

    "events": a window that ends at each event (as it was); "users": the last window
    of each history; "packed": rows of `size` events, see `pack`. info["longer"]: the
    histories of more events than `size`, but with "events".
    """
    if examples not in EXAMPLES:
        raise UserError(f"data.examples={examples!r}: one of {', '.join(EXAMPLES)}")
    if examples == "events":
        return dataset
    timestep = np.asarray(dataset.train["timestep"])
    last = np.flatnonzero(np.append(timestep[1:], 0) == 0).astype(np.int32)
    info = dataset.info | dict(longer=int((timestep[last] >= size).sum()))
    if examples == "users":
        drawn = dict(dataset.drawn) | dict(train=last[timestep[last] > 0])
        return dataset._replace(drawn=drawn, info=info)
    item, gap = np.asarray(dataset.train["item"]), dataset.train.get("gap")
    arrays, run = pack(item, timestep, size, gap)
    drawn: Mapping[str, Any] = {k: v for k, v in dataset.drawn.items() if k != "train"}
    info["packed"] = dict(run=run, padding=padding(arrays))
    return dataset._replace(train=arrays, drawn=drawn, info=info, run=run)


def padding(arrays: Mapping[str, np.ndarray]) -> float:
    """The share of the slots that hold no event."""
    return float((arrays["segment"] == 0).mean())
