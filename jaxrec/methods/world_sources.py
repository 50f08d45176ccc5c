"""Where simulations begin: which episodes, which steps, and what is looked up in them.

All arrays are read on the host, so that memory-mapped data stay on the disk. The
choices of episodes are our own (see imagination).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.methods.world_evaluator import nearest_rows
from jaxrec.methods.world_model import Scales
from jaxrec.methods.world_rollout import FOLLOWS_SOURCE
from jaxrec.types import Array, Batch

TABLE = 100_000  # states that `retrieval` and `project` search, at most, ours


def _best(returns: np.ndarray, config: Any) -> np.ndarray:
    """bool[M]: the best ceil(rho M) episodes, at least one."""
    count = max(1, math.ceil(config.top_fraction * len(returns) - 1e-9))
    best = np.zeros(len(returns), bool)
    best[np.argsort(-returns, kind="stable")[:count]] = True
    return best


def _softmax(returns: np.ndarray, config: Any, among: np.ndarray) -> np.ndarray:
    score = returns / (config.temperature * max(float(np.std(returns)), 1e-8))
    weight = np.where(among, np.exp(score - score[among].max()), 0.0)
    return weight / weight.sum()


# returns float64[M], config -> probabilities float64[M] of the source episodes
SOURCES = {
    "random": lambda returns, config: np.full(len(returns), 1 / len(returns)),
    "top_n": lambda returns, config: (
        _best(returns, config) / _best(returns, config).sum()
    ),
    "softmax": lambda returns, config: _softmax(
        returns, config, np.ones(len(returns), bool)
    ),
    "softmax_top_n": lambda returns, config: _softmax(
        returns, config, _best(returns, config)
    ),
}


def windows(arrays: Batch, rows: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """The windows of K rows that end at `rows`: read on the host, arrays may be mapped.

    rows: int64[B]. Returns observation float32[B, K, od], action float32[B, K, ad],
    mask bool[B, K], False before the start of the episode.
    """
    offset = np.arange(1 - context, 1)[None, :]
    mask = np.asarray(arrays["timestep"][rows])[:, None] + offset >= 0
    index = np.maximum(rows[:, None] + offset, 0)
    found = {
        name: np.asarray(arrays[name][index]) for name in ("observation", "action")
    }
    return found | {"mask": mask}


def episodes(arrays: Batch, returns: str = "return_to_go") -> dict[str, np.ndarray]:
    """first row int64[M], length int64[M] and return float64[M] of each episode.

    `returns`: the column of what follows; "reward_to_go" of sessions.
    """
    first = np.flatnonzero(np.asarray(arrays["timestep"]) == 0)
    length = np.diff(first, append=len(arrays["timestep"]))
    found = np.asarray(arrays[returns])[first].astype(np.float64)
    return dict(first=first, length=length, returns=found)


def draw(
    config: Any, table: dict[str, np.ndarray], context: int, num: int, key: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Source episodes int64[num] and the step int64[num] at which to leave them.

    The step is uniform in [0, L), for rules that need the source's own actions in
    [0, L - K), so that K of them are left; episodes with L <= K are then left at their
    first step. Padding fills the windows of early steps.
    """
    key_source, key_start = jax.random.split(key)
    cumulative = np.cumsum(SOURCES[config.source](table["returns"], config))
    draws = np.asarray(jax.random.uniform(key_source, (num,)), np.float64)
    # Right: the first episode whose cumulative share exceeds the draw, never one of 0.
    source = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
    needed = context if config.action_rule in FOLLOWS_SOURCE else 0
    room = np.maximum(table["length"][source] - needed, 1)
    share = np.asarray(jax.random.uniform(key_start, (num,)), np.float64)
    return source, np.minimum((share * room).astype(np.int64), room - 1)


def lookups(
    config: Any, corrections: frozenset[str], arrays: Batch, table: dict[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Rows to search: "best" for retrieval, "any" for project; only what is needed.

    At most TABLE rows each, evenly spaced; "observation", "action" and the number of
    the "episode" of each.
    """
    wanted = {}
    if config.action_rule == "retrieval":
        wanted["best"] = np.flatnonzero(
            np.repeat(_best(table["returns"], config), table["length"])
        )
    if "project" in corrections:
        wanted["any"] = np.arange(len(arrays["timestep"]))
    found = {}
    for key, rows in wanted.items():
        rows = spaced(rows, TABLE)
        found[key] = {n: np.asarray(arrays[n][rows]) for n in ("observation", "action")}
        episode = np.searchsorted(table["first"], rows, side="right") - 1
        found[key]["episode"] = episode.astype(np.int32)
    return found


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def search(
    scales: Scales,
    table: dict[str, Array] | None,
    column: str,
    without: Array | None = None,
):
    """s float[B, od] -> that column of the nearest row in standardised L2.

    `without`: int32[B], the episode whose rows are left out for each s, unless there
    are no others: a state that came from the table would find itself.
    """
    if table is None:
        return None
    states = scales.standardise(jnp.asarray(table["observation"]))
    values = jnp.asarray(table[column])
    barred = None
    if without is not None:
        own = jnp.asarray(table["episode"])[None, :] == without[:, None]
        barred = own & ~own.all(axis=1, keepdims=True)
    return lambda s: values[nearest_rows(scales.standardise(s), states, barred)]
