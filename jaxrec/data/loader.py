"""Batch number t as a pure function of (seed, t).

The order of rows is a permutation per epoch that needs no stored state: a Feistel
network over pairs (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002),
keyed by (seed, epoch). The same code runs in JAX, where the data fits on the device and
the gather happens there, and in NumPy, where rows are read from memory-mapped files by
a thread that stays ahead of the device. Both give the same batches.
"""

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Batch, Dataset, UserError

ROUNDS = 4


def permute(position: Any, size: int, key: Any, xp: Any = jnp) -> Any:
    """The image of uint32 positions in [0, size) under permutation number `key`.

    position: uint32[B]; key: uint32[1]; `xp` is jax.numpy or numpy.
    """
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)

    def once(x: Any) -> Any:
        left, right = x // right_size, x % right_size
        for number in range(ROUNDS):
            # Sums are taken modulo the halves' own sizes: 64-bit free, any size.
            left = (left + mix(right, key + xp.uint32(2 * number), xp) % left_size) % (
                left_size
            )
            right = (
                right + mix(left, key + xp.uint32(2 * number + 1), xp) % right_size
            ) % right_size
        return left * right_size + right

    # The pairs cover a few more than `size` numbers: walk on from those outside.
    y = once(position)
    if xp is np:
        while (y >= size).any():
            y = np.where(y >= size, once(y), y)
        return y
    return jax.lax.while_loop(
        lambda y: (y >= size).any(), lambda y: jnp.where(y >= size, once(y), y), y
    )


def mix(x: Any, key: Any, xp: Any = jnp) -> Any:
    """A 32-bit hash of uint32[B] and uint32[1] (the finaliser of MurmurHash3)."""
    x = x ^ (key * xp.uint32(0x9E3779B9) + xp.uint32(0x85EBCA6B))
    x = (x ^ (x >> 16)) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def rows(
    seed: Any, step: Any, batch_size: int, num_rows: int, stream: int, xp: Any = jnp
) -> Any:
    """Row numbers of batch `step`: uint32[B], without repeats inside an epoch.

    An epoch has floor(N / B) batches; the rows left over differ from epoch to epoch.
    With fewer rows than a batch needs, rows repeat. `stream` tells apart the orders
    of several data sets that share a seed.
    """
    per_epoch = max(num_rows // batch_size, 1)
    seed = xp.asarray(seed, xp.uint32).reshape(1)
    step = xp.asarray(step, xp.uint32).reshape(1)
    epoch, within = step // xp.uint32(per_epoch), step % xp.uint32(per_epoch)
    key = mix(mix(seed, xp.full(1, stream, xp.uint32), xp), epoch, xp)
    position = within * xp.uint32(batch_size) + xp.arange(batch_size, dtype=xp.uint32)
    return permute(position % xp.uint32(num_rows), num_rows, key, xp)


def gather(arrays: Mapping[str, Any], index: Any, window: int, xp: Any = jnp) -> Batch:
    """Rows, or windows of rows ending there: [B, ...] or [B, K, ...] with `mask`."""
    index = index.astype(xp.int32 if xp is jnp else np.int64)
    if not window:
        return {name: array[index] for name, array in arrays.items()}
    offset = xp.arange(1 - window, 1)
    mask = arrays["timestep"][index][:, None] + offset[None, :] >= 0
    index = xp.maximum(index[:, None] + offset[None, :], 0)
    return {name: array[index] for name, array in arrays.items()} | {"mask": mask}


class Part(NamedTuple):
    """Rows of every batch that come from one set of arrays.

    `drawn`: int32[M], the rows that may be drawn; None = all. `per_seed`: all of them
    have a leading axis S. `run`: see Dataset; a run of rows is drawn as one.
    """

    count: int
    arrays: Mapping[str, Any]
    drawn: Any = None
    per_seed: bool = False
    run: int = 0


def parts(dataset: Dataset, batch_size: int) -> list[Part]:
    """The training data and each mix, with the rows that a batch takes from them."""
    shares = [simulated_rows(mix.fraction, batch_size) for mix in dataset.mix]
    real = batch_size - sum(shares)
    if real < 0:
        raise UserError(f"the mixed fractions exceed one batch of {batch_size} rows")
    found = [
        Part(real, dict(dataset.train), dataset.drawn.get("train"), run=dataset.run)
    ]
    for share, blend in zip(shares, dataset.mix):
        if share:
            arrays = dict(blend.arrays)
            drawn = drawn_rows(arrays.pop("drawn", None), blend.per_seed)
            found.append(Part(share, arrays, drawn, blend.per_seed))
    return found


def drawn_rows(flags: Any, per_seed: bool) -> np.ndarray | None:
    """The rows that a mix's column `drawn` says may be drawn: int32[M] or [S, M].

    flags: bool[N] or [S, N], None = all rows. Seeds with more rows than another leave
    out the last.
    """
    if flags is None:
        return None
    if not per_seed:
        return np.flatnonzero(flags).astype(np.int32)
    found = [np.flatnonzero(row) for row in np.asarray(flags)]
    size = min(map(len, found))
    return np.stack([rows[:size] for rows in found]).astype(np.int32)


def simulated_rows(fraction: float, batch_size: int) -> int:
    """ceil(f B), safe against 0.55 * 100 > 55 in floating point."""
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"a mixed fraction is a share from 0 to 1, got {fraction}")
    return math.ceil(fraction * batch_size - 1e-9)


def draw(
    found: Sequence[Part],
    seed: Any,
    step: Any,
    window: int,
    xp: Any = jnp,
    only: np.ndarray | None = None,
) -> Batch:
    """Batch `step`, from each part as many rows as it counts.

    Part 0 draws a whole batch and keeps its first rows, so its rows are those of a
    run without a mix. `only`: ascending places in the batch of the rows to read.
    """
    total = sum(part.count for part in found)
    pieces, first = [], 0
    for number, part in enumerate(found):
        chosen = next(iter(part.arrays.values())) if part.drawn is None else part.drawn
        wanted = total if number == 0 else part.count
        run = max(int(part.run), 1)
        index = rows(seed, step // run, wanted, len(chosen) // run, number, xp)
        index = index[: part.count]
        if only is not None:
            index = index[only[(only >= first) & (only < first + part.count)] - first]
        first += part.count
        index = index * xp.uint32(run) + xp.asarray(step % run, xp.uint32)
        if part.drawn is not None:
            index = part.drawn[index.astype(xp.int32 if xp is jnp else np.int64)]
        pieces.append(gather(part.arrays, index, 0 if part.run else window, xp))
    if len(pieces) == 1:
        return pieces[0]
    names = set(pieces[0]).intersection(*pieces[1:])
    return {name: xp.concatenate([p[name] for p in pieces]) for name in sorted(names)}


def num_bytes(dataset: Dataset) -> int:
    """Bytes of all arrays that training draws from."""
    trees = [dataset.train] + [blend.arrays for blend in dataset.mix]
    return sum(array.nbytes for tree in trees for array in tree.values())


def host_batch(
    dataset: Dataset,
    batch_size: int,
    seeds: np.ndarray,
    step: int,
    only: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Batch `step` read on the host: [B, ...], or [S, B, ...] for seeds uint32[S].

    Of it the rows `only`, when they are given.
    """
    found = parts(dataset, batch_size)

    def one(number: int, seed: Any) -> Batch:
        of_seed = [
            part._replace(
                arrays={k: a[number] for k, a in part.arrays.items()},
                drawn=None if part.drawn is None else part.drawn[number],
            )
            if part.per_seed
            else part
            for part in found
        ]
        return draw(of_seed, seed, step, dataset.window, np, only)

    if seeds.ndim == 0:
        return one(0, seeds)
    batches = [one(number, seed) for number, seed in enumerate(seeds)]
    return {name: np.stack([b[name] for b in batches]) for name in batches[0]}


def stream(
    dataset: Dataset,
    batch_size: int,
    seeds: np.ndarray,
    start: int,
    stop: int,
    size: int,
    ahead: int = 2,
    only: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Stacks of `size` batches [size, ...], read by a thread that stays `ahead`.

    They end at multiples of `size`, so that the first may be shorter, and at `stop`.
    `only`: see `host_batch`.
    """
    ends = [*range(start - start % size + size, stop, size), stop]
    spans = list(zip([start, *ends], ends))
    filled: queue.Queue = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: Any) -> None:
        while not closed.is_set():
            try:
                return filled.put(item, timeout=0.2)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for span in spans:
                batches = [
                    host_batch(dataset, batch_size, seeds, step, only)
                    for step in range(*span)
                ]
                put({k: np.stack([b[k] for b in batches]) for k in batches[0]})
                if closed.is_set():
                    return
        except Exception as error:
            put(error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        for _ in spans:
            item = filled.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
