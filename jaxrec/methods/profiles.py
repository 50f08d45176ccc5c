"""Users' profiles as states: what is seen of them, and how they become vectors.

A window of the log ends at the event to predict. The state is the set of all items
before it (as far back as `data.seq_len`), the observation the last L of those events:

    observation                       | session: the last L events
    state                             | profile: every item before the prediction
    what is to be inferred            | withheld: the profile without the session

So nothing at or after the prediction is in a profile, whatever the split. Codecs make
a profile P in {0, 1}^V a vector x in [-1, 1]:

    latent     x = (U^T P / sqrt|P| - mean) / (3 std), U the first d right singular
               vectors of the training profiles; no held-out event is among those
    multihot   x = 2 P - 1, for catalogues of a few thousand items

All of this is ours.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy import sparse  # comes with JAX
from scipy.sparse import linalg

from jaxrec.methods import popularity, windows
from jaxrec.types import Array, Batch, UserError

TARGETS = ("latent", "multihot")
SPREAD = 3.0  # standard deviations of a latent that fit in [-1, 1]


class Session(NamedTuple):
    """What is seen: the last events from the left, zeros behind, and how many."""

    items: Array  # int32[B, L]
    length: Array  # int32[B]


class Example(NamedTuple):
    """B predictions with the whole histories before them."""

    items: Array  # int32[B, H] from the left, zeros behind
    length: Array  # int32[B]
    action: Array  # int32[B], the item to predict


def example(batch: Batch) -> Example:
    """From windows [B, H + 1] that end at the event to predict."""
    event = windows.transition(batch)
    return Example(event.items, event.length, event.action)


def recent(items: Array, length: Array, size: int, keep: Array | int) -> Session:
    """The last `keep` <= size events of histories int32[B, H]: int32[B, size].

    keep: int, or int32[B], one a row.
    """
    place = jnp.arange(size)[None]
    kept = jnp.minimum(length, keep)
    index = place + (length - kept)[:, None]
    found = jnp.take_along_axis(items, jnp.minimum(index, items.shape[1] - 1), axis=1)
    return Session(jnp.where(place < kept[:, None], found, 0), kept)


def multi_hot(items: Array, vocab: int) -> Array:
    """The set of the items int32[B, H], without padding: float32[B, V]."""
    row = jnp.arange(items.shape[0])[:, None]
    found = jnp.zeros((items.shape[0], vocab)).at[row, items].set(1.0)
    return found.at[:, 0].set(0.0)


@struct.dataclass
class Codec:
    """Profiles float32[B, V] to vectors float32[B, d] and back to scores of items.

    Arrays alone, so that it travels in the state of a stage; `vectors` None: multihot.
    """

    exists: Array  # bool[V], False for what is no item
    vectors: Array | None = None  # float32[V, d]
    mean: Array | None = None  # float32[d]
    std: Array | None = None  # float32[d]

    def encode(self, profile: Array) -> Array:
        """Within [-1, 1]."""
        if self.vectors is None:
            return 2.0 * profile - 1.0
        count = jnp.maximum(jnp.sum(profile, axis=1, keepdims=True), 1.0)
        latent = (profile / jnp.sqrt(count)) @ self.vectors
        x = (latent - self.mean[None]) / (SPREAD * self.std[None])
        return jnp.clip(x, -1.0, 1.0)

    def decode(self, x: Array) -> Array:
        """float32[B, V], higher for items more likely in the profile."""
        if self.vectors is None:
            return (x + 1.0) / 2.0
        latent = x * SPREAD * self.std[None] + self.mean[None]
        return latent @ self.vectors.T

    def known(self, session: Session) -> tuple[Array, Array] | None:
        """(values, mask) of x that the session tells for certain; None: nothing."""
        if self.vectors is not None:
            return None
        seen = multi_hot(session.items, len(self.exists)) > 0
        return jnp.where(seen, 1.0, -1.0), seen | ~self.exists[None]

    def weight(self) -> Array | None:
        """Which numbers of x count in the loss: float32[d]; None: all."""
        return self.exists.astype(jnp.float32) if self.vectors is None else None


def make_codec(target: str, size: int, info: dict[str, Any]) -> tuple[Codec, int]:
    """The codec and d, from the training events alone. Raises UserError."""
    if target not in TARGETS:
        raise UserError(
            f"target {target!r} is unknown: use one of {', '.join(TARGETS)}"
        )
    vocab, num_items = info["vocab"], info["num_items"]
    item = np.arange(vocab)
    exists = (item > 0) & (item <= num_items)
    if target == "multihot":
        return Codec(jnp.asarray(exists)), vocab
    session, item, num_sessions = popularity.pairs(info)
    most = min(num_sessions, num_items) - 1
    if not 1 <= size <= most:
        raise UserError(
            f"dims={size}: profiles of the data {info.get('name', '')!r} have 1 to "
            f"{most} latent dimensions ({num_items} items, {num_sessions} histories)"
        )
    length = np.bincount(session, minlength=num_sessions)
    value = 1.0 / np.sqrt(length[session])
    rows = sparse.csr_matrix((value, (session, item)), (num_sessions, vocab))
    # A fixed start makes the iteration, signs included, a function of the data.
    start = np.random.default_rng(0).normal(size=min(rows.shape))
    _, strength, right = linalg.svds(rows, size, v0=start)
    vectors = right[np.argsort(-strength, kind="stable")].T
    latent = rows @ vectors
    return Codec(
        jnp.asarray(exists),
        jnp.asarray(vectors, jnp.float32),
        jnp.asarray(latent.mean(0), jnp.float32),
        jnp.asarray(latent.std(0) + 1e-6, jnp.float32),
    ), size
