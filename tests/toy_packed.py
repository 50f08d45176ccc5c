"""A toy log of packed histories, and RecMamba on it."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from toy_recommenders import jit

from jaxrec.data import loader, packing
from jaxrec.methods import recmamba
from jaxrec.types import Dataset

ITEMS, L = 30, 16


def log(users=24, longest=40, seed=0):
    """Flat histories; every item but the first of a history follows from the last."""
    draw = np.random.default_rng(seed)
    length = draw.integers(3, 14, users)
    length[:2] = (longest, 20)
    parts = [(s + 7 * np.arange(n)) % ITEMS + 1 for s, n in enumerate(length)]
    timestep = np.concatenate([np.arange(n) for n in length]).astype(np.int32)
    return np.concatenate(parts).astype(np.int32), timestep


@functools.cache
def data(how="packed"):
    item, timestep = log()
    info = dict(
        num_items=ITEMS,
        vocab=128,
        seq_len=L,
        item_count=np.bincount(item, minlength=128).astype(float),
        name="toy",
    )
    train = dict(item=item, timestep=timestep)
    train |= {"next_item": np.append(item[1:], 0), "reward": item, "kind": item}
    return packing.view(Dataset(train, {}, info, window=L + 1), how, L)


def settings():
    config = ConfigDict(recmamba.HPARAMS | dict(steps=100, batch_size=2))
    config.encoder.update(width=8, head_dim=8, state=4, time_chunk=16, dropout=0.0)
    config.encoder.num_layers = 1  # compiling is what these tests cost
    config.optim.warmup = 0
    return config


def build(how="packed", info=None, **changes):
    config = settings()
    config.update_from_flattened_dict(changes)
    return recmamba.make(FrozenConfigDict(config), info or data(how).info)


def batch_of(step, size=2, how="packed"):
    return loader.host_batch(data(how), size, np.uint32(0), step)


def run(method, steps, size=2, how="packed"):
    state = jit(method.init)(jax.random.key(0), batch_of(0, size, how), {})
    step, losses = jit(method.train_step), []
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(1), number)
        state, metrics = step(state, batch_of(number, size, how), key)
        losses.append(float(metrics["loss"]))
    return state, losses


def single(user, size):
    """A packed batch of one row with the first `size` events of one user."""
    item, timestep = log()
    part = slice(*np.append(np.flatnonzero(timestep == 0), len(item))[user : user + 2])
    packed, _ = packing.pack(item[part], timestep[part], size)
    return {name: array[:1] for name, array in packed.items()}
