"""Value-penalised Q-learning (VPQ): an actor weighted by careful values.

After public code of VPQ (Gao et al. 2021), read without the paper's text. The value
head is K linear heads, mixed by random convex weights at every step (as REM); a target
is divided by 1 + coefficient times the heads' standard deviation, so that values the
heads disagree on count less. The cross entropy is weighted as in SAC.
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
    num_heads=15,  # K, code
    penalty=10.0,  # coefficient, code
    switch=15_000,  # T in updates, as SAC's code
    optim_after=optim.spec_after(),  # as SAC's code
    reset_optim=True,  # as SAC's code
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """step < T: L_ce + weight L_q;  then: sg(Q(s, a)) L_ce + weight L_q."""
    recommender.check(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=config.num_heads)
    phases = copies.make_phases(config)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_targets, key_mix = jax.random.split(key, 3)
        keys = recommender.dropout_keys(config, key_targets, 2)
        mix = losses.convex_weights(key_mix, config.num_heads)
        after = state.step >= config.switch

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            x = recommender.next_states(network, main, event, keys[0])
            best = recommender.best_item(
                network, main, x, config.chunk, "q_mixed_table", mix
            )
            x = recommender.next_states(network, target, event, keys[1])
            heads = recommender.apply(network, target, "q_at", x, best)  # [B, K]
            penalty = jax.vmap(losses.vpq_penalty, in_axes=(0, None))
            q_next = penalty(heads, config.penalty) * (heads @ mix)
            y = losses.target(event.reward, event.done, q_next, config.gamma)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                q = recommender.apply(network, params, "q_at", x, event.action) @ mix
                weight = jnp.where(after, jax.lax.stop_gradient(q), 1.0)
                actor = event.mean(weight * ce)
                td = event.mean(losses.td(q, y, config.td_scale))
                parts = dict(ce=event.mean(ce), td=td, q=event.mean(q))
                return actor + config.weight * td, parts

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = phases.descend(state.step, grads, opt_state, main)
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    init = copies.make_init(network, phases.init)
    return ranked.method(network, info, init, train_step)
