"""Negatives that a user does not have: never one of theirs, uniform over the others."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.losses import negatives

ITEMS = 6
# Row 0: two histories and padding; row 1: one that has all items but two.
ITEM = jnp.array([[1, 3, 3, 2, 6, 0], [1, 2, 3, 1, 2, 3]], jnp.int32)
TARGET = jnp.array([[3, 3, 4, 6, 0, 0], [2, 3, 1, 2, 3, 6]], jnp.int32)
SEGMENT = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], jnp.int32)


def draws(item, target, segment, count=2_000, items=ITEMS):
    """int32[count, B, T]."""
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.vmap(lambda key: negatives.outside(key, item, target, segment, items))
    return np.asarray(jax.jit(draw)(keys))


def test_they_are_uniform_over_what_the_history_has_not():
    found = draws(ITEM, TARGET, SEGMENT)
    left = {(0, 1): {2, 5, 6}, (0, 2): {1, 3, 4, 5}, (1, 1): {4, 5}}
    for (row, segment), want in left.items():
        for at in np.flatnonzero(SEGMENT[row] == segment):
            values, counts = np.unique(found[:, row, at], return_counts=True)
            assert set(values.tolist()) == want
            np.testing.assert_allclose(counts * len(want) / 2_000, 1.0, atol=0.15)
    assert found.min() >= 1 and found.max() <= ITEMS  # padding too


def test_who_has_all_items_gets_any_but_the_target():
    item = jnp.arange(1, ITEMS + 1, dtype=jnp.int32)[None]
    target = jnp.append(item[:, 1:], jnp.array([[1]], jnp.int32), axis=1)
    found = draws(item, target, jnp.ones_like(item), count=500)
    for at, taken in enumerate(np.asarray(target[0])):
        assert set(found[:, 0, at].tolist()) == set(range(1, ITEMS + 1)) - {taken}


def test_long_rows_against_sets():
    draw = np.random.default_rng(0)
    size, items = 200, 150
    item = draw.integers(1, items + 1, (2, size)).astype(np.int32)
    segment = np.sort(draw.integers(1, 5, (2, size)), axis=1).astype(np.int32)
    inside = np.append(segment[:, 1:] == segment[:, :-1], np.zeros((2, 1), bool), 1)
    target = np.where(inside, np.roll(item, -1, axis=1), 0)
    found = draws(*map(jnp.asarray, (item, target, segment)), count=200, items=items)
    for row in range(2):
        for number in range(1, 5):
            own = segment[row] == number
            drawn = set(found[:, row, own].ravel().tolist())
            assert drawn == set(range(1, items + 1)) - set(item[row, own].tolist())
