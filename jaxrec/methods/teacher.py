"""A frozen teacher as the environment of a recommender.

LEA (Wang, Karatzoglou, Arapakis and Jose, SIGIR 2024, arXiv 2403.16948; known to us
from its abstract) asks a language model for a state, for rewards and for further
actions. Here the language model is anything that can do these three things: by default
a recommender of an earlier stage, or vectors of the items' texts from a file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.methods import ranked, recommender
from jaxrec.models import recommender as networks
from jaxrec.ops import catalogue
from jaxrec.types import Array, TrainState, UserError


class Teacher(NamedTuple):
    """What the environment offers; `params` are those of `init`, never trained.

    `init(earlier)` -> params
    `embed(params, items, length)` -> float[B, E], the state
    `preference(params, items, length)` -> float[B, V], how well items would go on
    """

    init: Callable[[dict[str, TrainState]], Any]
    embed: Callable[..., Array]
    preference: Callable[..., Array]


def of_stage(stage: str, info: dict[str, Any]) -> Teacher:
    """The recommender that the stage trained: its states, its logits."""
    stages = info.get("stages", {})
    if stage not in stages:
        raise UserError(
            f"teacher_stage={stage!r}: name an earlier stage, such as one of "
            f"{sorted(stages)}, or give item_vectors"
        )
    section, _ = stages[stage]
    hparams = section[section.method]
    if "encoder" not in hparams:
        raise UserError(f"teacher_stage={stage!r}: {section.method} has no encoder")
    # The logits of a bare state are what is read here.
    if section.method == "dqn_ns" or hparams.get("prompt", "off") != "off":
        raise UserError(
            f"teacher_stage={stage!r}: {section.method} trains no softmax head on "
            "states, name a stage of another method, such as ce"
        )
    network = networks.make(hparams, info)

    def init(earlier: dict[str, TrainState]) -> Any:
        params = recommender.network_params(stage, earlier)
        # Value heads are of no use here.
        return {"params": {k: v for k, v in params.items() if k != "q_head"}}

    def embed(params: Any, items: Array, length: Array) -> Array:
        return recommender.state_of(network, params, items, length)

    def preference(params: Any, items: Array, length: Array) -> Array:
        x = embed(params, items, length)
        return ranked.only_items(recommender.apply(network, params, "logits", x), info)

    return Teacher(init, embed, preference)


def of_vectors(path: str, info: dict[str, Any], scale: float = 10.0) -> Teacher:
    """Vectors of items, such as embeddings of their titles: float[num_items + 1, E].

    A .npy file, row i the item i of the data (row 0 is not read). The state is the mean
    of the history's unit vectors, the preference `scale` times the cosine. Ours.
    """
    try:
        table = np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"item_vectors={path!r} cannot be read: {error}") from error
    rows = info["num_items"] + 1
    if table.ndim != 2 or table.shape[0] != rows or not np.isfinite(table).all():
        raise UserError(
            f"item_vectors={path!r} holds {table.shape}, wanted finite numbers "
            f"[{rows}, E]: a row for each item after one for padding"
        )
    table = table.astype(np.float32)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-8)
    table[0] = 0.0
    table = np.pad(table, ((0, info["vocab"] - rows), (0, 0)))

    def init(earlier: dict[str, TrainState]) -> Any:
        return jnp.array(table)

    def embed(params: Any, items: Array, length: Array) -> Array:
        total = jnp.sum(params[items], axis=1)
        norm = jnp.linalg.norm(total, axis=-1, keepdims=True)
        return total / jnp.maximum(norm, 1e-8)

    def preference(params: Any, items: Array, length: Array) -> Array:
        cosine = embed(params, items, length) @ params.T
        return ranked.only_items(scale * cosine, info)

    return Teacher(init, embed, preference)


def propose(preference: Array, action: Array, count: int) -> Array:
    """The `count` preferred items other than the one taken: int32[B, count]."""
    row = jnp.arange(len(action))
    others = preference.at[row, action].set(-jnp.inf)
    return catalogue.top_k(others, count)[1].astype(jnp.int32)


def reward(preference: Array, action: Array, items: Array, unit: float) -> Array:
    """2 unit sigmoid(p(item) - p(action)): float32[B, n], `unit` where both are equal.

    A pairwise preference as a bounded reward (ours). preference: float[B, V]; action:
    int32[B]; items: int32[B, n].
    """
    own = jnp.take_along_axis(preference, action[:, None], axis=1)
    other = jnp.take_along_axis(preference, items, axis=1)
    return 2.0 * unit * jax.nn.sigmoid(other - own)
