"""Next-item prediction by cross entropy: the base of every method of the family.

`positions="last"` is the base of the SQN paper (one transition an example);
`positions="all"` learns from every event of a window at once, as SASRec and GRU4Rec's
descendants do, which is the better use of long histories. The first event of a session
is predicted from the empty history where the data score it. `softmax` "full" or
"sampled", with the logQ correction.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import softmax
from jaxrec.methods import recommender
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    **recommender.HPARAMS,
    positions="last",  # or "all"; SQN's base: last
    softmax="full",  # or "sampled"; SQN's base: full
    negatives=256,  # of "sampled", shared by the batch, ours
    popularity=0.0,  # power of the frequency that negatives are drawn with, ours
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Cross entropy over the catalogue."""
    recommender.check(config, info)
    if config.positions not in ("last", "all"):
        raise UserError(f"positions {config.positions!r} is unknown: use last or all")
    if config.softmax not in ("full", "sampled"):
        raise UserError(f"softmax {config.softmax!r} is unknown: use full or sampled")
    if config.softmax == "sampled":
        recommender.check_negatives(config, info, fewest=1)
    network = networks.make(config, info)
    first_too = bool(info.get("protocol", {}).get("score_first_event", False))
    optimiser = optim.make(config.optim, config.steps)
    if config.softmax == "sampled":
        sampler = softmax.sampler(
            info["item_count"], info["num_items"], config.negatives, config.popularity
        )

    def loss_of_states(params: Any, x: Array, target: Array, key: Array) -> Array:
        """x: float[N, D'], target: int32[N] -> float32[N]."""
        if config.softmax == "sampled":
            table, bias = recommender.apply(network, params, "ce_table")
            return softmax.sampled_cross_entropy(
                x, table, bias, target, sampler.draw(key), sampler.log_q
            )
        return recommender.cross_entropy(network, params, x, target, config.chunk)

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        key_dropout, key_negatives, *key_first = jax.random.split(key, 2 + first_too)
        if config.positions == "last":
            event = recommender.transition(batch)
            x = recommender.state_of(
                network, params, event.items, event.length, key_dropout
            )
            return jnp.mean(loss_of_states(params, x, event.action, key_negatives))
        # The state after events 0..t predicts event t + 1.
        items, length = recommender.align_left(batch["item"], batch["mask"])
        target, given = items[:, 1:], jnp.maximum(length - 1, 0)
        x = recommender.apply(
            network, params, "states", items[:, :-1], given, True, key=key_dropout
        )
        if first_too:
            # The state of the empty history, alike in all rows, where event 0 is there.
            none = jnp.zeros_like(items[:1, :-1])
            start = recommender.state_of(
                network, params, none, given[:1] * 0, *key_first
            )
            start = jnp.broadcast_to(start[:, None], (len(items), 1, x.shape[-1]))
            x = jnp.concatenate([start, x], axis=1)
            index = batch["timestep"].shape[1] - length
            oldest = jnp.take_along_axis(batch["timestep"], index[:, None], axis=1)
            target = jnp.where(oldest == 0, items[:, :1], 0)
            target = jnp.concatenate([target, items[:, 1:]], axis=1)
        rows = loss_of_states(
            params, x.reshape(-1, x.shape[-1]), target.reshape(-1), key_negatives
        )
        weight = (target > 0).reshape(-1)
        return jnp.sum(jnp.where(weight, rows, 0.0)) / jnp.maximum(weight.sum(), 1)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        state = optim.advance(optimiser, grads, state)
        return state, dict(loss=value)

    scores = recommender.make_scores(network, info)
    init = recommender.make_init(network, optimiser)
    return Method(init, train_step, recommender.make_eval_step(scores), scores=scores)
