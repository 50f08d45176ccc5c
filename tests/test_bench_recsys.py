"""The recommenders' bench at small sizes: rivals of one loss, parts as they say."""

import types

import jax
import numpy as np
import pytest

from jaxrec.bench import recsys, recsys_naive, recsys_parts
from jaxrec.data import loader
from jaxrec.methods import copies, windows
from jaxrec.models import recommender as networks

ITEMS, BATCH = 60, 16


@pytest.fixture(scope="module")
def data():
    return recsys.dataset(ITEMS, 1_200, 4)


def test_sessions_end_where_the_next_one_starts(data):
    train = data.train
    np.testing.assert_array_equal(train["done"], train["timestep"] == 5)
    inside = np.flatnonzero(train["done"] == 0)
    np.testing.assert_array_equal(train["next_item"][inside], train["item"][inside + 1])
    assert not train["next_item"][train["done"] == 1].any()
    assert train["item"].min() >= 1 and train["item"].max() <= ITEMS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ce", "snqn"])
def test_the_naive_loop_minimises_the_same_loss(data, name, monkeypatch):
    """One update on the same batch from the same parameters gives the same loss."""
    fields = {"chunk": 0} | ({"negatives": 0} if name == "snqn" else {})
    stage, config = recsys.build(name, data, BATCH, **fields)
    rows = np.arange(5, 5 + BATCH)
    draw = types.SimpleNamespace(integers=lambda *a, size=None: rows if size else 0)
    monkeypatch.setattr(recsys_naive.np.random, "default_rng", lambda seed: draw)
    naive = float(recsys_naive.loop(name, stage, config, 1)())

    batch = loader.gather(data.train, rows, data.window, np)
    network = networks.make(config, data.info, None if name == "ce" else 0)
    event = windows.transition(batch)
    one, two = (
        network.init(jax.random.key(i), event.items, event.length) for i in (0, 1)
    )
    state = stage.method.init(jax.random.key(2), batch, {})
    state = state.replace(params=one)
    if name != "ce":
        state = state.replace(target_params=two)
        # The naive loop drew 0: its copy 0 is the main one.
        monkeypatch.setattr(copies, "coin", lambda step: step >= 0)
    ours = stage.method.train_step(state, batch, jax.random.key(3))[1]["loss"]
    np.testing.assert_allclose(naive, ours, rtol=1e-5)


@pytest.mark.slow
def test_seeds_in_one_program_have_a_state_each(data, monkeypatch):
    monkeypatch.setattr(recsys, "CALLS", 2)
    stage, _ = recsys.build("ce", data, BATCH, 3)
    run, facts, held = recsys.fused(stage)
    loss = np.asarray(run()["loss"])
    assert loss.shape == (2, 3) and np.isfinite(loss).all()
    assert int(held["state"].step) == 2 and facts["temporary_bytes"] > 0


@pytest.mark.slow
def test_the_copy_that_moves_is_updated_in_place(monkeypatch):
    """Temporaries are gradients and slices, not new copies of networks and moments."""
    monkeypatch.setattr(recsys, "CALLS", 2)
    data = recsys.dataset(20_000, 1_200, 4)
    facts = recsys.fused(recsys.build("sqn", data, BATCH)[0])[1]
    # Of two copies, each with two moments: the gradients of one are a sixth. With a
    # branch in place of the loops of `copies.toss` it is 0.7.
    assert facts["temporary_bytes"] < 0.4 * facts["argument_bytes"]


def test_histories_are_made_where_the_data_are_not(tmp_path):
    found, source = recsys_parts.histories(str(tmp_path))
    assert source == "made" and len(found) == recsys_parts.USERS
    assert 60_000 < sum(map(len, found)) < 140_000
    assert max(u.max() for u in found) <= recsys_parts.ITEMS


def test_histories_are_read_in_time_order(tmp_path):
    (tmp_path / "ml-100k").mkdir()
    rows = ["2\t7\t5\t30", "1\t5\t3\t20", "1\t4\t3\t10", "1\t6\t1\t30", "1\t9\t1\t25"]
    rows += ["2\t1\t1\t10", "2\t2\t1\t20", "2\t3\t1\t21"]
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (tmp_path / "ml-100k" / "ml-100k.inter").write_text(text + "\n".join(rows))
    found, source = recsys_parts.histories(str(tmp_path))
    assert source == "ML-100K"
    assert [list(items) for items in found] == [[4, 5], [1, 2]]
