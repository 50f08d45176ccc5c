"""Next-item prediction by cross entropy: the base of every method of the family.

`positions="last"` is the base of the SQN paper (one transition an example);
`positions="all"` learns from every event of a window at once, as SASRec and GRU4Rec's
descendants do, which is the better use of long histories. `softmax` "full" or
"sampled", with the logQ correction.
"""

from typing import Any

import jax

from jaxrec import optim
from jaxrec.losses import sampled_softmax
from jaxrec.methods import ranked, recommender, windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    **recommender.HPARAMS,
    softmax="full",  # or "sampled"; SQN's base: full
    negatives=256,  # of "sampled", shared by the batch, ours
    popularity=0.0,  # power of the frequency that negatives are drawn with, ours
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Cross entropy over the catalogue."""
    recommender.check(config, info)
    if config.softmax not in ("full", "sampled"):
        raise UserError(f"softmax {config.softmax!r} is unknown: use full or sampled")
    if config.softmax == "sampled":
        recommender.check_negatives(config, info, fewest=1)
    read = windows.make_reader(config, info)
    network = networks.make(config, info)
    optimiser = optim.make(config.optim, config.steps)
    if config.softmax == "sampled":
        sampler = sampled_softmax.sampler(
            info["item_count"], info["num_items"], config.negatives, config.popularity
        )

    def loss_of_states(params: Any, x: Array, target: Array, key: Array) -> Array:
        """x: float[N, D'], target: int32[N] -> float32[N]."""
        if config.softmax == "sampled":
            table, bias = recommender.apply(network, params, "ce_table")
            return sampled_softmax.sampled_cross_entropy(
                x, table, bias, target, sampler.draw(key), sampler.log_q
            )
        return recommender.cross_entropy(network, params, x, target, config.chunk)

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        key_dropout, key_negatives = jax.random.split(key)
        event = read(batch)
        x = recommender.states(network, params, event, key_dropout)
        return event.mean(loss_of_states(params, x, event.action, key_negatives))

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        state = optim.advance(optimiser, grads, state)
        return state, dict(loss=value)

    init = recommender.make_init(network, optimiser)
    return ranked.method(network, info, init, train_step)
