"""Tabular users: SQN's value head approaches Q*, EVAL's that of the logging policy."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec import experiment, program, sharding, train
from jaxrec.envs import tabular_users
from jaxrec.methods import recommender
from jaxrec.models import recommender as networks

GAMMA = 0.5


def learned(name, tmp_path_factory, steps):
    """Q [N + 1, N + 1] by the value head after `steps`; row 0 is the empty history."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.update(mode="tabular", num_users=30_000, preset="paper")
    config.data.update(seq_len=1, data_dir=str(tmp_path_factory.getbasetemp() / "tab"))
    config.train.update(steps=steps, log_every=500, eval_every=0, evals=())
    config.train.update(checkpoint_every=0, steps_per_call=500)
    config.train[name].optim.update(lr=3e-3, schedule="cosine")
    config.mesh = dict(data=1, model=1)
    config = experiment.resolve(config)
    folder = tmp_path_factory.mktemp(f"{name}-{steps}")
    stage = experiment.build(config, "train", sharding.make_mesh(1, 1), {})
    assert isinstance(stage, program.Stage)
    state, _ = train.train(stage, folder, {}, {}, lambda: 0)
    info, hparams = stage.dataset.info, ConfigDict(stage.config[name].to_dict())
    np.testing.assert_array_equal(info["item_ids"], np.arange(info["num_items"] + 1))
    network = networks.make(hparams, info, q_heads=0)
    items = jnp.arange(info["num_items"] + 1)[:, None]
    length = (items[:, 0] > 0).astype(jnp.int32)
    x = recommender.state_of(network, state.params, items, length)
    q = recommender.apply(network, state.params, "q", x)
    return np.asarray(jax.device_get(q))[:, : info["num_items"] + 1]


def rms(q, exact):
    return np.sqrt(np.mean((q - exact)[:, 1:] ** 2))


@pytest.mark.slow
def test_values_approach_the_exact_ones(tmp_path_factory):
    tables = tabular_users.tables()
    best = tabular_users.optimal_q(tables, GAMMA)
    logged = tabular_users.policy_q(tables, GAMMA)
    assert (best >= logged)[:, 1:].all()
    apart = rms(logged, best)
    early, late = (learned("sqn", tmp_path_factory, n) for n in (500, 6_000))
    assert rms(late, best) < rms(early, best)
    assert rms(late, best) < 0.4 * rms(late, logged)
    assert np.corrcoef(late[:, 1:].ravel(), best[:, 1:].ravel())[0, 1] > 0.9
    sarsa = learned("eval", tmp_path_factory, 6_000)
    assert rms(sarsa, logged) < 0.4 * rms(sarsa, best)
    print(f"{apart:.3f}: {rms(late, best):.3f}, {rms(sarsa, logged):.3f}")
