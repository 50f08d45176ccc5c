"""Readers of logs of plays with long histories: KuaiRand, Last.fm-1K, LFM-1b."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import logs
from jaxrec.data import events, files, text
from jaxrec.data.events import Events
from jaxrec.types import UserError

LFM_1B = ("user_id", "artist_id", "album_id", "track_id", "timestamp")
LASTFM_1K = ("user_id", "timestamp", "artist_id", "artist", "track_id", "track")


def kuairand(config: Any) -> Events:
    """KuaiRand's standard logs: `log_standard_*.csv` of a folder, or one file.

    All parts of the folder (4_08_to_4_21 and 4_22_to_5_08; of 27K several each) make
    one log. What was shown and not clicked is left out; a like, where the log has the
    column, counts as a purchase (ours). Times are milliseconds.
    """
    what = "KuaiRand's folder with log_standard_*.csv, or one of them"
    pattern = "log_standard_*.csv"
    first = files.named(config.path, pattern, pattern + ".gz", what=what)
    found = [first]
    if (folder := files.absolute(config.path)).is_dir():
        found = sorted(folder.glob(pattern)) or sorted(folder.glob(pattern + ".gz"))
    columns: dict[str, list[np.ndarray]] = {}
    shown = 0
    for path in found:
        wanted = dict(user_id="id", video_id="id", time_ms="int", is_click="int")
        if liked := "is_like" in text.header(path, ","):
            wanted["is_like"] = "int"
        log = text.read(path, wanted, ",")
        shown += len(log["is_click"])
        keep = log.pop("is_click") == 1  # whole numbers: the text "0" would be true
        log["kind"] = (log.pop("is_like") if liked else 0 * log["time_ms"]) == 1
        for name, values in log.items():
            columns.setdefault(name, []).append(values[keep])
    log = {name: np.concatenate(values) for name, values in columns.items()}
    if not len(log["user_id"]):
        raise UserError(f"{config.path}: no is_click is 1 among {shown:,} events")
    return events.make(
        log["user_id"],
        log["video_id"],
        log["time_ms"] / 1000,
        log["kind"].astype(np.int8),
        user=log["user_id"],
        facts=dict(name="kuairand", purchase="a like", notes=dict(shown=shown)),
    )


def _level(config: Any, levels: tuple[str, ...]) -> str:
    """What counts as an item: `config.name`, "" being the first."""
    level = config.name or levels[0]
    if level not in levels:
        raise UserError(f"data.name={config.name!r}: one of {', '.join(levels)}")
    return f"{level}_id"


def _plays(log: dict[str, np.ndarray], item: str, path: Path, name: str) -> Events:
    """Plays of items that have an id; how many have none is said."""
    known = (log[item] != b"") if log[item].dtype.kind == "S" else log[item] >= 0
    if lost := int((~known).sum()):
        logs.say(f"{path}: {lost:,} of {len(known):,} plays have no {item}: left out")
    user = log["user_id"][known]
    return events.make(
        user,
        log[item][known],
        log["timestamp"][known],
        user=user,
        facts=dict(name=name, notes=dict(without_id=lost)),
    )


def lastfm1k(config: Any) -> Events:
    """Last.fm-1K: `userid-timestamp-artid-artname-traid-traname.tsv`, no header.

    Times are ISO 8601. `config.name`: what is an item, track (default) or artist.
    """
    what = "Last.fm-1K's userid-timestamp-*.tsv, or its folder"
    path = files.named(config.path, "userid-timestamp*.tsv*", what=what)
    item = _level(config, ("track", "artist"))
    wanted = {"user_id": "text", "timestamp": "time", item: "text"}
    return _plays(text.read(path, wanted, "\t", LASTFM_1K), item, path, "lastfm1k")


def lfm1b(config: Any) -> Events:
    """LFM-1b: `LFM-1b_LEs.txt`, tabs, whole numbers, with or without a header.

    Columns user_id, artist_id, album_id, track_id, timestamp (s); an id below 0 is
    unknown. `config.name`: what is an item, track (default), album or artist.
    """
    what = "LFM-1b's LFM-1b_LEs.txt, or its folder"
    path = files.named(config.path, "*LEs.txt*", "*.tsv*", what=what)
    item = _level(config, ("track", "album", "artist"))
    wanted = {"user_id": "int", "timestamp": "int", item: "int"}
    headless = text.header(path)[0].isdigit()
    log = text.read(path, wanted, "\t", LFM_1B if headless else None)
    return _plays(log, item, path, "lfm1b")


def hashed(log: Events, size: int) -> Events:
    """The log with its item ids hashed to 1 .. size, for vocabularies of millions.

    Items that meet are one item from then on. A function of the ids alone, so that
    logs of different days agree. Titles and attributes are lost: they are no longer of
    one item.
    """
    ids, place = np.unique(log.item, return_inverse=True)
    if ids.dtype.kind in "iu":
        code = _mix(ids.astype(np.uint64))
    else:
        # Polynomial in the characters, all ids at once; the finaliser spreads it.
        width = max(ids.dtype.itemsize // 4, 1)
        letters = ids.astype(f"U{width}").view(np.uint32).reshape(len(ids), width)
        code = np.zeros(len(ids), np.uint64)
        for column in letters.T:  # behind the end of a text stand zeros
            more = code * np.uint64(0x100000001B3) + column
            code = np.where(column > 0, more, code)
        code = _mix(code)
    code = (code % np.uint64(size)).astype(np.int64) + 1
    notes = dict(log.facts.get("notes", {}), hashed_from=len(ids))
    facts = {k: v for k, v in log.facts.items() if k not in ("titles", "attributes")}
    return log._replace(item=code[place.reshape(-1)], facts=dict(facts, notes=notes))


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser (SplitMix64, Steele et al. 2014): uint64[N] -> uint64[N]."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
