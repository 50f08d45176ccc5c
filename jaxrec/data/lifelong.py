"""Synthetic lifelong histories with planted recall: no files, no network.

Public logs hardly test the use of thousands of events; here it is planted. A task of
lag k takes four events: a marker, then an item x, and k events after x a second x that
its cue stands before. So x is known at the cue to who kept it for k events:

    slot   s        s + 1   ...   s + k    s + 1 + k
    item   marker   x       ...   cue      x            x at t - k predicts t

Each pair of a marker and a cue has one task at a time, of any lag: nothing but what
was kept tells x, and its value now is the one after the last marker. Half of the
training users use some of the pairs, up to a longest lag of their own: histories that
are dense with short tasks, which are learned first. The other half have all pairs and
lags, log-uniform. Held-out users use all pairs, at lags that are given, which may be
longer. All else is a mix of a user's habits: Markov chains inside of groups of items,
Zipf popularity, tastes that drift, items played again, lengths with a heavy tail. A log
is a function of its settings. All numbers are ours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec.data import events
from jaxrec.data.events import Events
from jaxrec.types import UserError

VERSION = "2"  # of what a log holds: raise it when the same seed gives other events
HPARAMS = dict(  # ours
    num_users=500,
    num_items=110,  # without markers and cues
    lags=(10, 30, 100, 300, 1_000, 1_500, 5_000),  # events from x to x, held out
    train_lags=(5, 1_500),  # shortest and longest in training, log-uniform between
    pairs=8,  # of marker and cue: tasks that run at once
    tasks=100,  # of a pair in a history, at most
    recalled=100,  # items that tasks draw x from, the rarest
    asked=3,  # recalls of each lag to predict for each held-out user, at most
    plain=2,  # events without a task to predict for each held-out user
    min_length=1_600,
    median_length=2_000,
    tail=0.5,  # standard deviation of the logarithm of what is above `min_length`
    max_length=6_000,  # of training; who is asked has 1.2 times the longest lag or more
    groups=10,
    zipf=1.0,  # popularity of the r-th item of a group is r^-zipf
    chain=0.5,  # share of events that follow from the one before
    repeat=0.1,  # share that is the item of `period` events ago
    period=20,
    valid=0.01,  # share of the users
    test=0.04,
    seed=0,
)
AT_LEAST_ONE = ("num_users", "num_items", "pairs", "asked", "groups", "period")


def settings(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """HPARAMS with the fields that `given` has of them; raises UserError."""
    found = {**HPARAMS, **{k: v for k, v in (given or {}).items() if k in HPARAMS}}
    for name in ("lags", "train_lags"):
        found[name] = tuple(int(lag) for lag in found[name])
    for name in (*AT_LEAST_ONE, "median_length"):
        if found[name] < 1:
            raise UserError(f"data.lifelong.{name}={found[name]}: 1 or more")
    lags, train = found["lags"], found["train_lags"]
    if min(lags, default=2) < 2:
        raise UserError(f"data.lifelong.lags={lags}: each 2 or more")
    if len(set(lags)) < len(lags):
        raise UserError(f"data.lifelong.lags={lags}: each once")
    if len(train) != 2 or not 2 <= train[0] <= train[1]:
        raise UserError(
            f"data.lifelong.train_lags={train}: the shortest, 2 or more, and the "
            "longest"
        )
    if found["seed"] < 0:
        raise UserError(f"data.lifelong.seed={found['seed']}: 0 or more")
    if not train[1] + 2 <= found["min_length"] <= found["max_length"]:
        raise UserError(
            f"data.lifelong.min_length={found['min_length']}: at least {train[1] + 2}, "
            "the longest lag of training and its events, and at most "
            f"max_length={found['max_length']}"
        )
    if not 0 < found["recalled"] <= found["num_items"]:
        raise UserError(
            f"data.lifelong.recalled={found['recalled']}: 1 to the "
            f"num_items={found['num_items']}"
        )
    return found


def cues(found: Mapping[str, Any]) -> dict[int, int]:
    """The log's own id of each cue -> that of its marker, the odd one before it."""
    return {2 * pair: 2 * pair - 1 for pair in range(1, found["pairs"] + 1)}


def load(given: Mapping[str, Any] | None = None) -> Events:
    """The log: users as sessions, in parts; held-out ones are asked for up to `asked`
    recalls of each lag and for `plain` other events, training has all."""
    found = settings(given)
    draw = np.random.default_rng([found["seed"], 5])
    num_users = found["num_users"]
    above = max(found["median_length"] - found["min_length"], 1)
    length = found["min_length"] + above * np.exp(
        found["tail"] * draw.standard_normal(num_users)
    )
    length = np.minimum(length, found["max_length"]).astype(int)
    share = np.array([found["valid"], found["test"]])
    cut = np.round(num_users * np.array([1 - share.sum(), 1 - share[1]]))
    part = np.searchsorted(cut, draw.permutation(num_users), side="right")
    longest = max(found["lags"], default=0)
    length[part > 0] = np.maximum(length[part > 0], int(1.2 * longest) + 2)
    items = _habits(draw, found, int(length.max()))
    asked = np.zeros(items.shape, bool)
    for user in range(num_users):
        row, size = items[user], length[user]
        lag = _plant(draw, found, row[:size], part[user] == 0)
        if part[user] == 0:
            asked[user] = True
            continue
        for one in found["lags"]:
            place = np.flatnonzero(lag == one)
            few = min(found["asked"], len(place))
            asked[user, draw.choice(place, few, False)] = True
        free = np.flatnonzero(lag[1:] == 0) + 1
        asked[user, draw.choice(free, min(found["plain"], len(free)), False)] = True
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
    return items + 1 + 2 * found["pairs"]


def _plant(draw, found, items, training):
    """Tasks into one history, no two of which share a slot.

    int64[T]: the lag of the recall at an event, 0 where there is none.
    """
    planted, taken = np.zeros(len(items), int), np.zeros(len(items), bool)
    first = 1 + 2 * found["pairs"]
    rarest = first + found["num_items"] - found["recalled"]
    pairs = draw.permutation(list(cues(found).items()))
    low, high = np.log(np.array(found["train_lags"]) + [0, 1])
    if training and draw.random() < 0.5:
        pairs = pairs[: draw.integers(len(pairs)) + 1]
        high = draw.uniform(low, high)
    for cue, marker in pairs:
        start, lag = 0, found["train_lags"][0]
        for _ in range(found["tasks"]):
            start += int(draw.integers(2 * lag))
            room = len(items) - start - 2  # the longest lag that fits
            if training:
                fits = [int(np.exp(draw.uniform(low, high)))]
            else:
                fits = [lag for lag in found["lags"] if lag <= room]
            lag = fits[draw.integers(len(fits))] if fits else len(items)
            slots = np.array([0, 1, lag, lag + 1])
            while start + lag + 1 < len(items) and taken[start + slots].any():
                start += 1
            if start + lag + 1 >= len(items):
                break
            x = draw.integers(rarest, first + found["num_items"])
            items[start + slots] = (marker, x, cue, x)
            taken[start + slots] = True
            planted[start + lag + 1] = lag
            start += lag + 2
    return planted
