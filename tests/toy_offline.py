"""BC, TD3+BC, IQL, CQL and MCQ, small, on rows of random numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.methods import bc, cql, iql, mcq, td3bc

MODULES = dict(bc=bc, td3bc=td3bc, iql=iql, cql=cql, mcq=mcq)
CRITICS = ("td3bc", "iql", "cql", "mcq")
OD, AD, B = 4, 2, 32
INFO = dict(
    observation_size=OD,
    action_size=AD,
    observation_mean=np.full(OD, 0.5, np.float32),
    observation_std=np.full(OD, 2.0, np.float32),
    return_min=0.0,
    return_max=17.0,
)


# Settings that suit every test below, so that each method compiles once.
EASY = dict(cql=dict(weight=0.02), iql=dict(return_range=17.0), mcq=dict(vae_width=32))


def make(name, **overrides):
    config = ConfigDict(MODULES[name].HPARAMS)
    config.update(dict(widths=(32, 32), steps=1000, batch_size=B))
    for field in config:
        if field.endswith("optim"):
            config[field].lr = 3e-3
    config.update(EASY.get(name, {}))
    config.update(overrides)
    return MODULES[name].make(FrozenConfigDict(config), INFO)


def batch_of(seed=0, rows=B):
    draw = np.random.default_rng(seed)
    arrays = dict(
        observation=draw.normal(size=(rows, OD)),
        action=draw.uniform(-1, 1, size=(rows, AD)),
        reward=draw.normal(size=rows),
        next_observation=draw.normal(size=(rows, OD)),
        terminal=draw.uniform(size=rows) < 0.2,
        valid_next=np.ones(rows),
        weight=np.ones(rows),
    )
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


@functools.cache
def started(name):
    method = make(name)
    state = jax.jit(method.init)(jax.random.key(0), batch_of(), {})
    return method, state, jax.jit(method.train_step)


def step_once(name, state, batch, key=1):
    return started(name)[2](state, batch, jax.random.key(key))


def distance(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in leaves)
