"""The session world: data, network, simulation, what a recommender gets of it."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import embedding_policy, otto_rec
from jaxrec import experiment
from jaxrec.data import loader
from jaxrec.data.recommender import simulated_users
from jaxrec.errors import UserError
from jaxrec.methods import METHODS, session_events, session_imagination, world_sources
from jaxrec.models.session_world import OUTCOMES, SessionWorld
from jaxrec.types import Dataset, Mix

NUM_USERS, USERS = 300, dict(num_items=60)  # every item occurs in training


@functools.cache
def data_dir():
    return tempfile.mkdtemp(prefix="jaxrec-otto-rec-")


def smoke(arg="smoke", **world) -> ConfigDict:
    config = otto_rec.get_config(arg)
    config.data.update(data_dir=data_dir(), num_users=NUM_USERS, users=USERS)
    config.eval.users = 20
    config.mesh = dict(data=1, model=1)
    config.world.session_world.update(
        **dict(width=16, num_layers=1, num_heads=2, generated=0.2, horizon=4) | world
    )
    for stage in config.stages:
        config[stage].update(steps=4, batch_size=16, steps_per_call=2)
        config[stage].update(log_every=2, eval_every=0, checkpoint_every=0)
    return config


def method_of(section, dataset):
    """The method of a stage's section."""
    hparams = section[section.method].to_dict()
    hparams |= dict(steps=section.steps, batch_size=section.batch_size)
    return METHODS[section.method](FrozenConfigDict(hparams), dataset.info)


def begin(method, dataset, earlier):
    """The state at step 0."""
    batch = loader.host_batch(dataset, 16, np.uint32(0), 0)
    return jax.jit(method.init)(jax.random.key(0), batch, earlier)


@functools.cache
def built(**world):
    """The section of the world stage, its data, its method, a state."""
    section = smoke(**world).world
    dataset = both_views()[2]
    method = method_of(section, dataset)
    return section, dataset, method, begin(method, dataset, {})


@functools.cache
def both_views():
    config = ConfigDict(smoke().data.to_dict())
    events = simulated_users(config)
    config.update(otto_rec.WORLD_VIEW)
    return config, events, simulated_users(config)


def test_states_are_causal_and_blind_to_what_is_after():
    network = SessionWorld(128, 100, 16, 2, 2, length=8)
    items = jax.random.randint(jax.random.key(0), (3, 8), 1, 101)
    kinds = jax.random.randint(jax.random.key(1), (3, 8), 0, 3)
    params = network.init(jax.random.key(2), items, kinds)
    states = functools.partial(network.apply, params, method="states")
    x = states(items, kinds)
    y = states(items.at[:, 5].set(7), kinds.at[:, 5].set(0))
    np.testing.assert_allclose(x[:, :6], y[:, :6], atol=1e-6)
    assert np.abs(x[:, 6:] - y[:, 6:]).max(axis=(0, 2)).min() > 1e-4
    whole = network.apply(params, x[:, 3], method="outcomes")
    assert whole.shape == (3, OUTCOMES, 128)
    few = network.apply(params, x[:, 3], items[:, 0], method="outcomes_at")
    np.testing.assert_allclose(few, whole[np.arange(3), :, items[:, 0]], atol=1e-5)


def test_auc_counts_pairs():
    score = np.array([0.1, 0.4, 0.4, 0.8, 0.9, 0.5])
    positive = np.array([False, True, False, True, False, True])
    weight = np.array([1.0, 1, 1, 1, 0, 1])
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in range(6)
        for j in range(6)
        if weight[i] and weight[j] and positive[i] and not positive[j]
    ]
    found = session_events.auc(*map(jnp.asarray, (score, positive, weight)))
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-6)
    nothing = session_events.auc(*map(jnp.asarray, (score, positive & False, weight)))
    assert nothing == 0.5


def test_history_holds_the_last_events():
    items = jnp.array([[3, 4, 5, 6, 7, 8], [9, 0, 0, 0, 0, 0]])
    kinds = jnp.array([[0, 2, 1, 2, 0, 0], [2, 0, 0, 0, 0, 0]])
    length = jnp.array([5, 1])
    seen, count, total = session_events.history(items, kinds, length, 2)
    np.testing.assert_array_equal(seen, [[5, 7], [0, 0]])
    np.testing.assert_array_equal(count, [2, 0])
    np.testing.assert_array_equal(total, [3, 0])
    seen, count, _ = session_events.history(items, kinds, length, 4)
    np.testing.assert_array_equal(seen, [[3, 5, 7, 0], [0, 0, 0, 0]])


def test_columns_are_those_of_a_recommender():
    """Two sessions: one that left, one that was cut; one without a new event is out."""
    found = dict(
        items=np.array([[3, 4, 5, 6], [7, 8, 9, 0], [1, 2, 0, 0]]),
        kinds=np.array([[0, 2, 1, 0], [1, 0, 2, 0], [0, 2, 0, 0]]),
        length=np.array([4, 3, 2]),
        left=np.array([True, False, True]),
    )
    info = dict(rewards=(0.2, 1.0), protocol=dict(score_first_event=False))
    rows = session_events.columns(found, np.array([1, 0, 1]), info)
    expected = dict(
        item=[3, 5, 6, 7, 8],
        kind=[0, 1, 0, 1, 0],
        reward=[0.2, 1.0, 0.2, 1.0, 0.2],
        timestep=[0, 1, 2, 0, 1],
        next_item=[5, 6, 0, 8, 0],
        done=[0, 0, 1, 0, 0],
        reward_to_go=[1.4, 1.2, 0.2, 1.2, 0.2],
        remaining=[2, 1, 0, 1, 0],
        drawn=[False, True, True, False, True],
    )
    assert set(rows) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-6, err_msg=name)
    train = dict(kind=np.array([0, 1, 2, 2, 0]))
    facts = session_events.facts(rows, info | dict(train=train))
    expected = dict(sessions=2, events=3, items=3, ended=0.5, purchases=1 / 3)
    assert facts == pytest.approx(expected | dict(data_purchases=1 / 3))
    info["protocol"]["score_first_event"] = True
    rows = session_events.columns(found, np.array([1, 0, 1]), info)
    np.testing.assert_array_equal(rows["drawn"], [False, True, True, True, True])


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_mix_draws_only_its_drawn_rows(seeds):
    flags = np.array(
        [[False, True, True, False, True], [True, False, False, True, True]]
    )
    item = np.arange(10).reshape(2, 5) + 100
    timestep = np.tile([0, 1, 2, 0, 1], (2, 1))
    pick = (lambda x: x[0]) if seeds == 1 else (lambda x: x)
    columns = dict(item=pick(item), timestep=pick(timestep), drawn=pick(flags))
    real = dict(item=np.arange(6), timestep=np.zeros(6, int))
    dataset = Dataset(real, {}, {}, 2, mix=(Mix(columns, 0.5, seeds > 1),))
    order = np.arange(seeds, dtype=np.uint32) if seeds > 1 else np.uint32(0)
    for seed in range(seeds):
        seen = set()
        for step in range(20):
            batch = loader.host_batch(dataset, 4, order, step)
            batch = {k: v[seed] if seeds > 1 else v for k, v in batch.items()}
            assert "drawn" not in batch
            seen |= set(batch["item"][2:, -1].tolist())
        assert seen == set(item[seed][flags[seed]].tolist())


def simulation(monkeypatch, duplicate=False, **world):
    """(begun, planned, a function of theta and key that continues them)."""
    section, dataset, method, state = built(**world)
    if duplicate:
        same = jax.tree.map(lambda x: jnp.stack([x[0]] * len(x)), state.params)
        state = state.replace(params=same)
    monkeypatch.setattr(session_imagination, "imagine", lambda simulate, *_: simulate)
    simulate = method.produce(state, dataset, jax.random.key(0))
    rows, window = dataset.train, dataset.window
    sources = world_sources.episodes(rows, "reward_to_go")
    first, length = sources["first"][:40], sources["length"][:40]
    start = np.minimum(np.arange(40) % 7, length - 1)
    begun = session_events.beginnings(rows, first, start, window)
    step = start[:, None] + np.arange(section.session_world.horizon)
    row = first[:, None] + np.minimum(step, length[:, None] - 1)
    planned = np.where(step < length[:, None], rows["item"][row], 0).astype(np.int32)

    def run(theta, key=1):
        key = jax.random.key(key)
        return jax.device_get(simulate(begun, planned, jnp.float32(theta), key))

    return begun, planned, run


def test_simulations_continue_real_beginnings_with_new_items(monkeypatch):
    begun, _, run = simulation(monkeypatch)
    found = run(np.inf)
    num_items = both_views()[2].info["num_items"]
    for row, start in enumerate(begun["length"]):
        items, end = found["items"][row], found["length"][row]
        np.testing.assert_array_equal(items[:start], begun["items"][row, :start])
        new, happens = items[start:end].tolist(), found["happens"][row]
        assert (items[end:] == 0).all() and min(new) > 0 and max(new) <= num_items
        assert len(set(new)) == len(new) and not set(new) & set(items[:start].tolist())
        assert happens[: end - start].all() and not happens[end - start :].any()
        assert found["left"][row] or end - start == happens.size
    assert 0 < found["left"].mean() < 1
    assert (run(np.inf, key=2)["items"] != found["items"]).any()


def test_the_evaluator_truncates_or_relabels_steps_of_low_confidence(monkeypatch):
    begun, _, run = simulation(monkeypatch)
    free, none = run(np.inf), run(-1.0)
    assert not free["low"].any()
    np.testing.assert_array_equal(none["length"], begun["length"])
    assert none["low"][:, 0].all() and not none["happens"].any()
    _, _, run = simulation(monkeypatch, correction="relabel")
    worst = run(-1.0)
    assert worst["happens"][:, 0].all() and worst["low"][:, 0].all()
    # The same first item, but what the member says that expects the least of it.
    assert (worst["reward"][:, 0] < free["reward"][:, 0]).all()
    _, _, run = simulation(monkeypatch, duplicate=True)
    assert not run(0.0)["low"].any()


def test_sources_are_followed(monkeypatch):
    begun, planned, run = simulation(monkeypatch, follow=1.0)
    found = run(np.inf)
    for row, start in enumerate(begun["length"]):
        left = min((planned[row] > 0).sum(), found["length"][row] - start)
        np.testing.assert_array_equal(
            found["items"][row, start : start + left], planned[row, :left]
        )


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="do not say what users passed over"):
        method_of(smoke().world, both_views()[1])
    for field, value in (
        ("rule", "best"),
        ("correction", "drop"),
        ("candidates", 0),
        ("quantile", 0.0),
        ("policy_stage", "world"),
    ):
        with pytest.raises(UserError, match=field.replace("_", ".")):
            built.__wrapped__(**{field: value})


@pytest.mark.slow
def test_the_whole_run_with_a_proposing_recommender(tmp_path):
    """The stages of a study; the recommender without imagined rows proposes them."""
    config = smoke("sqn", rule="policy", policy_stage="sqn")
    config.stages = ("sqn", "world", "sqn_otto")
    config.world.uses = ("sqn",)
    for stage in ("sqn", "sqn_otto"):
        config[stage].sqn.encoder.width = 16
    summary = experiment.run(config, tmp_path / "run")["stages"]
    assert np.isfinite(summary["sqn_otto"]["last"]["users/reward"])
    assert 0 < summary["world"]["last"]["valid/auc"] < 1


def test_the_embedding_policy_serves_the_most_valued_of_the_nearest():
    config = embedding_policy.get_config("smoke")
    config.data.update(data_dir=data_dir(), num_users=NUM_USERS, users=USERS)
    config.encoder.ce.encoder.width = 16
    config.train.embedding_policy.update(widths=(16, 16), nearest=4)
    dataset = both_views()[1]
    encoder = method_of(config.encoder, dataset)
    earlier = {"encoder": begin(encoder, dataset, {})}
    dataset.info["stages"] = {"encoder": (config.encoder, encoder)}
    method = method_of(config.train, dataset)
    state = begin(method, dataset, earlier)
    batch = loader.host_batch(dataset, 16, np.uint32(0), 0)
    after, metrics = jax.jit(method.train_step)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"]) and int(after.step) == 1
    for frozen in ("network", "items"):
        jax.tree.map(
            np.testing.assert_array_equal, state.extra[frozen], after.extra[frozen]
        )
    length = jnp.array([2, 0, 1])
    items = jnp.zeros((3, dataset.info["seq_len"]), jnp.int32).at[0, :2].set(3)
    items = items.at[2, 0].set(9)
    y = np.asarray(method.scores(state, items, length, length))
    assert (np.sort(y, axis=1)[:, -4:] >= 2).all()
    assert (np.sort(y, axis=1)[:, :-4] <= 1 + 1e-5).all()
    num_items = dataset.info["num_items"]
    assert np.isneginf(y[:, 0]).all() and np.isneginf(y[:, num_items + 1 :]).all()
    rows = np.linalg.norm(state.extra["items"], axis=-1)[1 : num_items + 1]
    np.testing.assert_allclose(rows, 1, rtol=1e-5)
