"""What simulated users were shown, ignored items included: sessions for a world model.

A recommender learns from events, clicks and purchases; a model of the users also needs
what they passed over and when they left. Both views of a log have the same sessions in
the same parts: no user of a test set is in the training set of the other.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data import cache, presets, protocol, simulated
from jaxrec.types import Dataset, UserError

VERSION = 1  # raise when `build` changes, so that caches are made anew
IGNORED = 2  # the kind of an item without an event; 0 = click, 1 = purchase
COLUMNS = ("item", "kind", "reward", "timestep", "reward_to_go", "done")


def dataset(config: Any, events: Dataset) -> Dataset:
    """The impressions of the simulated log whose events are `events`.

    Flat arrays, a user's session contiguous: item int32[N] (numbered as in `events`),
    kind int32[N] (2 = ignored), reward float32[N], timestep int32[N] (items shown
    before), reward_to_go float32[N], done float32[N] (1.0 = the user left after it; the
    log's horizon ends a session without). `window` = `config.window` items; a window is
    the beginning of a session, so `drawn` is the last row of each.

    Users with too few events for a session of `events` are here too, in parts of the
    same shares. Raises UserError where the parts cannot agree.
    """
    settings = presets.settings(config, "simulated")
    counts = events.info["protocol"]["counts"]
    if settings["split"] == "leave_one_out" or counts["read"] != counts["kept"]:
        raise UserError(
            "impressions need the whole sessions of the log: use data.split="
            "random_session and data.min_session=0, min_item=0, sample_sessions=0"
        )
    window = config.window
    if window < 1:
        raise UserError(f"window={window}: 1 or more items, 50 is a whole session")
    reading = simulated.settings(config)
    reading["users"] = dict(reading["users"])
    arrays, _ = cache.cached(
        cache.directory(config.data_dir),
        "impressions-simulated",
        dict(protocol=settings, code=VERSION, reading=reading)
        | dict(version=simulated.VERSION),
        lambda: (build(reading, settings, events.info), {}),
    )
    flat = {p: {c: arrays[f"{p}/{c}"] for c in COLUMNS} for p in protocol.PARTS}
    facts = dict(
        name=events.info["name"] + "/impressions",
        train=flat["train"],
        num_rows=len(flat["train"]["item"]),
        window=window,
        impressions=True,
    )
    return Dataset(
        train=flat["train"],
        evals={p: flat[p] for p in protocol.PARTS[1:]},
        info=events.info | facts,
        window=window,
        drawn={p: last_rows(flat[p]["timestep"], window) for p in protocol.PARTS},
    )


def last_rows(timestep: np.ndarray, window: int) -> np.ndarray:
    """int32[M]: the last of the first `window` rows of every session."""
    timestep = np.asarray(timestep)
    last = np.append(timestep[1:] == 0, True)
    rows = (last & (timestep < window)) | (timestep == window - 1)
    return np.flatnonzero(rows).astype(np.int32)


def build(
    reading: Mapping[str, Any], settings: Mapping[str, Any], info: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays "train/item", ... of the log that `reading` describes."""
    log = simulated.load(reading)
    shown = log.impressions
    part = parts(log, settings)
    # Items that occur in no event have no number; who looked at one is as if not asked.
    code = np.zeros(log.facts["num_items"] + 1, np.int32)
    known = np.asarray(info["item_ids"])[1:]
    code[known] = np.arange(1, len(known) + 1)
    item = code[shown["item"]]
    kept = item > 0
    left = np.zeros(log.facts["num_users"], bool)
    left[shown["user"][shown["left"]]] = True
    user, item = shown["user"][kept], item[kept]
    kind = np.full(len(item), IGNORED, np.int32)
    kind[shown["click"][kept]] = 0
    kind[shown["purchase"][kept]] = 1
    reward = np.array([*info["rewards"], 0.0])[kind]
    start = np.flatnonzero(np.diff(user, prepend=-1))
    length = np.diff(start, append=len(user))
    total = np.cumsum(reward)
    done = np.zeros(len(user), np.float32)
    done[start + length - 1] = left[user[start]]
    columns = dict(
        item=item,
        kind=kind,
        reward=reward.astype(np.float32),
        timestep=(np.arange(len(user)) - np.repeat(start, length)).astype(np.int32),
        reward_to_go=(
            np.repeat(total[start + length - 1], length) - total + reward
        ).astype(np.float32),
        done=done,
    )
    return {
        f"{name}/{column}": array[part[user] == number]
        for number, name in enumerate(protocol.PARTS)
        for column, array in columns.items()
    }


def parts(log: simulated.Log, settings: Mapping[str, Any]) -> np.ndarray:
    """int8[num_users]: the part of each, that of the user's session in the events."""
    session = log.events["session"]
    names = ("session", "time", "kind")
    columns = {name: log.events[name] for name in names}
    of_event = protocol.split(columns, settings, log.facts["name"], True)
    of_session = of_event[np.flatnonzero(np.diff(session, prepend=-1))]
    number = np.full(log.facts["num_users"], -1)
    number[log.impressions["user"]] = log.impressions["session"]
    generator = np.random.default_rng([settings["seed"], 3])
    shares = np.cumsum([1 - settings["valid"] - settings["test"], settings["valid"]])
    drawn = np.searchsorted(shares, generator.random(len(number)), side="right")
    return np.where(number >= 0, of_session[number], drawn).astype(np.int8)
