"""Nearest sessions: session-kNN (SKNN) and the sequence-aware VSKNN.

Jannach & Ludewig, "When Recurrent Neural Networks meet the Neighborhood for
Session-Based Recommendation" (2017) and Ludewig & Jannach, "Evaluation of Session-based
Recommendation Algorithms" (2018); "code" below is their public session-rec. On short
sessions these are often better than networks, so they keep comparisons honest.

A session is the set of its distinct items, and as recent as its last event (where the
log has no times, as its place in the log). As in the code, the candidates are the
`sample_size` most recent training sessions with any item of the history, the neighbours
the k most similar of them, and every item of a neighbour, those of the history
included, gets the neighbour's weight. What differs from the code:

- The cosine is the paper's (code: times the root of the neighbour's size, not over it).
- Among sessions equally similar, to six digits, the more recent is the neighbour
  (code: arbitrary).
- Only the last L events of the session are known (code: all).
- Popularity breaks ties between items, as far as float32 tells the sums apart, and
  ranks those that no neighbour has.

Nothing here is as large as B x sessions: the `sample_size` most recent sessions of each
item of the history are read from an index of 4 bytes an event, and sorted.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.methods import popularity
from jaxrec.types import Array, Method, UserError

SKNN_HPARAMS = dict(
    k=100,  # neighbours, code
    sample_size=500,  # candidates; code documents 500 and sets 1,000
    similarity="cosine",  # or "jaccard"; paper: cosine
)
VSKNN_HPARAMS = dict(
    k=100,  # neighbours, code
    sample_size=500,  # candidates; code documents 500 and sets 1,000
    weighting="div",  # of the history's events: see DECAYS, code
    score_weighting="div",  # of the neighbours: see DECAYS, code
    idf=0.0,  # weight of inverse document frequency in scores; code: off
)
BLOCK = 8  # items of each neighbour added at a time, ours


@struct.dataclass
class SessionTables:
    """Both directions of "session has item"; session 0 is the first in time."""

    popularity: Array  # float32[V]
    idf: Array  # float32[V]
    sessions: Array  # int32[P], of each item, the most recent first
    item_start: Array  # int32[V + 1], where an item's sessions are
    members: Array  # int32[P], the distinct items of each session
    session_start: Array  # int32[S + 1]


def session_tables(info: dict[str, Any]) -> SessionTables:
    """The index of the training sessions; 8 bytes for each distinct (session, item).

    `info["session_order"]`: int[S], the place in time of each session of the training
    events; without it they are in the order of time.
    """
    session, item, num_sessions = popularity.pairs(info)
    if (place := info.get("session_order")) is not None:
        session = np.asarray(place, np.int64)[session]
        by_time = np.lexsort((item, session))
        session, item = session[by_time], item[by_time]
    order = np.lexsort((-session, item))
    events = np.maximum(np.asarray(info["item_count"], np.float64), 1.0)

    def starts(group: np.ndarray, size: int) -> Array:
        return jnp.asarray(np.searchsorted(group, np.arange(size + 1)), jnp.int32)

    return SessionTables(
        popularity=popularity.popularity(info),
        idf=jnp.asarray(np.log(num_sessions / events), jnp.float32),
        sessions=jnp.asarray(session[order], jnp.int32),
        item_start=starts(item[order], info["vocab"]),
        members=jnp.asarray(item, jnp.int32),
        session_start=starts(session, num_sessions),
    )


def candidates(
    tables: SessionTables, items: Array, use: Array, size: int
) -> tuple[Array, Array, Array]:
    """Where the sessions of one history are: (session, slot, first), each [L * size].

    `items`: int32[L]; `use`: bool[L], False for padding and for all but the last event
    of an item. Sorted, the most recent session first, and in it the last event of the
    history that it has (`slot`: its place) first. `first`: bool, one for each session
    that is among the `size` most recent; `session` is -1 past the end.
    """
    length = len(items)
    start = tables.item_start[items]
    count = jnp.where(use, tables.item_start[items + 1] - start, 0)
    offset = jnp.arange(size)[None]
    found = tables.sessions[start[:, None] + jnp.minimum(offset, count[:, None] - 1)]
    # One number for session and slot: one sort of int32 is several times faster.
    both = found * length + jnp.arange(length)[:, None]
    both = jnp.where(offset < count[:, None], both, -1)
    both = -jnp.sort(-both.reshape(-1))
    session = jnp.where(both < 0, -1, both // length)
    before = jnp.concatenate([jnp.full((1,), -1, session.dtype), session[:-1]])
    first = (session >= 0) & (session != before)
    first &= jnp.cumsum(first) <= size
    return session, both % length, first


def run_sum(session: Array, values: Array, longest: int) -> Array:
    """float[M]: at the first of equal neighbouring sessions, the sum of its values."""

    def add(step: int, total: Array) -> Array:
        ahead = jnp.roll(session, -step) == session
        ahead &= jnp.arange(len(session)) + step < len(session)
        return total + jnp.where(ahead, jnp.roll(values, -step), 0.0)

    return jax.lax.fori_loop(1, longest, add, values)


def add_neighbours(
    tables: SessionTables, nearest: Array, weight: Array, vocab: int
) -> Array:
    """float32[B, V]: weight float[B, k] of sessions int32[B, k] at all their items.

    In blocks of items, as many as the longest of these sessions needs.
    """
    start = tables.session_start[nearest]
    count = jnp.where(weight > 0, tables.session_start[nearest + 1] - start, 0)
    last, row = len(tables.members) - 1, jnp.arange(nearest.shape[0])[:, None, None]

    def add(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        done, y = carry
        place = done + jnp.arange(BLOCK)[None, None]
        item = tables.members[jnp.minimum(start[:, :, None] + place, last)]
        value = jnp.where(place < count[:, :, None], weight[:, :, None], 0.0)
        return done + BLOCK, y.at[row, item].add(value)

    y = jnp.zeros((nearest.shape[0], vocab), jnp.float32)
    longest = jnp.max(count)
    return jax.lax.while_loop(lambda c: c[0] < longest, add, (jnp.int32(0), y))[1]


def last_of_each(items: Array, length: Array) -> Array:
    """bool[B, L]: the last event of every distinct item of the history."""
    place = jnp.arange(items.shape[1])
    exists = place[None] < length[:, None]
    later = (place[None, :] > place[:, None])[None] & exists[:, None, :]
    repeated = jnp.any(later & (items[:, :, None] == items[:, None, :]), axis=2)
    return exists & ~repeated


# Weight of a position: of the i-th of n events of the history, 1 the oldest; and of the
# last match s events ago, 1 the last event. From the code, except that what would be
# below 0 is 0, and that "linear" does not drop a history's 11th and later events.
DECAYS = {
    "same": (lambda i, n: jnp.ones_like(i / n), lambda s: jnp.ones_like(s)),
    "div": (lambda i, n: i / n, lambda s: 1.0 / s),
    "linear": (lambda i, n: 1.0 - 0.1 * (n - i), lambda s: 1.0 - 0.1 * s),
    "log": (
        lambda i, n: 1.0 / jnp.log10(n - i + 1.7),
        lambda s: 1.0 / jnp.log10(s + 1.7),
    ),
    "quadratic": (lambda i, n: (i / n) ** 2, lambda s: 1.0 / s**2),
}


def make_vsknn(config: Any, info: dict[str, Any]) -> Method:
    """VSKNN: recent events of the session count more. With `weighting` w, x the history
    of n events, d its distinct items, p(i) the place of the last event of i (1 .. n):

        sim(x, z)    = sum over i in x & z of w(p(i), n) / |d|
        score(j | x) = sum over neighbours z with j in z of
                       sim(x, z) decay(s(x, z)) (1 + idf * ln(S / events of j))

    s(x, z): how many events ago, counting from 1, is the last event of x that z has.
    S: training sessions. Scores are divided by the largest of the history.
    """
    for field in ("weighting", "score_weighting"):
        if config[field] not in DECAYS:
            raise UserError(
                f"vsknn.{field} {config[field]!r} is unknown: use one of "
                f"{', '.join(DECAYS)}"
            )
    weigh, decay = DECAYS[config.weighting][0], DECAYS[config.score_weighting][1]

    def similarity(use, length, session, slot, count):
        n = jnp.maximum(length, 1).astype(jnp.float32)
        weight = jnp.maximum(weigh(slot + 1.0, n), 0.0) / jnp.maximum(use.sum(), 1)
        ago = jnp.maximum(n - slot, 1.0)
        total = run_sum(session, jnp.where(session >= 0, weight, 0.0), len(use))
        return total, jnp.maximum(decay(ago), 0.0)

    return make_session_knn("vsknn", config, info, similarity, config.idf)


def make_sknn(config: Any, info: dict[str, Any]) -> Method:
    """SKNN: score(j | x) = sum of sim(x, z) over the neighbours z with item j;
    sim = |x & z| / sqrt(|x| |z|), or |x & z| / |x | z| ("jaccard"), of item sets.
    """
    if config.similarity not in ("cosine", "jaccard"):
        raise UserError(
            f"sknn.similarity {config.similarity!r} is unknown: use cosine or jaccard"
        )

    def similarity(use, length, session, slot, count):
        own = jnp.maximum(use.sum(), 1)
        shared = run_sum(session, jnp.where(session >= 0, 1.0, 0.0), len(use))
        if config.similarity == "cosine":
            return shared / jnp.sqrt(own * jnp.maximum(count, 1)), jnp.ones_like(shared)
        return shared / jnp.maximum(own + count - shared, 1), jnp.ones_like(shared)

    return make_session_knn("sknn", config, info, similarity, 0.0)


def make_session_knn(
    name: str, config: Any, info: dict[str, Any], similarity: Any, idf: float
) -> Method:
    """What SKNN and VSKNN share. `similarity(use, length, session, slot, size of the
    session)` -> (similarity, factor of the score) where `candidates` says first."""
    if config.k < 1 or config.sample_size < config.k:
        raise UserError(
            f"{name} has k={config.k} neighbours of sample_size={config.sample_size} "
            "candidates: k must be at least 1 and at most the sample size"
        )
    built = session_tables(info)
    num_sessions = len(built.session_start) - 1
    if num_sessions * info["seq_len"] >= 2**31:
        raise UserError(
            f"{name} indexes {num_sessions} sessions times seq_len {info['seq_len']} "
            "in 31 bits: shorten data.seq_len"
        )

    def score(tables: SessionTables, items: Array, length: Array) -> Array:
        size = tables.session_start[1:] - tables.session_start[:-1]
        use = last_of_each(items, length)

        def nearest(items: Array, use: Array, length: Array) -> tuple[Array, Array]:
            session, slot, first = candidates(tables, items, use, config.sample_size)
            near, factor = similarity(use, length, session, slot, size[session])
            near = jnp.where(first, near, 0.0)
            # To six digits: what is equal but for rounding is a tie, see the top.
            _, place = jax.lax.top_k(jnp.round(near, 6), config.k)
            return jnp.maximum(session[place], 0), (near * factor)[place]

        found, weight = jax.vmap(nearest)(items, use, length)
        y = add_neighbours(tables, found, weight, info["vocab"])
        return popularity.normalise(y * (1.0 + idf * tables.idf)[None])

    return popularity.counted(built, info, score)
