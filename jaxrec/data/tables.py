"""Tables of events, csv, tsv or parquet, whose columns the config names."""

from typing import Any

import numpy as np

from jaxrec import logs
from jaxrec.data import events, files, readers, text, times
from jaxrec.data.events import Events
from jaxrec.types import UserError

LATE = 1e11  # s since 1970, the year 5138


def load(config: Any) -> Events:
    """A csv, tsv or parquet file; `config.columns` names what its columns mean.

    `session` or `user`, and `item`, are needed; `time`, `event` (a word: those of
    `data.purchase` count as purchases, those of `data.ignore` are left out) and
    `rating` (`data.buy_rating` or more is a purchase) may be "".
    """
    what = "a .csv, .tsv or .parquet file"
    patterns = ("*.parquet", "*.csv", "*.tsv", "*.csv.gz", "*.tsv.gz")
    path = files.named(config.path, *patterns, what=what)
    columns = {role: name for role, name in config.columns.items() if name}
    if "item" not in columns or not {"session", "user"} & set(columns):
        raise UserError(
            "data.columns needs the names of `item` and of `session` or `user`, got "
            f"{', '.join(f'{k}={v}' for k, v in columns.items()) or 'nothing'}"
            f"{_heads(path, config.delimiter)}"
        )
    types = dict(time="time", event="text", rating="float")
    wanted: dict[str, str] = {}
    for role, name in columns.items():
        kind = types.get(role, "id")
        if wanted.setdefault(name, kind) != kind:
            raise UserError(
                f"data.columns.{role}={name!r}: that column already stands for "
                "something of another type, name another or none"
            )
    if path.suffix == ".parquet":
        found = _parquet(path, wanted)
    else:
        found = text.read(path, wanted, _delimiter(path, config.delimiter))
    log = {role: found[name] for role, name in columns.items()}
    kind, facts = None, dict(name=path.name.partition(".")[0])
    if "event" in log:
        bought, ignored = (
            [w for w in field.split(",") if w]
            for field in (config.purchase, config.ignore)
        )
        words, code = np.unique(text.decode(log["event"]), return_inverse=True)
        keep = ~np.isin(words, ignored)[code]
        kind = np.isin(words, bought).astype(np.int8)[code[keep]]
        log = {role: x[keep] for role, x in log.items()}
        if len(keep) and not keep.any():
            raise UserError(f"{path}: data.ignore={config.ignore!r} leaves no event")
        clicks = np.setdiff1d(words, [*bought, *ignored])[:9].tolist()
        heard = ", ".join(map(str, clicks))
        if len(kind) and not kind.any():
            logs.say(f"{path}: no event is a purchase (data.purchase); found {heard}")
        elif len(clicks) > 1:  # one of them may be no sign of interest
            logs.say(f"{path}: clicks are {heard}: name in data.ignore what is none")
        facts["purchase"] = f"an event {' or '.join(bought)}"
    elif "rating" in log:
        kind, facts["purchase"] = readers.rated(log["rating"], config)
    time = log.get("time")
    for unit in ("milliseconds", "microseconds", "nanoseconds"):
        if time is not None and len(time) and np.abs(time).min() > LATE:
            time = time / 1000
            logs.say(f"{path}: times too late for seconds are taken as {unit}")
    session = log.get("session", log.get("user"))
    return events.make(
        session, log["item"], time, kind, user=log.get("user"), facts=facts
    )


def _delimiter(path, given):
    """What separates columns: as given, else by the file's name."""
    plain = path.name.removesuffix(".gz")
    return given or ("," if plain.endswith(".csv") else "\t")


def _heads(path, delimiter):
    """Words on the columns that a text file has, to choose from."""
    if path.suffix == ".parquet":
        return ""
    names = text.header(path, _delimiter(path, delimiter))
    return f"; {path} has {', '.join(names)[:200]}"


def _parquet(path, wanted):
    """Columns of a parquet file with the types of `text.read`."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow to be read ({error}): pip install 'jaxrec[data]'"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        heads = file.schema_arrow.names
        if missing := [n for n in wanted if n not in heads]:
            raise UserError(
                f"{path} has no column {', '.join(map(repr, missing))}; found "
                f"{', '.join(heads)}: name the right ones in config.data.columns"
            )
        read = file.read(columns=list(wanted))
        found = {name: read.column(name).to_numpy() for name in wanted}
    except UserError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no readable parquet file ({reason})") from error
    for name, kind in wanted.items():
        values, bad = found[name], read.column(name).is_null().to_numpy()
        if kind == "text":
            values = values.astype(str)
        elif kind != "id" and not bad.any():
            values, bad = times.seconds(values)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            what = dict(float="a number", time="a time").get(kind, "there")
            raise UserError(
                f"{path}: column {name!r} is not {what} in row {row + 1}: fix or "
                "remove the row"
            )
        found[name] = values
    return found
