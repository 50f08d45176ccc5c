"""Synthetic lifelong histories with planted recall: no files, no network.

Public logs hardly test the use of thousands of events; here it is planted. A task of
lag k takes four events: a marker, then an item x, and k events after x a second x that
its cue stands before. So x is known at the cue to who kept it for k events:

    slot   s        s + 1   ...   s + k    s + 1 + k
    item   marker   x       ...   cue      x            x at t - k predicts t

Each pair of a marker and a cue belongs to one lag and has one task at a time. All else
is a mix of a user's habits: Markov chains inside of groups of items, Zipf popularity,
tastes that drift, items played again, lengths with a heavy tail. A log is a function of
its settings. All numbers are ours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data import events
from jaxrec.data.events import Events
from jaxrec.types import UserError

VERSION = "1"  # of what a log holds: raise it when the same seed gives other events
HPARAMS = dict(  # ours
    num_users=300,
    num_items=500,  # without markers and cues
    lags=(10, 100, 1_500),  # events between an item and its recall
    pairs=1,  # of marker and cue for each lag: tasks of it that run at once
    tasks=8,  # of a pair in a history, at most
    recalled=64,  # items that tasks draw x from, the rarest
    min_length=1_600,
    median_length=2_000,
    tail=0.5,  # standard deviation of the logarithm of what is above `min_length`
    max_length=6_000,
    groups=10,
    zipf=1.0,  # popularity of the r-th item of a group is r^-zipf
    chain=0.5,  # share of events that follow from the one before
    repeat=0.1,  # share that is the item of `period` events ago
    period=20,
    plain=4,  # events without a task to predict for each held-out user
    valid=0.1,  # share of the users
    test=0.1,
    seed=0,
)


def settings(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """HPARAMS with the fields that `given` has of them; raises UserError."""
    found = {**HPARAMS, **{k: v for k, v in (given or {}).items() if k in HPARAMS}}
    found["lags"] = tuple(int(lag) for lag in found["lags"])
    for name in (
        "num_users",
        "num_items",
        "pairs",
        "groups",
        "period",
        "median_length",
    ):
        if found[name] < 1:
            raise UserError(f"data.lifelong.{name}={found[name]}: 1 or more")
    if min(found["lags"], default=2) < 2:
        raise UserError(f"data.lifelong.lags={found['lags']}: each 2 or more")
    if len(set(found["lags"])) < len(found["lags"]):
        raise UserError(f"data.lifelong.lags={found['lags']}: each once")
    if found["seed"] < 0:
        raise UserError(f"data.lifelong.seed={found['seed']}: 0 or more")
    longest = max(found["lags"], default=0) + 2
    if not longest <= found["min_length"] <= found["max_length"]:
        raise UserError(
            f"data.lifelong.min_length={found['min_length']}: at least {longest}, the "
            f"longest lag and its events, and at most max_length={found['max_length']}"
        )
    if not 0 < found["recalled"] <= found["num_items"]:
        raise UserError(
            f"data.lifelong.recalled={found['recalled']}: 1 to the "
            f"num_items={found['num_items']}"
        )
    return found


def cues(found: Mapping[str, Any]) -> dict[int, int]:
    """The log's own id of each cue -> its lag. Markers are the odd ids before them."""
    lags = [lag for lag in found["lags"] for _ in range(found["pairs"])]
    return {2 * number + 2: lag for number, lag in enumerate(lags)}


def load(given: Mapping[str, Any] | None = None) -> Events:
    """The log: users as sessions, in parts; held-out ones are asked for every recall
    and for `plain` other events, training has all."""
    found = settings(given)
    draw = np.random.default_rng([found["seed"], 4])
    num_users = found["num_users"]
    above = max(found["median_length"] - found["min_length"], 1)
    length = found["min_length"] + above * np.exp(
        found["tail"] * draw.standard_normal(num_users)
    )
    length = np.minimum(length, found["max_length"]).astype(int)
    items = _habits(draw, found, int(length.max()))
    recall = np.zeros(items.shape, bool)
    for user in range(num_users):
        _plant(draw, found, items[user, : length[user]], recall[user])
    share = np.array([found["valid"], found["test"]])
    cut = np.round(num_users * np.array([1 - share.sum(), 1 - share[1]]))
    part = np.searchsorted(cut, draw.permutation(num_users), side="right")
    asked = recall.copy()
    for user in np.flatnonzero(part):
        free = np.flatnonzero(~recall[user, 1 : length[user]]) + 1
        asked[user, draw.choice(free, min(found["plain"], len(free)), False)] = True
    asked |= (part == 0)[:, None]
    user, time = np.nonzero(np.arange(items.shape[1])[None] < length[:, None])
    return events.make(
        user,
        items[user, time],
        time,
        user=user,
        part=part[user].astype(np.int8),
        scored=asked[user, time],
        facts=dict(name="synthetic_lifelong", timestamps=False),
    )


def _habits(draw, found, size):
    """int64[users, size]: what users do where no task is, ids after the cues'."""
    users, num_items, groups = found["num_users"], found["num_items"], found["groups"]
    groups = min(groups, num_items)
    group = np.arange(num_items) % groups  # item r * groups + g: rank r in group g
    rank = np.arange(num_items) // groups
    weight = (rank + 1.0) ** -found["zipf"]
    members = [np.flatnonzero(group == g) for g in range(groups)]
    following = np.zeros(num_items, int)  # a ring through each group
    for inside in members:
        ring = draw.permutation(inside)
        following[ring] = np.roll(ring, -1)
    chances = [np.cumsum(weight[m]) / weight[m].sum() for m in members]
    most = max(map(len, members))
    chance = np.stack([np.append(c, np.ones(most - len(c))) for c in chances])
    member = np.stack([np.append(m, np.full(most - len(m), m[-1])) for m in members])
    early, late = (draw.dirichlet(np.full(groups, 0.3), users) for _ in range(2))
    items = np.zeros((users, size), int)
    row = np.arange(users)
    for t in range(size):
        drift = t / size
        taste = np.cumsum((1 - drift) * early + drift * late, axis=1)
        u = draw.uniform(size=(4, users))
        wanted = np.minimum((taste < u[0][:, None]).sum(1), groups - 1)
        place = np.minimum((chance[wanted] < u[1][:, None]).sum(1), most - 1)
        items[:, t] = member[wanted, place]
        if t:
            chained = u[2] < found["chain"]
            items[chained, t] = following[items[row, t - 1]][chained]
        if t >= found["period"]:
            again = u[3] < found["repeat"]
            items[again, t] = items[again, t - found["period"]]
    return items + 1 + 2 * found["pairs"] * len(found["lags"])


def _plant(draw, found, items, recall):
    """Tasks into one history, the longest lags first; no two share a slot."""
    taken = np.zeros(len(items), bool)
    first = 1 + 2 * found["pairs"] * len(found["lags"])
    rarest = first + found["num_items"] - found["recalled"]
    for cue, lag in sorted(cues(found).items(), key=lambda x: -x[1]):
        room = len(items) - lag - 1
        start = int(draw.integers(0, max(min(room, lag), 1)))
        for _ in range(found["tasks"]):
            slots = np.array([0, 1, lag, lag + 1])
            while start < room and taken[start + slots].any():
                start += 1
            if start >= room:
                break
            x = draw.integers(rarest, first + found["num_items"])
            items[start + slots] = (cue - 1, x, cue, x)
            taken[start + slots] = True
            recall[start + lag + 1] = True
            start += lag + 2 + int(draw.integers(0, max(room // 16, 1)))
