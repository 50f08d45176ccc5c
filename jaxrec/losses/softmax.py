"""Cross entropy over a catalogue: whole, or in chunks of items.

With a million items the table of logits [B, V] is what fills the memory. The chunked
form sees a slice of the catalogue at a time, forward and backward, and keeps one number
a row; its value and gradients are those of the whole one. Where the catalogue is split
over the mesh, each device loops over its own slices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.ops import catalogue
from jaxrec.types import Array, UserError


def cross_entropy(logits: Array, target: Array) -> Array:
    """logsumexp(y) - y[target]: float32[B, V], int32[B] -> float32[B]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def chunk_size(vocab: int, wanted: int) -> int:
    """The largest divisor of `vocab` up to `wanted`; then no slice is filled up.

    `chunks` copies the table to fill it, the losses here compute some rows twice. Where
    only a divisor below a quarter of `wanted` exists, `wanted` itself. 0 = the whole.

    Raises UserError below 0.
    """
    if wanted < 0:
        raise UserError(f"chunk={wanted}: give a number of items, or 0 for all")
    wanted = min(wanted or vocab, vocab)
    for size in range(wanted, wanted // 4, -1):
        if vocab % size == 0:
            return size
    return wanted


def chunks(
    table: Array, bias: Array, size: int, num_items: int, start: Array | int = 0
) -> Any:
    """The catalogue in slices for `lax.scan`: rows, biases, and which are items.

    table: float[V, D], bias: float[V] -> ([C, size, D], [C, size], bool[C, size],
    first index int32[C]); the last slice is filled with rows that are no items.
    `start`: the number of the item in row 0, where `table` is a device's part.
    """
    vocab = table.shape[0]
    count = -(-vocab // size)
    fill = count * size - vocab
    if fill:
        table = jnp.pad(table, ((0, fill), (0, 0)))
        bias = jnp.pad(bias, (0, fill))
    row = jnp.arange(count * size).reshape(count, size)
    item = start + row
    return (
        table.reshape(count, size, -1),
        bias.reshape(count, size),
        (item > 0) & (item <= num_items) & (row < vocab),
        item[:, 0],
    )


class _Slices(NamedTuple):
    """The catalogue for a loop over slices; items lead, so that rows are contiguous.

    With [size, B] in place of [B, size] XLA's CPU code sums exponentials over the
    leading axis with vector instructions, five times as fast as over the last one. The
    last slice ends with the table and repeats rows of the one before it, so that
    nothing is copied to fill it up; in it they count as no items.
    """

    table: Array  # float[V, D]
    bias: Array  # float[V], -inf where there is no item
    size: int

    @property
    def count(self) -> int:
        return -(-self.table.shape[0] // self.size)

    def start(self, i: Array) -> Array:
        return jnp.minimum(i * self.size, self.table.shape[0] - self.size)

    def rows(self, i: Array) -> Array:
        """float[size, D] of slice i."""
        return jax.lax.dynamic_slice_in_dim(self.table, self.start(i), self.size)

    def logits(self, i: Array, rows: Array, x: Array) -> Array:
        """float32[size, B]; -inf where there is no item."""
        bias = jax.lax.dynamic_slice_in_dim(self.bias, self.start(i), self.size)
        if self.table.shape[0] % self.size:
            repeated = self.start(i) + jnp.arange(self.size) < i * self.size
            bias = jnp.where(repeated, -jnp.inf, bias)
        return (rows @ x.T + bias[:, None]).astype(jnp.float32)

    def put(self, whole: Array, piece: Array, i: Array) -> Array:
        """`whole` [V, ...] with the rows of slice i; from the last slice to the first,
        whose rows then stand where the last one repeats them."""
        start = self.start(i)
        return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=0)


def _slices(
    table: Array, bias: Array, size: int, num_items: int, first: Array | int = 0
) -> _Slices:
    """`first`: the number of the item in row 0, where `table` is a device's part."""
    item = first + jnp.arange(table.shape[0])
    bias = jnp.where((item > 0) & (item <= num_items), bias, -jnp.inf)
    return _Slices(table, bias, min(size, table.shape[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    x: Array, table: Array, bias: Array, target: Array, size: int, num_items: int
) -> Array:
    """As `cross_entropy` of x W^T + b over items 1 .. num_items: float32[B].

    No [B, V] array is alive, forward or backward. x: float[B, D]; table: float[V, D];
    bias: float[V]; target: int32[B].
    """
    return _forward(x, table, bias, target, size, num_items)[0]


def _sums(slices: _Slices, x: Array) -> tuple[Array, Array]:
    """max_i y_i and sum_i exp(y_i - max): float32[B] each."""

    def body(i, carry):
        largest, total = carry
        y = slices.logits(i, slices.rows(i), x)
        new = jnp.maximum(largest, jnp.max(y, axis=0))
        # A slice without items leaves both at their start: exp(-inf - -inf) is no 1.
        safe = jnp.where(jnp.isfinite(new), new, 0.0)
        total = total * jnp.exp(largest - safe) + jnp.exp(y - safe[None]).sum(0)
        return new, total

    start = (jnp.full(x.shape[0], -jnp.inf), jnp.zeros(x.shape[0]))
    return jax.lax.fori_loop(0, slices.count, body, start)


def _forward(x, table, bias, target, size, num_items):
    def own(items: Any, others: Any, first: Array) -> tuple[Array, Array]:
        (table, bias), (x, target) = items, others
        largest, total = _sums(_own_slices(*items, size, num_items, first), x)
        top = jax.lax.pmax(largest, catalogue.AXIS)
        total = jax.lax.psum(total * jnp.exp(largest - top), catalogue.AXIS)
        place, here = _place(target, first, len(table))
        chosen = jnp.where(here, jnp.sum(x * table[place], axis=-1) + bias[place], 0.0)
        return top + jnp.log(total), jax.lax.psum(chosen, catalogue.AXIS)

    if catalogue.is_split(len(table)):
        out = (catalogue.WHOLE,) * 2
        value, chosen = catalogue.own_items(own, (table, bias), (x, target), out)
    else:
        largest, total = _sums(_slices(table, bias, size, num_items), x)
        value = largest + jnp.log(total)
        chosen = jnp.sum(x * table[target], axis=-1) + bias[target]
    return value - chosen.astype(jnp.float32), (x, table, bias, target, value)


def _own_slices(table, bias, size, num_items, first):
    return _slices(table, bias, chunk_size(len(table), size), num_items, first)


def _place(target: Array, first: Array, size: int) -> tuple[Array, Array]:
    """Rows of a device's part, and whether the items are there: int32[B], bool[B]."""
    here = (target >= first) & (target < first + size)
    return jnp.where(here, target - first, 0), here


def _backward(size, num_items, saved, g):
    x, table, bias, target, value = saved

    def own(items: Any, others: Any, first: Array) -> tuple[Array, Array, Array]:
        x, target, value, g = others
        slices = _own_slices(*items, size, num_items, first)
        place, here = _place(target, first, len(slices.table))
        found = _grads(slices, x, place, value, g, jnp.where(here, g, 0.0))
        return jax.lax.psum(found[0], catalogue.AXIS), *found[1:]

    if catalogue.is_split(len(table)):
        out = (catalogue.WHOLE, catalogue.split(), catalogue.split())
        others = (x, target, value, g)
        dx, dtable, dbias = catalogue.own_items(own, (table, bias), others, out)
    else:
        slices = _slices(table, bias, size, num_items)
        dx, dtable, dbias = _grads(slices, x, target, value, g, g)
    return dx.astype(x.dtype), dtable, dbias, None


def _grads(
    slices: _Slices, x: Array, target: Array, value: Array, g: Array, g_target: Array
) -> tuple[Array, Array, Array]:
    """Of x, table and bias; `g_target`: g, 0 where the target is on another device."""
    table, bias = slices.table, slices.bias
    weighted = (x * g[:, None]).astype(x.dtype)

    def body(done, carry):
        dx, dtable, dbias = carry
        i = slices.count - 1 - done
        rows = slices.rows(i)
        share = jnp.exp(slices.logits(i, rows, x) - value[None])
        dbias = slices.put(dbias, (share @ g).astype(bias.dtype), i)
        share = share.astype(x.dtype)
        dtable = slices.put(dtable, (share @ weighted).astype(table.dtype), i)
        return dx + rows.T @ share, dtable, dbias

    start = (
        jnp.zeros(x.shape[::-1], jnp.result_type(x, table)),
        jnp.zeros_like(table),
        jnp.zeros_like(bias),
    )
    dx, dtable, dbias = jax.lax.fori_loop(0, slices.count, body, start)
    # The chosen item's part goes into the same arrays: no second gradient [V, D].
    dx = dx.T * g[:, None] - table[target] * g_target[:, None]
    weighted = (x * g_target[:, None]).astype(table.dtype)
    dtable = dtable.at[target].add(-weighted)
    dbias = dbias.at[target].add(-g_target.astype(bias.dtype))
    return dx, dtable, dbias


chunked_cross_entropy.defvjp(_forward, _backward)


def chunked_argmax(
    x: Array, table: Array, bias: Array, size: int, num_items: int
) -> tuple[Array, Array]:
    """The best item and its value, `size` items at a time: int32[B], float32[B].

    The first of equals, as `argmax`.
    """
    if not catalogue.is_split(len(table)):
        return _argmax(_slices(table, bias, size, num_items), x)

    def own(items: Any, x: Array, first: Array) -> tuple[Array, Array]:
        best, value = _argmax(_own_slices(*items, size, num_items, first), x)
        item, value = catalogue.gather(((best + first)[:, None], value[:, None]))
        place = jnp.argmax(value, axis=1)[:, None]
        return tuple(
            jnp.take_along_axis(part, place, axis=1)[:, 0] for part in (item, value)
        )

    out = (catalogue.WHOLE,) * 2
    return catalogue.own_items(own, (table, bias), x, out)


def _argmax(slices: _Slices, x: Array) -> tuple[Array, Array]:
    def body(i, carry):
        best, largest = carry
        y = slices.logits(i, slices.rows(i), x)
        # The maximum and then its place: both are vectorised on a CPU, where XLA's
        # argmax takes six times as long (37k items, 256 rows: 61 ms against 10).
        value = jnp.max(y, axis=0)
        place = jnp.arange(slices.size)[:, None]
        place = jnp.where(y >= value[None], place, slices.size)
        better = value > largest
        best = jnp.where(better, slices.start(i) + jnp.min(place, axis=0), best)
        return best, jnp.where(better, value, largest)

    start = (jnp.zeros(x.shape[0], jnp.int32), jnp.full(x.shape[0], -jnp.inf))
    return jax.lax.fori_loop(0, slices.count, body, start)
