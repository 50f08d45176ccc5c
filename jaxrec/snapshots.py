"""States of served users on the disk: one .npz file, complete or not there at all."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import serving
from jaxrec.errors import UserError
from jaxrec.models import mamba


def save(path: str | Path, states: serving.States, users: Sequence[Any]) -> None:
    """Write States and the names of their users (JSON) to an .npz file, whole or not.

    Raises UserError when the disk refuses.
    """
    path, arrays = Path(path), {}
    for number, layer in enumerate(states.layers):
        arrays[f"tail_{number}"] = np.asarray(layer.tail)[: len(users)]
        arrays[f"state_{number}"] = np.asarray(layer.state)[: len(users)]
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            names = np.array(json.dumps(list(users)))
            np.savez(file, version=np.array(states.version), users=names, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): free space or name another file"
        ) from error


def check_place(path: str | Path) -> None:
    """Raises UserError where `save` could not write: asked before hours of serving."""
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UserError(
            f"cannot write {path}: name a file in a folder that is there and yours"
        )


def restore(path: str | Path, model: serving.Model) -> tuple[serving.States, list[Any]]:
    """What `save` wrote, if it is of this model. Raises UserError where it is not."""
    want = serving.empty(model, 1)
    try:
        with np.load(path, allow_pickle=False) as file:
            states = want.replace(version=str(file["version"]))
            serving.check(model, states)
            users = names_of(json.loads(str(file["users"])))
            layers = tuple(
                mamba.Cache(
                    jnp.asarray(file[f"tail_{n}"]), jnp.asarray(file[f"state_{n}"])
                )
                for n in range(len(want.layers))
            )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"no snapshot {path}: name one that serving wrote") from error
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError),
        *(RecursionError, zipfile.BadZipFile),
    ) as error:
        raise UserError(
            f"{path} is no snapshot of states, or a damaged one: compute them again "
            "from the histories"
        ) from error
    for have, like in zip(jax.tree.leaves(layers), jax.tree.leaves(want.layers)):
        if have.shape != (len(users), *like.shape[1:]) or have.dtype != like.dtype:
            raise UserError(
                f"{path} holds {have.dtype}{list(have.shape)} where {len(users)} users "
                f"of this model have {like.dtype}{list(like.shape[1:])} each: compute "
                "them again from the histories"
            )
        if not np.isfinite(np.asarray(have)).all():
            raise UserError(
                f"{path} holds numbers that are not finite: compute the states again "
                "from the histories"
            )
    return want.replace(layers=layers), users


def names_of(users: Any) -> list[str | int]:
    """The list of users, each once. Raises TypeError for anything else."""
    known = isinstance(users, list) and all(type(user) in (str, int) for user in users)
    if not known or len({*users}) < len(users):
        raise TypeError("no list of distinct users")
    return users
