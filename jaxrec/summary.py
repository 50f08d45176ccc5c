"""What a stage's lines say in the end: last, best and selected values, with intervals.

Which way each metric is better is declared here and nowhere else: what has no
direction is never best, and cannot choose a step.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec import logs, statistics
from jaxrec.envs import gym

RISES, FALLS, NEITHER = 1, -1, 0
# By the end of the metric's name, without "@k": the longest that fits decides.
DIRECTIONS = {
    **dict.fromkeys(("return", "normalized_score", "fqe_value"), RISES),
    **dict.fromkeys(("win_rate", "kills", "base_alive"), RISES),  # teams
    **dict.fromkeys(("spearman", "caught", "auc"), RISES),  # world models
    **dict.fromkeys(("hr", "ndcg", "mrr", "recall", "reward"), RISES),
    **dict.fromkeys(("coverage", "novelty", "diversity"), RISES),  # of the catalogue
    **dict.fromkeys(("loss", "nll", "rmse", "mae", "error", "bc_distance"), FALLS),
    **dict.fromkeys(("gini", "repetitiveness"), FALLS),
    **dict.fromkeys(("std", "count", "length", "q_data", "q_policy"), NEITHER),
    # Simulated states may be too near the data and too far from them.
    **dict.fromkeys(("world/coverage", "theta", "alive"), NEITHER),
}
UNSEEN = ("train/", "test/", "users/")  # a best of what tests would be chosen by it


def direction(name: str) -> int:
    """RISES where larger is better, FALLS, or NEITHER, which unknown names are too.

    "valid/click/ndcg@10" is looked up as valid/click/ndcg, click/ndcg and ndcg;
    "state_mse_error" as mse_error and error.
    """
    stem = name.partition("@")[0]
    ends = [0, *(i + 1 for i, letter in enumerate(stem) if letter in "/_")]
    found = (DIRECTIONS[stem[i:]] for i in ends if stem[i:] in DIRECTIONS)
    return next(found, NEITHER)


def metrics_summary(lines: list[dict[str, Any]], select: str = "") -> dict[str, Any]:
    """Last and best value (per seed) of every metric of a stage.

    `best` leaves out the training loss, what tests, and what has no direction. With
    `select`, the name of a metric of the validation set, also `selected`: all metrics
    at the step where that one was best, chosen for each seed, and the step.
    """
    last: dict[str, Any] = {}
    best: dict[str, Any] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("step", "wall"):
                continue
            last[name] = value  # null where it was not finite: a reader must see it
            way = NEITHER if name.startswith(UNSEEN) else direction(name)
            if value is not None and way != NEITHER:
                choice = np.fmax if way == RISES else np.fmin  # a number over none
                old = best.get(name, value)
                both = choice(np.asarray(value, float), np.asarray(old, float))
                best[name] = logs.plain(both)
    found = {"last": last, "best": best}
    chosen = [line for line in lines if line.get(select) is not None]
    if chosen:
        found["selected"] = select_lines(chosen, select)
    elif select:
        near = difflib.get_close_matches(select, last, 3, 0.4) or sorted(last)[:3]
        logs.say(
            f"select={select!r} was never measured here, so no step is selected; "
            f"measured: {', '.join(near) or 'nothing'}"
        )
    # Mean and 95% Student t interval over the seeds: [middle, low, high].
    for group, source in (("interval", last), ("selected_interval", "selected")):
        values = found.get(source, {}) if isinstance(source, str) else source
        several = {name: x for name, x in values.items() if isinstance(x, list)}
        if several:
            found[group] = {
                name: logs.plain(statistics.estimate(np.array(value, float)))
                for name, value in several.items()
            }
    return found


def select_lines(lines: list[dict[str, Any]], select: str) -> dict[str, Any]:
    """The metrics of the line where `select` is best; seed by seed where it is a list.

    Only metrics that were measured at every one of the lines. What is not finite is
    never best: a seed without one finite value gets null for everything.
    """
    table = np.array([line[select] for line in lines], float)  # [lines] or [lines, S]
    table = -table if direction(select) == FALLS else table
    place = np.argmax(np.where(np.isfinite(table), table, -np.inf), axis=0)
    some = np.isfinite(table).any(axis=0)
    names = set(lines[0]).intersection(*lines[1:]) - {"wall"}
    found = {}
    for name in sorted(names):
        values = [line[name] for line in lines]
        if place.ndim == 0:
            found[name] = values[place]
        elif name == "step":
            found[name] = [values[i] if ok else None for i, ok in zip(place, some)]
        elif all(isinstance(value, list) for value in values):
            found[name] = [
                values[i][seed] if some[seed] else None for seed, i in enumerate(place)
            ]
    return found


def data_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a result: name, version, simulator, sizes, protocol, scores."""
    names = ("name", "version", "env_id", "num_rows", "num_episodes", "num_items")
    names += ("protocol",)
    found = {name: info[name] for name in names if name in info}
    reference = gym.reference(info)
    return found if reference is None else found | {"reference": reference._asdict()}
