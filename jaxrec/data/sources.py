"""SOURCES: name -> (config) -> Dataset, a file each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec.data import (
    cache,
    d4rl,
    events,
    gym,
    minari,
    npz,
    presets,
    protocol,
    simulated,
    toy,
)
from jaxrec.data.trajectories import Trajectories, dataset
from jaxrec.types import Dataset


def offline_rl(load: Callable[[Any], Trajectories]) -> Callable[[Any], Dataset]:
    """A source of transitions or windows from one of trajectories."""

    def source(config: Any) -> Dataset:
        trajectories = load(config)
        if config.env_id:
            trajectories.info["env_id"] = config.env_id
        return dataset(trajectories, config)

    return source


def simulated_users(config: Any) -> Dataset:
    """The log of simulated users (see `simulated`), written once and then cached.

    `info["users"]` makes the same population for on-line evaluation.
    """
    settings = simulated.settings(config)
    settings["users"] = dict(settings["users"])

    def build() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        log = simulated.load(settings)
        attributes = log.facts["attributes"]
        item, attribute = np.nonzero(
            np.zeros((0, 0)) if attributes is None else np.asarray(attributes)
        )
        return log.events | dict(attribute_item=item, attribute=attribute), {}

    mode = settings["mode"]
    arrays, _ = cache.cached(
        cache.directory(config.data_dir),
        f"simulated-{mode}",
        settings | dict(version=simulated.VERSION),
        build,
    )
    log = events.make(
        arrays["session"],
        arrays["item"],
        arrays["time"],
        arrays["kind"],
        facts=dict(
            name=f"simulated/{mode}",
            attributes=(arrays["attribute_item"], arrays["attribute"]),
        ),
    )
    columns, facts = protocol.prepare(log, presets.settings(config, "simulated"))
    dataset = protocol.assemble(columns, facts | dict(version=simulated.VERSION))
    if mode == "sessions":
        dataset.info["users"] = settings["users"]
    return dataset


SOURCES = {
    "gym": offline_rl(gym.load),
    "d4rl": offline_rl(d4rl.load),
    "hdf5": offline_rl(d4rl.load_hdf5),
    "minari": offline_rl(minari.load),
    "npz": offline_rl(npz.load),
    "toy": offline_rl(toy.load),
    "simulated": simulated_users,
}
