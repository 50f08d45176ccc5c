"""Prompt-based reinforcement learning for next-item recommendation (PRL).

Xin, Pimentel, Karatzoglou, Ren, Christakopoulou and Ren, SIGIR 2022, arXiv 2206.07353.
Supervised learning with the return as an input: from (return to go, history, step) the
item that was taken is predicted, and at inference the return is prompted with a
multiple of the mean return at that step. We have read public code and abstracts of the
paper, not its full text; where code and abstract differ (the weight of the loss), both
are options. No target network, no discount. That code also leaves sessions of more than
50 events out of its test sets; here, as for all methods, all are ranked.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.methods import ranked, recommender, windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    **recommender.HPARAMS,
    prompt="return",  # "off": encoder and softmax head alone, ours
    prompt_dropout=0.3,  # code
    max_step=50,  # code
    prompt_mu=2.0,  # prompted return over the mean at that step, code
    prompt_std=0.0,  # of a draw around it, the same for a history always, code: 0
    prompt_norm="mean_at_t",  # code; "none": mu and std are returns, ours
    loss_weight="none",  # code; "immediate", "cumulative": by reward, as the abstract
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """L = w L_ce(s, t, R)."""
    recommender.check(config, info)
    # Runs of before these options were there have no field.
    std = config.get("prompt_std", 0.0)
    norm = config.get("prompt_norm", "") or "mean_at_t"
    for field, known in (
        ("prompt", ("return", "off")),
        ("loss_weight", ("none", "immediate", "cumulative")),
    ):
        if config[field] not in known:
            raise UserError(f"{field} {config[field]!r} is unknown: {', '.join(known)}")
    if norm not in ("mean_at_t", "none"):
        raise UserError(f"prompt_norm {norm!r} is unknown: mean_at_t, none")
    read = windows.make_reader(config, info)
    network = networks.make(config, info)
    prompt = networks.Prompt(config.max_step, config.prompt_dropout)
    optimiser = optim.make(config.optim, config.steps)
    mean_return = jnp.asarray(info["mean_return"], jnp.float32)  # of training alone

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        event = windows.transition(batch)
        key_network, key_prompt = jax.random.split(key)
        params = dict(network=network.init(key_network, event.items, event.length))
        x = recommender.state_of(network, params["network"], event.items, event.length)
        if config.prompt == "return":
            params["prompt"] = prompt.init(
                key_prompt, x, event.timestep, event.reward_to_go
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimiser.init(params),
            extra=jnp.copy(mean_return),
        )

    def prompted(params, x, timestep, reward_to_go, key=None) -> Array:
        """What the softmax head sees: float[N, D']; with a key dropout is on."""
        if config.prompt == "off":
            return x
        rngs = None if key is None else {"dropout": key}
        train = key is not None
        return prompt.apply(
            params["prompt"], x, timestep, reward_to_go, train, rngs=rngs
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = read(batch)
        key_state, key_prompt = jax.random.split(key)
        weight = dict(
            none=jnp.ones_like(event.reward),
            immediate=event.reward,
            cumulative=event.reward_to_go,
        )[config.loss_weight]

        def loss(params: Any) -> Array:
            x = recommender.states(network, params["network"], event, key_state)
            x = prompted(params, x, event.timestep, event.reward_to_go, key_prompt)
            ce = recommender.cross_entropy(
                network, params["network"], x, event.action, config.chunk
            )
            return event.mean(weight * ce)

        total, grads = jax.value_and_grad(loss)(state.params)
        state = optim.advance(optimiser, grads, state)
        return state, dict(loss=total)

    def scores(
        state: TrainState, items: Array, length: Array, timestep: Array
    ) -> Array:
        wanted = jnp.full(timestep.shape, config.prompt_mu)
        if std:
            wanted = wanted + std * noise(items)
        if norm == "mean_at_t":
            # Past the longest training session the last mean stands.
            step = jnp.minimum(timestep, state.extra.shape[0] - 1)
            wanted = wanted * state.extra[step]
        x = recommender.state_of(network, state.params["network"], items, length)
        x = prompted(state.params, x, timestep, wanted)
        y = recommender.apply(network, state.params["network"], "logits", x)
        return ranked.only_items(y, info)

    return Method(
        init,
        train_step,
        ranked.make_eval_step(scores),
        scores=scores,
    )


def noise(items: Array) -> Array:
    """N(0, 1) of each history int32[B, L], a function of its items alone: float32[B].

    So the same question always has the same answer, whatever else is in the batch.
    """

    def one(history: Array) -> Array:
        key, _ = jax.lax.scan(
            lambda key, item: (jax.random.fold_in(key, item), None),
            jax.random.key(0),
            history,
        )
        return jax.random.normal(key)

    return jax.vmap(one)(items)
