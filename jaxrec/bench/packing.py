r"""Time of an epoch, packed and padded: `python -m jaxrec.bench.packing`.

    python -m jaxrec.bench.packing --config=configs/recmamba.py \
        --config.data.source=NAME --config.data.path=PATH [--rounds=3] [--json]

One run, as `jaxrec.main` trains its last stage, on two ideas of an example: rows of
`data.seq_len` events that hold many histories, and a row for each history with padding
behind its events. The compiled updates of both are timed in turn, and an epoch is
extrapolated from them: all its updates run the same program on arrays of the same
shape, so it takes the time of one times their number, rows / batch_size. Where
histories are longer than a row, the padded form cuts them and its epoch holds fewer
events: compare the events to be predicted, "targets", a second.

CPU-ms are of all threads of this process: on a shared machine pin it to one core,
`taskset -c 1`.
"""

import json
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from jaxrec import experiment, program, sharding
from jaxrec.bench import recsys, timing
from jaxrec.errors import UserError, fail
from jaxrec.main import CONFIG, parse
from jaxrec.types import Dataset

ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each form.", 1)
UPDATES = flags.DEFINE_integer("updates", 1, "Updates of one measurement.", 1)
JSON = flags.DEFINE_boolean("json", False, "One line of JSON.")
FORMS = dict(packed="packed", padded="users")  # name -> data.examples


def stage_of(config: ConfigDict, examples: str, updates: int) -> program.Stage:
    """The last stage of the config on these examples, `updates` in one program."""
    config = ConfigDict(config)
    name = config.stages[-1]
    config[name].data.examples = examples
    config[name].update(steps=10**6 * updates, steps_per_call=updates)
    config[name].update(log_every=updates, eval_every=0, checkpoint_every=0)
    config = experiment.resolve(config)
    return experiment.build(config, name, sharding.make_mesh(1, 1), {})


def size(dataset: Dataset) -> dict[str, int]:
    """Of an epoch: rows, slots without an event, and events to be predicted."""
    length, train = dataset.info["seq_len"], dataset.train
    if dataset.run:
        rows, events = len(train["item"]), int((train["segment"] > 0).sum())
        targets = int((train["next_item"] > 0).sum())
    else:
        ends = dataset.drawn["train"]
        rows, events = len(ends), int(np.minimum(train["timestep"][ends], length).sum())
        targets = events  # the last event of a window is none of its slots
    return dict(rows=rows, padding=rows * length - events, targets=targets)


def of_epoch(ms: float, batch_size: int, facts: dict[str, int]) -> dict[str, Any]:
    """Numbers of an epoch from the ms of an update."""
    seconds = 1e-3 * ms * facts["rows"] / batch_size
    return facts | dict(
        update_ms=round(ms, 1),
        updates=round(facts["rows"] / batch_size, 1),
        epoch_seconds=round(seconds, 2),
        targets_per_second=round(facts["targets"] / seconds),
    )


def measure(config: ConfigDict, updates: int, rounds: int) -> dict[str, Any]:
    """Form -> its numbers; "gain": how many times the packed epoch is faster."""
    rivals, facts = {}, {}
    for form, examples in FORMS.items():
        stage = stage_of(config, examples, updates)
        batch_size, facts[form] = stage.config.batch_size, size(stage.dataset)
        run, program_facts, _ = recsys.fused(stage)
        rivals[form] = run, updates
        facts[form] |= dict(compile_seconds=program_facts["compile_seconds"])
    found = {
        form: of_epoch(spent.ms(), batch_size, facts[form])
        for form, spent in timing.in_turn(rivals, rounds).items()
    }
    seconds = {form: numbers["epoch_seconds"] for form, numbers in found.items()}
    gain = round(seconds["padded"] / seconds["packed"], 2)
    return found | dict(gain=gain, measured_updates=updates * rounds)


def main(argv: list[str]) -> int:
    del argv
    config = CONFIG.value
    if config is None:
        return fail("no config: for example --config=configs/recmamba.py")
    try:
        found = measure(config, UPDATES.value, ROUNDS.value)
    except UserError as error:
        return fail(str(error))
    found |= dict(machine=timing.machine(), data=config.data.source)
    if JSON.value:
        print(json.dumps(found))
        return 0
    print(f"{found['machine']}, {found['data']}")
    print("form        rows        padding   update ms   epoch s   targets/s")
    for form in FORMS:
        row = found[form]
        print(
            f"{form:8} {row['rows']:7,} {row['padding']:14,} "
            f"{row['update_ms']:11,} {row['epoch_seconds']:9,} "
            f"{row['targets_per_second']:11,}"
        )
    print(
        f"the packed epoch is {found['gain']} times as fast; epochs extrapolated from "
        f"{found['measured_updates']} updates of each form"
    )
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
