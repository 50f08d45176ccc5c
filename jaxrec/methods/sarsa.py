"""EVAL: SQN that evaluates the logged policy instead of improving on it.

Labarca Silva, Parra and Toro Icarte, ICML 2024. The target bootstraps from the item
that was logged next (as SARSA does) in place of the best one. If it does as well as
SQN, the gain of SQN is that of an auxiliary task and not of control.
"""

from typing import Any

import jax

from jaxrec import optim
from jaxrec.losses import recommender as losses
from jaxrec.methods import copies, ranked, recommender, windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    **recommender.HPARAMS,
    **recommender.VALUE_HPARAMS,
    **recommender.RANKING_HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """L = L_ce + weight L_q, with y = r + gamma (1 - d) Q_target(s', a')."""
    recommender.check(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    optimiser = optim.make_timed(config.optim, config.steps)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_target = jax.random.split(key)
        (key_target,) = recommender.dropout_keys(config, key_target, 1)

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            x = recommender.next_states(network, target, event, key_target)
            q_next = recommender.apply(network, target, "q_at", x, event.next_action)
            # No next item: the end of the session, or of what the log tells of it.
            last = (event.next_action == 0).astype(event.done.dtype)
            y = losses.target(event.reward, last, q_next, config.gamma)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                ce = event.mean(ce)
                q = recommender.apply(network, params, "q_at", x, event.action)
                td = event.mean(losses.td(q, y, config.td_scale))
                return ce + config.weight * td, dict(ce=ce, td=td, q=event.mean(q))

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = optim.descend(
                optimiser, grads, opt_state, main, step=state.step
            )
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    init = copies.make_init(network, optimiser.init)
    return ranked.method(network, info, init, train_step, config.rank_by, values=True)
