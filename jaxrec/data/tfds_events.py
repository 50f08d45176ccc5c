"""Own logs as a builder of tensorflow-datasets, written and read without TensorFlow.

    python -m jaxrec.data.export --config=configs/ce.py --config.data.source=... \
        --out=DIR --name=mine
    ... --config.data.source=tfds --config.data.path=DIR --config.data.name=mine

An event is an example: `session`, `item`, `user` where it is known (int64 or text),
`kind`, and `time_us`, whole microseconds: float64 features are stored as float32, which
takes a minute off a date of today. The file format is array_record: parquet loses rows
in tensorflow-datasets 4.9.10. What the files split before is in the splits train, valid
and test, else all of it in train. Others' builders of this layout are read too.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import events, files
from jaxrec.data.events import Events
from jaxrec.types import UserError

SPLITS = ("train", "valid", "test")  # Events.part
VERSION = "1.0.0"
SHARD = 1 << 20  # examples in a file
BLOCK = 10_000  # examples at a time
FLAGS = ("scored", "goes_on")
FACTS = ("purchase", "timestamps", "titles", "attributes", "notes")


def write(log: Events, directory: Path | str, name: str) -> Path:
    """The folder `directory`/`name`/1.0.0, new, with all events of `log`.

    Raises UserError for a name or a time that cannot be, a folder that is there, and
    when the files do not hold as many examples as there are events.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"the name {name!r} cannot be a builder's: small letters, digits and _ can"
        )
    final = files.absolute(directory) / name / VERSION
    if final.exists():
        raise UserError(f"{final} is there: delete it, or choose another name")
    part = np.zeros(len(log.item), np.int8) if log.part is None else log.part
    columns = _columns(log)
    temporary = final.with_name(f".{VERSION}.{uuid.uuid4().hex[:8]}")
    try:
        import array_record.python.array_record_module  # noqa: F401  not on Windows
    except ImportError as error:
        raise UserError(
            f"writing {final} needs array_record ({error}): pip install array_record"
        ) from error
    try:
        temporary.mkdir(parents=True)
        _write(columns, part, log.facts, temporary, name)
        _check(temporary, name, np.bincount(part, minlength=len(SPLITS)))
        os.rename(temporary, final)
    except OSError as error:
        raise UserError(
            f"cannot write {final} ({error.strerror or error}): free space there, or "
            "choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def folder(config: Any) -> Path:
    """The newest version of `config.name` in `config.path`; UserError without one."""
    root = files.absolute(config.path or os.environ.get("TFDS_DATA_DIR") or _default())
    if not config.name:
        raise UserError(f"data.name is empty: name a builder in {root}")
    found = [f.parent for f in (root / config.name).glob("*/dataset_info.json")]
    if not found:
        names = sorted({f.parts[-3] for f in root.glob("*/*/dataset_info.json")})
        raise UserError(
            f"{root} has no builder {config.name!r}; it has "
            f"{', '.join(names) or 'none'}: name one in data.name, its directory in "
            "data.path, or write it with python -m jaxrec.data.export"
        )
    number = lambda path: [int(x) for x in re.findall(r"\d+", path.name)]  # noqa: E731
    return max(found, key=number)


def load(config: Any) -> Events:
    """The events of the builder `config.name` in the directory `config.path`."""
    import tensorflow_datasets as tfds

    path = folder(config)
    try:
        builder = tfds.builder_from_directory(path)
        file_format = builder.info.file_format.value
        found = {}
        if file_format == "array_record":
            for number, split in enumerate(SPLITS):
                if split in builder.info.splits:
                    source = builder.as_data_source(split=split)
                    found[number] = _stack(source, builder.info.features)
        facts = {k: v for k, v in (builder.info.metadata or {}).items() if k in FACTS}
    except Exception as error:
        # From damaged records to missing shards, each library raises its own.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {reason}): write it again"
        ) from error
    if file_format != "array_record":
        raise UserError(
            f"{path} is in the format {file_format}: only array_record is read here, "
            "as python -m jaxrec.data.export writes it"
        )
    return _events(path, found, facts | dict(name=config.name))


def _default():
    return Path("~/tensorflow_datasets")


def _columns(log):
    """The features of all events, as columns of int64 or text."""
    time = np.round(np.asarray(log.time, np.float64) * 1e6)
    if np.abs(time).max() >= 2**62:
        raise UserError(f"a time of {np.abs(log.time).max():g} s is too large to write")
    exact = log.time.dtype.kind in "iu"
    time = log.time.astype(np.int64) * 10**6 if exact else time.astype(np.int64)
    columns = dict(session=log.session, item=log.item, time_us=time, kind=log.kind)
    columns |= {} if log.user is None else dict(user=log.user)
    for flag in FLAGS:
        columns |= {} if getattr(log, flag) is None else {flag: getattr(log, flag)}
    return {
        name: values if values.dtype.kind == "U" else values.astype(np.int64)
        for name, values in columns.items()
    }


def _write(columns, part, facts, path, name):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

    features = {
        feature: tfds.features.Text() if values.dtype.kind == "U" else np.int64
        for feature, values in columns.items()
    }
    identity = dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(VERSION),
        data_dir=str(path),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        description=f"Events of {facts.get('name', name)}, written by jaxrec.",
        metadata=tfds.core.MetadataDict(_plain(facts)),
    )
    writer = tfds.core.SequentialWriter(info, SHARD, file_format="array_record")
    writer.initialize_splits([SPLITS[number] for number in np.unique(part)])
    for number in np.unique(part):
        for rows in _blocks(np.flatnonzero(part == number)):
            block = {k: values[rows].tolist() for k, values in columns.items()}
            examples = [dict(zip(block, row)) for row in zip(*block.values())]
            writer.add_examples({SPLITS[number]: examples})
    writer.close_all()


def _plain(facts):
    """The facts that JSON can hold; ids of titles become pairs."""
    found = {k: v for k, v in facts.items() if k in FACTS and v is not None}
    if "titles" in found:
        found["titles"] = [[id, str(title)] for id, title in found["titles"].items()]
    if "attributes" in found:
        found["attributes"] = [np.asarray(x).tolist() for x in found["attributes"]]
    return found


def _check(path, name, wanted):
    """Counts the records in the files; tensorflow-datasets believes its own notes."""
    from array_record.python import array_record_module

    for split, number in zip(SPLITS, wanted.tolist()):
        count = 0
        for file in path.glob(f"{name}-{split}.array_record-*"):
            reader = array_record_module.ArrayRecordReader(str(file))
            count += reader.num_records()
            reader.close()
        if count != number:
            raise UserError(
                f"{path}: the split {split} has {count} examples of {number} events: "
                "nothing is kept, write it again or to another disk"
            )


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _stack(source, features):
    """The columns of all examples of a split."""
    found = {name: [] for name in features}
    for rows in _blocks(np.arange(len(source))):
        for example in source.__getitems__(rows.tolist()):
            for name, values in found.items():
                values.append(example[name])
    if any(value is None for values in found.values() for value in values):
        raise ValueError("files are cut short")  # of such, records come back as None
    return {name: np.array(values) for name, values in found.items()}


def _events(path, found, facts):
    parts = {}
    if "titles" in facts:
        facts["titles"] = dict(facts["titles"])
    if "attributes" in facts:
        facts["attributes"] = tuple(map(np.array, facts["attributes"]))
    for number, columns in found.items():
        if missing := {"session", "item"} - set(columns):
            raise UserError(
                f"{path} has no feature {', '.join(sorted(missing))}; found "
                f"{', '.join(columns)}: it is no log of events"
            )
        time = columns.get("time_us")
        if time is not None and not (time % 10**6).any():
            time = time // 10**6
        elif time is not None:
            time = time / 1e6
        real = dict(timestamps=facts.get("timestamps", True) and time is not None)
        flags = {flag: columns[flag].astype(bool) for flag in FLAGS if flag in columns}
        parts[number] = events.make(
            columns["session"],
            columns["item"],
            time,
            columns.get("kind"),
            user=columns.get("user"),
            **flags,
            facts=facts | real,
        )
    if 0 not in parts:
        raise UserError(f"{path} has no split train")
    return parts[0] if len(parts) == 1 else events.concatenate(parts)
