"""Sources of sessions: a reader of logs, the protocol, and a cache of what they make.

The arrays are memory-mapped from the cache. It is keyed by the settings of the reader
and of the protocol and by the size and age of the files, so a changed file or field
makes new arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrec.data import (
    buffer,
    cache,
    events,
    files,
    impressions,
    lifelong,
    movielens,
    packing,
    plays,
    presets,
    protocol,
    readers,
    shared,
    simulated,
    tables,
    tfds_events,
)
from jaxrec.data.events import Events
from jaxrec.types import Dataset, UserError

READER_FIELDS = ("columns", "delimiter", "purchase", "ignore", "buy_rating")
READER_VERSIONS = dict(buffer=2)  # raised when a reader makes other events of a file
BESIDE = dict(  # files that a reader finds beside the one that is named
    movielens=("u.item", "movies.*"), recbole=("*.item",)
)
READERS: dict[str, Callable[[Any], Events]] = {
    "retailrocket": readers.retailrocket,
    "yoochoose": readers.yoochoose,
    "buffer": buffer.load,
    "movielens": movielens.load,
    "recbole": readers.recbole,
    "sasrec": readers.sasrec,
    "gru4rec": readers.gru4rec,
    "table": tables.load,
    "shared": shared.load,
    "tfds": tfds_events.load,
    "kuairand": plays.kuairand,
    "lastfm1k": plays.lastfm1k,
    "lfm1b": plays.lfm1b,
}
FOLDERS = dict(shared=shared.folder, tfds=tfds_events.folder)  # of named sets


def source(name: str) -> Callable[[Any], Dataset]:
    """The source that reads files with READERS[name]."""

    def load(config: Any) -> Dataset:
        path = FOLDERS[name](config) if name in FOLDERS else config.path
        reading = {field: config[field] for field in READER_FIELDS}
        reading |= dict(reader=name, set=config.name, columns=dict(config.columns))
        if name in READER_VERSIONS:
            reading["version"] = READER_VERSIONS[name]
        # A missing file is the reader's to report.
        reading["files"] = files.fingerprint(path, BESIDE.get(name, ())) if path else []
        return _cached(config, name, reading, lambda: READERS[name](config))

    return load


def simulated_users(config: Any) -> Dataset:
    """The log of simulated users (see `simulated`).

    `info["users"]` makes the same population for on-line evaluation. With
    `config.impressions` what they were shown instead of their events.
    """
    found = simulated.settings(config) | dict(impressions=False)
    found["users"] = dict(found["users"])
    mode = found["mode"]

    def read() -> Events:
        log = simulated.load(found)
        attributes = log.facts["attributes"]
        pairs = None if attributes is None else np.nonzero(np.asarray(attributes))
        return events.make(
            *(log.events[column] for column in ("session", "item", "time", "kind")),
            facts=dict(name=f"simulated/{mode}", attributes=pairs),
        )

    reading = found | dict(version=simulated.VERSION)
    dataset = _cached(config, "simulated", reading, read)
    dataset.info["version"] = simulated.VERSION
    if mode == "sessions":
        dataset.info["users"] = found["users"]
    if config.get("impressions", False):
        return impressions.dataset(config, dataset)
    return dataset


def lifelong_users(config: Any) -> Dataset:
    """Synthetic lifelong histories (see `lifelong`), of the fields `config.lifelong`.

    `info["cues"]`: the number of a cue among the items -> that of its marker.
    """
    found = lifelong.settings(config.get("lifelong", {}))
    reading = found | dict(version=lifelong.VERSION)
    dataset = _cached(
        config, "synthetic_lifelong", reading, lambda: lifelong.load(found)
    )
    number = {id: n for n, id in enumerate(dataset.info["item_ids"].tolist()) if n}
    dataset.info["cues"] = {
        number[cue]: number[marker]
        for cue, marker in lifelong.cues(found).items()
        if cue in number
    }
    return dataset


def _cached(
    config: Any, name: str, reading: Mapping[str, Any], read: Callable[[], Events]
) -> Dataset:
    settings = presets.settings(config, name, config.name)
    size = config.get("hash_items", 0)
    if not 0 <= size < 2**31:
        raise UserError(
            f"data.hash_items={size}: items to hash to, below 2**31, or 0 for none"
        )
    if size:
        reading = dict(reading, hash_items=size)

    def prepared() -> Any:
        log = read()
        return protocol.prepare(plays.hashed(log, size) if size else log, settings)

    arrays, manifest = cache.cached(
        cache.directory(config.data_dir),
        "-".join(filter(None, ["sessions", name, config.name])),
        dict(protocol=settings, code=protocol.VERSION, reading=dict(reading)),
        prepared,
    )
    # What a result is of: the held-out items, whatever file they came from.
    digest = manifest["arrays"]["test/item"]["sha256"]
    version = f"{protocol.VERSION}-{digest[:8]}"
    dataset = protocol.assemble(arrays, manifest["facts"] | dict(version=version))
    return packing.view(dataset, config.get("examples", "events"), settings["seq_len"])
