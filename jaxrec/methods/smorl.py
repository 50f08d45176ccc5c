"""Scalarised multi-objective reinforcement learning for recommendation (SMORL).

Stamenkovic, Karatzoglou, Arapakis, Xin and Katevas, WSDM 2022, arXiv 2110.15097. SQN
with three value heads (accuracy, diversity, novelty) whose weighted sum chooses the
action. Read: public code and abstracts, not the full text. As in that code the
diversity and novelty rewards are those of the item that the model now ranks first,
while the values are regressed at the logged item; `reward_item="logged"` is ours.

Diversity needs item vectors that do not move: those of an earlier stage.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import recommender as losses
from jaxrec.methods import copies, ranked, recommender, windows
from jaxrec.models import encoders
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    # Its SASRec scales item embeddings by sqrt(D), that of SQN does not; code.
    **recommender.HPARAMS | dict(encoder=encoders.SPEC | dict(scale_embedding=1)),
    **recommender.VALUE_HPARAMS,
    objectives=(1.0, 1.0, 1.0),  # w of accuracy, diversity, novelty; code
    embedding_stage="embed",  # earlier stage whose item table measures diversity
    popular=0.1,  # share of items that count as popular, ours after recollection
    reward_item="predicted",  # code; or "logged"
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """L = L_ce + weight sum_k w_k L_k, with a* = argmax_a sum_k w_k Q_k(s', a)."""
    recommender.check(config, info)
    if len(config.objectives) != 3:
        raise UserError(f"objectives={config.objectives}: give three weights")
    if config.reward_item not in ("predicted", "logged"):
        raise UserError(f"reward_item {config.reward_item!r}: use predicted or logged")
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=3)
    optimiser = optim.make_timed(config.optim, config.steps)
    weights = jnp.asarray(config.objectives, jnp.float32)
    count = jnp.asarray(info["item_count"])
    most = math.ceil(config.popular * info["num_items"])
    unpopular = jnp.ones(info["vocab"]).at[jnp.argsort(-count)[:most]].set(0.0)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        table = recommender.network_params(config.embedding_stage, earlier)
        table = table["item_table"]["embedding"]
        state = copies.make_init(network, optimiser.init)(key, batch, earlier)
        norm = jnp.linalg.norm(table, axis=-1, keepdims=True)
        return state.replace(extra=table / jnp.maximum(norm, 1e-8))

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_targets = jax.random.split(key)
        keys = recommender.dropout_keys(config, key_targets, 3)

        def rewards(main: Any) -> Array:
            """Accuracy, diversity, novelty: float32[B, 3]."""
            item = event.action
            if config.reward_item == "predicted":
                x = recommender.states(network, main, event, keys[2])
                item = recommender.best_item(network, main, x, config.chunk, "ce_table")
            similar = jnp.sum(state.extra[event.previous] * state.extra[item], axis=-1)
            return jnp.stack([event.reward, 1.0 - similar, unpopular[item]], axis=1)

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            x = recommender.next_states(network, main, event, keys[0])
            best = recommender.best_item(
                network, main, x, config.chunk, "q_mixed_table", weights
            )
            x = recommender.next_states(network, target, event, keys[1])
            q_next = recommender.apply(network, target, "q_at", x, best)  # [B, 3]
            y = losses.target(rewards(main), event.done[:, None], q_next, config.gamma)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                ce = event.mean(ce)
                q = recommender.apply(network, params, "q_at", x, event.action)
                td = jax.vmap(losses.smorl, in_axes=(0, 0, None, None))
                td = event.mean(td(q, y, weights, config.td_scale))
                return ce + config.weight * td, dict(ce=ce, td=td)

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = optim.descend(
                optimiser, grads, opt_state, main, step=state.step
            )
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    return ranked.method(network, info, init, train_step)
