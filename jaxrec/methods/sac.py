"""Self-supervised actor-critic for recommendation (SAC): not soft actor-critic.

Xin, Karatzoglou, Arapakis and Jose, SIGIR 2020, arXiv 2006.05779. SQN until update T,
then the cross entropy is weighted by the value of the logged item, which the gradient
does not enter. The paper does not state T; its code has 15,000 updates (of both copies
together) and a fresh Adam at the switch. The weight is neither clipped nor normalised.
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
    switch=15_000,  # T in updates, code
    optim_after=optim.spec_after(),  # as before, code
    reset_optim=True,  # fresh moments at the switch, code
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """step < T: L_ce + weight L_q;  then: sg(Q(s, a)) L_ce + weight L_q."""
    recommender.check(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    phases = copies.make_phases(config)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_targets = jax.random.split(key)
        keys = recommender.dropout_keys(config, key_targets, 2)
        after = state.step >= config.switch

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            y = recommender.bellman(network, main, target, event, keys, config)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                q = recommender.apply(network, params, "q_at", x, event.action)
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
    return ranked.method(network, info, init, train_step, values=True)
