"""Controls of OTTO: real transitions in the place of simulated ones.

A stage whose artefact are the rows of its own view of the data, `data.top=0.1` for the
best tenth of the episodes, and by `sigma` with noise on their actions while reward and
next state stay. Mixed in as simulations are, they tell what repeating good rows does,
and what noise alone does, without a world model (spec of the study: ours).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array, Batch, Dataset, Method, TrainState, UserError

HPARAMS = dict(
    sigma=0.0,  # std of the noise on actions, ours
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Nothing is learned: one step is enough."""
    if config.sigma < 0:
        raise UserError(f"sigma={config.sigma}: it must not be negative")

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        return TrainState(step=jnp.zeros((), jnp.int32), params={}, opt_state=None)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        return state.replace(step=state.step + 1), dict(loss=jnp.zeros(()))

    def produce(
        state: TrainState, dataset: Dataset, key: Array
    ) -> dict[str, np.ndarray]:
        rows = {name: np.asarray(column) for name, column in dataset.train.items()}
        if config.sigma:
            noise = jax.random.normal(key, rows["action"].shape)
            noisy = rows["action"] + config.sigma * np.asarray(noise)
            rows["action"] = np.clip(noisy, -1, 1)
        return rows

    return Method(init, train_step, produce=produce)
