"""Recommenders on the toy sessions, with programs that tests share.

Compiling is what these tests cost, so a step is compiled once for all of them, and with
few optimisations.
"""

import functools

import jax
import numpy as np
import toy_sessions
from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec.data import loader

BATCH = 16
NEVER = 10**6


@functools.cache
def data():
    return toy_sessions.dataset()


def build(module, function="make", info=None, **changes):
    config = ConfigDict(module.HPARAMS | dict(steps=100, batch_size=BATCH))
    config.encoder.width = 16
    config.update(changes)
    info = data().info if info is None else info
    return getattr(module, function)(FrozenConfigDict(config), info)


def info_with_teacher(module, name, **changes):
    """Of the toy data after a stage `teacher` that runs the method."""
    section = ConfigDict(dict(method=name))
    section[name] = ConfigDict(module.HPARAMS | changes)
    section[name].encoder.width = 16
    return data().info | dict(stages=dict(teacher=(section, None)))


_methods = {}


def make(module, function="make", **changes):
    """As `build`, the same object for the same settings."""
    key = module.__name__, function, repr(sorted(changes.items()))
    if key not in _methods:
        _methods[key] = build(module, function, **changes)
    return _methods[key]


def jit(f):
    return jax.jit(f, compiler_options=dict(xla_backend_optimization_level=0))


compiled = functools.cache(jit)


def batch_of(step=0, dataset=None):
    return loader.host_batch(dataset or data(), BATCH, np.uint32(0), step)


@functools.cache
def _start(init, key):
    return jit(lambda key: init(key, batch_of(), {}))(jax.random.key(key))


def start(method, key=0, earlier=None):
    """A fresh state; nothing here donates it, so tests may share one."""
    if not earlier:
        return _start(method.init, key)
    return jit(lambda key: method.init(key, batch_of(), earlier))(jax.random.key(key))


def run(method, state, steps, first=0, batch=batch_of):
    """States after each of `steps` updates, and the metrics."""
    step = compiled(method.train_step)
    states, metrics = [state], []
    for number in range(first, first + steps):
        key = jax.random.fold_in(jax.random.key(7), number)
        state, found = step(state, batch(number), key)
        states.append(state)
        metrics.append({k: float(v) for k, v in found.items()})
    return states, metrics


def train(method, state, steps, batch=batch_of):
    """The state after `steps` updates in one program, and the losses float[steps]."""
    batches = jax.tree.map(lambda *rows: np.stack(rows), *map(batch, range(steps)))
    keys = jax.random.split(jax.random.key(1), steps)
    body = lambda s, x: method.train_step(s, *x)  # noqa: E731
    state, metrics = jit(lambda s: jax.lax.scan(body, s, (batches, keys)))(state)
    return state, np.asarray(metrics["loss"])


def apart(a, b):
    """The largest difference of any number of two trees."""
    parts = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
    return max(jax.tree.leaves(parts))
