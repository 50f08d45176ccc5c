"""Many seeds of one method in one program.

With `config.num_seeds = S > 1` every leaf of the state but `step` has a leading axis S,
and init and train_step are vmapped. The step is shared, so a branch on it (a delayed
actor, a periodic roll-out) stays a branch and is not turned into a select. One seed has
no axis: its program is the plain one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import TrainState

AXES = TrainState(step=None, params=0, opt_state=0, target_params=0, extra=0)


def keys(seed: int, num_seeds: int) -> jax.Array:
    """key[] for one seed, key[S] for the seeds seed, seed + 1, ..."""
    if num_seeds == 1:
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + num_seeds))


def numbers(seed: int, num_seeds: int) -> np.ndarray:
    """uint32[] or uint32[S]: the seeds themselves, for the order of batches."""
    if num_seeds == 1:
        return np.uint32(seed)
    return np.arange(seed, seed + num_seeds, dtype=np.uint32)


def fold(key: jax.Array, number: int | jax.Array) -> jax.Array:
    """fold_in for key[] or key[S]."""
    if key.ndim == 0:
        return jax.random.fold_in(key, number)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, number)


def vmap_init(init: Callable, num_seeds: int) -> Callable:
    """(key[S], batch, earlier[S]) -> state[S] with one shared step."""
    if num_seeds == 1:
        return init

    def batched(key: jax.Array, batch: Any, earlier: dict) -> TrainState:
        axes = {name: AXES for name in earlier}
        return jax.vmap(init, in_axes=(0, None, axes), out_axes=AXES)(
            key, batch, earlier
        )

    return batched


def vmap_step(train_step: Callable, num_seeds: int) -> Callable:
    """(state[S], batch[S], key[S]) -> (state[S], metrics[S])."""
    if num_seeds == 1:
        return train_step
    return jax.vmap(train_step, in_axes=(AXES, 0, 0), out_axes=(AXES, 0))


def pick(tree: Any, number: int, num_seeds: int) -> Any:
    """The state (or keys) of one seed."""
    if num_seeds == 1:
        return tree
    if isinstance(tree, TrainState):
        rest = jax.tree.map(lambda x: x[number], tree.replace(step=None))
        return rest.replace(step=tree.step)
    return jax.tree.map(lambda x: x[number], tree)
