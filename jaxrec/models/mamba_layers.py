"""The layers of a Mamba encoder over all of time, cut into chunks and among devices.

On one device all layers are computed a chunk of time at a time. Where the mesh in use
splits time (`ops.context`) each device computes its stretch half a layer at a time, in
chunks too, and asks the devices before it what enters the stretch: the last inputs of
the convolution, and the state, for which the mixer runs twice (`parallel_scan.across`).
Both give the same numbers, but for the draws of dropout.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.models import mamba_block as block
from jaxrec.models.mamba_block import Cache, Params
from jaxrec.ops import context, parallel_scan
from jaxrec.ops.recurrence import Decay
from jaxrec.types import Array

# valid, reset and gap of `mamba_block`.
About = tuple[Array, Array | None, Array | None]


@struct.dataclass
class Layers:
    """Parameters of all layers, and functions of x: float32[T, B, d].

    Layer l is half 2 l, x + mixer(norm(x)), and half 2 l + 1, x + ffn(norm(x)), the
    last with a norm behind it; without `last_norm` (RecMamba's paper) the mixer alone.
    `number`: int32[], of a chunk of time, tells the draws of dropout apart.
    """

    each: tuple[Params, ...]
    last_norm: Params | None
    key: Array | None  # of dropout; None: none
    dropout: float = struct.field(pytree_node=False)
    heads: int = struct.field(pytree_node=False)  # see Mamba.heads
    scan: str = struct.field(pytree_node=False)

    @property
    def halves(self) -> int:
        """How many there are."""
        return 2 * len(self.each)

    def drop(self, half: int, number: Array, x: Array) -> Array:
        """Dropout of what a half adds."""
        key = self.key
        if key is not None:
            key = jax.random.split(jax.random.fold_in(key, number), self.halves)[half]
        return block.dropout(x, self.dropout, key)

    def normed(self, half: int, x: Array) -> Array:
        """What the mixer of half `half` gets."""
        if self.last_norm is None:
            return x
        return block.norm(self.each[half // 2], "norm_mixer", x)

    def mix(
        self, half: int, number: Array, x: Array, about: About, cache: Cache
    ) -> tuple[Array, Cache, Decay]:
        """An even half, of a chunk."""
        valid, reset, gap = about
        p, settings = self.each[half // 2], (self.heads, self.scan, gap)
        y = self.normed(half, x)
        y, cache, decay = block.mixer(p, y, valid, reset, cache, *settings)
        if self.last_norm is not None:
            y = x + self.drop(half, number, y)
        return y, cache, decay

    def feed(
        self, half: int, number: Array, x: Array, nothing: Any = ()
    ) -> tuple[Array, Any]:
        """An odd half, of a chunk; a `Step` that remembers nothing."""
        p = self.each[half // 2]
        y = block.feed_forward(p, block.norm(p, "norm_ffn", x))
        y = x + self.drop(half, number, y)
        if half == self.halves - 1:
            y = block.norm(self.last_norm, "out", y)
        return y, nothing


Step = Callable[..., tuple[Array, Any]]


def run(
    layers: Layers, x: Array, about: About, cache: Any, size: int, only_last: bool
) -> tuple[Array, tuple[Cache, ...]]:
    """x: float32[T, B, d] -> (float32[T, B, d], a Cache a layer after the last event).

    `size`: of chunks. `only_last`: without the last half, which has no memory and is
    to be computed for the events that are asked for.
    """
    taps = cache[0].tail.shape[1]
    if context.ways(len(x), taps) == 1:
        step = functools.partial(chunk, layers, only_last)
        return over_time(step, (x, about), cache, size)

    def body(events: Any, others: Any) -> tuple[Array, Any]:
        return stretch(*others, *events, size, only_last)

    return context.over_devices(body, (x, about), (layers, cache))


def chunk(
    layers: Layers, only_last: bool, number: Array, x: Array, about: About, cache: Any
) -> tuple[Array, tuple[Cache, ...]]:
    """All layers of one chunk of time: a `Step`."""
    after = []
    for half in range(layers.halves):
        if half % 2 == 0:
            x, one, _ = layers.mix(half, number, x, about, cache[half // 2])
            after.append(one)
        elif has_feed(layers, half, only_last):
            x, _ = layers.feed(half, number, x)
    return x, tuple(after)


def stretch(
    layers: Layers, cache: Any, x: Array, about: About, size: int, only_last: bool
) -> tuple[Array, tuple[Cache, ...]]:
    """All layers of this device's stretch of time: inside `context.over_devices`."""
    if layers.key is not None:
        device = jax.lax.axis_index(context.AXIS)
        layers = layers.replace(key=jax.random.fold_in(layers.key, device))
    after = []
    for half in range(layers.halves):
        if half % 2 == 0:
            x, one = mix_stretch(layers, half, x, about, cache[half // 2], size)
            after.append(one)
        elif has_feed(layers, half, only_last):
            x, _ = over_time(functools.partial(layers.feed, half), (x,), (), size)
    return x, tuple(after)


def has_feed(layers: Layers, half: int, only_last: bool) -> bool:
    """Whether `run` computes an odd half."""
    last = half == layers.halves - 1
    return layers.last_norm is not None and not (only_last and last)


def mix_stretch(
    layers: Layers, half: int, x: Array, about: About, cache: Cache, size: int
) -> tuple[Array, Cache]:
    """An even half of this device's stretch of time.

    `cache` is the one before all time, and the one returned that after all time, the
    same on all devices.
    """
    p, axis, taps = layers.each[half // 2], context.AXIS, cache.tail.shape[1]
    valid, reset, _ = about
    last = layers.normed(half, x[len(x) - taps :]) @ block.inputs(p)
    if reset is not None:  # what is before a reset enters no stretch behind it
        ends = (reset & valid)[len(x) - taps :].astype(jnp.int32)
        later = jnp.sum(ends, axis=0)[None] - jnp.cumsum(ends, axis=0)
        last = jnp.where((later == 0)[..., None], last, 0)
    tail = context.halo(last, taps, axis, cache.tail.swapaxes(0, 1)).swapaxes(0, 1)
    rows, A = x.shape[1], -jnp.exp(p["A_log"])
    none = Decay(jnp.zeros((rows, len(A))), jnp.ones(rows))

    def scan(h: Array) -> tuple[Any, Array, Decay]:
        def step(number: Array, x: Array, about: About, carry: Any) -> Any:
            now, before = carry
            y, now, own = layers.mix(half, number, x, about, now)
            total, alive = before.total + own.total, before.alive * own.alive
            return y, (now, Decay(total, alive))

        y, (end, own) = over_time(step, (x, about), (Cache(tail, h), none), size)
        return (y, end.tail), end.state, own

    (y, tail), state = parallel_scan.across(axis, scan, A, cache.state)
    # The tail that counts is that of the last device with events of the user.
    some = jax.lax.all_gather(jnp.any(valid, axis=0), axis)  # [n, B]
    after = jnp.arange(len(some))[:, None] > jax.lax.axis_index(axis)
    mine = jnp.any(valid, axis=0) & ~jnp.any(some & after, axis=0)
    found = jax.lax.psum(jnp.where(mine[:, None, None], tail, 0), axis)
    known = jnp.any(some, axis=0)[:, None, None]
    return y, Cache(jnp.where(known, found, cache.tail), state)


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
