"""Simulated trajectories of the toy data by an untrained world model."""

import jax
from toy_world import Policy, linear, settings

from jaxrec.methods import (
    imagination,
)

K = 4
MADE = {}  # settings -> produce: compiled once for the tests that share them


def produce(dataset, spread=(-0.1, 0.0, 0.1), key=0, **changes):
    predict, state = linear(dataset, spread)
    info = dict(dataset.info, stages={"agent": (None, Policy)})
    changes = (
        dict(generated=0.3, horizon=6, quantile=0.9, action_rule="noise") | changes
    )
    label = tuple(sorted(changes.items()))
    if label not in MADE:
        config = settings(**changes)
        MADE[label] = imagination.make_produce(config, info, predict, K)
    return MADE[label](state, dataset, jax.random.key(key))
