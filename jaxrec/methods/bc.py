"""Behaviour cloning: a deterministic policy regressed onto the data's actions.

On `data.top=0.1`, the best tenth of the episodes by return, it is the baseline called
10 %-BC. Network, optimiser and standardised observations as in TD3+BC, from which it
differs only by the absent critics.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import transitions
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    widths=(256, 256),  # official TD3+BC
    standardise=True,  # observations, official TD3+BC
    optim=optim.spec(lr=3e-4),  # official TD3+BC
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Behaviour cloning for actions in [-1, 1]."""
    transitions.check("bc", info)
    actor = control.DeterministicActor(config.widths, info["action_size"])
    tx = optim.make(config.optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        params = actor.init(key, batch["observation"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            extra=control.standardiser(info, config.standardise),
        )

    def distances(params: Any, state: TrainState, batch: Batch) -> Array:
        pi = actor.apply(params, state.extra(batch["observation"]))
        return jax.vmap(value.behaviour_cloning)(pi, batch["action"])

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        def loss_fn(params: Any) -> Array:
            return jnp.mean(distances(params, state, batch))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return optim.advance(tx, grads, state), dict(loss=loss)

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        weight = batch["weight"]
        rows = distances(state.params, state, batch)
        return dict(bc_distance=jnp.sum(weight * rows), count=jnp.sum(weight))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        return actor.apply(state.params, state.extra(observation))

    return Method(init, train_step, eval_step, act)
