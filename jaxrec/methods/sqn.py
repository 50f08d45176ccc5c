"""Self-supervised Q-learning for recommendation (SQN).

Xin, Karatzoglou, Arapakis and Jose, SIGIR 2020, arXiv 2006.05779. A softmax head and a
value head share one encoder; the value head learns by double Q-learning on the logged
transitions and shapes the states, the softmax head ranks. Differences from the paper
are those of the authors' code, which we follow: the squared error is halved, the value
head has no activation, dropout is on in the target passes.
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
    """L = L_ce + weight L_q."""
    recommender.check(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    optimiser = optim.make_timed(config.optim, config.steps)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_main, key_targets = jax.random.split(key)
        keys = recommender.dropout_keys(config, key_targets, 2)

        def update(main: Any, target: Any, opt_state: Any) -> Any:
            y = recommender.bellman(network, main, target, event, keys, config)

            def loss(params: Any) -> tuple[Array, dict[str, Array]]:
                x = recommender.states(network, params, event, key_main)
                ce = recommender.cross_entropy(
                    network, params, x, event.action, config.chunk
                )
                ce = event.mean(ce)
                q = recommender.apply(network, params, "q_at", x, event.action)
                td = event.mean(losses.td(q, y, config.td_scale))
                total = ce + config.weight * td
                return total, dict(ce=ce, td=td, q=event.mean(q))

            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(main)
            params, opt_state = optim.descend(
                optimiser, grads, opt_state, main, step=state.step
            )
            return params, opt_state, dict(loss=total, **parts)

        return copies.toss(update, state)

    init = copies.make_init(network, optimiser.init)
    return ranked.method(network, info, init, train_step, config.rank_by, values=True)
