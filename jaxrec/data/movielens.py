"""MovieLens: the plain files of GroupLens, or tensorflow-datasets' builder.

A user's whole history is a session; ratings are its events, one of `data.buy_rating` or
more (5 by default) in the place of a purchase. Times are those of rating, not of
watching: bursts with many ties. GroupLens allows research, no redistribution.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data import builders, events, files, readers, text
from jaxrec.data.events import Events

# (ratings, delimiter, names of the columns without a header or None, catalogue)
NAMES = ("userId", "movieId", "rating", "timestamp")
FORMATS = (
    ("u.data", "\t", NAMES, "u.item"),  # 100K
    ("ratings.dat", "::", NAMES, "movies.dat"),  # 1M, 10M
    ("ratings.csv", ",", None, "movies.csv"),  # 20M and later, latest-small
)
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama "
    "Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


def load(config: Any) -> Events:
    """The folder `config.path`, or where that is empty the builder `config.name`."""
    return _plain(config) if config.path else _builder(config)


def _plain(config):
    what = "MovieLens' folder, with u.data, ratings.dat or ratings.csv"
    patterns = [entry[0] + end for entry in FORMATS for end in ("", ".gz")]
    path = files.named(config.path, *patterns, what=what)
    plain = path.name.removesuffix(".gz")
    _, delimiter, names, movies = next(
        entry for entry in FORMATS if entry[0] == plain or entry is FORMATS[-1]
    )
    wanted = dict(zip(NAMES, ("int", "int", "float", "time")))
    log = text.read(path, wanted, delimiter, names)
    facts: dict[str, Any] = dict(name=path.parent.name or "movielens")
    catalogue = path.with_name(movies)
    if catalogue.exists():
        facts |= _items(catalogue)
    return _events(*(log[name] for name in NAMES), facts, config)


def _events(user, item, rating, time, facts, config):
    kind, facts["purchase"] = readers.rated(rating, config)
    return events.make(user, item, time, kind, user=user, facts=facts)


def _items(path: Path) -> dict[str, Any]:
    """Titles and genres of u.item, movies.dat or movies.csv."""
    if path.name == "u.item":
        names = ["id", "title", "released", "video", "url", *GENRES_100K]
        wanted = dict(id="int", title="text") | dict.fromkeys(GENRES_100K, "int")
        log = text.read(path, wanted, "|", names)
        flags = np.stack([log[genre] for genre in GENRES_100K], axis=1)
        row, column = np.nonzero(flags)
        attributes = (log["id"][row], np.array(GENRES_100K)[column])
    else:
        names = ["movieId", "title", "genres"]
        csv = path.suffix == ".csv"
        wanted = dict(movieId="int", title="text", genres="text")
        log = text.read(path, wanted, "," if csv else "::", None if csv else names)
        log["id"] = log["movieId"]
        attributes = readers.attributes(log["id"], text.decode(log["genres"]), "|")
    titles = dict(zip(log["id"].tolist(), text.decode(log["title"]).tolist()))
    return dict(titles=titles, attributes=attributes)


def _builder(config):
    """movielens/100k-ratings and its sisters; TensorFlow prepares them once.

    Builders shuffle: of ratings in the same second the builder's order is kept.
    """
    name = config.name or "100k-ratings"

    def convert(examples):
        rows, movies = [], {}
        for x in examples:
            user, item = int(x["user_id"]), int(x["movie_id"])
            rows.append((user, item, float(x["user_rating"]), int(x["timestamp"])))
            if item not in movies:
                movies[item] = (x["movie_title"], list(x["movie_genres"]))
        return tuple(map(np.array, zip(*rows))), movies

    (log, movies), version = builders.read(
        f"movielens/{name}",
        "",
        convert,
        lambda dataset: dataset,
        "unpack GroupLens' archive and name its folder in data.path",
    )
    titles = text.decode(np.array([title for title, _ in movies.values()], "S"))
    genres = [genre for _, genre in movies.values()]
    facts = dict(
        name=f"movielens/{name}",
        titles=dict(zip(movies, titles.tolist())),
        attributes=(
            np.repeat(np.array(list(movies)), [len(found) for found in genres]),
            np.array([genre for found in genres for genre in found]),
        ),
        notes=dict(builder_version=version),
    )
    return _events(*log, facts, config)
