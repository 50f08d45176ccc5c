"""The toy data, and a world model of it that needs no training."""

import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import toy, trajectories
from jaxrec.methods import imagination, world_model
from jaxrec.methods.world_model import Extra, Prediction
from jaxrec.types import TrainState


def settings(**changes):
    model = dict(members=3, predict_terminal=False)
    return FrozenConfigDict(model | imagination.HPARAMS | changes)


def dataset(window, rows=1230, valid_fraction=0.1):
    config = dict(rows=rows, seed=0, top=1.0, valid_fraction=valid_fraction)
    config = ConfigDict(config | {"window": window})
    return trajectories.dataset(toy.load(config), config)


class Policy:
    """What produce needs of an earlier stage."""

    memory = None

    @staticmethod
    def act(state, observation, key):
        return state.params * observation[:, :2]


def linear(dataset, spread=(-0.1, 0.0, 0.1)):
    """predict, state: the true toy system; members differ by a share of |a|."""
    agent = TrainState(jnp.zeros((), jnp.int32), jnp.float32(-0.5), None)
    scales = world_model.scales(dataset.info)
    state = TrainState(
        jnp.zeros((), jnp.int32), jnp.asarray(spread), None, extra=Extra(scales, agent)
    )

    def predict(state, window):
        s, a = window["observation"][:, -1], window["action"][:, -1]
        following, reward = toy.step(s, a)
        delta = state.extra.scales.delta(s, following)[None]
        size = jnp.sum(jnp.abs(a), axis=-1)[None, :]
        shift = state.params[:, None] * size
        mean = delta * (1 + shift[..., None])
        return Prediction(mean, mean * 0 - 2, reward[None] + shift, None)

    return predict, state
