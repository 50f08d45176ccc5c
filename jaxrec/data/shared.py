"""The data sets kept beside the project, by name: see their README.

They are looked for in `config.path`, else $JAXREC_SHARED_DATA, else in `shared/data`
beside the repository. They may be used for research, not passed on.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxrec.data import events, files, readers, tables, text
from jaxrec.data.events import Events
from jaxrec.types import UserError

BESIDE = Path(__file__).parents[3] / "shared" / "data"


def folder(config: Any) -> Path:
    """Where the set `config.name` is; a UserError says which names there are."""
    root = Path(config.path or os.environ.get("JAXREC_SHARED_DATA") or BESIDE)
    root = root.expanduser()
    if config.name not in NAMES:
        raise UserError(f"data.name={config.name!r}: one of {', '.join(NAMES)}")
    if not (root / config.name).is_dir():
        raise UserError(
            f"{root / config.name} is not there: name the folder of the data sets in "
            "data.path or $JAXREC_SHARED_DATA"
        )
    return root / config.name


def load(config: Any) -> Events:
    """The events of the set `config.name`."""
    found = NAMES[config.name](folder(config), config)
    return found._replace(facts=dict(found.facts) | dict(name=config.name))


def _with(config, **fields):
    return ConfigDict(dict(config) | fields)


def _retailrocket_events(path, config):
    columns = dict(session="session_id", user="visitor_id", item="item_id")
    columns |= dict(time="timestamp", event="event")
    words = dict(purchase="addtocart,transaction", ignore="")
    file = str(path / "events.tsv.gz")
    return tables.load(_with(config, path=file, columns=columns, **words))


def _retailrocket_clicks(path, config):
    """Training sessions a line; pairs of a prefix and the item to predict."""
    line, item = text.ragged(path / "train_sessions.txt.gz")
    # The tab before the target is a space to the reader: it is the last of its line.
    pair, token = text.ragged(path / "test_prefix_target.txt.gz")
    target = np.diff(pair, append=pair[-1] + 1) != 0
    return events.concatenate(
        {0: events.make(line, item), 2: events.make(pair, token, scored=target)}
    )


def _yoochoose(path, config):
    return readers.gru4rec(_with(config, path=str(path)))


def _ml_1m(path, config):
    columns = dict(user="user_id", item="item_id", time="order", rating="rating")
    file = str(path / "events.tsv.gz")
    log = tables.load(_with(config, path=file, columns=columns))
    names = ("id", "title", "genres")
    wanted = dict(id="int", title="text", genres="text")
    catalogue = text.read(path / "ml1m_items.dat", wanted, "\t", names)
    titles = dict(zip(catalogue["id"].tolist(), text.decode(catalogue["title"])))
    genres = readers.attributes(catalogue["id"], text.decode(catalogue["genres"]), "|")
    facts = dict(log.facts, titles=titles, attributes=genres, timestamps=False)
    return log._replace(facts=facts)


def _recbole(path, config):
    return readers.recbole(_with(config, path=str(path)))


def _with_attributes(path, config):
    """Lines `user item item ...`, and attributes of items as JSON."""
    log = readers.sasrec(_with(config, path=str(path)))
    file = files.named(path, "*_item2attributes.json", what="the items' attributes")
    found = {
        int(item): set(names) for item, names in json.loads(file.read_text()).items()
    }
    pairs = [(item, name) for item, names in found.items() for name in sorted(names)]
    item, attribute = np.array(pairs).T
    return log._replace(facts=dict(log.facts, attributes=(item, attribute)))


NAMES = {
    "retailrocket-events": _retailrocket_events,
    "retailrocket-clicks": _retailrocket_clicks,
    "yoochoose-100k": _yoochoose,
    "ml-1m": _ml_1m,
    "ml-100k": _recbole,
    "lastfm": _with_attributes,
    "beauty": _with_attributes,
}
