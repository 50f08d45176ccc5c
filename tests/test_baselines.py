"""Counted baselines on small sessions: popularity by hand, and what holds for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxrec.methods import item_knn, neighbours, popularity
from jaxrec.types import UserError

SEQ_LEN, VOCAB, NUM_ITEMS = 6, 128, 20
MAKE = {
    "pop": (popularity.make_pop, popularity.HPARAMS),
    "session_pop": (popularity.make_session_pop, popularity.HPARAMS),
    "last_item": (popularity.make_last_item, popularity.HPARAMS),
    "item_knn": (item_knn.make, item_knn.HPARAMS),
    "sknn": (neighbours.make_sknn, neighbours.SKNN_HPARAMS),
    "vsknn": (neighbours.make_vsknn, neighbours.VSKNN_HPARAMS),
}


def info_of(sessions: list[list[int]]) -> dict:
    item = np.array([i for session in sessions for i in session], np.int32)
    timestep = np.concatenate([np.arange(len(s)) for s in sessions]).astype(np.int32)
    count = np.bincount(item, minlength=VOCAB).astype(np.float64)
    return dict(
        num_items=NUM_ITEMS,
        vocab=VOCAB,
        seq_len=SEQ_LEN,
        item_count=count,
        train=dict(item=item, timestep=timestep),
    )


def drawn_sessions(seed: int, number: int = 60) -> list[list[int]]:
    """Skewed, with repeats, and some longer than SEQ_LEN and than a block of items."""
    generator = np.random.default_rng(seed)
    p = 1.0 / np.arange(1, NUM_ITEMS)  # the last item is never seen
    lengths = generator.integers(1, 25, number)
    return [(generator.choice(len(p), n, p=p / p.sum()) + 1).tolist() for n in lengths]


def drawn_histories(seed: int, number: int = 24) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    lengths = np.arange(number) % (SEQ_LEN + 1)
    return [(generator.integers(1, NUM_ITEMS + 1, n)).tolist() for n in lengths]


def made(name: str, sessions: list[list[int]], **changed):
    make, hparams = MAKE[name]
    return make(FrozenConfigDict(hparams | changed), info_of(sessions))


def scores_of(method, histories: list[list[int]], padding: int = 0) -> np.ndarray:
    items = np.full((len(histories), SEQ_LEN), padding, np.int32)
    for row, history in zip(items, histories, strict=True):
        row[: len(history)] = history
    length = jnp.array([len(h) for h in histories], jnp.int32)
    state = method.init(jax.random.key(0), {}, {})
    return np.asarray(jax.jit(method.scores)(state, jnp.array(items), length, length))


def score(name: str, sessions, histories, **changed) -> np.ndarray:
    return scores_of(made(name, sessions, **changed), histories)


def test_pop_counts_the_training_events():
    y = score("pop", [[1, 2, 2], [2, 3], [3]], [[], [1, 3]])
    assert (np.argsort(-y[0], kind="stable")[:3] == [2, 3, 1]).all()
    np.testing.assert_array_equal(y[0], y[1])


def test_session_pop_and_last_item():
    sessions, histories = [[9, 9], [9, 8]], [[4, 5, 5, 4, 5, 6], [7, 8, 9, 7]]
    y = score("session_pop", sessions, histories)
    assert np.argsort(-y[0])[:5].tolist() == [5, 4, 6, 9, 8]
    np.testing.assert_allclose(y[0, [4, 5, 6]], [2 / 6, 3 / 6, 1 / 6], atol=1e-6)
    assert np.argsort(-y[1])[:3].tolist() == [7, 9, 8]  # 8 and 9 tie but for POP
    y = score("last_item", sessions, histories)
    assert np.argsort(-y[0])[:5].tolist() == [6, 5, 4, 9, 8]
    assert np.argsort(-y[1])[:3].tolist() == [7, 9, 8]


@pytest.mark.parametrize("name", MAKE)
def test_padding_is_never_recommended_nor_read(name):
    method, histories = made(name, drawn_sessions(7)), drawn_histories(8)
    y = scores_of(method, histories)
    assert np.isneginf(y[:, 0]).all() and np.isneginf(y[:, NUM_ITEMS + 1 :]).all()
    assert np.isfinite(y[:, 1 : NUM_ITEMS + 1]).all() and y.dtype == np.float32
    np.testing.assert_array_equal(y, scores_of(method, histories, padding=1))


@pytest.mark.parametrize("name", MAKE)
def test_an_empty_or_unknown_history_leaves_popularity(name):
    sessions = drawn_sessions(9)
    want = score("pop", sessions, [[], []])
    unseen = [] if name in ("session_pop", "last_item") else [NUM_ITEMS]
    np.testing.assert_array_equal(score(name, sessions, [[], unseen]), want)


@pytest.mark.parametrize("name", MAKE)
def test_histories_that_come_again_are_no_sessions(name):
    """Pieces of sessions, [1, 2] and [1, 2, 3]: of the latter only 3 is new."""
    info = info_of([[1, 2], [1, 2, 3], [3]])
    info["item_count"][[1, 2]] -= 1
    make, hparams = MAKE[name]
    if "knn" in name:
        with pytest.raises(UserError, match="of the 6 training events .* 4 count"):
            make(FrozenConfigDict(hparams), info)
    else:
        y = scores_of(make(FrozenConfigDict(hparams), info), [[]])
        assert np.argsort(-y[0])[0] == 3 and y[0, 1] == y[0, 2] == y[0, 3] / 2


@pytest.mark.parametrize("name", MAKE)
def test_updates_only_count(name):
    method = made(name, drawn_sessions(11))
    state = method.init(jax.random.key(0), {}, {})
    after, metrics = jax.jit(method.train_step)(state, {}, jax.random.key(1))
    assert after.step == 1 and metrics["loss"] == 0.0 and after.opt_state is None
    jax.tree.map(np.testing.assert_array_equal, after.extra, state.extra)


@pytest.mark.parametrize(
    "name, changed",
    [
        ("item_knn", dict(neighbours=0)),
        ("sknn", dict(similarity="dot")),
        ("sknn", dict(k=10, sample_size=5)),
        ("vsknn", dict(weighting="cubic")),
        ("vsknn", dict(score_weighting="cubic")),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(name, changed):
    with pytest.raises(UserError, match=str(list(changed.values())[-1])) as error:
        made(name, [[1, 2]], **changed)
    assert "\n" not in str(error.value)
