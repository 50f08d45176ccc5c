"""Builders of tensorflow-datasets: with TensorFlow to prepare, without it to read.

Data that were prepared with file_format="array_record" are read without TensorFlow;
the default format, tfrecord, needs it. What is read is cached by the callers, so it is
needed once.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from jaxrec.data.files import absolute
from jaxrec.types import UserError


def read(
    name: str,
    path: str,
    convert: Callable[[Any], Any],
    with_tensorflow: Callable[[Any], Any],
    remedy: str,
    split: str = "train",
) -> tuple[Any, str]:
    """(what `convert` makes of the examples of builder `name`, the builder's version).

    `path`: the directory of tensorflow-datasets, "" for its default. `convert`
    gets an iterable of examples, from tf.data by way of `with_tensorflow(tf dataset)`.
    `remedy` ends the message of the UserError when anything fails.
    """
    import tensorflow_datasets as tfds

    directory = absolute(
        path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    prepared = [f.parent for f in (directory / name).glob("*/features.json")]
    prepared.sort(key=lambda f: [int(n) for n in re.findall(r"\d+", f.name)])
    try:
        builder = tfds.builder_from_directory(prepared[-1]) if prepared else None
        if builder and builder.info.file_format.value != "tfrecord":
            examples = builder.as_data_source(split=split)
        else:
            _require_tensorflow(name, remedy)
            if not builder:
                builder = tfds.builder(name, data_dir=directory)
                builder.download_and_prepare()
            dataset = with_tensorflow(builder.as_dataset(split=split))
            examples = tfds.as_numpy(dataset)
        return convert(examples), str(builder.version)
    except UserError:
        raise
    except Exception as error:
        # From a failed download to a damaged record, each library raises its own.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"tensorflow-datasets cannot give {name} ({type(error).__name__}: {reason})"
            f": check the name, the network and {directory}, or {remedy}"
        ) from error


def _require_tensorflow(name: str, remedy: str) -> None:
    try:
        import importlib_resources  # noqa: F401  used by tfds, not among its needs
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name} needs TensorFlow once, to prepare the data ({error}): pip install "
            f"'jaxrec[tensorflow]', or {remedy}"
        ) from error
