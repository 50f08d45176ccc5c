"""The ring buffer against a list that forgets its oldest rows."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import ring
from jaxrec.types import UserError


def batch(time, n=3):
    number = np.arange(n) + 10.0 * time
    return dict(a=jnp.asarray(number), b=(jnp.asarray(np.stack([number, -number], 1)),))


def test_against_a_numpy_ring():
    capacity, n = 12, 3
    put = jax.jit(ring.put)
    held = ring.empty(jax.eval_shape(lambda: batch(0)), capacity)
    kept = collections.deque(maxlen=capacity)
    for time in range(9):
        rows = batch(time)
        held = put(held, rows, jnp.int32(time))
        kept.extend(np.asarray(rows["a"]))
        size = int(ring.filled(capacity, n, jnp.int32(time + 1)))
        assert size == len(kept)
        # Rows stand where they were put; together they are the last ones.
        assert sorted(np.asarray(held["a"])[:, : size // n].ravel()) == sorted(kept)
        np.testing.assert_array_equal(held["b"][0][..., 0], held["a"])
        np.testing.assert_array_equal(held["b"][0][..., 1], -held["a"])
    wanted = np.zeros((n, capacity // n))
    for time in range(9):
        for i in range(n):
            wanted[i, time % (capacity // n)] = i + 10 * time
    np.testing.assert_array_equal(held["a"], wanted)


def test_drawn_rows_are_whole_and_of_the_filled_part():
    held = ring.empty(jax.eval_shape(lambda: batch(0)), 12)
    for time in range(1, 3):
        held = ring.put(held, batch(time), jnp.int32(time - 1))
    found = ring.draw(held, jax.random.key(0), jnp.int32(6), 600)
    numbers, counts = np.unique(np.asarray(found["a"]), return_counts=True)
    assert set(numbers) == {10, 11, 12, 20, 21, 22}  # never an empty row
    assert counts.min() > 60  # of 100 each on average
    np.testing.assert_array_equal(found["b"][0][:, 0], found["a"])


def test_capacity_must_fit():
    for capacity in (2, 10, 0):
        with pytest.raises(UserError, match=f"replay={capacity}: .* multiple of the 3"):
            ring.check("replay", capacity, 3)
    ring.check("replay", 3, 3)
