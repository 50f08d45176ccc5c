"""The order of batches: permutations, determinism, both paths alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import held_out
from jaxrec.data import loader
from jaxrec.types import Dataset, Mix, UserError


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 97, 1000, 4097])
def test_permute_is_a_permutation_in_both_libraries(size):
    position = np.arange(size, dtype=np.uint32)
    for number in (0, 1, 2**32 - 1):
        key = np.array([number], np.uint32)
        ours = loader.permute(position, size, key, np)
        assert sorted(ours) == list(range(size))
        np.testing.assert_array_equal(ours, loader.permute(position, size, key))


def test_permutations_look_random():
    size, trials = 50, 2000
    position = np.arange(size, dtype=np.uint32)
    counts = np.zeros((size, size))
    for number in range(trials):
        image = loader.permute(position, size, np.array([number], np.uint32), np)
        counts[position, image] += 1
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Doubly stochastic table: (size - 1)^2 degrees of freedom, 5 deviations of slack.
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_an_epoch_has_no_repeats_and_epochs_differ():
    epoch = [loader.rows(3, step, 8, 100, 0, np) for step in range(12)]
    assert len(set(np.concatenate(epoch))) == 96
    again = [loader.rows(3, step, 8, 100, 0, np) for step in range(12, 24)]
    assert not np.array_equal(np.concatenate(epoch), np.concatenate(again))
    assert not np.array_equal(loader.rows(4, 0, 8, 100, 0, np), epoch[0])


def test_small_data_repeats_rows():
    assert set(loader.rows(0, 5, 8, 3, 0, np)) == {0, 1, 2}


def make_dataset(window=0, mix=()):
    value = np.arange(40, dtype=np.float32)
    timestep = np.concatenate([np.arange(25), np.arange(15)]).astype(np.int32)
    return Dataset({"value": value, "timestep": timestep}, {}, {}, window, mix)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("per_seed", [False, True])
def test_device_and_host_give_the_same_batches(window, per_seed):
    extra = {
        "value": -np.arange(1.0, 11, dtype=np.float32),
        "timestep": np.arange(10, dtype=np.int32),
    }
    if per_seed:
        extra = {name: np.stack([a, 2 * a]) for name, a in extra.items()}
        extra["timestep"] = np.stack([np.arange(10, dtype=np.int32)] * 2)
    dataset = make_dataset(window, (Mix(extra, 0.25, per_seed),))
    seeds = np.arange(5, 7, dtype=np.uint32)
    parts = loader.parts(dataset, 8)
    assert [part.count for part in parts] == [6, 2]

    @jax.jit
    def draw(trees, seed, step):
        placed = [part._replace(arrays=a) for part, a in zip(parts, trees)]
        return loader.draw(placed, seed, step, window)

    for step in range(7):
        host = loader.host_batch(dataset, 8, seeds, step)
        for number, seed in enumerate(seeds):
            trees = [
                {k: a[number] for k, a in part.arrays.items()}
                if part.per_seed
                else part.arrays
                for part in parts
            ]
            device = draw(trees, seed, step)
            for name in device:
                np.testing.assert_array_equal(device[name], host[name][number])
            assert (np.asarray(device["value"]).reshape(8, -1)[6:, -1] < 0).all()


def test_real_rows_are_those_of_a_run_without_mix():
    alone = loader.host_batch(make_dataset(), 8, np.uint32(1), 3)
    extra = {k: v[:10] for k, v in make_dataset().train.items()}
    mixed = loader.host_batch(make_dataset(mix=(Mix(extra, 0.3),)), 8, np.uint32(1), 3)
    np.testing.assert_array_equal(mixed["value"][:5], alone["value"][:5])
    off = loader.host_batch(make_dataset(mix=(Mix(extra, 0.0),)), 8, np.uint32(1), 3)
    np.testing.assert_array_equal(off["value"], alone["value"])


@pytest.mark.parametrize(
    "fraction,count", [(0.0, 0), (0.1, 10), (0.5, 50), (0.55, 55), (1.0, 100)]
)
def test_simulated_rows_round_up_exactly(fraction, count):
    assert loader.simulated_rows(fraction, 100) == count


def test_fraction_out_of_range_is_refused():
    with pytest.raises(UserError, match="share from 0 to 1"):
        loader.simulated_rows(1.5, 8)


def test_windows_stop_at_the_start_of_the_episode():
    dataset = make_dataset(window=4)
    batch = loader.gather(dataset.train, np.array([1, 26, 39]), 4, np)
    np.testing.assert_array_equal(
        batch["mask"],
        [[False, False, True, True], [False, False, True, True], [True] * 4],
    )
    np.testing.assert_array_equal(batch["value"][:, -1], [1, 26, 39])
    np.testing.assert_array_equal(batch["value"][2], [36, 37, 38, 39])


def test_stream_equals_single_batches_and_passes_errors_on():
    dataset = make_dataset()
    stacks = list(loader.stream(dataset, 8, np.uint32(0), 4, 10, 2))
    assert len(stacks) == 3
    for number, stack in enumerate(stacks):
        for inner in range(2):
            want = loader.host_batch(dataset, 8, np.uint32(0), 4 + 2 * number + inner)
            np.testing.assert_array_equal(stack["value"][inner], want["value"])
    broken = dataset._replace(train={"value": np.zeros(3)}, window=2)
    with pytest.raises(KeyError):
        list(loader.stream(broken, 2, np.uint32(0), 0, 2, 1))


def test_eval_batches_cover_every_row_once():
    dataset = make_dataset()._replace(evals={"valid": make_dataset().train})
    batches = list(held_out.batches(dataset, "valid", 16))
    assert [b["weight"].sum() for b in batches] == [16, 16, 8]
    kept = np.concatenate([b["value"][b["weight"] > 0] for b in batches])
    np.testing.assert_array_equal(kept, np.arange(40))


@pytest.mark.parametrize("window", [0, 3])
def test_only_drawn_rows_end_an_example(window):
    chosen = np.array([3, 4, 11, 27, 39], np.int32)
    whole = make_dataset(window)
    dataset = whole._replace(
        evals={"test": whole.train}, drawn={"train": chosen, "test": chosen[:3]}
    )
    part = jax.tree.map(jnp.asarray, loader.parts(dataset, 5)[0])
    part = part._replace(count=5, per_seed=False)
    draw = jax.jit(lambda step: loader.draw([part], np.uint32(0), step, window))
    for step in range(4):
        host = loader.host_batch(dataset, 5, np.uint32(0), step)
        last = host["value"][:, -1] if window else host["value"]
        assert set(last) == set(chosen)
        np.testing.assert_array_equal(draw(step)["value"], host["value"])
    (batch,) = held_out.batches(dataset, "test", 4)
    last = batch["value"][:, -1] if window else batch["value"]
    np.testing.assert_array_equal(last, [3, 4, 11, 11])
    np.testing.assert_array_equal(batch["weight"], [1, 1, 1, 0])
