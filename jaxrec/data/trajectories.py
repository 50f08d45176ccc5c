"""Trajectories as flat rows, and the data set that offline-RL methods train on.

Every source of transitions (D4RL, Minari, a simulator, the toy system) ends in
`Trajectories`: rows in the order of time, one episode after the other. `dataset` adds
the derived columns and the statistics. A terminal is a death, after which there is no
value; a timeout only cuts the record. Nearly every fault in published loaders
confuses the two or loses the last, unfinished episode; both are settled here, once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.types import Dataset, UserError

CHUNK = 1 << 18  # rows looked at together, so that mapped files stay on the disk
ACTION_SLACK = 1e-4  # rounding beyond [-1, 1] that is clipped, ours
HOPPER_HEIGHT = 0.7  # metres; a hopper below it has fallen and its episode ends


class Trajectories(NamedTuple):
    """N rows in episode order; numpy arrays, possibly memory-mapped.

    observation: float32[N, od]   action: float32[N, ad], in [-1, 1]
    reward: float32[N]            next_observation: float32[N, od]
    terminal: bool[N], the environment ended the episode with this row
    timeout: bool[N], the record of the episode ends here without a death
    valid_next: bool[N], next_observation is the true one
    extras: further arrays [N, ...], such as qpos and qvel
    info: name, env_id ("" when unknown), version and other facts
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray
    valid_next: np.ndarray
    extras: dict[str, np.ndarray]
    info: dict[str, Any]


COLUMNS = Trajectories._fields[:7]
NUMBERS, FLAGS = COLUMNS[:4], COLUMNS[4:]  # float32, bool


def flatten(trajectories: Trajectories) -> dict[str, np.ndarray]:
    """All arrays in one dict, extras as "extras/<name>", for the cache."""
    arrays = {name: getattr(trajectories, name) for name in COLUMNS}
    return arrays | {f"extras/{k}": v for k, v in trajectories.extras.items()}


def unflatten(arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]):
    """The Trajectories of which `arrays` is the `flatten`."""
    extras = {k[7:]: v for k, v in arrays.items() if k.startswith("extras/")}
    return Trajectories(*(arrays[name] for name in COLUMNS), extras, dict(info))


def lengths(trajectories: Trajectories) -> np.ndarray:
    """Rows of each episode: int64[episodes]; their sum is N."""
    ends = np.flatnonzero(trajectories.terminal | trajectories.timeout)
    return np.diff(ends, prepend=-1)


def starts(trajectories: Trajectories) -> np.ndarray:
    """First row of each episode: int64[episodes]."""
    length = lengths(trajectories)
    return np.cumsum(length) - length


def returns(trajectories: Trajectories) -> np.ndarray:
    """Undiscounted return of each episode, unfinished ones too: float64[episodes]."""
    return np.add.reduceat(trajectories.reward, starts(trajectories), dtype=np.float64)


def take(trajectories: Trajectories, rows: slice | np.ndarray) -> Trajectories:
    """Those rows; a slice gives views, indices give copies."""
    columns = (getattr(trajectories, name)[rows] for name in COLUMNS)
    extras = {name: array[rows] for name, array in trajectories.extras.items()}
    return Trajectories(*columns, extras, trajectories.info)


def episodes(trajectories: Trajectories) -> Iterator[Trajectories]:
    """The episodes, one after the other, as views."""
    for start, length in zip(starts(trajectories), lengths(trajectories)):
        yield take(trajectories, slice(start, start + length))


def rows_of(trajectories: Trajectories, chosen: Sequence[int]) -> np.ndarray:
    """The rows of the episodes numbered `chosen`, in episode order: int64[rows]."""
    keep = np.zeros(len(lengths(trajectories)), bool)
    keep[np.asarray(chosen)] = True
    return np.flatnonzero(np.repeat(keep, lengths(trajectories)))


def concatenate(parts: Sequence[Trajectories], info: Mapping[str, Any]) -> Trajectories:
    """The episodes of several Trajectories, with the extras that all of them have."""
    columns = (np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS)
    shared = set.intersection(*(set(part.extras) for part in parts))
    extras = {k: np.concatenate([p.extras[k] for p in parts]) for k in sorted(shared)}
    return Trajectories(*columns, extras, dict(info))


def validate(trajectories: Trajectories) -> Trajectories:
    """The same trajectories, if a method can learn from them.

    Actions beyond [-1, 1] by rounding are clipped (a copy of the actions, only then).
    Raises UserError for shapes, NaN and infinity, actions out of range, an open last
    episode, and a "Hopper" whose mean height is below that of a fallen one.
    """
    t, name = trajectories, trajectories.info.get("name") or "the data"
    columns = {column: getattr(t, column) for column in COLUMNS}
    for column, array in columns.items():
        wanted = np.dtype(bool if column in FLAGS else np.float32)
        if array.dtype != wanted:
            raise UserError(f"{name}: {column} is {array.dtype}, it must be {wanted}")
    for column in ("observation", "action", "next_observation"):
        shape = columns[column].shape
        if len(shape) != 2 or not shape[-1]:
            raise UserError(
                f"{name}: {column} has shape {shape}, it must be [rows, size]: flatten "
                "images and dicts first"
            )
    for column in ("reward", *FLAGS):
        if columns[column].ndim != 1:
            raise UserError(
                f"{name}: {column} has shape {columns[column].shape}, it must be [rows]"
            )
    if t.observation.shape != t.next_observation.shape:
        raise UserError(
            f"{name}: observation has shape {t.observation.shape}, next_observation "
            f"{t.next_observation.shape}: they must agree"
        )
    check_lengths(columns | t.extras, f"{name}: ")
    if len(t.reward) == 0:
        raise UserError(f"{name}: no episodes, the data have no rows")
    if not (t.terminal[-1] or t.timeout[-1]):
        raise UserError(f"{name}: the last row must end its episode (set timeout)")
    largest = 0.0
    for column in NUMBERS:
        for start, chunk in _chunks(columns[column]):
            bad = ~np.isfinite(chunk).reshape(len(chunk), -1).all(-1)
            if bad.any():
                row = start + int(bad.argmax())
                raise UserError(
                    f"{name}: {column} of row {row} is NaN or infinite: remove the row"
                )
            if column == "action":
                size = np.abs(chunk).max(-1)
                largest = max(largest, float(size.max()))
                if size.max() > 1 + ACTION_SLACK:
                    row = start + int((size > 1 + ACTION_SLACK).argmax())
                    raise UserError(
                        f"{name}: action of row {row} reaches {size.max():.4g}, beyond "
                        "[-1, 1]: scale the actions, or clip them with "
                        "data.clip_actions=True if the environment clipped them"
                    )
    _check_hopper(t, name)
    if largest > 1:
        t = t._replace(action=np.clip(t.action, -1, 1))
    return t


def dataset(trajectories: Trajectories, config: Any) -> Dataset:
    """Train and held-out columns, statistics and facts for offline-RL methods.

    `config.top`: the best share of the episodes by return is kept, at least one (10%
        behaviour cloning: 0.1). `config.valid_fraction`: the share of the episodes
        that is held out, drawn with `config.seed`. `config.window`: the length of the
        windows. Without the first two, columns stay memory-mapped.
    Rows stay in episode order, so that windows are slices.
    Statistics are those of the training rows; standard deviations may be 0. The range
    of returns counts every episode in whole, cut and unfinished ones too (as IQL).
    """
    trajectories = validate(trajectories)
    train_rows, valid_rows = _split(trajectories, config)
    kept = trajectories if train_rows is None else take(trajectories, train_rows)
    train = _columns(kept)
    evals = {}
    if valid_rows is not None:
        evals["valid"] = _columns(take(trajectories, valid_rows))
    observation_mean, observation_std = _moments(kept.observation)
    reward_mean, reward_std = _moments(kept.reward[:, None])
    _, delta_std = _moments(kept.observation, kept.next_observation, kept.valid_next)
    score = returns(kept)
    info = dict(name="", env_id="", version="") | trajectories.info
    info |= dict(
        observation_size=kept.observation.shape[1],
        action_size=kept.action.shape[1],
        observation_mean=observation_mean,
        observation_std=observation_std,
        reward_mean=float(reward_mean[0]),
        reward_std=float(reward_std[0]),
        delta_std=delta_std,
        return_min=float(score.min()),
        return_max=float(score.max()),
        return_mean=float(score.mean()),
        num_rows=len(kept.reward),
        num_episodes=len(score),
        window=int(config.window),
        trajectories=trajectories,
        valid_rows=valid_rows,  # int64, rows of `trajectories` in evals["valid"]
    )
    return Dataset(train=train, evals=evals, info=info, window=int(config.window))


def _split(trajectories, config):
    """Rows for training and for validation; None stands for all rows and for none."""
    if config.window < 0:
        raise UserError(f"data.window={config.window}: it must be 0 or more")
    if not 0 < config.top <= 1:
        raise UserError(f"data.top={config.top}: it must be in (0, 1]")
    if not 0 <= config.valid_fraction < 1:
        raise UserError(f"data.valid_fraction={config.valid_fraction}: not in [0, 1)")
    score = returns(trajectories)
    chosen = np.arange(len(score))
    if config.top < 1:
        # The rounding slack makes 0.29 of 100 episodes 29, as one expects.
        count = max(1, int(config.top * len(score) + 1e-9))
        chosen = np.argsort(-score, kind="stable")[:count]
    if config.valid_fraction == 0:
        return None if config.top == 1 else rows_of(trajectories, chosen), None
    num_valid = max(1, round(config.valid_fraction * len(chosen)))
    if num_valid >= len(chosen):
        raise UserError(
            f"data.valid_fraction={config.valid_fraction} of {len(chosen)} episodes "
            "leaves none to train on: lower it, or raise data.top"
        )
    order = np.random.default_rng(config.seed).permutation(np.sort(chosen))
    return tuple(
        rows_of(trajectories, part) for part in (order[num_valid:], order[:num_valid])
    )


def _columns(t):
    """The columns of a training batch; those that are stored so pass through."""
    length, first = lengths(t), starts(t)
    total = np.cumsum(t.reward, dtype=np.float64)
    last = total[first + length - 1]
    to_go = np.repeat(last, length) - total + t.reward
    return {name: getattr(t, name) for name in NUMBERS} | dict(
        terminal=t.terminal.astype(np.float32),
        valid_next=t.valid_next.astype(np.float32),
        timestep=(np.arange(len(t.reward)) - np.repeat(first, length)).astype(np.int32),
        return_to_go=to_go.astype(np.float32),
    )


def _chunks(array):
    for start in range(0, len(array), CHUNK):
        yield start, np.asarray(array[start : start + CHUNK])


def _moments(array, minus=None, where=None):
    """Mean and std over rows of array[N, D], or of minus - array: float32[D] each.

    Chunks are merged by Chan's formula, in float64: exact for constant columns.
    """
    count, mean, squares = 0, np.zeros(array.shape[1]), np.zeros(array.shape[1])
    for start, chunk in _chunks(array):
        chunk = chunk.astype(np.float64)
        if minus is not None:
            chunk = minus[start : start + len(chunk)] - chunk
            chunk = chunk[where[start : start + len(chunk)]]
        if not len(chunk):
            continue
        chunk_mean = chunk.mean(0)
        delta, both = chunk_mean - mean, count + len(chunk)
        squares += ((chunk - chunk_mean) ** 2).sum(0)
        squares += delta**2 * (count * len(chunk) / both)
        mean += delta * (len(chunk) / both)
        count = both
    std = np.sqrt(squares / max(count, 1))
    return mean.astype(np.float32), std.astype(np.float32)


def check_lengths(columns: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError, its message after `prefix`, where numbers of rows differ."""
    sizes = {name: len(array) for name, array in columns.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"{prefix}arrays must have equally many rows, one a step, found {found}"
        )


def _check_hopper(t: Trajectories, name: str) -> None:
    """Files of noise under the names of D4RL are about (their mean is near 0.2)."""
    if "hopper" not in f"{name} {t.info.get('env_id', '')}".lower():
        return
    height = sum(c[:, 0].sum(dtype=np.float64) for _, c in _chunks(t.observation))
    height /= len(t.observation)
    if height <= HOPPER_HEIGHT:
        raise UserError(
            f"{name}: the mean height observation[0] is {height:.3g}, a hopper below "
            f"{HOPPER_HEIGHT} has fallen: this file does not hold Hopper episodes"
        )
