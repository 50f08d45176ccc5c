"""Controls of OTTO: real transitions in the place of simulated ones.

A stage whose artefact are the rows of its own view of the data, `data.top=0.1` for the
best tenth of the episodes, and by `sigma` with noise on their actions while reward and
next state stay. With `replay` they are what the simulator answers to the actions of the
stage that is mixed in. In the place of simulations they tell what repeating good rows
does, what noise does, and what a perfect world model would do (the study is ours).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.methods import true_answers
from jaxrec.types import Array, Batch, Dataset, Method, TrainState, UserError

HPARAMS = dict(
    sigma=0.0,  # std of the noise on actions, ours
    replay=False,  # the true answers to the actions of mix.stage, ours
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Nothing is learned: one step is enough."""
    if config.sigma < 0:
        raise UserError(f"sigma={config.sigma}: it must not be negative")
    if config.sigma and config.replay:
        raise UserError("sigma is noise on real rows, replay has none: set one of them")
    if config.replay:
        true_answers.check(info)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        return TrainState(step=jnp.zeros((), jnp.int32), params={}, opt_state=None)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        return state.replace(step=state.step + 1), dict(loss=jnp.zeros(()))

    def produce(
        state: TrainState, dataset: Dataset, key: Array
    ) -> dict[str, np.ndarray]:
        if config.replay:
            return true_answers.rows(dataset)
        rows = {name: np.asarray(column) for name, column in dataset.train.items()}
        if config.sigma:
            noise = jax.random.normal(key, rows["action"].shape)
            noisy = rows["action"] + config.sigma * np.asarray(noise)
            rows["action"] = np.clip(noisy, -1, 1)
        return rows

    facts = true_answers.facts if config.replay else None
    return Method(init, train_step, produce=produce, facts=facts)
