"""Sessions of a log: cut by users and gaps, sampled, and filtered by length."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data.events import PURCHASE, Events
from jaxrec.types import UserError


def cut(
    events: Events, settings: Mapping[str, Any], name: str
) -> tuple[dict[str, np.ndarray], bool]:
    """(columns sorted by session, time and row, whether times are real times).

    `session` int64[N] is coded from 0 in the order of the sorted rows, `item` int64[N]
    is an index into the column `item_ids`.
    """
    timestamps = bool(events.facts.get("timestamps", True))
    by_user = settings["session_by"] == "user"
    if settings["session_by"] not in ("user", "session"):
        raise UserError(f"data.session_by={settings['session_by']!r}: user or session")
    if by_user and events.user is None:
        raise UserError(
            f"{name} names no users: data.session_by=user needs them, choose session"
        )
    if settings["session_gap"] > 0 and not timestamps:
        raise UserError(
            f"{name} has no timestamps: data.session_gap needs them, set it to 0"
        )
    key = events.user if by_user else events.session
    session = np.unique(key, return_inverse=True)[1].reshape(-1)
    if events.part is not None and settings["split"] == "pre_split":
        session = session * 3 + events.part  # one user in two files is two sessions
    item_ids, item = np.unique(events.item, return_inverse=True)
    order = np.lexsort((events.time, session))  # stable: rows break ties
    columns = dict(
        session=session, item=item.reshape(-1), time=events.time, kind=events.kind
    )
    optional = dict(part=events.part, scored=events.scored, goes_on=events.goes_on)
    columns |= {k: v for k, v in optional.items() if v is not None}
    columns = {k: v[order] for k, v in columns.items()}
    columns["item_ids"] = item_ids
    session, time = columns["session"], columns["time"]
    new = np.diff(session, prepend=-1) != 0
    if settings["session_gap"] > 0:
        new |= np.diff(time, prepend=time[0]) > settings["session_gap"] * 60
    if settings["session_chunk"] > 0:
        start = np.flatnonzero(new)
        length = np.diff(start, append=len(new))
        new |= (np.arange(len(new)) - np.repeat(start, length)) % settings[
            "session_chunk"
        ] == 0
    columns["session"] = np.cumsum(new) - 1
    return columns, timestamps


def keep(
    columns: dict[str, np.ndarray], settings: Mapping[str, Any], name: str
) -> dict[str, np.ndarray]:
    """Fewer sessions and items: a sample, then the least lengths, once or iterated."""
    item_ids = columns.pop("item_ids")
    kept = _sample(columns, settings)

    def shrink(columns):
        session, item = columns["session"], columns["item"]
        long = np.bincount(session)[session] >= settings["min_session"]
        columns = {k: v[long] for k, v in columns.items()}
        item = columns["item"]
        often = np.bincount(item, minlength=1)[item] >= settings["min_item"]
        return {k: v[often] for k, v in columns.items()}

    before = -1
    while before != len(kept["item"]):
        before = len(kept["item"])
        kept = shrink(kept)
        if not settings["iterate"]:
            break
    if not len(kept["item"]):
        raise UserError(
            f"{name}: no events are left after data.min_session="
            f"{settings['min_session']}, data.min_item={settings['min_item']} and "
            f"data.min_clicks={settings['min_clicks']}: lower them"
        )
    kept["session"] = np.unique(kept["session"], return_inverse=True)[1].reshape(-1)
    kept["item_ids"] = item_ids
    return kept


def order(timestep: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """int32[S]: the place of each session by the time of its last event, 0 the oldest.

    timestep: int[N], 0 where a session starts; time: float[N], None where the log has
    no times: then the sessions are as old as their rows. Ties by rows as well.
    """
    start = np.flatnonzero(np.asarray(timestep) == 0)
    place = np.arange(len(start), dtype=np.int32)
    if time is None:
        return place
    last = np.append(start[1:], len(timestep)) - 1
    found = np.empty_like(place)
    found[np.argsort(time[last], kind="stable")] = place
    return found


def _sample(columns, settings):
    """Sessions with enough clicks, and of those a seeded sample."""
    session = columns["session"]
    total = int(session.max()) + 1
    clicks = np.bincount(session, columns["kind"] != PURCHASE, total)
    good = np.flatnonzero(clicks >= settings["min_clicks"])
    wanted = settings["sample_sessions"]
    if 0 < wanted < len(good):
        good = np.random.default_rng(settings["seed"]).choice(good, wanted, False)
    chosen = np.zeros(total, bool)
    chosen[good] = True
    return {k: v[chosen[session]] for k, v in columns.items()}
