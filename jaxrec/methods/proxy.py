"""HIST and FUT: regression of a count where SQN regresses a value.

Labarca Silva, Parra and Toro Icarte, ICML 2024. The same head learns how many events
came before (HIST) or will come after (FUT), as a share of `max_count`. It has no
reward, no target network and no control in it: what it gains over cross entropy is the
gain of an auxiliary task. (The published version read the wrong column, as its authors
say; here it is the count that the text means.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import recommender as losses
from jaxrec.methods import ranked, recommender, windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    **recommender.HPARAMS,
    weight=1.0,  # of the proxy's loss, code
    td_scale=0.5,  # as in SQN
    max_count=50,  # events that count as 1.0, ours; code: the longest session
)


def make_hist(config: Any, info: dict[str, Any]) -> Method:
    """L = L_ce + weight scale (events before / max - Q(s, a))^2."""
    return make(config, info, lambda event: event.timestep)


def make_fut(config: Any, info: dict[str, Any]) -> Method:
    """L = L_ce + weight scale (events after / max - Q(s, a))^2."""
    return make(config, info, lambda event: event.remaining)


def make(config: Any, info: dict[str, Any], count: Callable[..., Array]) -> Method:
    """`count`: Transition -> int32[B], what the value head has to tell."""
    recommender.check(config, info)
    read = windows.make_reader(config, info)
    network = networks.make(config, info, q_heads=0)
    optimiser = optim.make(config.optim, config.steps)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        share = jnp.minimum(count(event) / config.max_count, 1.0)

        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            x = recommender.states(network, params, event, key)
            ce = recommender.cross_entropy(
                network, params, x, event.action, config.chunk
            )
            ce = event.mean(ce)
            q = recommender.apply(network, params, "q_at", x, event.action)
            proxy = event.mean(losses.proxy(q, share, config.td_scale))
            return ce + config.weight * proxy, dict(ce=ce, proxy=proxy)

        (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        state = optim.advance(optimiser, grads, state)
        return state, dict(loss=total, **parts)

    init = recommender.make_init(network, optimiser)
    return ranked.method(network, info, init, train_step)
