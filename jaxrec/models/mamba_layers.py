"""The layers of a Mamba encoder over all of time, cut into chunks and among devices.

On one device all layers are computed a chunk of time at a time. Where the mesh in use
splits time (`ops.context`) each device computes its stretch half a layer at a time, in
chunks too, and asks the devices before it what enters the stretch: the last inputs of
the convolution, and the state, for which the mixer runs twice (`parallel_scan.across`).
Both give the same numbers, but for the draws of dropout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.models import mamba_block as block
from jaxrec.models.mamba_block import Cache, Params
from jaxrec.ops import context, parallel_scan
from jaxrec.ops.recurrence import Decay
from jaxrec.types import Array


class Marks(NamedTuple):
    """What `mamba_block` is told of the events, each [T, B]."""

    valid: Array
    reset: Array | None
    gap: Array | None


@struct.dataclass
class Layers:
    """The parameters of all layers, and their two halves of x: float32[T, B, d].

    A layer is x + mixer(norm(x)), then x + ffn(norm(x)), and behind the last one there
    is a norm. Without `last_norm` (RecMamba's paper) it is the mixer alone.
    """

    each: tuple[Params, ...]
    last_norm: Params | None
    key: Array | None  # of dropout; None: none
    dropout: float = struct.field(pytree_node=False)
    heads: int = struct.field(pytree_node=False)  # see Mamba.heads
    scan: str = struct.field(pytree_node=False)

    def keys(self, number: Array) -> Any:
        """Of dropout in chunk `number` of time: two for each layer."""
        count = 2 * len(self.each)
        if self.key is None:
            return [None] * count
        return jax.random.split(jax.random.fold_in(self.key, number), count)

    def normed(self, layer: int, x: Array) -> Array:
        """What the mixer gets."""
        if self.last_norm is None:
            return x
        return block.norm(self.each[layer], "norm_mixer", x)

    def mix(
        self, layer: int, number: Array, x: Array, marks: Marks, cache: Cache
    ) -> tuple[Array, Cache, Decay]:
        """The first half, of chunk `number`."""
        p, (valid, reset, gap) = self.each[layer], marks
        y, settings = self.normed(layer, x), (self.heads, self.scan, gap)
        y, cache, decay = block.mixer(p, y, valid, reset, cache, *settings)
        if self.last_norm is not None:
            y = x + block.dropout(y, self.dropout, self.keys(number)[2 * layer])
        return y, cache, decay

    def feed(self, layer: int, number: Array, x: Array) -> Array:
        """The second half, of chunk `number`, which has no memory."""
        return self.feed_by(self.keys(number)[2 * layer + 1], layer, x)

    def feed_by(self, key: Array | None, layer: int, x: Array) -> Array:
        """The same with a key of dropout of one's own."""
        p = self.each[layer]
        y = block.feed_forward(p, block.norm(p, "norm_ffn", x))
        y = x + block.dropout(y, self.dropout, key)
        last = layer == len(self.each) - 1
        return block.norm(self.last_norm, "out", y) if last else y

    def through(
        self, mix: Callable, feed: Callable, x: Array, cache: Any, only_last: bool
    ) -> tuple[Array, tuple[Cache, ...]]:
        """All layers, of which mix(layer, x, cache) and feed(layer, x) are the halves.

        `only_last`: without the last second half.
        """
        after, last = [], len(self.each) - 1
        for layer in range(len(self.each)):
            x, one = mix(layer, x, cache[layer])
            after.append(one)
            if self.last_norm is not None and not (only_last and layer == last):
                x = feed(layer, x)
        return x, tuple(after)


def run(
    layers: Layers, x: Array, marks: Marks, cache: Any, size: int, only_last: bool
) -> tuple[Array, tuple[Cache, ...]]:
    """x: float32[T, B, d] -> (float32[T, B, d], a Cache a layer after the last event).

    `size`: of chunks. `only_last`: without the last layer's second half, which is to be
    computed for the events that are asked for.
    """
    if context.ways(len(x), cache[0].tail.shape[1]) > 1:

        def body(events: Any, others: Any) -> tuple[Array, Any]:
            (x, marks), (layers, cache) = events, others
            return stretch(layers, x, marks, cache, size, only_last)

        return context.over_devices(body, (x, marks), (layers, cache))

    def step(
        number: Array, x: Array, marks: Marks, cache: Any
    ) -> tuple[Array, tuple[Cache, ...]]:
        def mix(layer: int, x: Array, cache: Cache) -> tuple[Array, Cache]:
            return layers.mix(layer, number, x, marks, cache)[:2]

        def feed(layer: int, x: Array) -> Array:
            return layers.feed(layer, number, x)

        return layers.through(mix, feed, x, cache, only_last)

    return over_time(step, (x, marks), cache, size)


def stretch(
    layers: Layers, x: Array, marks: Marks, cache: Any, size: int, only_last: bool
) -> tuple[Array, tuple[Cache, ...]]:
    """`run` of this device's stretch of time: inside `context.over_devices`.

    `cache` is that before all time, and the one returned that after all time, the same
    on all devices.
    """
    if layers.key is not None:
        device = jax.lax.axis_index(context.AXIS)
        layers = layers.replace(key=jax.random.fold_in(layers.key, device))

    def mix(layer: int, x: Array, cache: Cache) -> tuple[Array, Cache]:
        return mix_stretch(layers, layer, x, marks, cache, size)

    def feed(layer: int, x: Array) -> Array:
        def step(number: Array, x: Array, nothing: Any) -> tuple[Array, Any]:
            return layers.feed(layer, number, x), nothing

        return over_time(step, (x,), (), size)[0]

    return layers.through(mix, feed, x, cache, only_last)


def mix_stretch(
    layers: Layers, layer: int, x: Array, marks: Marks, cache: Cache, size: int
) -> tuple[Array, Cache]:
    """The first half of a layer, see `stretch`."""
    A = -jnp.exp(layers.each[layer]["A_log"])
    tail = entering(layers, layer, x, marks, cache.tail)
    rows = x.shape[1]
    none = Decay(jnp.zeros((rows, len(A))), jnp.ones(rows))

    def scan(h: Array) -> tuple[Any, Array, Decay]:
        def step(number: Array, x: Array, marks: Marks, carry: Any) -> Any:
            now, before = carry
            y, now, own = layers.mix(layer, number, x, marks, now)
            total, alive = before.total + own.total, before.alive * own.alive
            return y, (now, Decay(total, alive))

        y, (end, own) = over_time(step, (x, marks), (Cache(tail, h), none), size)
        return (y, end.tail), end.state, own

    (y, tail), state = parallel_scan.across(context.AXIS, scan, A, cache.state)
    # Events come first: the tail that counts is that of the last device with any.
    here = jnp.any(marks.valid, axis=0).astype(jnp.int32)
    used = jax.lax.psum(here, context.AXIS)[:, None, None]
    mine = used == jax.lax.axis_index(context.AXIS) + 1
    found = jax.lax.psum(jnp.where(mine, tail, 0), context.AXIS)
    return y, Cache(jnp.where(used > 0, found, cache.tail), state)


def entering(layers: Layers, layer: int, x: Array, marks: Marks, first: Array) -> Array:
    """The convolution's inputs just before this stretch: [B, k - 1, D], as `first`.

    `first`: those before all time.
    """
    taps = first.shape[1]
    last = layers.normed(layer, x[len(x) - taps :])
    last = block.conv_input(layers.each[layer], last)
    if marks.reset is not None:  # what is before a reset enters no stretch behind it
        owner = jnp.cumsum((marks.reset & marks.valid)[len(x) - taps :], axis=0)
        last = jnp.where((owner == owner[-1:])[..., None], last, 0)
    tail = context.halo(last, taps, context.AXIS, first.swapaxes(0, 1))
    return tail.swapaxes(0, 1)


Step = Callable[..., tuple[Array, Any]]


def over_time(step: Step, events: Any, cache: Any, size: int) -> tuple[Array, Any]:
    """`step` over chunks of at most `size` rows of `events`: (x [T, B, d], trees...).

    -> (float[T, B, .], the cache after the last chunk).

    step(number, *events, cache) -> (y, cache). Its insides are computed again
    in the backward pass: what is kept is linear in T for x, y and a cache a chunk.
    """
    time = len(events[0])
    chunks = -(-time // size)
    if chunks <= 1:
        return step(jnp.int32(0), *events, cache)
    size = -(-time // chunks)  # chunks of equal size: the least padding
    extra = chunks * size - time

    def split(y: Array) -> Array:
        y = jnp.pad(y, ((0, extra),) + ((0, 0),) * (y.ndim - 1))
        return y.reshape(chunks, size, *y.shape[1:])

    @jax.checkpoint
    def body(cache: Any, chunk: Any) -> tuple[Any, Array]:
        y, cache = step(*chunk, cache)
        return cache, y

    numbers = jnp.arange(chunks, dtype=jnp.int32)
    cache, y = jax.lax.scan(body, cache, (numbers, *jax.tree.map(split, events)))
    return y.reshape(chunks * size, *y.shape[2:])[:time], cache
