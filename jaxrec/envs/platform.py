"""The logging policy of simulated users: what a platform does that knows no interest.

A mixture of popularity, neighbours of the last clicked items and uniform exploration.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.types import Array, UserError


def make(
    p: Mapping[str, Any], item: Mapping[str, Array]
) -> tuple[Callable[..., Any], Callable[[Array], Array]]:
    """`behave` and `propensities` of `users.Users`, of clicked int32[B, M] in the place
    of the state.

    `p`: `users.HPARAMS`, `item`: `users.catalogue`'s popularity float32[V + 1] and
    kernel float32[V + 1, V + 1]. Raises UserError for shares without exploration.
    """
    explore = 1 - p["log_popular"] - p["log_neighbours"]
    if min(p["log_popular"], p["log_neighbours"]) < 0 or explore <= 0:
        raise UserError(
            f"users.log_popular={p['log_popular']} and users.log_neighbours="
            f"{p['log_neighbours']} leave no exploration: let their sum be below 1"
        )
    num_items = len(item["popularity"]) - 1
    uniform = jnp.full(num_items + 1, 1 / num_items).at[0].set(0)
    cumulative = jnp.cumsum(item["kernel"], axis=1)

    def weights(clicked: Array) -> Array:
        """Of the kernel's rows float32[B, M]; row 0 alone if nothing was clicked."""
        weight = 0.5 ** jnp.arange(clicked.shape[1])[None] * (clicked > 0)
        start = jnp.zeros_like(weight).at[:, 0].set(1)
        weight = jnp.where(clicked[:, :1] > 0, weight, start)
        return weight / weight.sum(axis=1, keepdims=True)

    def mixture(popular: Array, neighbours: Array, anything: Array) -> Array:
        known = p["log_popular"] * popular + p["log_neighbours"] * neighbours
        return known + explore * anything

    def behave(key: Array, clicked: Array) -> tuple[Array, Array]:
        key_part, key_row, key_item, key_any = jax.random.split(key, 4)
        num, weight = len(clicked), weights(clicked)
        row = jax.random.categorical(key_row, jnp.log(weight), axis=1)
        row = jnp.take_along_axis(clicked, row[:, None], axis=1)[:, 0]
        part = jax.random.uniform(key_part, (num,))
        row = jnp.where(part < p["log_popular"], 0, row)  # row 0 is popularity
        j = draw(key_item, cumulative[row])
        anything = jax.random.randint(key_any, (num,), 1, num_items + 1, jnp.int32)
        j = jnp.where(part < p["log_popular"] + p["log_neighbours"], j, anything)
        near = jnp.sum(weight * item["kernel"][clicked, j[:, None]], axis=1)
        return j, mixture(item["popularity"][j], near, uniform[j])

    def propensities(clicked: Array) -> Array:
        near = jnp.einsum("bm,bmv->bv", weights(clicked), item["kernel"][clicked])
        return mixture(item["popularity"][None], near, uniform[None])

    return behave, propensities


def draw(key: Array, cumulative: Array) -> Array:
    """Items int32[B] from rows of cumulative probabilities float[B, V]."""
    uniform = jax.random.uniform(key, (len(cumulative), 1))
    item = jnp.sum(cumulative <= uniform, axis=1)  # column 0 has probability zero
    return jnp.clip(item, 1, cumulative.shape[1] - 1).astype(jnp.int32)
