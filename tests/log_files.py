"""Small logs of many sessions, to be written in the formats of files."""

import copy

import numpy as np
from ml_collections import ConfigDict

from jaxrec import defaults
from jaxrec.data.sources import SOURCES

NUM_SESSIONS, NUM_ITEMS = 40, 6


def rows(num=NUM_SESSIONS, items=NUM_ITEMS, seed=0):
    """(session, item, time s, bought) of sessions of 3-6 events, in order of time."""
    generator = np.random.default_rng(seed)
    found = []
    for session in range(1, num + 1):
        for step in range(generator.integers(3, 7)):
            item = int(generator.integers(1, items + 1))
            found.append((session, item, 10_000 * session + step, int(step == 2)))
    return found


def config(source, path="", tmp=None, columns=None, **changes):
    """The data section of a recommender's config."""
    found = ConfigDict(copy.deepcopy(defaults.RECOMMENDER_DATA))
    data_dir = str(tmp / "cache") if tmp else ""
    found.update(dict(source=source, path=str(path), data_dir=data_dir) | changes)
    found.columns.update(columns or {})
    return found


def load(source, path, tmp, columns=None, **changes):
    """The Dataset of a source."""
    return SOURCES[source](config(source, path, tmp, columns, **changes))


def sessions(flat, ids):
    """Sessions of flat arrays as lists of the log's own ids."""
    first = np.flatnonzero(flat["timestep"] == 0)[1:]
    return [ids[x].tolist() for x in np.split(np.asarray(flat["item"]), first)]


def counts(data, part="kept"):
    """(events, sessions, items, purchases)."""
    found = data.info["protocol"]["counts"][part]
    return tuple(found[name] for name in ("events", "sessions", "items", "purchases"))
