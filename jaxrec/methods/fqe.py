"""Fitted Q evaluation: what a policy is worth, from logged data alone.

Le, Voloshin & Yue, "Batch Policy Learning under Constraints" (ICML 2019), algorithm 3,
with a slowly moving target in place of regressions to convergence. Used where no
simulator is installed. It extrapolates: a policy that leaves the data can be valued far
too high, so compare policies with it, and believe no single number.

Constants are ours. The value of a discount of 0.99 spreads over 100 steps, each of 1 /
tau updates: about 1 / (tau (1 - gamma)) = 2,000 updates close two thirds of the gap.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.losses import value
from jaxrec.models import control
from jaxrec.types import Array, TrainState

BYTES = 1 << 28  # of rows on the device, at most, ours
STARTS = 10_000  # episode starts that are valued, at most, ours

NAMES = (
    "observation",
    "action",
    "reward",
    "next_observation",
    "terminal",
    "valid_next",
)


def evaluate(
    act: Callable[[TrainState, Array, Array], Array],
    state: TrainState,
    arrays: Mapping[str, Any],
    info: Mapping[str, Any],
    key: Array,
    steps: int = 10_000,
    batch_size: int = 256,
    gamma: float = 0.99,
    tau: float = 0.05,
    lr: float = 3e-4,
    widths: tuple[int, ...] = (256, 256),
) -> dict[str, Array]:
    """The discounted value of `act` at the first states of the data's episodes.

    arrays: observation, action, reward, next_observation, terminal, timestep and
    perhaps valid_next (else taken as 1) of N rows. Rows that neither end nor have a
    true next observation are skipped. Of a set larger than what is drawn, or than
    BYTES, a fixed sample of the rows goes to the device; it may be memory-mapped.

    Returns float32 scalars: "value" and "value_std", mean and deviation over the
    episode starts (the first row, if none has timestep 0); "td_error", the root mean
    square over the last tenth of the updates, in units of the reward.
    """
    starts = np.flatnonzero(np.asarray(arrays["timestep"]) == 0)
    starts = starts if len(starts) else np.zeros(1, int)
    starts = starts[:: -(-len(starts) // STARTS)]
    first = jnp.asarray(arrays["observation"][starts])
    present = {name: arrays[name] for name in NAMES if name in arrays}
    data = jax.device_put(sample(present, steps * batch_size))
    data.setdefault("valid_next", jnp.ones_like(data["reward"]))
    settings = (steps, batch_size, gamma, tau, lr, tuple(widths))
    standard = control.standardiser(dict(info), True)
    return _evaluate(act, settings, state, data, first, standard, key)


def sample(arrays: Mapping[str, Any], draws: int) -> dict[str, np.ndarray]:
    """The rows [n, ...], or of more than `draws` or BYTES of them as many by chance.

    The same ones at every call, in their order.
    """
    total = len(next(iter(arrays.values())))
    row = sum(array.nbytes for array in arrays.values()) / total
    most = max(1, min(draws, int(BYTES / row)))
    if most >= total:
        return dict(arrays)
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(total, most, replace=False, shuffle=False))
    return {name: array[chosen] for name, array in arrays.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    act: Callable,
    settings: tuple,
    state: TrainState,
    data: dict[str, Array],
    first: Array,
    standard: control.Standardiser,
    key: Array,
) -> dict[str, Array]:
    steps, batch_size, gamma, tau, lr, widths = settings
    critic, tx = control.Critic(widths), optax.adam(lr)
    # Rewards of unit size: targets then fit the network's scale. Undone at the end.
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(data["reward"]))), 1e-6)
    key_init, key_loop, key_act = jax.random.split(key, 3)
    params = critic.init(key_init, first[:1], data["action"][:1])

    def update(carry: Any, step: Array) -> tuple[Any, Array]:
        params, target, opt_state = carry
        key_rows, key_policy = jax.random.split(jax.random.fold_in(key_loop, step))
        index = jax.random.randint(key_rows, (batch_size,), 0, len(data["reward"]))
        batch = {name: rows[index] for name, rows in data.items()}
        s, s_next = batch["observation"], batch["next_observation"]
        a_next = act(state, s_next, key_policy)
        next_v = critic.apply(target, standard(s_next), a_next)
        reward = batch["reward"] / scale
        y = value.bellman_target(reward, batch["terminal"], next_v, gamma)
        weight = jnp.maximum(batch["valid_next"], batch["terminal"])

        def loss_fn(params: Any) -> Array:
            q = critic.apply(params, standard(s), batch["action"])
            total = jnp.sum(weight * jnp.square(q - y))
            return total / jnp.maximum(jnp.sum(weight), 1.0)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        target = optax.incremental_update(params, target, tau)
        return (params, target, opt_state), loss

    carry = (params, params, tx.init(params))
    (params, _, _), losses = jax.lax.scan(update, carry, jnp.arange(steps))
    q = scale * critic.apply(params, standard(first), act(state, first, key_act))
    late = losses[-max(steps // 10, 1) :]
    return dict(
        value=jnp.mean(q),
        value_std=jnp.std(q),
        td_error=scale * jnp.sqrt(jnp.mean(late)),
    )
