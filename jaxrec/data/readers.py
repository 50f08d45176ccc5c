"""Readers of logs: a format each, (config) -> Events.

`config.path` names a file or a folder. Two kinds of event: 0, a click (a view, a
rating), and 1, a purchase, which is whatever the format has that is worth more; what it
is stands in `facts["purchase"]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import events, files, text
from jaxrec.data.events import CLICK, PURCHASE, Events
from jaxrec.types import UserError

DROPPED = -1  # the kind of an event that is left out


def kinds(words: np.ndarray, meaning: Mapping[str, int], where: Path) -> np.ndarray:
    """int8[N] of words [N]; raises UserError for a word without a meaning."""
    found, code = np.unique(text.decode(words), return_inverse=True)
    if unknown := sorted(set(found.tolist()) - set(meaning)):
        raise UserError(
            f"{where} has an event {unknown[0]!r}: known are {', '.join(meaning)}"
        )
    return np.array([meaning[word] for word in found.tolist()], np.int8)[code]


def rated(rating: np.ndarray, config: Any) -> tuple[np.ndarray, str]:
    """int8[N]: ratings of `buy_rating` or more count as purchases; and what that is."""
    least = float(config.buy_rating)
    return (rating >= least).astype(np.int8), f"a rating of {least:g} or more"


def attributes(
    item: np.ndarray, words: np.ndarray, delimiter: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(items [M], attributes [M]) of items [N] and their delimited words [N]."""
    none = ("", "(no genres listed)")  # the latter in MovieLens
    lists = [[w for w in x.split(delimiter) if w not in none] for x in words.tolist()]
    return (
        np.repeat(item, [len(found) for found in lists]),
        np.array([word for found in lists for word in found]),
    )


def retailrocket(config: Any) -> Events:
    """RetailRocket's `events.csv`: views are clicks, additions to the cart purchases.

    Transactions are left out, as in the code of SQN: each repeats an addition.
    """
    what = "RetailRocket's events.csv, or its folder"
    path = files.named(config.path, "events.csv", "events.csv.gz", what=what)
    wanted = dict(timestamp="time", visitorid="id", event="text", itemid="id")
    log = text.read(path, wanted, ",")
    meaning = dict(view=CLICK, addtocart=PURCHASE, transaction=DROPPED)
    kind = kinds(log["event"], meaning, path)
    keep = kind != DROPPED
    visitor = log["visitorid"][keep]
    return events.make(
        visitor,
        log["itemid"][keep],
        log["timestamp"][keep] / 1000,  # milliseconds
        kind[keep],
        user=visitor,
        facts=dict(name="retailrocket", purchase="an addition to the cart"),
    )


def yoochoose(config: Any) -> Events:
    """`yoochoose-clicks.dat` and `yoochoose-buys.dat` of the RecSys Challenge 2015.

    A synthetic copy under the same names goes round, with item ids below 100 and dates
    of another year than 2014: it is refused.
    """
    what = "the folder with yoochoose-clicks.dat and yoochoose-buys.dat"
    columns: dict[str, list[np.ndarray]] = dict(session=[], item=[], time=[], kind=[])
    for kind, part, more in (
        (CLICK, "clicks", ["category"]),
        (PURCHASE, "buys", ["price", "quantity"]),
    ):
        stem = f"yoochoose-{part}"
        path = files.named(config.path, f"{stem}.dat", f"{stem}.dat.gz", what=what)
        wanted = dict(session="id", time="time", item="id")
        log = text.read(path, wanted, ",", [*wanted, *more])
        if not len(log["item"]):
            raise UserError(f"{path} is empty")
        year = log["time"].astype("datetime64[s]").astype("datetime64[Y]")
        if (
            log["item"].dtype.kind != "i"
            or log["item"].min() < 100
            or (year != np.datetime64("2014")).any()
        ):
            raise UserError(
                f"{path} is not the log of the challenge (item ids below 100, or dates "
                "outside of 2014): read it with data.source=table"
            )
        for name, values in log.items():
            columns[name].append(values)
        columns["kind"].append(np.full(len(log["item"]), kind, np.int8))
    return events.make(
        **{name: np.concatenate(values) for name, values in columns.items()},
        facts=dict(name="yoochoose", purchase="a purchase"),
    )


def gru4rec(config: Any) -> Events:
    """Tab-separated `SessionId ItemId Time`, as GRU4Rec and session-rec prepare it.

    A file, or a folder with one for training (`*train_full*`, else `*train*`) and one
    for testing (`*test*`).
    """
    what = "a file with columns SessionId, ItemId, Time, or a folder of two"

    def read(path: Path) -> Events:
        wanted = dict(SessionId="id", ItemId="id", Time="time")
        log = text.read(path, wanted, config.delimiter or "\t")
        facts = dict(name=path.parent.name or path.stem)
        return events.make(log["SessionId"], log["ItemId"], log["Time"], facts=facts)

    train = files.named(config.path, "*train_full*", "*train*", what=what)
    test = files.optional(config.path, "*test*")
    if test is None:
        return read(train)
    return events.concatenate({0: read(train), 2: read(test)})


def sasrec(config: Any) -> Events:
    """Text of SASRec: lines `user item` in time order, or `user item item ...`.

    Whole numbers; the order of the lines is that of time.
    """
    what = "a text file of lines `user item` or `user item item ...`"
    path = files.named(config.path, "*.txt", "*.txt.gz", what=what)
    line, token = text.ragged(path)
    first = np.diff(line, prepend=-1) != 0
    length = np.diff(np.flatnonzero(first), append=len(line))
    if length.min() < 2:
        number = line[np.flatnonzero(first)[np.argmin(length)]]
        raise UserError(f"{path} line {number} has no item: fix or remove the line")
    user = np.repeat(token[first], length)[~first]
    item, facts = token[~first], dict(name=path.stem)
    return events.make(user, item, user=user, facts=facts)


def recbole(config: Any) -> Events:
    """RecBole's atomic files: `*.inter`, and `*.item` for titles and categories."""
    what = "a RecBole .inter file, or its folder"
    path = files.named(config.path, "*.inter", what=what)
    names = {name.partition(":")[0]: name for name in text.header(path)}
    if missing := [n for n in ("user_id", "item_id") if n not in names]:
        raise UserError(
            f"{path} has no column {missing[0]!r}; found {', '.join(names)}: use "
            "data.source=table, which takes the names of columns"
        )
    wanted = dict(user_id="id", item_id="id", timestamp="time", rating="float")
    wanted |= dict(session_id="id")
    present = {names[n]: kind for n, kind in wanted.items() if n in names}
    log = {n.partition(":")[0]: x for n, x in text.read(path, present).items()}
    facts: dict[str, Any] = dict(name=path.stem)
    kind = None
    if "rating" in log:
        kind, facts["purchase"] = rated(log["rating"], config)
    catalogue = path.with_suffix(".item")
    if catalogue.exists():
        facts |= _recbole_items(catalogue, log["item_id"].dtype)
    return events.make(
        log.get("session_id", log["user_id"]),
        log["item_id"],
        log.get("timestamp"),
        kind,
        user=log["user_id"],
        facts=facts,
    )


def _recbole_items(path, dtype):
    """Titles, and the words of the first column of categories or genres."""
    names = {name.partition(":")[0]: name for name in text.header(path)}
    title = next((n for n in ("movie_title", "title", "name") if n in names), None)
    group = next(
        (n for n in ("class", "genre", "genres", "categories", "tags") if n in names),
        None,
    )
    wanted = {names[n]: "text" for n in (title, group) if n}
    wanted[names["item_id"]] = "id"
    log = text.read(path, wanted)
    item = log[names["item_id"]]
    if item.dtype.kind != dtype.kind:  # words in one file, whole numbers in the other
        item = text.decode(item).astype(str)
        if dtype.kind == "i":
            whole = np.char.isdigit(item)
            log = {name: values[whole] for name, values in log.items()}
            item = item[whole].astype(np.int64)
    else:
        item = text.decode(item)
    facts = {}
    if title:
        words = text.decode(log[names[title]]).tolist()
        facts["titles"] = dict(zip(item.tolist(), words))
    if group:
        facts["attributes"] = attributes(item, text.decode(log[names[group]]))
    return facts
