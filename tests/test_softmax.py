"""Cross entropy over a catalogue: chunks against the whole, samples against the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.losses import sampled_softmax, softmax
from jaxrec.types import UserError

B, V, D, ITEMS = 7, 50, 5, 41


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, D))
    table = jax.random.normal(keys[1], (V, D))
    bias = jax.random.normal(keys[2], (V,))
    target = jax.random.randint(keys[3], (B,), 1, ITEMS + 1)
    return x, table, bias, target


def whole(x, table, bias, target):
    item = jnp.arange(V)
    exists = (item > 0) & (item <= ITEMS)
    y = jnp.where(exists[None], x @ table.T + bias[None], -1e9)
    return softmax.cross_entropy(y, target)


@pytest.mark.parametrize("size", [1, 7, 16, 50, 64])
def test_chunks_equal_the_whole(problem, size):
    x, table, bias, target = problem

    def chunked(x, table, bias):
        return softmax.chunked_cross_entropy(x, table, bias, target, size, ITEMS)

    np.testing.assert_allclose(chunked(x, table, bias), whole(*problem), atol=1e-5)
    weight = jnp.arange(1.0, B + 1)
    args = (x, table, bias)
    found = jax.grad(lambda *a: weight @ chunked(*a), (0, 1, 2))(*args)
    want = jax.grad(lambda *a: weight @ whole(*a, target), (0, 1, 2))(*args)
    for a, b in zip(found, want):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_cross_entropy_against_float64(problem):
    x, table, bias, target = (np.asarray(a, np.float64) for a in problem)
    y = (x @ table.T + bias)[:, 1 : ITEMS + 1]
    target = target.astype(int) - 1
    want = np.log(np.exp(y).sum(1)) - y[np.arange(B), target]
    np.testing.assert_allclose(whole(*problem), want, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 50])
def test_chunked_argmax(problem, size):
    x, table, bias, _ = problem
    best, value = softmax.chunked_argmax(x, table, bias, size, ITEMS)
    y = np.asarray(x @ table.T + bias[None])[:, 1 : ITEMS + 1]
    np.testing.assert_array_equal(best, y.argmax(1) + 1)
    np.testing.assert_allclose(value, y.max(1), rtol=1e-6)
    # The first of equals.
    same = jnp.zeros((V, D))
    best, _ = softmax.chunked_argmax(x, same, jnp.zeros(V), size, ITEMS)
    np.testing.assert_array_equal(best, 1)


def test_sampled_softmax_tends_to_the_full_one(problem):
    x, table, bias, target = problem
    weight = jnp.arange(V) * (jnp.arange(V) <= ITEMS) * 1.0
    log_q = jnp.log(weight / weight.sum())
    drawn = jax.random.categorical(jax.random.key(5), log_q, shape=(200_000,))
    found = sampled_softmax.sampled_cross_entropy(x, table, bias, target, drawn, log_q)
    np.testing.assert_allclose(found, whole(*problem), atol=0.08)
    # Without other items there is nothing to lose against.
    alone = sampled_softmax.sampled_cross_entropy(
        x[:1], table, bias, target[:1], target[:1], log_q
    )
    assert alone == 0


def temporary_bytes(loss, vocab):
    shapes = [(256, 64), (vocab, 64), (vocab,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    target = jax.ShapeDtypeStruct((256,), jnp.int32)
    both = jax.jit(
        lambda x, t, b, a: jax.value_and_grad(
            lambda *p: loss(*p, a).sum(), argnums=(0, 1, 2)
        )(x, t, b)
    )
    return both.lower(*args, target).compile().memory_analysis().temp_size_in_bytes


def test_no_table_of_logits_is_alive_with_a_million_items():
    """A [256, 1M] float32 table is 1.02 GB; the gradients of W are 0.26 GB."""
    vocab = 1_000_064
    chunked = temporary_bytes(
        lambda x, t, b, a: softmax.chunked_cross_entropy(x, t, b, a, 8_192, vocab - 64),
        vocab,
    )
    plain = temporary_bytes(
        lambda x, t, b, a: softmax.cross_entropy(x @ t.T + b[None], a), vocab
    )
    table = 256 * vocab * 4
    assert plain >= table
    assert chunked < 0.05 * table, chunked / table


def test_chunks_divide_the_vocabulary_where_they_can():
    assert softmax.chunk_size(37_120, 4_096) == 3_712
    assert softmax.chunk_size(128, 4_096) == softmax.chunk_size(128, 0) == 128
    assert softmax.chunk_size(128 * 101, 4_096) == 3_232
    assert softmax.chunk_size(2 * 10_007, 4_096) == 4_096  # its divisors are too small
    with pytest.raises(UserError, match="chunk=-1: give a number of items"):
        softmax.chunk_size(128, -1)


@pytest.mark.parametrize("popularity", [0.0, 0.75, 1.0])
def test_negatives_are_drawn_as_log_q_says(popularity):
    count = np.zeros(V)
    count[1 : ITEMS + 1] = np.arange(ITEMS) ** 2
    found = sampled_softmax.sampler(count, ITEMS, 200_000, popularity)
    q = np.exp(np.asarray(found.log_q, np.float64))
    want = np.where(np.arange(V) <= ITEMS, (count + 1.0) ** popularity, 0.0)
    want[0] = 0.0
    np.testing.assert_allclose(q, want / want.sum(), rtol=1e-5)
    drawn = np.bincount(found.draw(jax.random.key(0)), minlength=V)
    assert drawn[0] == 0 and drawn[ITEMS + 1 :].sum() == 0
    # Five standard deviations of a binomial count.
    bound = 5 * np.sqrt(200_000 * q * (1 - q))
    assert (np.abs(drawn - 200_000 * q) <= bound).all()


def test_a_rare_item_of_a_large_catalogue_keeps_its_share():
    num_items = 1_000_000
    count = np.zeros(num_items + 1)
    count[1] = 1e9  # all others together make a thousandth of the draws
    found = sampled_softmax.sampler(count, num_items, 1_000_000, 1.0)
    drawn = np.asarray(found.draw(jax.random.key(0)))
    assert 700 < (drawn > 1).sum() < 1_700
    assert drawn.max() > 900_000 and drawn[drawn > 1].min() < 100_000
    np.testing.assert_allclose(np.exp(np.float64(found.log_q)).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("negatives", [0, -3])
def test_no_negatives_are_refused(negatives):
    with pytest.raises(UserError, match=f"negatives {negatives} .* use 1 or more"):
        sampled_softmax.sampler(np.ones(V), ITEMS, negatives)
