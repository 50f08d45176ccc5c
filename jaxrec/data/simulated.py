"""Logs of simulated users: data with clicks and purchases, no files, no network.

`mode="sessions"`: the users of `jaxrec.envs.users`; sessions of fewer than two events
are left out. `mode="tabular"`: those of `jaxrec.envs.tabular_users`; every session is
kept, since a filter on length would bias the hazard. A log is a function of the
settings and of `seed`; its users are of another stream than those of on-line evaluation
(`jaxrec.envs.online`), the catalogue (`users.world`) is the same. Numbers are ours.

Measured with the defaults: 16,840 sessions of 9.3 events (157,418 events, 12%
purchases) from 20,000 users, of whom the horizon cuts 5%; they react to 37% of what
they see. It takes about 5 s of one CPU core.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrec.envs import online, tabular_users, users
from jaxrec.types import UserError

VERSION = "1"  # of what a log holds: raise it when the same seed gives other events
HPARAMS = dict(  # ours
    mode="sessions",  # or "tabular"
    num_users=20_000,
    seed=0,  # of the users
    horizon=0,  # items a user looks at, at most; 0: 50, tabular: until all have left
    impressions=False,  # also what was shown and ignored, with propensities
    users={},  # overrides of the HPARAMS of the users, or "num_items=40,world=3"
)
MODES = {"sessions": users, "tabular": tabular_users}
MIN_EVENTS = {"sessions": 2, "tabular": 1}
SPAN = 30 * 86_400  # s, over which users arrive
PACE = 30  # s from one item to the next
CHUNK = 20_000  # users in one program


class Log(NamedTuple):
    """A log with its facts; rows are by session, then by time.

    `events`: session int64[N] (from 0, in order of arrival), item int32[N],
        kind int32[N] (0 = click, 1 = purchase), reward float32[N], time int64[N] (s).
    `facts`: name, version, num_items, num_sessions, num_users, horizon, rewards, kinds,
        attributes bool[num_items + 1, C] or None, truncated (share of users that the
        horizon cut), events_per_session, purchase_share, click_rate, settings.
    `impressions`: None, or what was shown to every user, sessions without an event too:
        session int64[M] (-1 for a session that `events` leaves out), user int64[M],
        item int32[M], click and purchase bool[M], propensity float32[M] (of the item,
        under the logging policy, exact), left bool[M], time int64[M] (s).
    """

    events: dict[str, np.ndarray]
    facts: dict[str, Any]
    impressions: dict[str, np.ndarray] | None


def settings(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """HPARAMS with the fields that `config` has of them; other fields are ignored."""
    given = {name: config[name] for name in HPARAMS if name in (config or {})}
    found = HPARAMS | given
    if found["mode"] not in MODES:
        raise UserError(f"data.mode={found['mode']!r}: use sessions or tabular")
    if found["num_users"] < 1:
        raise UserError(f"data.num_users={found['num_users']}: it must be 1 or more")
    if found["horizon"] < 0:
        raise UserError(f"data.horizon={found['horizon']}: 0 (default) or more items")
    known = MODES[found["mode"]].HPARAMS
    found["users"] = {
        name: _number(name, value, known.get(name, 0.0))
        for name, value in _pairs(found["users"]).items()
    }
    if (world := found["users"].get("world", 0)) < 0:
        raise UserError(f"data.users: world={world}: a seed is 0 or more")
    return found


def _pairs(given):
    """{name: value} of a mapping, or of the text that a command line has for it."""
    if not isinstance(given, str):
        if isinstance(given, Mapping | ConfigDict):
            return dict(given)
        given = repr(given)  # what is no name with a value is refused below
    pairs = [part.strip().partition("=") for part in given.split(",") if part.strip()]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UserError(
                f"data.users={given!r}: names with numbers, for example "
                "num_items=40,world=3"
            )
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(name, value, default):
    """The value as an int where the default is one, else as a float or as it was."""
    try:
        number = float(value)
        if isinstance(default, int) and number == int(number):
            return int(number)
        if not isinstance(default, int) and math.isfinite(number):
            return value if isinstance(value, int | float) else number
    except (TypeError, ValueError, OverflowError):
        pass
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise UserError(f"data.users: {name}={value!r} is not {kind}")


def population(config: Mapping[str, Any] | None = None) -> users.Users:
    """The users of a log's settings, for evaluation of what was trained on it."""
    found = settings(config)
    return MODES[found["mode"]].make(found["users"])


def load(config: Mapping[str, Any] | None = None) -> Log:
    """The log of `config`, a mapping with fields of HPARAMS; the same for the same.

    Raises UserError for impossible settings and for a log without a session.
    """
    found = settings(config)
    people = population(found)
    mode, num_users = found["mode"], found["num_users"]
    steps = found["horizon"]
    if steps == 0:
        tabular = mode == "tabular"
        steps = tabular_users.horizon(people.facts["tables"]) if tabular else 50
    key = jax.random.key(found["seed"])
    rollout = jax.jit(
        lambda key, num: online.rollout(people, key, num, steps), static_argnums=1
    )  # one program for all full chunks
    parts = []
    for number in range(-(-num_users // CHUNK)):
        size = min(CHUNK, num_users - number * CHUNK)
        parts.append(jax.device_get(rollout(jax.random.fold_in(key, number), size)))
    # [num_users, steps]: a row a user, so that flattening keeps sessions together.
    shown = {
        name: np.concatenate([part[name].T for part in parts]) for name in parts[0]
    }
    generator = np.random.default_rng([found["seed"], 2])
    arrival = np.sort(generator.integers(0, SPAN, num_users))
    time = arrival[:, None] + PACE * np.arange(steps)
    event = shown["click"] | shown["purchase"]
    kept = event.sum(axis=1) >= MIN_EVENTS[mode]
    if not kept.any():
        raise UserError(
            f"data.num_users={num_users}: no simulated session has "
            f"{MIN_EVENTS[mode]} events, take more users or a longer data.horizon"
        )
    session = np.where(kept, np.cumsum(kept) - 1, -1)
    session = np.broadcast_to(session[:, None], time.shape)
    logged = event & kept[:, None]
    events = dict(
        session=session[logged],
        item=shown["item"][logged],
        kind=shown["purchase"][logged].astype(np.int32),
        reward=shown["reward"][logged],
        time=time[logged],
    )
    looked = shown["alive"]
    impressions = None
    if found["impressions"]:
        user = np.broadcast_to(np.arange(num_users)[:, None], time.shape)
        impressions = dict(session=session[looked], user=user[looked])
        for name in ("item", "click", "purchase", "propensity", "left"):
            impressions[name] = shown[name][looked]
        impressions["time"] = time[looked]
    num_sessions = int(kept.sum())
    facts = dict(
        name=f"simulated-{mode}",
        version=VERSION,
        num_items=people.num_items,
        num_sessions=num_sessions,
        num_users=num_users,
        horizon=steps,
        rewards=people.rewards,
        kinds=("click", "purchase"),
        attributes=people.facts["attributes"],
        truncated=float(1 - shown["left"].any(axis=1).mean()),
        events_per_session=len(events["item"]) / num_sessions,
        purchase_share=float(events["kind"].mean()),
        click_rate=float(event.sum() / looked.sum()),
        settings=found | dict(users=people.facts["hparams"]),
    )
    return Log(events, facts, impressions)
