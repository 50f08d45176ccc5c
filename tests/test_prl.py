"""PRL: the prompted return leads what is recommended."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recommenders as toy
import toy_sessions
from ml_collections import ConfigDict
from toy_recommenders import apart, batch_of, data, make, run, start

from jaxrec import experiment, recommender_evaluators, sharding, train
from jaxrec.methods import ce, prl
from jaxrec.types import TrainState, UserError


def test_prl_without_its_prompt_is_cross_entropy():
    one, two = make(ce), make(prl, prompt="off")
    base = start(one)
    other = start(two).replace(params=dict(network=base.params))
    a, b = run(one, base, 3)[0][-1], run(two, other, 3)[0][-1]
    assert apart(a.params, b.params["network"]) < 2e-6


def two_kinds(num_sessions=300):
    """Sessions of four events: a first one that tells nothing, then purchases alone
    (items 11 to 20) or clicks alone (1 to 10)."""
    draw = np.random.default_rng(5)
    buys = draw.integers(2, size=num_sessions)
    item = 1 + draw.integers(10, size=(num_sessions, 4)) + 10 * buys[:, None]
    item[:, 0] = draw.integers(1, 21, num_sessions)
    kind = np.repeat(buys[:, None], 4, 1)
    kind[:, 0] = 0
    reward = np.where(kind == 1, 1.0, 0.2).astype(np.float32)
    to_go = np.cumsum(reward[:, ::-1], 1)[:, ::-1]
    place = np.tile(np.arange(4, dtype=np.int32), (num_sessions, 1))
    after = np.pad(item[:, 1:], ((0, 0), (0, 1)))
    columns = dict(item=item, next_item=after, kind=kind, timestep=place)
    columns = {k: v.astype(np.int32) for k, v in columns.items()}
    columns |= dict(remaining=3 - place, reward=reward, reward_to_go=to_go)
    columns |= dict(done=(place == 3).astype(np.float32))
    train = {k: np.ascontiguousarray(v).reshape(-1) for k, v in columns.items()}
    info = data().info | dict(
        mean_return=to_go.mean(0).astype(np.float32),
        item_count=np.bincount(train["item"], minlength=toy_sessions.VOCAB),
        num_rows=len(train["item"]),
        train=train,
    )
    return data()._replace(train=train, info=info)


def test_prl_is_led_by_its_prompt():
    """A higher prompted return raises the share of purchases among recommendations."""
    dataset = two_kinds()
    options = dict(info=dataset.info, optim=dict(lr=1e-2), prompt_dropout=0.1)
    method = toy.build(prl, **options)
    batch = lambda step: batch_of(step, dataset)  # noqa: E731
    init = toy.jit(lambda key: method.init(key, batch(0), {}))
    state, loss = toy.train(method, init(jax.random.key(0)), 300, batch)
    assert loss[-20:].mean() < loss[:5].mean()
    items = jnp.zeros((20, toy_sessions.SEQ_LEN), jnp.int32)
    items = items.at[:, 0].set(jnp.arange(1, 21))
    ones = jnp.ones(20, jnp.int32)

    def share(mu):
        ranks = toy.jit(toy.build(prl, prompt_mu=mu, **options).scores)
        scores = ranks(state, items, ones, ones)
        np.testing.assert_array_equal(scores, ranks(state, items, ones, ones))
        return np.mean(np.argmax(np.asarray(scores), axis=1) > 10)

    assert share(2.0) > 0.9 and share(0.5) < 0.1


def test_what_is_prompted(monkeypatch):
    """R = N(mu, std) mean_R[t], or N(mu, std) itself; a draw belongs to its history."""
    found = []
    nothing = lambda *_: jnp.zeros((4, toy_sessions.VOCAB))  # noqa: E731
    monkeypatch.setattr(prl.recommender, "state_of", nothing)
    monkeypatch.setattr(prl.recommender, "apply", nothing)
    monkeypatch.setattr(
        prl.networks.Prompt, "apply", lambda _, p, x, t, R, *a, **k: found.append(R)
    )
    mean = jnp.asarray(data().info["mean_return"])
    params = dict(network=None, prompt=None)
    state = TrainState(jnp.int32(0), params, None, extra=mean)
    items = jnp.arange(4 * toy_sessions.SEQ_LEN).reshape(4, -1) % 20 + 1
    items = items.at[3].set(items[0])
    length, step = jnp.full(4, toy_sessions.SEQ_LEN), jnp.array([1, 2, 3, 10**6])
    mean = mean[jnp.array([1, 2, 3, -1])]

    def wanted(**options):
        found.clear()
        toy.build(prl, **options).scores(state, items, length, step)
        return np.asarray(found[-1])

    np.testing.assert_allclose(wanted(), 2 * mean, rtol=1e-6)
    np.testing.assert_allclose(wanted(prompt_norm="none"), 2.0)
    drawn = wanted(prompt_norm="none", prompt_std=0.5)
    np.testing.assert_allclose(drawn, 2 + 0.5 * np.asarray(prl.noise(items)), rtol=1e-6)
    assert drawn[0] == drawn[3] and len(set(drawn.tolist())) == 3
    np.testing.assert_allclose(wanted(prompt_std=0.5), drawn * mean, rtol=1e-6)
    many = np.asarray(prl.noise(jnp.arange(4000).reshape(2000, 2)))
    assert abs(many.mean()) < 0.1 and abs(many.std() - 1) < 0.1
    with pytest.raises(UserError, match="prompt_norm 'mean' is unknown"):
        toy.build(prl, prompt_norm="mean")


@pytest.mark.slow
def test_a_higher_prompt_sells_more_to_simulated_users(tmp_path):
    config = importlib.import_module("configs.prl").get_config()
    config.data.update(num_users=8_000, data_dir=str(tmp_path / "data"))
    config.train.update(steps=3_000, log_every=500, eval_every=0, checkpoint_every=0)
    config.train.prl.encoder.width = 32
    config.train.evals = ()
    config.mesh = dict(data=1, model=1)
    config.eval.users = 1_000
    config = experiment.resolve(config)
    mesh = sharding.make_mesh(1, 1)
    stage = experiment.build(config, "train", mesh, {})
    state, _ = train.train(stage, tmp_path, {}, {}, lambda: 0)
    found = {}
    for mu in (0.5, 2.0):
        hparams = ConfigDict(config.train.prl.to_dict() | dict(steps=1, prompt_mu=mu))
        method = prl.make(hparams, stage.dataset.info)
        found[mu] = recommender_evaluators.users(config, method, stage.dataset)(
            state, None
        )
    low, high = found[0.5], found[2.0]
    error = np.hypot(low["users/reward_std"], high["users/reward_std"]) / 1_000**0.5
    assert high["users/reward"] > low["users/reward"] + 2 * error
    assert high["users/purchases"] > 1.1 * low["users/purchases"]
    share = [
        f["users/purchases"] / (f["users/purchases"] + f["users/clicks"])
        for f in (low, high)
    ]
    assert share[1] > share[0]
