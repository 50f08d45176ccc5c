"""Users served from a state of constant size: prefill, extend, step, snapshots.

A recommender whose encoder can `advance` (mamba, mamba2 with block=recommended) needs
no history to take in the next event: convolution tails and float32 states a layer are
all that it remembers of a user, 17.9 kB a layer at RecMamba's sizes. All functions are
pure, but for `advance_rows`, which uses its States up; States are a pytree whose leaves
have users as their first axis, so that users are gathered and scattered by row. States
are of one model: its version, a hash of network and parameters, is part of them, and
those of another are refused.

Items are numbers here, 1 to num_items, 0 = padding; `numbers_of` translates the log's.
What an event is made of is all its history, however long: a model that was trained on
windows sees more than its window. Items of the history are not left out of the top k.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict

from jaxrec import finished
from jaxrec.errors import UserError
from jaxrec.methods import recommender
from jaxrec.models import encoders, mamba
from jaxrec.models import recommender as networks
from jaxrec.types import Array

# Settings of an encoder that change no number that is served.
FREE = ("scan", "time_chunk", "dropout", "parent", "name", "max_len")
LONGEST = 256  # events of one call; histories are cut into pieces of at most this


class Model(NamedTuple):
    """A network with its parameters, ready to serve."""

    network: networks.Recommender
    params: Any
    version: str
    ids: Sequence[Any]  # of the log, [num_items + 1], that of padding first
    numbers: Mapping[Any, int]  # of the ids, 1 to num_items


@struct.dataclass
class States:
    """What is remembered of B users: a Cache a layer, see `mamba_block`."""

    layers: tuple[mamba.Cache, ...]
    version: str = struct.field(pytree_node=False)


def make(network: networks.Recommender, params: Any, ids: Any = None) -> Model:
    """A Model from a network, its params {"params": ...} and its items' ids in the log.

    `ids`: an array [num_items + 1], that of padding first; None: 0 to num_items.

    Raises UserError for an encoder without a step and for a missing softmax head.
    """
    encoder = network.encoder
    check_step(encoder)
    head = "ce_bias" if network.tied else "ce_head"
    if head not in params["params"]:
        raise UserError(
            f"the parameters have no softmax head ({head}): serve a method that has "
            "one, such as ce, sqn or snqn"
        )
    fields = [field.name for field in dataclasses.fields(encoder)]
    facts = {name: getattr(encoder, name) for name in fields if name not in FREE}
    facts |= dict(vocab=network.vocab, items=network.num_items, tied=network.tied)
    facts |= dict(temperature=network.temperature)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(leaf).tobytes())
    ids = np.arange(network.num_items + 1) if ids is None else np.asarray(ids)
    ids = ids.tolist()
    numbers = {item: number for number, item in enumerate(ids) if number}
    return Model(network, params, digest.hexdigest()[:16], ids, numbers)


def check_step(encoder: Any) -> None:
    """Raises UserError for an encoder that cannot take in an event by itself."""
    if not hasattr(encoder, "advance"):
        raise UserError(
            f"encoder {type(encoder).__name__} has no step: serve a run that was "
            "trained with encoder.name=mamba or mamba2"
        )
    if encoder.block == "paper":
        raise UserError(mamba.NO_STEP)
    if encoder.gaps:
        raise UserError(
            f"encoder.gaps={encoder.gaps}: the stream of events that is served has no "
            "times; serve a run that was trained with encoder.gaps=0"
        )


def load(run: str | Path, stage: str = "", number: int = 0) -> Model:
    """The model that a finished stage of a run ended with; "": the run's last stage.

    `number`: which of its `num_seeds`. The data must be where they were, or cached.
    Raises UserError where that is not there or cannot be served.
    """
    config, stage = finished.find(run, stage, number)
    hparams = config[stage][config[stage].method]
    if "encoder" not in hparams or "tied" not in hparams:
        raise UserError(
            f"method {config[stage].method} of {run} has no encoder with a softmax "
            "head: serve a method that has one, such as ce, sqn or snqn"
        )
    # Before the data are read; older runs lack the options of newer encoders.
    options = ConfigDict(encoders.SPEC | hparams.encoder.to_dict())
    check_step(encoders.make(options, max(options.heights)))
    found, state = finished.restore(config, run, stage, number)
    info = found.dataset.info
    params = recommender.network_params(stage, {stage: state})
    # Off the mesh of the training, so that all arguments of a call are placed alike.
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)
    return make(networks.make(hparams, info), {"params": params}, info["item_ids"])


def numbers_of(model: Model, items: Sequence[Any]) -> np.ndarray:
    """The log's ids -> int32[n], 1 to num_items.

    Raises UserError for an empty list and for an id that the model does not know.
    """
    if not len(items):
        raise UserError("the history is empty: give one item or more")
    found = np.zeros(len(items), np.int32)
    for place, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise UserError(f"item {item!r} is no id: give an integer or a text")
        if item not in model.numbers:
            raise UserError(
                f"item {item!r} is none of the {len(model.numbers)} items that "
                "the model was trained on: leave it out, or train with it"
            )
        found[place] = model.numbers[item]
    return found


def empty(model: Model, rows: int) -> States:
    """States of `rows` users of whom nothing is known."""
    return States(mamba.empty_cache(model.network.encoder, rows), model.version)


def prefill(model: Model, items: Any, length: Any) -> tuple[Array, States]:
    """Histories int32[B, T] from the left, int32[B] -> (float32[B, D'], States).

    The state of an empty history is that of `encoders`; its States are `empty`.
    """
    return extend(model, items, length, empty(model, len(items)))


def extend(
    model: Model, items: Any, length: Any, states: States
) -> tuple[Array, States]:
    """Go on with `length` events of each user: int32[B, T], int32[B].

    -> (float32[B, D'], the states after the last event; States). Users without an
    event keep their States, and what is given for them means nothing.

    Raises UserError for States of another model and for events that cannot be.
    """
    check(model, states)
    check_events(model, items, length, len(states.layers[0].state))
    items, length = jnp.asarray(items), jnp.asarray(length)
    x, layers = _extend(model.network, model.params, items, length, states.layers)
    return x, states.replace(layers=layers)


def step(model: Model, item: Any, states: States, active: Any) -> tuple[Array, States]:
    """One event of each user who is `active`: int32[B], bool[B]; else see `extend`."""
    length = jnp.asarray(active).astype(jnp.int32)
    return extend(model, jnp.asarray(item)[:, None], length, states)


def top_k(model: Model, x: Array, k: int) -> tuple[Array, Array]:
    """float32[B, D'] -> (scores float32[B, k], items int32[B, k]), best first."""
    check_k(model, k)
    return _top_k(model.network, model.params, x, k)


def check_k(model: Model, k: int) -> None:
    """Raises UserError for more items than there are."""
    if not 1 <= k <= model.network.num_items:
        raise UserError(f"k is {k}: give 1 to {model.network.num_items}, all items")


def check(model: Model, states: States) -> None:
    """Raises UserError for States of another model."""
    if states.version != model.version:
        raise UserError(
            f"the states are of model version {states.version}, this model is "
            f"{model.version}: compute them again from the histories"
        )


def check_events(model: Model, items: Any, length: Any, users: int) -> None:
    """Raises UserError for what is not [users, T] and [users], for lengths outside of
    0 to T and, within them, for items outside of 1 to num_items.

    Of arrays that are being traced the shapes alone are checked.
    """
    shape, last = np.shape(items), model.network.num_items
    if len(shape) != 2 or shape[0] != users or np.shape(length) != (users,):
        raise UserError(
            f"items {list(shape)} and length {list(np.shape(length))} of {users} "
            f"users: give [{users}, T] and [{users}]"
        )
    if isinstance(items, jax.core.Tracer) or isinstance(length, jax.core.Tracer):
        return
    items, length = np.asarray(items), np.asarray(length)
    if ((length < 0) | (length > shape[1])).any():
        raise UserError(f"length {length.tolist()}: give 0 to {shape[1]}, of items")
    events = items[np.arange(shape[1])[None] < length[:, None]]
    if wrong := sorted({*events[(events < 1) | (events > last)].tolist()}):
        raise UserError(f"items {wrong[:5]}: give numbers from 1 to {last}")


def _advance(
    module: networks.Recommender, items: Array, length: Array, layers: Any
) -> Any:
    x = module.item_table(items)
    return module.encoder.advance(x, length, cache=layers, only_last=True)


@functools.partial(jax.jit, static_argnums=0)
def _extend(network: Any, params: Any, items: Array, length: Array, layers: Any) -> Any:
    return network.apply(params, items, length, layers, method=_advance)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _top_k(network: Any, params: Any, x: Array, k: int) -> Any:
    table, bias = network.apply(params, method="ce_table")
    # As `logits`, whose product would copy the transposed table for so few rows.
    scores = jnp.einsum("vd,bd->bv", table, x.astype(jnp.float32)) + bias[None]
    item = jnp.arange(len(bias))
    exists = (item > 0) & (item <= network.num_items)
    return jax.lax.top_k(jnp.where(exists[None], scores, -jnp.inf), k)


def advance_rows(
    model: Model, states: States, rows: Any, items: Any, length: Any, k: int
) -> tuple[States, Array, Array]:
    """`extend` of the users in some rows of the States of many, in place.

    rows: int32[B], each once; items: int32[B, T]; length: int32[B]. An event costs its
    own row, however many there are; the States given are gone afterwards.
    -> (States, scores float32[B, k], items int32[B, k]).

    Raises UserError, before anything is used up, as `extend` and `top_k` do and for
    rows that are not there or not distinct.
    """
    check(model, states)
    check_k(model, k)
    rows, last = np.asarray(rows), len(states.layers[0].state) - 1
    if len({*rows.tolist()}) < len(rows) or ((rows < 0) | (rows > last)).any():
        raise UserError(f"rows {rows.tolist()}: give distinct ones from 0 to {last}")
    check_events(model, items, length, len(rows))
    args = model.network, model.params, states.layers, rows, items, length, k
    own, scores, best = _advance_some(*args)
    layers = _put(states.layers, own, rows)
    return states.replace(layers=layers), scores, best


# Two programs: in one that reads and writes them XLA copies the states of all users.
@functools.partial(jax.jit, static_argnums=(0, 6))
def _advance_some(
    network: Any,
    params: Any,
    layers: Any,
    rows: Array,
    items: Array,
    length: Array,
    k: int,
) -> Any:
    own = jax.tree.map(lambda leaf: leaf[rows], layers)
    x, own = network.apply(params, items, length, own, method=_advance)
    return own, *_top_k(network, params, x, k)


@functools.partial(jax.jit, donate_argnums=0)
def _put(layers: Any, own: Any, rows: Array) -> Any:
    return jax.tree.map(lambda leaf, one: leaf.at[rows].set(one), layers, own)
