"""What `jaxrec.export` wrote, read back: a program, its weights and its items.

Neither the run nor its data are needed, nor the code of its method.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from jaxrec import recommender, workdir
from jaxrec.errors import UserError, first_line

EXPORT_AGAIN = "export the run again"
VERSION = 1  # of the folder's layout
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FACTS = ("version", "kind", "platforms")  # of export.json, without which none is read


def platform() -> str:
    """That of this process, one of PLATFORMS."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    version = jax.devices()[0].client.platform_version  # "PJRT C API\nrocm 60300"
    return "rocm" if "rocm" in version.lower() else "cuda"


def check_installed() -> None:
    """Raises UserError without the package that programs are serialised with."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "the package flatbuffers is not installed: pip install 'jaxrec[export]'"
        )


def is_export(folder: str | Path) -> bool:
    """Whether `jaxrec.export` made it."""
    return (Path(folder) / "export.json").is_file()


def read(
    folder: str | Path,
) -> tuple[Callable[..., Any], dict[str, np.ndarray], dict[str, Any]]:
    """(program(weights, *arguments), weights, export.json).

    Raises UserError for a damaged folder, for one of another layout, and for weights
    that are not those that the program takes.
    """
    folder = Path(folder)
    check_installed()
    facts = workdir.read_json(folder / "export.json", EXPORT_AGAIN, FACTS)
    if facts.get("version") != VERSION:
        raise UserError(
            f"{folder} has layout {facts.get('version')}, this code reads {VERSION}: "
            f"{EXPORT_AGAIN}"
        )
    path = folder / "program.bin"
    try:
        made = jax_export.deserialize(bytearray(path.read_bytes()))
        path = folder / "weights.npz"
        with np.load(path, allow_pickle=False) as file:
            weights = {name: file[name] for name in file.files}
    except Exception as error:  # flatbuffers, zip and numpy raise many types
        raise UserError(
            f"{path} is damaged ({first_line(error)}): {EXPORT_AGAIN}"
        ) from error
    (taken, *_), _ = jax.tree.unflatten(made.in_tree, made.in_avals)
    for name in sorted(taken.keys() | weights.keys()):
        want, have = (
            f"{x[name].dtype}{list(x[name].shape)}" if name in x else "nothing"
            for x in (taken, weights)
        )
        if want != have:
            raise UserError(
                f"{path} has {have} for {name}, the program takes {want}: "
                f"{EXPORT_AGAIN}, or give the weights of a run of the same config"
            )
    return made.call, weights, facts


def load(folder: str | Path) -> recommender.Recommender:
    """The recommender of an export. Raises UserError for another policy's."""
    call, weights, facts = read(folder)
    if facts["kind"] != "scores":
        raise UserError(
            f"{folder} is a policy of observations, no recommender: call it with "
            "jaxrec.exported.read"
        )
    if platform() not in facts["platforms"]:
        raise UserError(
            f"{folder} is for {', '.join(facts['platforms'])}: export the run again "
            f"with --platforms={platform()}"
        )
    path, weights = Path(folder) / "items.json", jax.tree.map(jnp.asarray, weights)
    items = workdir.read_json(path, EXPORT_AGAIN)
    try:
        return recommender.make(call, weights, items)
    except (KeyError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} is damaged ({cause}): {EXPORT_AGAIN}") from error
