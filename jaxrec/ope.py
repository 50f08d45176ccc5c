"""Off-policy evaluation: what a policy would have earned, from another policy's log.

    python -m jaxrec.ope --data=DIR --log=random --policy=bts

Logged bandit feedback, one row an impression: the item shown, where, the reward and the
probability (propensity) with which the logging policy showed it there. The weight of a
row is w = pi(item | position) / propensity. Estimators, in NumPy float64:

    ips       mean w r                                  Horvitz and Thompson 1952
    clipped   mean min(w, clip) r                       Ionides 2008
    snips     sum w r / sum w                           Swaminathan and Joachims 2015
    dm        mean v                                    v = sum_a pi(a | x) q(x, a)
    dr        mean v + mean w (r - q)                   Dudik, Langford and Li 2011
    sndr      mean v + sum w (r - q) / sum w            self-normalised DR
    switch_dr mean v + mean 1[w <= switch] w (r - q)    Wang, Agarwal and Dudik 2017

DIR holds Open Bandit logs (Saito et al. 2021) of two policies, DIR/random/all.csv and
DIR/bts/all.csv. They keep no probabilities of the items that were not shown, so "bts"
is there the share of each item at each position in its own log.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec import statistics
from jaxrec.errors import UserError, fail

CLIP = 10.0  # ours
SWITCH = 10.0  # ours; the paper chooses it on the data
L2 = 10.0  # ours: of the ridge; a click rate of under 1% asks for much
RESAMPLES = 1_000  # ours
COLUMNS = ("item_id", "position", "click", "propensity_score")


class Log(NamedTuple):
    item: np.ndarray  # int[N], from 0
    position: np.ndarray  # int[N], from 0
    reward: np.ndarray  # float[N]
    propensity: np.ndarray  # float[N], in (0, 1]


class Estimate(NamedTuple):
    value: float
    low: float  # of the 95% percentile bootstrap interval over rows
    high: float


def load(path: Path) -> Log:
    """An Open Bandit `all.csv`. Raises UserError, with the line number of a bad row."""
    if not path.is_file():
        raise UserError(f"no log {path}: --data is the folder with random/ and bts/")
    rows = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        if missing := [name for name in COLUMNS if name not in found]:
            raise UserError(
                f"{path} has no column {missing[0]!r}, found {', '.join(found[:8])}: "
                "use the Open Bandit layout"
            )
        for row in reader:
            try:
                rows.append([float(row[name]) for name in COLUMNS])
                item, position, click, propensity = rows[-1]
                good = item >= 0 and position >= 1 and 0 < propensity <= 1
                good = good and np.isfinite(rows[-1]).all()
            except (TypeError, ValueError):
                good = False
            if not good:
                raise UserError(
                    f"{path}, line {reader.line_num}: {[row[n] for n in COLUMNS]} is "
                    "not item >= 0, position >= 1, click, propensity in (0, 1]: mend it"
                )
    if not rows:
        raise UserError(f"{path} has no rows: give a log with impressions")
    item, position, reward, propensity = np.array(rows).T
    # Positions are counted from 1 in the files.
    return Log(item.astype(int), position.astype(int) - 1, reward, propensity)


def uniform(log: Log, num_items: int) -> np.ndarray:
    """pi(a | position) = 1 / num_items: float[positions, num_items]."""
    return np.full((log.position.max() + 1, num_items), 1.0 / num_items)


def shares(log: Log, num_items: int) -> np.ndarray:
    """The log's own policy, averaged over time: how often each item was shown."""
    count = np.zeros((log.position.max() + 1, num_items))
    np.add.at(count, (log.position, log.item), 1.0)
    return count / np.maximum(count.sum(1, keepdims=True), 1.0)


def weights(policy: np.ndarray, log: Log) -> np.ndarray:
    """w = pi(item | position) / propensity, float[N]."""
    return policy[log.position, log.item] / log.propensity


def ridge(
    log: Log, num_items: int, num_positions: int, l2: float = L2, folds: int = 2
) -> np.ndarray:
    """Reward model q = mean + u[item] + c[position]: float[N, num_items] of each row.

    Least squares with l2 (|u|^2 + |c|^2). Each of `folds` parts of the rows is
    predicted by the model of the other parts, so that DR corrects with rewards that its
    model has not seen (Chernozhukov et al. 2018); 1 fits and predicts all rows.
    """
    size = num_items + num_positions
    features = np.zeros((len(log.item), size))
    features[np.arange(len(features)), log.item] = 1.0
    features[np.arange(len(features)), num_items + log.position] = 1.0
    part = np.random.default_rng(0).permutation(len(features)) % folds
    q = np.empty((len(features), num_items))
    for fold in range(folds):
        fit = part != fold if folds > 1 else part == fold
        x, mean = features[fit], log.reward[fit].mean()
        normal = x.T @ x + l2 * np.eye(size)
        solution = np.linalg.solve(normal, x.T @ (log.reward[fit] - mean))
        table = mean + solution[None, :num_items] + solution[num_items:, None]
        q[part == fold] = table[log.position[part == fold]]
    return q


def estimate(
    reward: np.ndarray,
    weight: np.ndarray,
    q: np.ndarray | None = None,
    v: np.ndarray | None = None,
    clip: float = CLIP,
    switch: float = SWITCH,
) -> dict[str, Estimate]:
    """The estimators of the module's head by name; those with a model where q is given.

    All float[N]. `q`: the model's reward of the row's own item; `v`: its mean under the
    policy. Each is mean(offset) + mean(a) / mean(b), so that one bootstrap of rows
    serves all, and their intervals may be compared. The model is not fitted anew: the
    interval of dm knows nothing of the model's own error.
    """
    r, w = np.asarray(reward, np.float64), np.asarray(weight, np.float64)
    if r.shape != w.shape or not len(r) or (w < 0).any() or not np.isfinite(w).all():
        raise ValueError(
            f"weights {w.shape} of rewards {r.shape}: finite numbers >= 0, one a row"
        )
    one, none = np.ones_like(w), np.zeros_like(w)
    terms = dict(
        ips=(none, w * r, one),
        clipped=(none, np.minimum(w, clip) * r, one),
        snips=(none, w * r, w),
    )
    if q is not None:
        error = w * (r - q)
        terms |= dict(
            dm=(v, none, one),
            dr=(v, error, one),
            sndr=(v, error, w),
            switch_dr=(v, np.where(w <= switch, error, 0.0), one),
        )
    rows = np.stack([column for term in terms.values() for column in term], axis=1)
    drawn = statistics.resample(rows, RESAMPLES)
    drawn = np.concatenate([rows.mean(0)[None], drawn]).reshape(len(drawn) + 1, -1, 3)
    with np.errstate(invalid="ignore"):  # all weights 0: nothing is known
        value = drawn[..., 0] + drawn[..., 1] / drawn[..., 2]
    low, high = np.nanpercentile(value[1:], [2.5, 97.5], axis=0)
    return {
        name: Estimate(float(value[0, i]), float(low[i]), float(high[i]))
        for i, name in enumerate(terms)
    }


def support(weight: np.ndarray) -> dict[str, float]:
    """How far the log reaches: (sum w)^2 / sum w^2 effective rows, the largest weight.

    `mean_weight` is 1 up to chance where every item that the policy shows could be
    logged with the stated propensity: another value tells of a fault.
    """
    w = np.asarray(weight, np.float64)
    square = np.square(w).sum()
    return dict(
        rows=float(len(w)),
        effective_rows=float(w.sum() ** 2 / square) if square > 0 else 0.0,
        max_weight=float(w.max()),
        mean_weight=float(w.mean()),
    )


def evaluate(log: Log, policy: np.ndarray, **settings: float) -> dict[str, Estimate]:
    """All estimators of a policy float[positions, items] on a log, with the ridge."""
    q = ridge(log, policy.shape[1], policy.shape[0])
    v = (policy[log.position] * q).sum(1)
    own = q[np.arange(len(q)), log.item]
    return estimate(log.reward, weights(policy, log), own, v, **settings)


def main(argv: list[str] | None = None) -> int:
    """Prints the estimates beside the mean reward in the policy's own log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--log", default="random", choices=("random", "bts"))
    parser.add_argument("--policy", default="bts", choices=("random", "bts"))
    parser.add_argument("--clip", type=float, default=CLIP)
    parser.add_argument("--switch", type=float, default=SWITCH)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    try:
        logs = {n: load(args.data / n / "all.csv") for n in {args.log, args.policy}}
    except UserError as error:
        return fail(error)
    size = max(log.item.max() for log in logs.values()) + 1
    log, own = logs[args.log], logs[args.policy]
    policy = uniform(own, size) if args.policy == "random" else shares(own, size)
    if len(policy) <= log.position.max():
        return fail("the logs differ in positions")
    found = evaluate(log, policy, clip=args.clip, switch=args.switch)
    found["on_policy"] = Estimate(*statistics.bootstrap_mean(own.reward))
    reach = support(weights(policy, log))
    if args.json:
        values = {name: value._asdict() for name, value in found.items()}
        print(json.dumps(dict(estimates=values, support=reach)))
        return 0
    print("  ".join(f"{name}={value:.5g}" for name, value in reach.items()))
    for name, (value, low, high) in found.items():
        print(f"{name:10} {value:9.5f}  [{low:.5f}, {high:.5f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
