"""From a log of events to sessions, splits and the flat arrays of a recommender.

The papers (SQN, SIGIR'20; SNQN and SA2C, WSDM'22) split sessions at random 8:1:1 and
predict every event, the first from an empty history; their later reproductions split
by time (`jaxrec.data.presets` names who does what). Every choice is a field, and
the fields used are echoed in `info["protocol"]` with the counts they led to.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data import sessions
from jaxrec.data.events import PURCHASE, Events
from jaxrec.types import Dataset, UserError

VERSION = 2  # raise when `prepare` changes, so that caches are made anew
PARTS = ("train", "valid", "test")
SPLITS = (
    "random_session",
    "temporal_quantile",
    "last_days",
    "leave_one_out",
    "pre_split",
)
COLUMNS = (
    "item",
    "kind",
    "reward",
    "timestep",
    "next_item",
    "done",
    "reward_to_go",
    "remaining",
)
LANES = 128  # the vocabulary is a multiple: even shards and full vector lanes
DAY = 86400.0


def prepare(
    events: Events, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, JSON facts) that `assemble` makes a Dataset of.

    `settings`: the resolved fields of `presets.settings`. Raises UserError where no
    events are left, or a split is empty.
    """
    name = events.facts.get("name", "events")
    columns, timestamps = sessions.cut(events, settings, name)
    if settings.get("gaps") and not timestamps:
        raise UserError(f"{name} has no timestamps: data.gaps needs them, set it to 0")
    counts = dict(read=_count(events.session, events.item, events.kind))
    columns = sessions.keep(columns, settings, name)
    counts["kept"] = _count(columns["session"], columns["item"], columns["kind"])
    part = split(columns, settings, name, timestamps)
    arrays, facts = _encode(columns, part, settings, name)
    time = columns["time"][part == 0] if timestamps else None
    arrays["session_order"] = sessions.order(arrays["train/timestep"], time)
    facts["protocol"] = dict(
        settings,
        purchase=events.facts.get("purchase", "as in the log"),
        counts=counts | facts.pop("counts"),
        **events.facts.get("notes", {}),
    )
    facts |= dict(name=name, seq_len=settings["seq_len"])
    _catalogue(arrays, facts, events.facts)
    return arrays, facts


def assemble(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Dataset:
    """The Dataset of prepared arrays, which may be memory-mapped."""
    protocol = facts["protocol"]
    names = COLUMNS + ("gap",) * protocol.get("gaps", False)
    flat = {p: {c: arrays[f"{p}/{c}"] for c in names} for p in PARTS}
    info = dict(
        name=facts["name"],
        version=facts["version"],
        num_items=facts["num_items"],
        vocab=vocab(facts["num_items"]),
        seq_len=facts["seq_len"],
        num_rows=len(flat["train"]["item"]),
        num_sessions=protocol["counts"]["train"]["sessions"],
        item_count=arrays["item_count"],
        session_order=arrays["session_order"],
        mean_return=arrays["mean_return"],
        kinds=("click", "purchase"),
        rewards=(protocol["click_reward"], protocol["buy_reward"]),
        mask_seen=protocol["mask_seen"],
        gaps=protocol.get("gaps", False),
        protocol=protocol,
        attributes=arrays.get("attributes"),
        titles=arrays["titles"].tolist() if "titles" in arrays else None,
        train=flat["train"],
        item_ids=arrays["item_ids"],
    )
    return Dataset(
        train=flat["train"],
        evals={p: flat[p] for p in PARTS[1:]},
        info=info,
        window=facts["seq_len"] + 1,
        drawn={p: arrays[f"{p}/drawn"] for p in PARTS},
    )


def vocab(num_items: int) -> int:
    """V: items and the padding, rounded up to LANES."""
    return -(-(num_items + 1) // LANES) * LANES


def split(
    columns: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    name: str,
    timestamps: bool,
) -> np.ndarray:
    """int8[N]: the part (0, 1, 2) of each event; columns sorted by session and time.

    All but leave_one_out give whole sessions to one part.
    """
    session, time = columns["session"], columns["time"]
    kind, share = settings["split"], (settings["valid"], settings["test"])
    if kind not in SPLITS:
        raise UserError(f"data.split={kind!r}: one of {', '.join(SPLITS)}")
    if kind in ("temporal_quantile", "last_days") and not timestamps:
        raise UserError(
            f"{name} has no timestamps: data.split={kind} needs them, choose "
            "random_session or leave_one_out"
        )
    if not (min(share) > 0 and sum(share) < 1):
        raise UserError(f"data.valid and data.test are shares above 0, got {share}")
    start = np.flatnonzero(np.diff(session, prepend=-1))
    length = np.diff(start, append=len(session))
    if kind == "leave_one_out":
        remaining = _remaining(start, length)
        short = np.repeat(length < 3, length)  # too short to be held out
        return np.where(
            short, 0, np.select([remaining == 0, remaining == 1], [2, 1], 0)
        ).astype(np.int8)
    last = time[start + length - 1]
    if kind == "pre_split":
        of_session = _given(columns, start, last, timestamps, settings, name)
    elif kind == "last_days":
        days, final = settings["test_days"], last.max()
        of_session = np.zeros(len(start), np.int8)
        of_session[last > final - 2 * days * DAY] = 1
        of_session[last > final - days * DAY] = 2
    else:
        generator = np.random.default_rng(settings["seed"])
        order = (
            np.argsort(last, kind="stable")
            if kind == "temporal_quantile"
            else generator.permutation(len(start))
        )
        of_session = np.zeros(len(start), np.int8)
        cut = [round(len(start) * x) for x in (1 - sum(share), 1 - share[1])]
        of_session[order[cut[0] :]] = 1
        of_session[order[cut[1] :]] = 2
    return np.repeat(of_session, length)


def _given(columns, start, last, timestamps, settings, name):
    """Parts that the files name; a missing valid set is the end of training."""
    if columns.get("part") is None:
        raise UserError(
            f"{name} comes without a split: data.split=pre_split needs files for "
            "training and for testing, choose another one"
        )
    part = columns["part"][start].copy()
    if (part == 1).any():
        return part
    train = np.flatnonzero(part == 0)
    generator = np.random.default_rng(settings["seed"])
    order = np.argsort(last[train], kind="stable")
    order = train[order] if timestamps else generator.permutation(train)
    part[order[len(order) - round(len(order) * settings["valid"]) :]] = 1
    return part


def _encode(columns, part, settings, name):
    """Items 1 .. num_items and the flat arrays of every part."""
    item, ids = columns["item"], columns["item_ids"]
    seen = np.zeros(len(ids), bool)
    seen[item[part == 0]] = True
    known = np.zeros(len(ids), bool)
    known[item] = True
    drop = settings["drop_unseen_items"]
    chosen = seen if drop else known
    code = np.where(chosen, np.cumsum(chosen), 0).astype(np.int32)
    num_items = int(chosen.sum())
    arrays, counts = {}, {}
    together = settings["split"] == "leave_one_out"
    for number, of_part in enumerate(PARTS):
        # Leave-one-out looks back on training; nothing ever looks forward.
        mask = part <= number if together else part == number
        mask = mask & (chosen[item] | (number == 0))
        held = (part == number)[mask]
        wanted = {"session", "kind", "time", "goes_on"} & set(columns)
        flat = _flat(
            {k: columns[k][mask] for k in wanted} | dict(item=code[item[mask]]),
            settings,
        )
        can = held & (columns["scored"][mask] if "scored" in columns else True)
        if number == 0:
            learned = can
        if not settings["score_first_event"]:
            can = can & (flat["timestep"] > 0)
        drawn = np.flatnonzero(can).astype(np.int32)
        if not len(drawn):
            raise UserError(
                f"{name}: the {of_part} split is empty ({held.sum()} events, none to "
                f"predict) with data.split={settings['split']}: too few sessions, all "
                "of one event, or in last_days data.test_days too long"
            )
        arrays |= {f"{of_part}/{k}": v for k, v in flat.items()}
        arrays[f"{of_part}/drawn"] = drawn
        counts[of_part] = _count(
            columns["session"][mask][held], item[mask][held], flat["kind"][held]
        ) | dict(predicted=len(drawn))
    counts["unseen_test_items"] = int(np.unique(item[(part > 0) & ~seen[item]]).size)
    # What is history only, as in shuffled buffers, is there many times.
    train = {k: arrays[f"train/{k}"][learned] for k in COLUMNS}
    arrays["item_count"] = np.bincount(
        train["item"], minlength=vocab(num_items)
    ).astype(np.float64)
    at = train["timestep"]
    arrays["mean_return"] = (
        np.bincount(at, train["reward_to_go"]) / np.maximum(np.bincount(at), 1)
    ).astype(np.float32)
    none = ids[:1] * 0 if ids.dtype.kind in "iuf" else np.zeros(1, ids.dtype)
    arrays["item_ids"] = np.concatenate([none, ids[chosen]])
    return arrays, dict(num_items=num_items, counts=counts)


def _flat(columns, settings):
    """The columns of COLUMNS, of sessions that end where their rows end.

    But for those whose last row says that they go on: it is not `done`, the next item
    and what is still to come are unknown and stand as if nothing came.
    """
    session, item, kind = columns["session"], columns["item"], columns["kind"]
    rewards = np.array([settings["click_reward"], settings["buy_reward"]])
    start = np.flatnonzero(np.diff(session, prepend=-1))
    length = np.diff(start, append=len(session))
    timestep = np.arange(len(session)) - np.repeat(start, length)
    remaining = _remaining(start, length)
    reward = rewards[kind]
    total = np.cumsum(reward)
    to_go = np.repeat(total[start + length - 1], length) - total + reward
    last = remaining == 0
    optional = {}
    if settings.get("gaps"):  # seconds since the session's event before, 0 at its first
        gap = np.diff(columns["time"].astype(np.float64), prepend=0.0)
        optional["gap"] = np.where(timestep == 0, 0.0, gap).astype(np.float32)
    return optional | dict(
        item=item.astype(np.int32),
        kind=kind.astype(np.int32),
        reward=reward.astype(np.float32),
        timestep=timestep.astype(np.int32),
        next_item=np.where(last, 0, np.roll(item, -1)).astype(np.int32),
        done=(last & ~columns.get("goes_on", np.False_)).astype(np.float32),
        reward_to_go=to_go.astype(np.float32),
        remaining=remaining.astype(np.int32),
    )


def _remaining(start, length):
    end = np.repeat(start + length, length)
    return end - np.arange(len(end)) - 1


def _count(session, item, kind):
    return dict(
        events=len(item),
        sessions=int(np.unique(session).size),
        items=int(np.unique(item).size),
        purchases=int((kind == PURCHASE).sum()),
    )


def _catalogue(arrays, facts, given):
    """Titles and attributes of the log's own ids, moved to the items' numbers."""
    ids, size = arrays["item_ids"], vocab(facts["num_items"])
    if given.get("titles"):
        titles = given["titles"]
        found = [""] + [titles.get(i, str(i)) for i in ids[1:].tolist()]
        arrays["titles"] = np.array(found + [""] * (size - len(found)))
    if given.get("attributes") is not None:
        item, attribute = map(np.asarray, given["attributes"])
        place = np.minimum(np.searchsorted(ids[1:], item), len(ids) - 2)
        real = ids[1:][place] == item
        if not real.any():
            return
        names, code = np.unique(attribute, return_inverse=True)
        table = np.zeros((size, len(names)), bool)
        table[place[real] + 1, code.reshape(-1)[real]] = True
        arrays["attributes"] = table
        facts["protocol"]["attributes"] = len(names)
