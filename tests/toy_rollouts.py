"""MOPO and COMBO, small, in a world model that is the true toy system."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import toy_world
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import loader
from jaxrec.methods import combo, mopo
from jaxrec.methods.world_model import Prediction, WorldModel

MODULES = dict(mopo=mopo, combo=combo)
B, H = 32, 3
PENALTY = 1000.0  # of a model that is sure of itself
SMALL = dict(widths=(16,), steps=1000, batch_size=B, rounds=4, horizon=H)


@functools.cache
def data():
    return toy_world.dataset(0)


@functools.cache
def batch_of(step=0):
    batch = loader.host_batch(data(), B, np.uint32(0), step)
    return jax.tree.map(jnp.asarray, batch)


def world(sigma=1e-3, terminal=None):
    """(WorldModel, state): the true toy system, with a standard deviation of its own.

    terminal: (s, a) -> logit, or None.
    """
    exact, state = toy_world.linear(data(), spread=(0.0, 0.0))

    def predict(state, window):
        found = exact(state, window)
        E, rows, od = found.mean.shape
        log_vars = jnp.full((E, rows, od + 1), 2 * np.log(sigma))
        logit = None
        if terminal is not None:
            s, a = window["observation"][:, -1], window["action"][:, -1]
            logit = jnp.broadcast_to(terminal(s, a)[None], (E, rows))
        return Prediction(found.mean, log_vars, found.reward, logit)

    config = FrozenConfigDict(dict(predict_terminal=terminal is not None))
    return WorldModel(None, None, predict=predict, config=config), state


def settings(name, **overrides):
    config = ConfigDict(MODULES[name].HPARAMS | SMALL)
    for field in config:
        if field.endswith("optim"):
            config[field].lr = 3e-3
    config.update(dict(num_actions=2) if name == "combo" else dict(penalty=PENALTY))
    config.update(overrides)
    return FrozenConfigDict(config)


def make(name, model=None, **overrides):
    info = data().info | dict(stages=dict(world=(None, model or world()[0])))
    return MODULES[name].make(settings(name, **overrides), info)


def init(method, key=0):
    earlier = dict(world=world()[1])
    return jax.jit(method.init)(jax.random.key(key), batch_of(), earlier)


@functools.cache
def started(name):
    method = make(name)
    return method, init(method), jax.jit(method.train_step)
