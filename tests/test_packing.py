"""Packing: first fit decreasing, every event once, lanes that go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from log_files import load

from jaxrec.data import loader, packing
from jaxrec.types import Dataset, UserError


def naive(sizes, capacity, used):
    room = [capacity - u for u in used] + [capacity] * len(sizes)
    found = np.zeros(len(sizes), int)
    for number in np.argsort(-sizes, kind="stable"):
        found[number] = next(i for i, x in enumerate(room) if x >= sizes[number])
        room[found[number]] -= sizes[number]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_first_fit_decreasing_is_that_of_the_book(seed):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 20, draw.integers(1, 90))
    used = draw.integers(1, 21, draw.integers(0, 6))
    found = packing.first_fit(sizes, 20, used)
    np.testing.assert_array_equal(found, naive(sizes, 20, used))


def test_first_fit_by_hand():
    found = packing.first_fit(np.array([4, 7, 3, 6]), 10, np.array([8]))
    assert found.tolist() == [2, 1, 1, 2]  # 7 and 3, 6 and 4; nothing beside the 8


def histories(seed=0, users=60, longest=70):
    draw = np.random.default_rng(seed)
    length = np.minimum(draw.geometric(0.08, users), longest)
    length[:3] = (longest, 16, 32)  # several rows, exactly one, exactly two
    timestep = np.concatenate([np.arange(n) for n in length]).astype(np.int32)
    return np.arange(1, len(timestep) + 1, dtype=np.int32), timestep, length


def test_every_event_is_there_once_and_in_its_place():
    item, timestep, length = histories()
    packed, run = packing.pack(item, timestep, 16)
    assert run == 5  # 70 events in rows of 16
    real = packed["segment"] > 0
    np.testing.assert_array_equal(np.sort(packed["item"][real]), item)
    assert not packed["item"][~real].any() and not packed["next_item"][~real].any()
    np.testing.assert_array_equal(
        packed["position"][real], timestep[packed["item"][real] - 1]
    )
    # Padding stands behind the events of a row.
    assert (np.diff(real.astype(int), axis=1) <= 0).all()
    # The item to predict is the next of the same history, none after its last.
    last = np.append(timestep[1:] == 0, True)
    want = np.where(last, 0, item + 1)
    np.testing.assert_array_equal(
        packed["next_item"][real], want[packed["item"][real] - 1]
    )
    for row, segment in zip(packed["item"], packed["segment"]):
        for number in range(1, segment.max() + 1):
            part = row[segment == number]
            assert len(part) and (np.diff(part) == 1).all()
            assert (
                np.diff(packed["position"][np.isin(packed["item"], part)]) == 1
            ).all()
    assert packing.padding(packed) == pytest.approx(1 - len(item) / real.size)


def test_a_history_longer_than_a_row_goes_on_in_the_next_row_of_its_run():
    item, timestep, length = histories()
    packed, run = packing.pack(item, timestep, 16)
    start = np.flatnonzero(timestep == 0) + 1
    for first, size in zip(start, length):
        rows = np.flatnonzero(
            np.isin(packed["item"], np.arange(first, first + size)).any(1)
        )
        assert (np.diff(rows) == 1).all() and rows[0] // run == rows[-1] // run
        assert len(rows) == -(-size // 16)
        if size > 16:
            assert packed["item"][rows[0], 0] == first
    # A run starts with the start of a history, so no state of another one reaches it.
    assert not packed["position"][::run, 0].any()


def dataset(**fields):
    item, timestep, _ = histories(**fields)
    train = dict(item=item, timestep=timestep)
    data = Dataset(train, {}, {}, window=17, drawn=dict(train=np.arange(3), test=[4]))
    return packing.view(data, "packed", 16), item


def test_batches_are_a_function_of_seed_and_step_and_lanes_go_on():
    data, item = dataset(users=400)
    run, count = data.run, len(data.train["item"])
    assert data.drawn == dict(test=[4]) and data.window == 17
    strips = count // run
    batch_size = 3
    epoch = [
        loader.host_batch(data, batch_size, np.uint32(1), t)
        for t in range(strips // 3 * run)
    ]
    for t, batch in enumerate(epoch):
        chosen = [
            np.flatnonzero((data.train["item"] == row).all(1))[0]
            for row in batch["item"]
        ]
        if t % run == 0:
            first = chosen
        if (batch["segment"] > 0).any(1).all():  # rows of padding are alike
            assert chosen == [row + t % run for row in first]
    seen = np.concatenate([batch["item"].ravel() for batch in epoch])
    seen = seen[seen > 0]
    assert len(np.unique(seen)) == len(seen)  # none twice
    left = strips % batch_size * run * 16  # strips left over differ by epoch
    assert len(seen) >= len(item) - left
    # The same on the device, at any step, and another order in the next epoch.
    found = loader.parts(data, batch_size)

    @jax.jit
    def draw(step):
        placed = [found[0]._replace(arrays=jax.tree.map(jnp.asarray, found[0].arrays))]
        return loader.draw(placed, np.uint32(1), step, data.window)

    for t in (0, 1, run, len(epoch) - 1):
        for name, array in draw(t).items():
            np.testing.assert_array_equal(array, epoch[t][name])
    again = loader.host_batch(data, batch_size, np.uint32(1), len(epoch))
    assert not np.array_equal(again["item"], epoch[0]["item"])
    other = loader.host_batch(data, batch_size, np.uint32(2), 0)
    assert not np.array_equal(other["item"], epoch[0]["item"])


def test_streamed_batches_are_those_of_the_device():
    data, _ = dataset(users=200)
    spans = list(loader.stream(data, 2, np.uint32(0), 3, 9, 4))
    steps = np.concatenate([s["item"] for s in spans])
    want = [loader.host_batch(data, 2, np.uint32(0), t)["item"] for t in range(3, 9)]
    np.testing.assert_array_equal(steps, want)


def test_one_window_a_user_or_another_name():
    item, timestep, length = histories()
    data = Dataset(dict(item=item, timestep=timestep), {}, {}, window=17)
    drawn = packing.view(data, "users", 16).drawn["train"]
    ends = np.cumsum(length) - 1
    np.testing.assert_array_equal(drawn, ends[length > 1])
    assert packing.view(data, "events", 16) is data
    with pytest.raises(UserError, match="'rows': one of events, users, packed"):
        packing.view(data, "rows", 16)


def test_movielens_has_five_times_less_padding(tmp_path, shared_data):
    """Histories of 163 events on the mean, rows of 2,048: the issue's measure."""
    data = load(
        "shared", shared_data, tmp_path, name="ml-1m", seq_len=2048, examples="packed"
    )
    timestep = data.info["train"]["timestep"]
    length = np.minimum(np.bincount(np.cumsum(timestep == 0))[1:], 2048)
    padded = len(length) * 2048 - length.sum()
    packed = int((data.train["segment"] == 0).sum())
    assert padded > 5 * packed and padded > 11e6
    assert (data.train["segment"] > 0).sum() == len(timestep)
    print(f"padded tokens: {padded:,} of rows of one user, {packed:,} packed")
