"""How the session world imagines: what it continues, what it trusts, how much.

The choice of source sessions and the correction of steps that the ensemble is unsure of
follow OTTO's idea (see session_world); every default is our own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import logs
from jaxrec.methods import world_sources
from jaxrec.methods.session_events import IGNORED, beginnings, columns
from jaxrec.types import Array, Dataset, UserError

HPARAMS = dict(  # all our own choices, none from the paper
    source="random",  # top_n, softmax, softmax_top_n: by the reward of a session
    top_fraction=0.1,  # of top_n
    temperature=0.3,  # of softmax, in std of rewards
    rule="log",  # proposals as the log's, or "policy": by an earlier recommender
    rule_temperature=1.0,
    policy_stage="",  # rule=policy: the stage that proposes
    candidates=50,  # proposals of which the world takes the best; 1 = the proposal
    follow=0.0,  # share of the source session's own items that are kept
    future=1.0,  # what it is worth, in reward, that a user stays
    pessimism=1.0,  # std of the members that an item's worth is lowered by
    horizon=20,  # items shown in a simulation, at most
    generated=0.5,  # events, as a share of the recommender's own
    quantile=0.99,  # theta: of the uncertainty on held-out sessions
    correction="truncate",  # of steps above theta: relabel, none
)
RULES = ("log", "policy")
CORRECTIONS = ("truncate", "relabel", "none")
CHUNK = 512  # simulations of one compiled call, ours
PATIENCE = 50  # simulations, at most, for each that would do if all items were events
HELD_OUT = 2_048  # sessions that the threshold is taken from, at most, ours


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError for settings that cannot work, before any training."""
    if "impressions" not in info:
        raise UserError(
            f"the data {info.get('name', '')!r} do not say what users passed over: "
            "session_world needs data.source=simulated and impressions=True"
        )
    for field, allowed in (
        ("source", world_sources.SOURCES),
        ("rule", RULES),
        ("correction", CORRECTIONS),
    ):
        if config[field] not in allowed:
            raise UserError(
                f"{field} {config[field]!r} is unknown: use {', '.join(allowed)}"
            )
    positive = ("temperature", "rule_temperature", "generated", "horizon", "candidates")
    for field in (*positive, "members"):
        if config[field] <= 0:
            raise UserError(f"{field}={config[field]}: it must be positive")
    for field in ("quantile", "top_fraction"):
        if not 0 < config[field] <= 1:
            raise UserError(f"{field}={config[field]}: it must be in (0, 1]")
    stage, stages = config.policy_stage, info.get("stages", {})
    if (config.rule == "policy") != bool(stage):
        raise UserError(
            f"rule={config.rule!r} and policy_stage={stage!r}: rule=policy needs an "
            "earlier stage that proposes, and no other rule takes one"
        )
    if stage and (stage not in stages or stages[stage][1].scores is None):
        raise UserError(
            f"policy_stage={stage!r} is no earlier recommender: use one of "
            f"{', '.join(stages) or 'none here'}, and put it in `uses`"
        )


def draw(
    config: Any, sources: dict[str, np.ndarray], num: int, key: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Sessions int64[num] by `config.source`, and how many of their items to keep.

    int64[num], uniform from 0 to all but one.
    """
    share = world_sources.SOURCES[config.source](sources["returns"], config)
    cumulative = np.cumsum(share)
    draws = np.asarray(jax.random.uniform(key, (2, num)), np.float64)
    # Right: the first session whose cumulative share exceeds the draw, never one of 0.
    source = np.searchsorted(cumulative, draws[0] * cumulative[-1], side="right")
    length = sources["length"][source]
    return source, np.minimum((draws[1] * length).astype(np.int64), length - 1)


def threshold(
    uncertainty: Callable[[np.ndarray, np.ndarray], Array],
    dataset: Dataset,
    quantile: float,
) -> float:
    """theta: the quantile of u over the items shown in held-out sessions.

    uncertainty: items, kinds int32[B, T] -> float[B, T], jitted.
    """
    valid = dataset.evals["valid"]
    found = world_sources.episodes(valid, "reward_to_go")
    chosen = world_sources.spaced(np.arange(len(found["first"])), HELD_OUT)
    values = []
    for start in range(0, len(chosen), CHUNK):
        # Every call has the same shape: the last one repeats its last session.
        at = chosen[np.minimum(np.arange(start, start + CHUNK), len(chosen) - 1)]
        length = np.minimum(found["length"][at], dataset.window)
        begun = beginnings(valid, found["first"][at], length, dataset.window)
        u = np.asarray(uncertainty(begun["items"], begun["kinds"]))
        new = np.arange(start, start + CHUNK) < len(chosen)
        exists = np.arange(dataset.window)[None, :] < length[:, None]
        values.append(u[exists & new[:, None]])
    return float(np.quantile(np.concatenate(values), quantile))


def imagine(
    simulate: Callable[..., dict[str, Array]],
    config: Any,
    dataset: Dataset,
    theta: float,
    key: Array,
) -> dict[str, np.ndarray]:
    """Continue logged sessions until there are `generated` events: a mix's columns.

    simulate: (begun, planned, theta, key) -> see session_world. Sessions are chosen by
    `source` and left at a step uniform over their items, also before the first. Raises
    UserError where too few events come.
    """
    train, window = dataset.train, dataset.window
    sources = world_sources.episodes(train, "reward_to_go")
    own = np.asarray(train["kind"]) != IGNORED
    wanted = max(1, math.ceil(config.generated * own.sum() - 1e-9))
    size = min(CHUNK, -(-wanted // config.horizon))
    limit = PATIENCE * -(-wanted // (size * config.horizon))
    parts, steps, rows, chunk = [], [], 0, 0
    while rows < wanted:
        if chunk == limit:
            raise UserError(
                f"{chunk * size:,} imagined sessions gave {rows:,} of {wanted:,} events"
                f" (theta={theta:.4g}, correction={config.correction}): train the world"
                " longer, raise quantile, or use correction=relabel"
            )
        key_draw, key_chunk = jax.random.split(jax.random.fold_in(key, chunk))
        source, start = draw(config, sources, size, key_draw)
        start = np.minimum(start, window - 1)
        first, length = sources["first"][source], sources["length"][source]
        step = start[:, None] + np.arange(config.horizon)[None, :]
        row = first[:, None] + np.minimum(step, length[:, None] - 1)
        planned = np.where(step < length[:, None], train["item"][row], 0)
        found = simulate(
            beginnings(train, first, start, window),
            planned.astype(np.int32),
            jnp.float32(theta),
            key_chunk,
        )
        found = jax.device_get(found)
        parts.append(columns(found, start, dataset.info))
        steps.append({k: found[k] for k in ("happens", "low", "reward")})
        rows, chunk = rows + int(parts[-1]["drawn"].sum()), chunk + 1
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    say(joined, steps, float(np.mean(train["reward"])), theta)
    return joined


def say(
    rows: dict[str, np.ndarray],
    steps: list[dict[str, np.ndarray]],
    reward: float,
    theta: float,
) -> None:
    """One line: what was imagined, beside the data."""
    found = {k: np.concatenate([s[k] for s in steps]) for k in steps[0]}
    happens, last = found["happens"], rows["remaining"] == 0
    low = found["low"].sum() / (happens | found["low"]).sum()
    logs.say(
        f"imagined {last.sum():,} sessions, {rows['drawn'].sum():,} events; an item "
        f"shown gives {found['reward'][happens].mean():.3f} (log {reward:.3f}); "
        f"{happens.sum() / len(happens):.1f} items a session, "
        f"{rows['done'].sum() / last.sum():.0%} end by leaving, {low:.1%} of low "
        f"confidence (u > {theta:.3g})"
    )
