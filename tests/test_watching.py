"""What a run tells while it works: FLOPs by hand, speed, histograms, images."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrec import boards, evaluators, flops, sharding, speed
from jaxrec.types import Dataset, Method


def counted(f, *shapes):
    return flops.count(jax.jit(f).trace(*map(jnp.zeros, shapes)).jaxpr)


def test_products_count_as_often_as_they_run():
    a, b = (3, 4), (4, 5)
    once = 2 * 3 * 4 * 5
    assert counted(jnp.matmul, a, b) == once
    assert counted(jax.vmap(jnp.matmul), (7, 3, 4), (7, 4, 5)) == 7 * once
    # Forward, and in the gradient one more for each argument.
    both = jax.grad(lambda a, b: jnp.sum(jnp.square(a @ b)), (0, 1))
    assert counted(both, a, b) == 3 * once

    def loop(a, b):
        return jax.lax.fori_loop(0, 6, lambda _, x: x + a @ b, jnp.zeros((3, 5)))

    def branch(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    def unknown(a, b):
        return jax.lax.while_loop(
            lambda x: x[0, 0] < 9, lambda x: x + loop(a, b), jnp.zeros((3, 5))
        )

    def shared(a, b):
        with flops.scope(0.5):
            return unknown(a, b)

    assert counted(loop, a, b) == 6 * once
    assert counted(branch, a, b) == once / 2
    assert counted(unknown, a, b) == 6 * once
    assert counted(shared, a, b) == 3 * once
    assert counted(jax.vmap(shared), (7, 3, 4), (7, 4, 5)) == 7 * 3 * once


def test_convolutions_and_devices_count():
    def convolve(x, w):
        return jax.lax.conv(x, w, (1, 1), "SAME")

    assert counted(convolve, (2, 3, 8, 8), (5, 3, 3, 3)) == 2 * (2 * 5 * 64) * 27
    spec = PartitionSpec("data")
    mesh = sharding.make_mesh(8, 1)
    split = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert counted(split, (8, 4)) == 8 * 2 * 4


def test_peaks_are_of_listed_devices_alone():
    assert flops.peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert flops.peak("NVIDIA A100-SXM4-80GB") == 311.9e12
    assert flops.peak("NVIDIA L40S") == 362e12 and flops.peak("NVIDIA L4") == 121e12
    assert flops.peak("TPU v5 lite") == 197e12 and flops.peak("TPU v5p") == 459e12
    assert flops.peak("cpu") is None and flops.peak("NVIDIA L40") is None


def test_a_known_device_has_a_utilisation(monkeypatch):
    monkeypatch.setattr(flops, "PEAKS", ((".*", 1.0),))
    meter = speed.Meter("train", sharding.make_mesh(2, 4), 0)
    meter.flops = 4e12
    found = meter.rates(10, 5.0)
    assert found == dict(steps_per_second=2.0, flops_per_second=8e12, utilisation=1.0)
    assert not meter.shown
    meter.pause(-8.0)
    share = meter.lap(10)["speed/utilisation"]
    assert 0.6 < share < 0.63 and meter.shown == f"{share:.1%} of peak FLOPs"


def test_a_meter_tells_once_and_leaves_out_pauses(capsys):
    meter = speed.Meter("train", sharding.make_mesh(1, 1), 100)
    traced = jax.jit(jnp.matmul).trace(jnp.zeros((3, 400)), jnp.zeros((400, 5)))
    for _ in range(2):
        program = meter.compiled(traced, 4, time.monotonic() - 1_000)
    assert program(jnp.ones((3, 400)), jnp.ones((400, 5)))[0, 0] == 400
    told = capsys.readouterr().err
    size = 4 * (3 * 400 + 400 * 5) / 1e6
    assert f"train: {3 * 400 * 5 * 2 / 4 / 1e9:.4g} GFLOP an update; a device" in told
    assert f"needs {size:,.1f} MB for state and data" in told and told.count("\n") == 1
    meter.pause(-2_001.0)  # 2,000 s of it were compilation
    lap = meter.lap(103)
    assert lap["speed/flops_per_second"] == pytest.approx(
        3_000 * lap["speed/steps_per_second"]
    )
    facts = meter.facts(103)
    assert facts["compile_seconds"] > 2_000 and 0 < facts["steps_per_second"] <= 3
    assert facts["argument_bytes"] == 1e6 * size and "utilisation" not in facts


class Board:
    """Stands for tensorboardX's writer."""

    def __init__(self):
        self.found = {}

    def add_histogram(self, name, values, step):
        self.found[name] = values, step

    def add_scalar(self, name, value, step):
        self.found[name] = value, step


def test_boards_get_means_of_seeds_and_histograms_of_floats():
    board = Board()
    boards.scalars(board, 3, dict(a=[1.0, None, 3.0], b=2.0, c=None))
    arrays = dict(q=np.float32([1, np.nan, 2]), kind=np.int8([1, 2]))
    boards.histograms(board, 5, arrays)
    values, step = board.found.pop("q")
    assert values.tolist() == [1, 2] and step == 5
    assert board.found == dict(a=(2.0, 3), b=(2.0, 3))


@pytest.mark.parametrize("held_out", [True, False])
def test_values_of_all_held_out_rows_or_of_some_of_training(held_out):
    rows = dict(x=np.arange(10, dtype=np.float32))
    data = Dataset(rows, dict(valid=dict(x=rows["x"][:7])) if held_out else {}, {})
    config = SimpleNamespace(eval=SimpleNamespace(batch_size=4, seed=0))
    method = Method(None, None, values=lambda state, batch: dict(q=2 * batch["x"]))
    found = evaluators.make("values", config, method, data)(None, jax.random.key(0))
    if held_out:
        np.testing.assert_array_equal(found["valid/q"], 2 * rows["x"][:7])
    else:
        assert found["train/q"].shape == (4,) and len(set(found["train/q"])) == 4


def test_a_board_is_read_back(tmp_path):
    """Plots as images, through files; see the extra `tensorboard`."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from matplotlib import image

    image.imsave(tmp_path / "train.png", np.zeros((8, 8, 3)))
    boards.images(tmp_path, [tmp_path / "train.png"], 7)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train" in content and b"PNG" in content
