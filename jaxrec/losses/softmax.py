"""Cross entropy over a catalogue: whole, in chunks of items, or of sampled items.

With a million items the table of logits [B, V] is what fills the memory. The chunked
form sees a slice of the catalogue at a time, forward and backward, and keeps one number
a row; its value and gradients are those of the whole one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    """
    wanted = min(wanted or vocab, vocab)
    for size in range(wanted, wanted // 4, -1):
        if vocab % size == 0:
            return size
    return wanted


def chunks(table: Array, bias: Array, size: int, num_items: int) -> Any:
    """The catalogue in slices for `lax.scan`: rows, biases, and which are items.

    table: float[V, D], bias: float[V] -> ([C, size, D], [C, size], bool[C, size],
    first index int32[C]); the last slice is filled with rows that are no items.
    """
    vocab = table.shape[0]
    count = -(-vocab // size)
    fill = count * size - vocab
    if fill:
        table = jnp.pad(table, ((0, fill), (0, 0)))
        bias = jnp.pad(bias, (0, fill))
    item = jnp.arange(count * size).reshape(count, size)
    return (
        table.reshape(count, size, -1),
        bias.reshape(count, size),
        (item > 0) & (item <= num_items),
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


def _slices(table: Array, bias: Array, size: int, num_items: int) -> _Slices:
    item = jnp.arange(table.shape[0])
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


def _forward(x, table, bias, target, size, num_items):
    slices = _slices(table, bias, size, num_items)

    def body(i, carry):
        largest, total = carry
        y = slices.logits(i, slices.rows(i), x)
        new = jnp.maximum(largest, jnp.max(y, axis=0))
        # A slice without items leaves both at their start: exp(-inf - -inf) is no 1.
        safe = jnp.where(jnp.isfinite(new), new, 0.0)
        total = total * jnp.exp(largest - safe) + jnp.exp(y - safe[None]).sum(0)
        return new, total

    start = (jnp.full(x.shape[0], -jnp.inf), jnp.zeros(x.shape[0]))
    largest, total = jax.lax.fori_loop(0, slices.count, body, start)
    value = largest + jnp.log(total)
    chosen = jnp.sum(x * table[target], axis=-1) + bias[target]
    return value - chosen.astype(jnp.float32), (x, table, bias, target, value)


def _backward(size, num_items, saved, g):
    x, table, bias, target, value = saved
    slices = _slices(table, bias, size, num_items)
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
    dx = dx.T * g[:, None] - table[target] * g[:, None]
    dtable = dtable.at[target].add(-weighted.astype(table.dtype))
    dbias = dbias.at[target].add(-g.astype(bias.dtype))
    return dx.astype(x.dtype), dtable, dbias, None


chunked_cross_entropy.defvjp(_forward, _backward)


def chunked_argmax(
    x: Array, table: Array, bias: Array, size: int, num_items: int
) -> tuple[Array, Array]:
    """The best item and its value, `size` items at a time: int32[B], float32[B].

    The first of equals, as `argmax`.
    """
    slices = _slices(table, bias, size, num_items)

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


class Sampler(NamedTuple):
    """Draws items with known probabilities, one set for a whole batch.

    `draw(key)` -> int32[n]; `log_q`: float32[V], -inf where there is no item.
    """

    draw: Callable[[Array], Array]
    log_q: Array


def sampler(
    count: Any, num_items: int, negatives: int, popularity: float = 0.0
) -> Sampler:
    """`negatives` items in proportion to (count + 1)^popularity, with repeats.

    count: float[V], events of each item in training; the one more lets unseen items be
    drawn, ours. A draw costs a few integers (uniform) or a bisection of the cumulative
    counts, not a table of numbers [n, V]. Raises UserError for less than one.
    """
    if negatives < 1:
        raise UserError(
            f"negatives {negatives} leaves nothing to compare with: use 1 or more"
        )
    item = np.arange(len(count))
    exists = (item > 0) & (item <= num_items)
    if not popularity:
        log_q = np.where(exists, -np.log(num_items), -np.inf).astype(np.float32)

        def uniform(key: Array) -> Array:
            return jax.random.randint(key, (negatives,), 1, num_items + 1)

        return Sampler(uniform, jnp.asarray(log_q))
    weight = np.where(exists, (np.asarray(count, np.float64) + 1.0) ** popularity, 0.0)
    # Shares in units of 2^-31, one at least: what is drawn is then exactly what log_q
    # says, where sums of a million float32 would not be.
    whole = 2**31
    units = np.floor(weight / weight.sum() * (whole - num_items)) + exists
    units[np.argmax(units)] += whole - units.sum()
    edges = jnp.asarray(np.cumsum(units).astype(np.uint32))
    with np.errstate(divide="ignore"):
        log_q = np.log(units / whole).astype(np.float32)

    def popular(key: Array) -> Array:
        place = jax.random.bits(key, (negatives,), jnp.uint32) >> 1
        return jnp.searchsorted(edges, place, side="right").astype(jnp.int32)

    return Sampler(popular, jnp.asarray(log_q))


def unit(x: Array) -> Array:
    """Rows float[..., D] over their L2 norm; zeros stay zeros, with a finite slope."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def sampled_cross_entropy(
    x: Array,
    table: Array,
    bias: Array,
    target: Array,
    negatives: Array,
    log_q: Array,
    temperature: float = 0.0,
) -> Array:
    """Cross entropy over the target and drawn negatives, logits less log q (logQ).

    Correcting by the log of the probability with which a negative is drawn makes the
    estimate of the full softmax consistent (Bengio and Senecal 2008; Yi et al. 2019);
    the target itself, always there, is not corrected. A negative equal to the target is
    left out. negatives: int32[n], shared by the batch; log_q: float[V]. temperature:
    above 0, cosines over it take the place of products.
    """
    # One gather, so that the gradient is one array [V, D] and not a sum of two.
    item = jnp.concatenate([target, negatives])
    rows, biases = table[item], bias[item]
    if temperature:
        x, rows = unit(x) / temperature, unit(rows)
    size = target.shape[0]
    positive = jnp.sum(x * rows[:size], axis=-1) + biases[:size]
    y = x @ rows[size:].T + (biases[size:] - log_q[negatives])[None]
    y = y - jnp.log(negatives.shape[0])
    y = jnp.where(negatives[None, :] == target[:, None], -jnp.inf, y)
    both = jnp.concatenate([positive[:, None], y], axis=1).astype(jnp.float32)
    return jax.nn.logsumexp(both, axis=-1) - both[:, 0]
