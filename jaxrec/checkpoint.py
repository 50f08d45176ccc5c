"""Checkpoints of a TrainState; the only file that imports orbax.

A checkpoint is written to a temporary folder and renamed when it is complete, so a
process killed at any instant leaves only whole checkpoints behind.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxrec import sharding
from jaxrec.errors import Interrupted, UserError
from jaxrec.types import TrainState


@contextlib.contextmanager
def opened(path: Path, keep: int = 2) -> Iterator[ocp.training.Checkpointer]:
    """A sequence of checkpoints in `path`, of which the latest `keep` stay.

    The loop decides when to save, so every save asked for is made. Raises UserError
    when the disk refuses; the checkpoints before are kept.
    """
    training = ocp.training
    try:
        with training.Checkpointer(
            path.absolute(),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        ) as folder:
            yield folder
    except (UserError, Interrupted):
        raise
    except Exception as error:
        # Tensorstore tells of a full disk as a ValueError, from a thread, as text.
        for word in ("No space left", "Disk quota", "Read-only file", "File too large"):
            if word in str(error):
                raise UserError(
                    f"cannot write a checkpoint in {path} ({word}): free some space "
                    "and give the same command again; what was saved before is kept"
                ) from error
        raise


def save(
    folder: ocp.training.Checkpointer,
    step: int,
    state: TrainState,
    pending: dict[str, Any],
) -> Any:
    """Start saving; `.result()` of what is returned waits for the end.

    `pending` is JSON: the metrics that are not written yet. The next training call may
    reuse the buffers of `state`: orbax returns when it has the arrays of an accelerator
    in the host's memory, but those of a CPU it reads where they are, so a copy of them
    is what is saved.
    """
    if jax.default_backend() == "cpu":
        state = jax.tree.map(jnp.copy, state)
    return folder.save_async(step, state, custom_metadata={"pending": pending})


def latest_step(folder: ocp.training.Checkpointer) -> int | None:
    """The step of the newest whole checkpoint, None if there is none."""
    return None if folder.latest is None else folder.latest.step


def restore(
    folder: ocp.training.Checkpointer, step: int, abstract: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """The checkpoint of `step`, placed as the shardings of `abstract` say; `pending`.

    They need not be those it was saved with. Raises UserError when the files are
    damaged or hold another model.
    """
    where = Path(folder.directory) / str(step)
    try:
        state = folder.load(step, abstract)
        facts = folder.metadata(step).custom_metadata or {}
    except Exception as error:  # orbax raises many types for damaged files
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"checkpoint {where} cannot be read ({cause}): delete that folder to go on "
            "from the one before it, or use another --workdir"
        ) from error
    for have, want in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
        if have.shape != want.shape or have.dtype != want.dtype:
            raise UserError(
                f"checkpoint {where} holds {have.dtype}{list(have.shape)} where this "
                f"config needs {want.dtype}{list(want.shape)}: use another --workdir"
            )
    return state, facts.get("pending", {})


def find(folder: Path) -> Path:
    """The checkpoint that `folder` is, or the newest of the stage that it is.

    Raises UserError where it is neither.
    """
    here = folder.absolute()
    if here.name.isdigit() and here.parent.name == "checkpoints":
        if here.is_dir():
            return here
        there = ", ".join(map(str, steps(here.parent))) or "none"
        raise UserError(f"{folder} is no checkpoint: of that stage there are {there}")
    path = folder / "checkpoints"
    if known := steps(path):
        return path.absolute() / str(known[-1])
    stages = sorted(x.parent.name for x in folder.glob("*/checkpoints"))
    what = "has no checkpoint" if path.is_dir() else "is not there"
    which = f", such as {folder / stages[0]}" if stages else ""
    raise UserError(f"{path} {what}: name the folder of a stage of a run{which}")


def steps(path: Path) -> list[int]:
    """Of the whole checkpoints in a folder `checkpoints`, in order."""
    return sorted(int(x.name) for x in path.glob("[0-9]*") if x.name.isdigit())


def parameters(folder: Path, part: str = "params") -> dict[str, np.ndarray]:
    """The parameters of a checkpoint that `find` finds, by their paths in `part`.

    `part`: "params" or "target_params", which may be empty. Raises UserError where
    there is no checkpoint that can be read.
    """
    found = find(folder)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        saved = ocp.metadata(found).metadata
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            saved[part] if part == "params" else saved.get(part),
        )
        if not jax.tree.leaves(shapes):
            return {}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            tree = ocp.load(found, {part: shapes})[part]
    except Exception as error:  # as in `restore`
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"checkpoint {found} cannot be read ({cause})") from error
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(at): np.asarray(leaf) for at, leaf in leaves}
