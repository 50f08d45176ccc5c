r"""Writes the events of any source of logs as a builder of tensorflow-datasets.

    python -m jaxrec.data.export --config=configs/ce.py \
        --config.data.source=retailrocket --config.data.path=DIR \
        --out=~/tensorflow_datasets --name=retailrocket

All events of the files are written, before any filter or split of the protocol. Read
them with --config.data.source=tfds. Licences of others' data hold for the copy too.
"""

import sys

from absl import app, flags

from jaxrec import main as command
from jaxrec.errors import UserError

OUT = flags.DEFINE_string("out", None, "Directory of tensorflow-datasets to write to.")
NAME = flags.DEFINE_string("name", None, "Name of the builder; default: the source's.")


def main(argv: list[str]) -> int:
    """Export what the flags name; returns the exit status."""
    if command.CONFIG.value is None or not OUT.value or len(argv) > 1:
        return command.fail("needed: --config=configs/ce.py and --out=DIR, flags alone")
    from jaxrec.data import recommender, tfds_events

    data = command.CONFIG.value.data
    try:
        if data.source not in recommender.READERS:
            raise UserError(
                f"data.source={data.source!r} is no log: one of "
                f"{', '.join(recommender.READERS)}"
            )
        log = recommender.READERS[data.source](data)
        path = tfds_events.write(log, OUT.value, NAME.value or data.source)
    except UserError as error:
        return command.fail(str(error))
    print(f"{path}: {len(log.item):,} events")
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=command.parse))
