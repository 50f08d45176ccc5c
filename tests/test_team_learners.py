"""Learners of teams on the toy game: what they must compute, resume, and learn."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import experiment, program, seeds, sharding, train
from jaxrec.envs import episodes
from jaxrec.envs import teams as envs
from jaxrec.errors import Interrupted
from jaxrec.methods import METHODS, inference, mappo, qmix, team_ppo, team_q, teams
from jaxrec.models.team import Network
from jaxrec.types import UserError


@functools.cache
def team():
    return envs.make("meeting", "two_on_5")


def settings(hparams, **fields):
    small = dict(num_envs=8, chunk=8, replay=32, width=16, updates=2)
    small = {k: v for k, v in small.items() if k in hparams}
    return FrozenConfigDict(hparams | small | dict(steps=50, batch_size=8) | fields)


def blank(*args):
    return ()


def test_unrolling_is_stepping_with_forgetting():
    network = Network(3, 8)
    draw = np.random.default_rng(0)
    seen = jnp.asarray(draw.normal(size=(7, 2, 3, 5)), jnp.float32)
    fresh = jnp.asarray(draw.random((7, 2)) < 0.3)
    hidden = jnp.asarray(draw.normal(size=(2, 3, 8)), jnp.float32)
    params = network.init(jax.random.key(0), hidden, seen[0])
    found = network.apply(params, hidden, seen, fresh, method="unroll")
    for t in range(7):
        hidden = teams.forget(hidden, fresh[t])
        hidden = network.apply(params, hidden, seen[t], method="step")
        np.testing.assert_allclose(found[t], hidden, rtol=1e-5, atol=1e-6)
    assert fresh.any() and not fresh.all()


def test_a_gated_recurrent_unit_by_numpy():
    network = Network(3, 4)
    hidden, x = jnp.full((1, 4), 0.5), jnp.arange(5.0)[None] / 5
    params = network.init(jax.random.key(1), hidden, x)
    p = jax.tree.map(lambda a: np.asarray(a, float), params["params"])
    dense = lambda name, v: v @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h = np.asarray(hidden, float)
    of_x = dense("of_input", np.maximum(dense("encoder", np.asarray(x)), 0))
    of_h = dense("of_hidden", h)
    r = sigmoid(of_x[:, :4] + of_h[:, :4])
    u = sigmoid(of_x[:, 4:8] + of_h[:, 4:8])
    n = np.tanh(of_x[:, 8:] + r * of_h[:, 8:])
    wanted = (1 - u) * n + u * h
    found = network.apply(params, hidden, x, method="step")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        network.apply(params, found, method="head"), dense("out", wanted), rtol=1e-4
    )


@pytest.mark.parametrize("epsilon", [(1.0, 1.0), (0.0, 0.0)])
def test_actions_are_legal_and_greedy_or_not(epsilon):
    config = settings(qmix.HPARAMS, epsilon=epsilon, num_envs=32)
    host = team_q.make_host(config, team(), qmix.mixer(config, team()))
    state = jax.jit(host.init)(jax.random.key(0))
    state, chunk = jax.jit(lambda s, k: host.collect(s, k, blank))(
        state, jax.random.key(1)
    )
    view = teams.views(team(), chunk.state)
    legal = np.asarray(view.legal)[:-1]
    assert not legal.all()
    assert np.take_along_axis(legal, np.asarray(chunk.action)[..., None], -1).all()
    hidden = host.network.apply(
        state.params["utility"], chunk.hidden, view.observation, chunk.fresh,
        method="unroll",
    )  # fmt: skip
    q = host.network.apply(state.params["utility"], hidden, method="head")
    best = np.where(legal, q[:-1], -np.inf).argmax(-1)
    same = (best == np.asarray(chunk.action)).mean()
    assert same == 1 if epsilon[0] == 0 else same < 0.8


@pytest.mark.slow
def test_the_ratio_is_one_before_the_first_gradient_step():
    config = settings(mappo.HPARAMS, epochs=2)
    host = team_ppo.make_host(config, team(), mappo.critic(team()))
    state = jax.jit(host.init)(jax.random.key(0))
    step = jax.jit(lambda s, k: host.collect(s, k, blank))
    learn = jax.jit(lambda s, k, chunk: host.learn(s, k, blank, chunk))
    for number in range(3):
        state, chunk = step(state, jax.random.key(10 + number))
        after, metrics = learn(state, jax.random.key(20 + number), chunk)
        assert float(metrics["ratio_error"]) < 1e-6
        # Another policy's probabilities are noticed.
        seen = chunk.seen | dict(log_prob=chunk.seen["log_prob"] + 0.1)
        _, metrics = learn(
            state, jax.random.key(20 + number), chunk._replace(seen=seen)
        )
        assert float(metrics["ratio_error"]) > 0.05
        state = after


def closed(opened):
    """An inference that imagines noise, with its gate shut or not."""
    from flax import linen as nn

    class Extract(nn.Module):
        @nn.compact
        def __call__(self, imagined, hidden):
            return nn.Dense(4)(jnp.concatenate([imagined, hidden], -1))

    return inference.Inference(
        blank=lambda games: jnp.zeros((games, 2, 3)),
        extractor=Extract(),
        opened=lambda step: opened,
    )


@pytest.mark.slow
def test_states_imagined_anew_are_of_another_policy():
    """On another draw than was acted on the ratio is not one: so draws are kept."""

    def noise(key, states, view, hidden):
        return jax.random.normal(key, (*hidden.shape[:2], 3))

    config = settings(mappo.HPARAMS)
    host = team_ppo.make_host(config, team(), mappo.critic(team()), closed(1.0))
    state = jax.jit(host.init)(jax.random.key(0))
    state, chunk = jax.jit(lambda s, k: host.collect(s, k, noise))(
        state, jax.random.key(1)
    )
    learn = jax.jit(lambda chunk: host.learn(state, jax.random.key(2), noise, chunk))
    assert float(learn(chunk)[1]["ratio_error"]) < 1e-6
    kept = chunk.seen["imagined"]
    anew = chunk.seen | dict(imagined=jax.random.normal(jax.random.key(3), kept.shape))
    found = learn(chunk._replace(seen=anew))[1]["ratio_error"]
    assert float(found) > 1e-4


def test_a_closed_gate_is_the_host_to_the_bit():
    config = settings(qmix.HPARAMS, epsilon=(0.3, 0.3))
    mixer = qmix.mixer(config, team())
    plain = team_q.make_host(config, team(), mixer)
    state = jax.jit(plain.init)(jax.random.key(0))
    alone = jax.jit(lambda s, k: plain.collect(s, k, blank))(state, jax.random.key(1))

    def noise(key, states, view, hidden):
        return jax.random.normal(key, (*hidden.shape[:2], 3))

    for opened in (0.0, 1.0):
        host = team_q.make_host(config, team(), mixer, closed(opened))
        mine = jax.jit(host.init)(jax.random.key(0))
        utility = mine.params["utility"]["params"] | state.params["utility"]["params"]
        mine = mine.replace(params=state.params | dict(utility={"params": utility}))
        both = jax.jit(lambda s, k: host.collect(s, k, noise))(  # noqa: B023
            mine, jax.random.key(1)
        )
        hidden = jnp.ones((2, 2, 16))
        heads = [
            host.network.apply(
                {"params": utility}, hidden, jnp.ones((2, 2, 3)), opened, method="head"
            ),
            plain.network.apply(state.params["utility"], hidden, method="head"),
        ]
        same = (np.asarray(heads[0]) == np.asarray(heads[1])).all()
        assert same == (opened == 0)
        if not opened:
            chex.assert_trees_all_equal(alone[1].action, both[1].action)
            assert (np.asarray(both[1].seen) != 0).all()


def build(method, steps, num_seeds=1, game="two_on_5", **fields):
    """The stage of a smoke run of the method on the toy game."""
    name = "mappo" if "ppo" in method else "qmix"
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    config.data.update(source="meeting", name=game)
    config.train.method, config.num_seeds = method, num_seeds
    config.mesh = dict(data=1, model=1)
    config.train[method].update(fields)
    config.train.update(steps=steps, log_every=5, eval_every=0, checkpoint_every=0)
    config = experiment.resolve(ConfigDict(config))
    return experiment.build(config, "train", sharding.make_mesh(1, 1), {})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qmix", "mappo"])
def test_twenty_five_and_thirty_five_are_sixty(tmp_path, method):
    stage = build(method, 60)
    whole, _ = train.train(stage, tmp_path / "whole", {}, {}, lambda: 0)
    looks = iter(range(1, 100))
    stop = lambda: 15 if next(looks) == 5 else 0  # noqa: E731
    assert program.steps_per_call(stage.config) == 5
    with pytest.raises(Interrupted, match="saved at step 25"):
        train.train(stage, tmp_path / "parts", {}, {}, stop)
    parts, _ = train.train(stage, tmp_path / "parts", {}, {}, lambda: 0)
    chex.assert_trees_all_equal(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vdn", "mappo"])
def test_seeds_in_one_program_are_the_runs_alone(tmp_path, method):
    stage = build(method, 5, num_seeds=2)
    many, _ = train.train(stage, tmp_path / "many", {}, {}, lambda: 0)
    for number in range(2):
        alone = build(method, 5)._replace(seed=number)
        one, _ = train.train(alone, tmp_path / str(number), {}, {}, lambda: 0)
        picked = seeds.pick(many, number, 2)
        chex.assert_trees_all_close(one.params, picked.params, rtol=1e-3, atol=1e-5)
        chex.assert_trees_all_equal(
            one.extra.games.state.pos, picked.extra.games.state.pos
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["indep_q", "vdn", "qmix", "qplex", "mappo", "ippo"])
def test_the_toy_game_is_learnt(tmp_path, method):
    """Random play wins 0.70 of the games (exact); the learners nearly all."""
    fields = dict(num_envs=16, width=32, optim=dict(lr=2e-3))
    if "ppo" not in method:
        # A late win is worth gamma less a step: at 0.99 that is all in the noise.
        fields |= dict(replay=512, gamma=0.8)
    stage = build(method, 150, game="two_on_9", **fields)
    state, _ = train.train(stage, tmp_path / "run", {}, {}, lambda: 0)
    make, game = METHODS[method], envs.make("meeting", "two_on_9")
    config = FrozenConfigDict(
        stage.config[method].to_dict() | dict(steps=150, batch_size=32)
    )
    found = make(config, stage.dataset.info)
    act = lambda seen, key: found.act(state, seen, key)  # noqa: E731
    played = jax.jit(lambda key: episodes.play(game, act, found.memory(200), 200, key))(
        jax.random.key(5)
    )
    assert episodes.summary(played)["win_rate"] > 0.9


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(replay=12), "replay=12: it must be a multiple of the 8 rows"),
        (dict(updates=0), "updates is 0: must be positive"),
        (dict(target_every=-1), "target_every is -1"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    config = settings(qmix.HPARAMS, **fields)
    with pytest.raises(UserError, match=message):
        team_q.make_host(config, team(), qmix.mixer(config, team()))


def test_more_refusals():
    config = settings(mappo.HPARAMS, minibatches=3)
    with pytest.raises(UserError, match="minibatches=3 must divide num_envs=8"):
        team_ppo.make_host(config, team(), mappo.critic(team()))
    with pytest.raises(UserError, match="qmix learns by playing .* battle_city"):
        METHODS["qmix"](settings(qmix.HPARAMS), dict(name="toy"))
