"""Profiles: what is seen and withheld, codecs, and that nothing later is in any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_sessions
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import held_out
from jaxrec.data import events, loader, presets, protocol
from jaxrec.methods import profile, profiles
from jaxrec.types import UserError

SETTINGS = presets.RECOMMENDED | dict(
    preset="recommended", valid=0.1, test=0.1, click_reward=0.2, buy_reward=1.0
)
SETTINGS |= dict(seed=0, seq_len=6, min_session=0, min_item=0, iterate=False)
USERS = dict(split="leave_one_out", session_by="user", drop_unseen_items=False)
TIMED = dict(split="temporal_quantile", valid=0.2, test=0.2)


def rows_of(generator, users=30, items=20):
    """(user, item, time) of walks, in an order of time that mixes the users."""
    found = []
    for user in range(users):
        for step in range(int(generator.integers(3, 12))):
            item = (3 * user + int(generator.integers(6))) % items + 1
            found.append((user, item, 100 * step + user))
    return found


def dataset(rows, changes=USERS):
    user, item, time = map(np.array, zip(*rows))
    log = events.make(user, item, time, user=user)
    arrays, facts = protocol.prepare(log, SETTINGS | changes)
    return protocol.assemble(arrays, facts | dict(version="1"))


def histories(rows):
    found = {}
    for user, item, time in rows:
        found.setdefault(user, []).append((time, item))
    return {user: [item for _, item in sorted(found[user])] for user in found}


def test_recent_and_multi_hot_by_loops():
    generator = np.random.default_rng(0)
    length = np.array([0, 1, 4, 7])
    items = np.where(
        np.arange(7) < length[:, None], generator.integers(1, 9, (4, 7)), 0
    )
    keep = np.array([3, 3, 2, 5])
    found = profiles.recent(jnp.asarray(items), jnp.asarray(length), 5, keep)
    hot = np.asarray(profiles.multi_hot(jnp.asarray(items), 128))
    for row in range(4):
        history = items[row, : length[row]].tolist()
        last = history[-keep[row] :]
        assert found.length[row] == len(last)
        assert found.items[row].tolist() == last + [0] * (5 - len(last))
        assert set(np.flatnonzero(hot[row])) == set(history)
    assert set(np.unique(hot)) == {0.0, 1.0}


@pytest.mark.parametrize("changes", [USERS, TIMED])
def test_a_profile_is_what_came_strictly_before(changes):
    """Of every row of every set, against the raw log: the last 6 events before."""
    rows = rows_of(np.random.default_rng(1))
    data = dataset(rows, changes)
    ids = np.asarray(data.info["item_ids"])
    allowed = {
        (tuple(h[max(at - 6, 0) : at]), h[at])
        for h in histories(rows).values()
        for at in range(1, len(h))
    }
    checked = 0
    for name in ("valid", "test"):
        for batch in held_out.batches(data, name, 16):
            found = profiles.example(jax.tree.map(jnp.asarray, batch))
            for row in np.flatnonzero(batch["weight"]):
                n = int(found.length[row])
                before = tuple(ids[np.asarray(found.items[row, :n])].tolist())
                assert (before, ids[int(found.action[row])].item()) in allowed
                checked += 1
    assert checked >= 10
    if changes is USERS:  # the very last and the one before, of each user
        last = {(tuple(h[-7:-1]), h[-1]) for h in histories(rows).values()}
        batch = next(held_out.batches(data, "test", 64))
        found = profiles.example(jax.tree.map(jnp.asarray, batch))
        for row in np.flatnonzero(batch["weight"]):
            n = int(found.length[row])
            before = tuple(ids[np.asarray(found.items[row, :n])].tolist())
            assert (before, ids[int(found.action[row])].item()) in last


def make(info, **changes):
    config = ConfigDict(profile.HPARAMS | dict(steps=100, batch_size=8))
    config.update(dict(dims=6, observe=(1, 3), width=16, num_layers=2, samples=2))
    config.encoder.width = 8
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return profile.make(FrozenConfigDict(config), info)


def jit(f):
    return jax.jit(f, compiler_options=dict(xla_backend_optimization_level=0))


def trained(data, steps=3, **changes):
    """The state of the profile stage after some updates: all that it makes of data."""
    method = make(data.info, **changes)
    batch = loader.host_batch(data, 8, np.uint32(0), 0)
    state = jit(lambda key: method.init(key, batch, {}))(jax.random.key(0))
    step = jit(method.train_step)
    for number in range(steps):
        batch = loader.host_batch(data, 8, np.uint32(0), number)
        state, _ = step(state, batch, jax.random.fold_in(jax.random.key(1), number))
    return state


def shuffled_ends(rows, generator):
    """The log with all held-out events (the last two of a user) dealt out anew."""
    place = {}
    for number, (user, _, time) in enumerate(rows):
        place.setdefault(user, []).append((time, number))
    ends = [n for times in place.values() for _, n in sorted(times)[-2:]]
    items = [rows[n][1] for n in ends]
    dealt = dict(zip(ends, generator.permutation(items).tolist()))
    return [
        (user, dealt.get(n, item), time) for n, (user, item, time) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "target", ["latent", pytest.param("multihot", marks=pytest.mark.slow)]
)
def test_held_out_items_enter_no_target_and_no_vector(target):
    """With validation and test items dealt out anew among the users everything that
    is trained is equal bit for bit; with a training item changed it is not."""
    rows = rows_of(np.random.default_rng(2))
    other = shuffled_ends(rows, np.random.default_rng(3))
    assert sum(a != b for a, b in zip(rows, other)) > 20
    one, two = dataset(rows), dataset(other)
    a, b = (trained(data, target=target) for data in (one, two))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (one.evals["test"]["item"] != two.evals["test"]["item"]).any()
    user, item, time = rows[0]
    changed = [(user, item % 20 + 1, time), *rows[1:]]
    first = make_parts(dataset(changed), target)
    assert any(
        (x != y).any() for x, y in zip(make_parts(one, target), first, strict=True)
    )


def make_parts(data, target):
    """The codec's arrays and the profiles of the training rows."""
    codec, _ = profiles.make_codec(target, 6, data.info)
    drawn = data.drawn["train"]
    batch = loader.gather(data.train, drawn, data.window, np)
    found = profiles.example(jax.tree.map(jnp.asarray, batch))
    hot = profiles.multi_hot(found.items, data.info["vocab"])
    return [np.asarray(x) for x in (*jax.tree.leaves(codec), hot)]


def test_what_happens_at_the_prediction_or_later_changes_no_sample():
    data = toy_sessions.dataset()
    method = make(data.info)
    batch = loader.host_batch(data, 8, np.uint32(0), 0)
    state = jit(lambda key: method.init(key, batch, {}))(jax.random.key(0))
    later = {k: np.array(v) for k, v in batch.items()}
    later["item"][:, -1] = later["item"][:, -1] % 20 + 1
    for name in ("next_item", "reward", "kind", "done", "remaining", "reward_to_go"):
        later[name][:, -1] = 0
    weight = dict(weight=np.ones(8, np.float32))
    evaluate = jit(lambda batch: method.eval_step(state, batch, jax.random.key(2)))
    one, two = evaluate(batch | weight), evaluate(later | weight)
    assert one.keys() == two.keys() and one["count"] > 0
    assert all(one[name] == two[name] for name in one)
    earlier = {k: np.array(v) for k, v in batch.items()}
    earlier["item"][:, -2] = earlier["item"][:, -2] % 20 + 1
    three = evaluate(earlier | weight)
    assert one["L1/latent_error"] != three["L1/latent_error"]


def test_the_codec_is_the_svd_of_the_training_profiles():
    info = toy_sessions.dataset(40).info
    codec, size = profiles.make_codec("latent", 5, info)
    item, step = info["train"]["item"], info["train"]["timestep"]
    hot = np.zeros((40, 128))
    hot[np.cumsum(step == 0) - 1, item] = 1.0
    matrix = hot / np.sqrt(hot.sum(1, keepdims=True))
    right = np.linalg.svd(matrix)[2][:5].T
    vectors = np.asarray(codec.vectors, np.float64)
    assert size == 5
    np.testing.assert_allclose(vectors @ vectors.T, right @ right.T, atol=1e-5)
    latent = matrix @ vectors
    np.testing.assert_allclose(codec.mean, latent.mean(0), atol=1e-5)
    x = np.asarray(codec.encode(jnp.asarray(hot, jnp.float32)))
    want = np.clip((latent - latent.mean(0)) / (3 * latent.std(0)), -1, 1)
    np.testing.assert_allclose(x, want, atol=1e-4)
    inside = (np.abs(x) < 1).all(1)
    back = np.asarray(codec.decode(jnp.asarray(x)))[inside]
    np.testing.assert_allclose(back, (matrix @ right @ right.T)[inside], atol=1e-4)


def test_multihot_knows_the_session():
    info = toy_sessions.dataset(40).info
    codec, size = profiles.make_codec("multihot", 5, info)
    assert size == 128
    session = profiles.Session(jnp.array([[3, 7, 0]]), jnp.array([2]))
    values, mask = codec.known(session)
    known = {i: float(values[0, i]) for i in np.flatnonzero(mask[0])}
    beyond = [0, *range(21, 128)]
    assert known == {3: 1.0, 7: 1.0} | dict.fromkeys(beyond, -1.0)
    assert codec.weight().sum() == 20
    hot = profiles.multi_hot(session.items, 128)
    np.testing.assert_array_equal(codec.decode(codec.encode(hot)), hot)


def test_recalls_by_loops():
    generator = np.random.default_rng(4)
    scores = generator.normal(size=(6, 64)).astype(np.float32)
    hidden = (generator.random((6, 64)) < 0.3) & (np.arange(6) > 0)[:, None]
    allowed = (generator.random((6, 64)) < 0.8) | hidden
    found = profile.recalls(*map(jnp.asarray, (scores, 1.0 * hidden, allowed)))
    for row in range(6):
        order = [i for i in np.argsort(-scores[row]) if allowed[row, i]]
        for k in profile.KS:
            hits = sum(bool(hidden[row, i]) for i in order[:k])
            want = hits / max(min(k, hidden[row].sum()), 1)
            assert found[k][row] == pytest.approx(want)


def test_energy_score_by_hand():
    """Samples 0 and 2 of the truth 1: E|x - s| = 1, E|x - x'| = 2."""
    x = jnp.array([[[0.0]], [[2.0]]])
    score, spread = profile.energy_score(x, jnp.ones((1, 1)))
    np.testing.assert_allclose([score[0], spread[0]], [0.0, 2.0], atol=1e-5)
    score, spread = profile.energy_score(x[:1], jnp.ones((1, 1)))
    np.testing.assert_allclose([score[0], spread[0]], [1.0, 0.0], atol=1e-5)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"target": "onehot"}, ["'onehot'", "multihot"]),
        ({"dims": 20}, ["dims=20", "19"]),
        ({"observe": (1, 9)}, ["observe=(1, 9)", "seq_len=5"]),
        ({"samples": 0}, ["samples=0"]),
        ({"generator.kind": "gan"}, ["'gan'", "vae"]),
        ({"generator.diffusion.steps": 101}, ["steps=101"]),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(UserError) as error:
        make(toy_sessions.dataset(40).info, **changes)
    assert all(word in str(error.value) for word in words)
