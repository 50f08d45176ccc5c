"""Simulated rollouts as rows of data: which are kept, their columns, their summary."""

import math
from typing import Any

import numpy as np

from jaxrec.types import Batch


def gain(found: dict[str, np.ndarray], own: np.ndarray) -> np.ndarray:
    """How much more reward each simulation earns than its source did: float64[B].

    own: float[B, H], rewards of the source's own steps, 0 after its end. Up to a cut
    both are compared over the steps kept; a death costs all that the source still
    earned, dropped steps count for neither. -inf where nothing is kept.
    """
    keep = found["keep"]
    died = np.logical_or.accumulate(found["terminal"] & keep, axis=1)
    compared = keep | died
    total = np.where(keep, found["reward"], 0.0).sum(axis=1, dtype=np.float64)
    total -= np.where(compared, own, 0.0).sum(axis=1, dtype=np.float64)
    return np.where(keep.any(axis=1), total, -np.inf)


def best(gains: np.ndarray, share: float) -> np.ndarray:
    """The ceil(share B) simulations of largest gain, in their order: int64[n]."""
    count = math.ceil(share * len(gains) - 1e-9)
    return np.sort(np.argsort(-gains, kind="stable")[:count])


def columns(
    found: dict[str, np.ndarray], source: np.ndarray, start: np.ndarray
) -> dict[str, np.ndarray]:
    """The kept rows of rollouts [B, H, ...], one rollout after the other: [rows, ...].

    `begins` marks the first row of an unbroken piece.
    """
    keep = found["keep"]
    before = np.pad(keep, ((0, 0), (1, 0)))[:, :-1]
    after = np.pad(found["cut"], ((0, 0), (0, 1)))[:, 1:]
    shape = keep.shape
    both = dict(
        observation=found["observation"],
        action=found["action"],
        reward=found["reward"],
        next_observation=found["next_observation"],
        terminal=found["terminal"].astype(np.float32),
        valid_next=np.ones(shape, np.float32),
        source=np.broadcast_to(source[:, None].astype(np.int32), shape),
        start=np.broadcast_to(start[:, None].astype(np.int32), shape),
        uncertainty=found["uncertainty"],
        corrected=found["changed"].astype(np.float32),
        cut=after.astype(np.float32),
        begins=~before,
    )
    return {name: array[keep] for name, array in both.items()}


def finish(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace `begins` by timestep int32[N] and return_to_go float32[N]."""
    first = np.flatnonzero(rows["begins"])
    length = np.diff(first, append=len(rows["reward"]))
    total = np.cumsum(rows["reward"], dtype=np.float64)
    to_go = np.repeat(total[first + length - 1], length) - total + rows["reward"]
    timestep = np.arange(len(total)) - np.repeat(first, length)
    return {name: array for name, array in rows.items() if name != "begins"} | dict(
        timestep=timestep.astype(np.int32), return_to_go=to_go.astype(np.float32)
    )


def summary(artefact: Batch, info: dict[str, Any] | None = None) -> dict[str, float]:
    """What was produced, in numbers for the log.

    With the `info` of the data, `reward_data` stands beside the mean reward.
    """
    u, first = artefact["uncertainty"], artefact["timestep"] == 0
    found = dict(
        rows=len(u),
        length=len(u) / first.sum(),
        reward=artefact["reward"].mean(),
        terminal=artefact["terminal"].mean(),
        corrected=artefact["corrected"].mean(),
        truncated=artefact["cut"].sum() / first.sum(),
        sources=len(np.unique(artefact["source"])),
    )
    found |= {f"u_{round(100 * q)}": np.quantile(u, q) for q in (0.5, 0.9, 0.99)}
    if info is not None:
        found["reward_data"] = info["reward_mean"]
    return {name: float(value) for name, value in found.items()}
