"""TensorBoard, where tensorboardX is installed: curves, histograms, the run's plots."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def open_board(folder: Path) -> Any:
    """A writer to `folder`/tensorboard, None where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def scalars(board: Any, step: int, values: Mapping[str, Any]) -> None:
    """A point of each curve: numbers, or lists of one a seed, None where not finite."""
    for name, value in values.items():
        value = value if isinstance(value, list) else [value]
        value = [x for x in value if x is not None]
        if value:
            board.add_scalar(name, float(np.mean(value)), step)


def histograms(board: Any, step: int, arrays: Mapping[str, Any]) -> None:
    """Of arrays of floats; whole numbers, such as sessions, are names."""
    for name, array in arrays.items():
        array = np.asarray(array)
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array[:0]
        if finite.size:
            board.add_histogram(name, finite, step)


def images(folder: Path, paths: Iterable[Path], step: int = 0) -> None:
    """PNG files as images of the board in `folder`."""
    if (board := open_board(folder)) is None:
        return
    from matplotlib import image

    for path in paths:
        picture = np.asarray(image.imread(path))[..., :3]
        board.add_image(path.stem, picture, step, dataformats="HWC")
    board.close()
