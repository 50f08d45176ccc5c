"""Events: the raw columns that every reader of logs returns.

Readers know files, `jaxrec.data.protocol` knows sessions and splits; this is what
passes between them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data import text, times
from jaxrec.types import UserError

CLICK, PURCHASE = 0, 1


class Events(NamedTuple):
    """N events in any order; equal times keep the order of the rows.

    `session`, `user`: integers or strings, any ids. `user` None: unknown.
    `item`: integers or strings, the log's own ids.
    `time`: float64 or int64, seconds; only an order unless `facts["timestamps"]`.
    `kind`: int8, 0 = click (view, other ratings), 1 = purchase (cart, rating of 5).
    `part`: int8, 0 train, 1 valid, 2 test where the files are split; None: they are
        not.
    `scored`: bool, False for events that held-out sessions have as history only.
    `goes_on`: bool, True where the session goes on although no event follows here.
    `facts`: name, timestamps (bool, default True), purchase (what kind 1 means),
        titles {item id: str}, attributes (item ids [M], attribute ids [M]).
    """

    session: np.ndarray
    item: np.ndarray
    time: np.ndarray
    kind: np.ndarray
    user: np.ndarray | None = None
    part: np.ndarray | None = None
    scored: np.ndarray | None = None
    goes_on: np.ndarray | None = None
    facts: Mapping[str, Any] = {}


def make(
    session: Any,
    item: Any,
    time: Any = None,
    kind: Any = None,
    *,
    facts: Mapping[str, Any] | None = None,
    **optional: Any,
) -> Events:
    """Events of equal-length columns; without `time` the order of the rows is kept.

    Ids may be whole numbers stored as floats, or objects; times whatever
    `times.seconds` reads. Raises UserError for columns of unequal lengths, no events,
    missing ids, lists in their place, and times that are no finite numbers.
    """
    facts = dict(facts or {})
    name = facts.get("name", "events")
    session, item = np.asarray(session), np.asarray(item)
    if time is None:
        time, facts["timestamps"] = np.arange(len(item)), False
    time = np.asarray(time)
    kind = np.zeros(len(item), np.int8) if kind is None else np.asarray(kind)
    columns = dict(session=session, item=item, time=time, kind=kind) | {
        k: np.asarray(v) for k, v in optional.items() if v is not None
    }
    lengths = {k: len(v) for k, v in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{name}: columns differ in length: {lengths}")
    if not len(item):
        raise UserError(f"{name}: no events, the file is empty but for its header")
    columns["time"], bad = times.seconds(time)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{name}: the time of event {row} is {str(time[row])!r}, not seconds or "
            "ISO 8601: fix or remove the event"
        )
    for what in {"session", "item", "user"} & set(columns):
        columns[what] = _ids(columns[what], what, name)
    if (wrong := ~np.isin(kind, (CLICK, PURCHASE))).any():
        raise UserError(f"{name}: a kind is 0 or 1, found {kind[wrong][0]}")
    columns["kind"] = kind.astype(np.int8)
    return Events(**columns, facts=facts)


def _ids(values, what, name):
    """Whole numbers as int64, else text; a missing one is the user's to mend."""
    if values.dtype.kind == "O":
        lists = (list, tuple, np.ndarray)
        many = np.array([isinstance(v, lists) for v in values.tolist()])
        if many.any():
            raise UserError(
                f"{name}: the {what} of event {int(many.argmax())} is a list: give a "
                "row for each of its elements"
            )
        missing = np.array([v is None or v != v for v in values.tolist()])
        if not missing.any():
            values = np.array(values.tolist())
            if values.dtype.kind not in "iufSU":
                values = values.astype(str)
    elif values.dtype.kind == "f":
        missing = np.isnan(values)
    else:
        missing = np.zeros(len(values), bool)
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise UserError(
            f"{name}: the {what} of event {row} is missing: remove the event"
        )
    if values.dtype.kind == "f" and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    return text.decode(values)


def concatenate(parts: Mapping[int, Events]) -> Events:
    """Files of one log as one: {part: events}; sessions of different parts differ."""
    columns = {}
    missing = dict(scored=True, goes_on=False)  # what a file without them means
    for field in ("session", "item", "time", "kind", "user", *missing):
        found = [getattr(events, field) for events in parts.values()]
        if field == "session":  # the same id in two files is two sessions
            codes = [np.unique(x, return_inverse=True)[1] for x in found]
            sizes = np.cumsum([0] + [code.max() + 1 for code in codes])
            found = [code + size for code, size in zip(codes, sizes)]
        if field in missing and any(x is not None for x in found):
            found = [
                np.full(len(e.item), missing[field]) if x is None else x
                for x, e in zip(found, parts.values())
            ]
        if all(x is not None for x in found):
            columns[field] = np.concatenate(found)
    number = [np.full(len(e.item), part, np.int8) for part, e in parts.items()]
    facts = dict(next(iter(parts.values())).facts)
    facts["timestamps"] = all(e.facts.get("timestamps", True) for e in parts.values())
    return Events(**columns, part=np.concatenate(number), facts=facts)
