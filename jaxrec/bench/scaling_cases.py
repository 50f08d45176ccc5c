"""What `jaxrec.bench.scaling` compiles: a method of each family at its own sizes."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import program, sharding
from jaxrec.bench import offline_rl, recsys
from jaxrec.data import packing, rows, teams, trajectories
from jaxrec.methods import ce, recmamba, sidiff, snqn, td3bc, world_transformer
from jaxrec.types import Dataset

WINDOW = 10  # events
PACK = 2_048  # events of a packed row


class Case(NamedTuple):
    """A method at given sizes.

    rows: of a batch, for each step along the mesh's `data`; kind: of the data, events,
    packed, transitions, windows or games; games: the field that says how many are
    played at a time, which are the rows there; share: see `collectives.traffic`.
    """

    module: Any
    rows: int
    fields: Mapping[str, Any] = {}  # of its HPARAMS
    kind: str = "events"
    games: str = ""
    share: float = 1.0

    @property
    def has_items(self) -> bool:
        return self.kind in ("events", "packed")


SASREC = {"encoder.name": "sasrec"}
CASES = {
    "ce": Case(ce, 64, SASREC | dict(positions="all")),
    "snqn": Case(snqn, 64, SASREC, share=0.5),
    "recmamba": Case(recmamba, 1, kind="packed"),
    "recmamba_sparse": Case(recmamba, 1, dict(loss="bce", sparse=True), kind="packed"),
    "td3bc": Case(td3bc, 256, kind="transitions"),
    "world_transformer": Case(world_transformer, 64, kind="windows"),
    "sidiff": Case(
        sidiff, 32, dict(host="mappo"), kind="games", games="policy.num_envs"
    ),
}


def stage_of(case: Case, num_items: int, shape: Sequence[int]) -> program.Stage:
    """The stage on a mesh (data, model, time).

    What has no items to split over `model`, and what cannot split time, shares out the
    batch over all devices instead.
    """
    data, model, time = shape
    if not case.has_items:
        data, model = data * model, 1
    section = ConfigDict(case.module.HPARAMS | dict(steps=10**6))
    section.update_from_flattened_dict(case.fields)

    def method_of(size: int) -> tuple[Any, Dataset]:
        section.batch_size = size
        if case.games:
            section.update_from_flattened_dict({case.games: size})
        dataset = dataset_of(case, num_items, size)
        return case.module.make(FrozenConfigDict(section), dataset.info), dataset

    method, dataset = method_of(case.rows * data)
    if time > 1 and not method.splits_time:
        data, time = data * time, 1
        method, dataset = method_of(case.rows * data)
    return program.Stage(
        name="bench",
        config=section,
        method=method,
        dataset=dataset,
        seed=0,
        num_seeds=1,
        mesh=sharding.make_mesh(data, model, time),
        rules=(*["items"] * case.has_items, *method.rules),
    )


def dataset_of(case: Case, num_items: int, num_rows: int) -> Dataset:
    """Enough rows for a batch; most items of the catalogue do not occur in them."""
    if case.kind == "games":
        game = dict(name="3t_vs_3t_thicket", settings="observation=entity")
        return teams.source("battle_city")(ConfigDict(game))
    if case.has_items:
        return events(num_items, num_rows, case.kind == "packed")
    found = offline_rl.dataset(max(2_000, num_rows), 17, 6).train
    columns = {name: found[name] for name in ("observation", "action", "reward")}
    timeout = np.arange(1, len(found["reward"]) + 1) % 100 == 0
    raw = rows.from_arrays(
        **columns,
        terminal=np.zeros_like(timeout),
        timeout=timeout,
        info=dict(name="noise"),
    )
    window = WINDOW if case.kind == "windows" else 0
    settings = SimpleNamespace(window=window, top=1.0, valid_fraction=0.1, seed=0)
    return trajectories.dataset(raw, settings)


def events(num_items: int, num_rows: int, packed: bool) -> Dataset:
    """Sessions of noise."""
    size = PACK if packed else WINDOW
    found = recsys.dataset(1_000, 6 * max(1_000, num_rows * size), size)
    vocab = -(-(num_items + 1) // 128) * 128
    count = np.broadcast_to(np.float64(1), (vocab,))  # one number, however many items
    info = found.info | dict(num_items=num_items, vocab=vocab, item_count=count)
    found = found._replace(info=info, evals=dict(test=found.train))
    return packing.view(found, "packed", size) if packed else found
