"""Supervised advantage actor-critic (SA2C).

Xin, Karatzoglou, Arapakis and Jose, WSDM 2022, arXiv 2111.03474. SNQN until update T,
then the cross entropy is weighted by the advantage of the logged item over its
negatives, and by an importance weight against the popularity of items if `smooth` > 0.
The paper leaves T open and mentions no clipping of the advantage; its code has T =
15,000 updates, the bounds [0, 10], smooth = 0 and a second Adam at a lower rate.
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
    **recommender.RANKING_HPARAMS,
    **recommender.NEGATIVE_HPARAMS,
    switch=15_000,  # T in updates, code
    optim_after=optim.spec_after(lr=1e-3),  # lr_2, paper
    reset_optim=True,  # fresh moments at the switch, code
    advantage_clip=(0.0, 10.0),  # code; () = none, as the paper
    smooth=0.0,  # power of the importance weight, code; 0 = no correction
    importance_clip=(0.1, 10.0),  # code
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """step < T: SNQN;  then: clip(A) rho L_ce + weight (L_p + L_n)."""
    recommender.check(config, info)
    # Without negatives the advantage is 0, and nothing would train the actor.
    recommender.check_negatives(config, info, fewest=1)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    phases = copies.make_phases(config)
    count = jnp.asarray(info["item_count"], jnp.float32)
    frequency = jnp.maximum(count, 1.0) / jnp.sum(count)  # of training alone, ours

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
        after = state.step >= config.switch

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            args = network, main, target, event
            y = recommender.bellman(*args, keys[:2], config)
            y_negative = recommender.negative_bellman(*args, keys[2:], config)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                q = recommender.apply(network, params, "q_at", x, both)
                weight = jax.vmap(losses.advantage)(q[:, 0], q[:, 1:])
                if config.advantage_clip:
                    weight = jnp.clip(weight, *config.advantage_clip)
                rho = losses.importance(
                    jnp.exp(-ce),
                    frequency[event.action],
                    config.smooth,
                    *config.importance_clip,
                )
                actor = event.mean(jnp.where(after, weight * rho, 1.0) * ce)
                td = event.mean(losses.td(q[:, 0], y, config.td_scale))
                negative = event.mean(
                    jax.vmap(losses.negatives, in_axes=(0, 0, None))(
                        q[:, 1:], y_negative, config.td_scale
                    )
                )
                parts = dict(
                    ce=event.mean(ce),
                    td=td,
                    negative=negative,
                    weight=event.mean(weight),
                )
                return actor + config.weight * (td + negative), parts

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = phases.descend(state.step, grads, opt_state, main)
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    init = copies.make_init(network, phases.init)
    return ranked.method(network, info, init, train_step, config.rank_by, values=True)
