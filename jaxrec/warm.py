"""A warm start: a fresh state whose parameters come, in part, from another run.

`config.<stage>.warm_start = {path, pattern}`: `path` is the folder of a stage of a run,
such as runs/a/train, which stands for its newest checkpoint, or that of one checkpoint,
runs/a/train/checkpoints/4000, or several with commas between, whose parameters are
averaged (Wortsman et al. 2022, "Model soups"; `jaxrec.average` makes a run of such a
mean). Parameters whose path the pattern is found in are taken, "" = all. Targets start
as the parameters of the same name do; the optimiser and the rest of the state are
fresh.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import checkpoint, logs, sharding
from jaxrec.errors import UserError
from jaxrec.types import TrainState


def beginning(
    name: str, chosen: Mapping[str, str] | None
) -> Callable[[TrainState], TrainState] | None:
    """What makes of the fresh state of stage `name` the warm one; None = nothing."""
    if not (chosen and chosen["path"]):
        return None

    def begin(state: TrainState) -> TrainState:
        logs.say(f"{name}: parameters of {chosen['path']}")
        return start(state, parameters(chosen["path"]), chosen["pattern"])

    return begin


def parameters(path: str) -> dict[str, np.ndarray]:
    """The parameters of a stage or a checkpoint, or the mean of several.

    Raises UserError where there are none or they are of different models.
    """
    if "" in (parts := path.split(",")):
        raise UserError(f"warm_start.path={path}: a folder is missing between commas")
    return mean([Path(part).expanduser() for part in parts])


def mean(folders: Sequence[Path], part: str = "params") -> dict[str, np.ndarray]:
    """The mean, in float64, of what `checkpoint.parameters` finds in each; by paths.

    Raises UserError where a folder has none or they are of different models.
    """
    found = [checkpoint.parameters(folder, part) for folder in folders]
    shapes = [{name: x.shape for name, x in one.items()} for one in found]
    for folder, one in zip(folders, shapes):
        if one != shapes[0]:
            raise UserError(
                f"{folder} and {folders[0]} hold different parameters, which have no "
                "mean: name those of one model"
            )
    if len(found) == 1:
        return found[0]
    return {
        name: np.mean([one[name] for one in found], 0, np.float64).astype(first.dtype)
        for name, first in found[0].items()
    }


def start(
    state: TrainState, found: Mapping[str, np.ndarray], pattern: str = ""
) -> TrainState:
    """`state` with the parameters, and their targets, that the pattern chooses.

    `found`: arrays by path, such as actor/params/Dense_0/kernel. With a leading axis of
    seeds in the state alone, all seeds start alike. Raises UserError where a chosen one
    has another shape in the state or none is there.
    """
    chosen = {k: x for k, x in found.items() if re.search(pattern, k)}
    taken = set()

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = sharding.path_name(path)
        if name not in chosen:
            return leaf
        array = chosen[name]
        if leaf.shape not in (array.shape, leaf.shape[:1] + array.shape):
            raise UserError(
                f"warm_start: {name} is {list(array.shape)} there, {list(leaf.shape)} "
                "here: choose others with warm_start.pattern, or the same sizes"
            )
        taken.add(name)
        whole = np.broadcast_to(array, leaf.shape).astype(leaf.dtype)
        return sharding.put_like(whole, leaf)

    params, targets = (
        jax.tree_util.tree_map_with_path(one, tree)
        for tree in (state.params, state.target_params)
    )
    if not taken:
        raise UserError(
            f"warm_start.pattern {pattern!r} finds no parameter that both runs have; "
            f"there are: {', '.join(sorted(found)[:12])}"
        )
    return state.replace(params=params, target_params=targets)
