"""Double Q-learning with negatives and no softmax head: the ablation of SNQN.

Xin, Karatzoglou, Arapakis and Jose, WSDM 2022, arXiv 2111.03474. It ranks by its
values; the reward of an item not taken is -1, as the authors' script has it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import recommender as losses
from jaxrec.methods import copies, ranked, recommender, windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    **recommender.HPARAMS,
    **recommender.VALUE_HPARAMS,
    **recommender.NEGATIVE_HPARAMS | dict(negative_reward=-1.0),  # r_n, code
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """L = weight (L_p + L_n)."""
    recommender.check(config, info)
    recommender.check_negatives(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    optimiser = optim.make_timed(config.optim, config.steps)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_negatives, key_targets = jax.random.split(key, 3)
        keys = recommender.dropout_keys(config, key_targets, 4)
        items = recommender.negatives_of(
            key_negatives, event.action, info["num_items"], config.negatives
        )
        both = jnp.concatenate([event.action[:, None], items], axis=1)  # [B, 1 + n]

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            args = network, main, target, event
            y = recommender.bellman(*args, keys[:2], config)
            y_negative = recommender.negative_bellman(*args, keys[2:], config)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                q = recommender.apply(network, params, "q_at", x, both)
                td = event.mean(losses.td(q[:, 0], y, config.td_scale))
                negative = event.mean(
                    jax.vmap(losses.negatives, in_axes=(0, 0, None))(
                        q[:, 1:], y_negative, config.td_scale
                    )
                )
                parts = dict(td=td, negative=negative, q=event.mean(q[:, 0]))
                return config.weight * (td + negative), parts

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = optim.descend(
                optimiser, grads, opt_state, main, step=state.step
            )
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    init = copies.make_init(network, optimiser.init)
    return ranked.method(network, info, init, train_step, "q", values=True)
