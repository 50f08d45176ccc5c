"""World transformers: an ensemble that says what follows an action, for long rollouts.

After OTTO (Zhao et al., arXiv 2404.10393, KDD 2025): causal transformers for the state
dynamics and for the immediate reward, an ensemble of them for the uncertainty, long
simulations from perturbed offline actions. Only abstract-level facts of the paper are
known to us: sizes, losses, strategies and every default here are our own, and
`preset="paper"` refuses rather than pretend. The base algorithm that trains on the
simulated data keeps its loss; see configs/otto.py.

In the order of the idea: network, loss of a window, ensemble, prediction; rollouts,
strategies and the World Evaluator are in `imagination`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import world as losses
from jaxrec.methods import imagination, world_model
from jaxrec.methods.world_model import Prediction, WorldModel
from jaxrec.models.world import Outputs, WorldTransformer
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    preset="recommended",  # "paper" is refused: its settings are not known
    width=64,  # own choice, not from the paper
    num_layers=2,  # own choice, not from the paper
    num_heads=4,  # own choice, not from the paper
    share_trunk=False,  # two networks; own reading of "State and Reward Transformer"
    head="gaussian",  # or "deterministic"; own choice, not from the paper
    reward_weight=1.0,  # of the reward's error; own choice, not from the paper
    bounds_weight=0.01,  # of the variance bounds, as PETS and MOPO
    unroll=1,  # steps fed with own predictions; own choice, not from the paper
    members=3,  # the paper says "ensemble"; the size is our own choice
    bootstrap=True,  # own rows for each member; own choice, not from the paper
    predict_terminal=False,  # a head for termination; own choice, not from the paper
    optim=optim.spec(  # own choice, not from the paper
        name="adamw",
        lr=1e-3,
        schedule="cosine",
        warmup=100,
        weight_decay=1e-4,
        clip=1.0,
    ),
    **imagination.HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Ensemble of world transformers; needs windows (data.window = K)."""
    world_model.check_preset(config)
    context, members = info["window"], config.members
    if context < 1:
        raise UserError("world_transformer needs windows: set data.window, say 10")
    if config.head not in ("gaussian", "deterministic"):
        raise UserError(f"head {config.head!r} is unknown: gaussian or deterministic")
    if not 1 <= config.unroll <= context:
        raise UserError(f"unroll={config.unroll} must be from 1 to data.window")
    if config.width % config.num_heads:
        raise UserError(f"width={config.width} must be a multiple of num_heads")
    network = WorldTransformer(
        observation_size=info["observation_size"],
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        share_trunk=config.share_trunk,
        gaussian=config.head == "gaussian",
        termination=config.predict_terminal,
    )
    tx = optim.make(config.optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        s, a, mask = batch["observation"], batch["action"], batch["mask"]
        keys = jax.random.split(key, members)
        params = jax.vmap(lambda key: network.init(key, s, a, mask))(keys)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            extra=world_model.extra(config, info, earlier),
        )

    def batch_loss(params: Any, batch: Batch, scales: Any) -> tuple[Array, dict]:
        """One member on its rows [B, K, ...]; sums over the batch, divided once."""
        s, a, mask = batch["observation"], batch["action"], batch["mask"]
        counts = mask.astype(jnp.float32)
        known = counts * batch["valid_next"]  # the next state is the true one
        out = network.apply(params, scales.standardise(s), a, mask)
        s_next = batch["next_observation"]
        r = scales.standardise_reward(batch["reward"])
        state = state_loss(out, s, s_next, known, scales)
        reward = divide(losses.reward_error, (out.reward, r, counts))
        loss = state + config.reward_weight * reward
        loss += config.bounds_weight * out.bounds
        if config.predict_terminal:
            loss += divide(
                losses.terminal_bce, (out.terminal, batch["terminal"], counts)
            )
        for n in range(1, config.unroll):
            # Step j sees the state predicted at j - 1 in the place of the true one.
            j = context - config.unroll + n
            guess = s[:, j - 1] + scales.delta_std[None, :] * out.mean[:, j - 1]
            seen = mask[:, j - 1, None]
            s = s.at[:, j].set(jnp.where(seen, guess, s[:, j]))
            out = network.apply(params, scales.standardise(s), a, mask)
            only = (jnp.arange(context) == j)[None, :]
            loss += state_loss(out, s, s_next, known * only, scales)
            loss += config.reward_weight * divide(
                losses.reward_error, (out.reward, r, counts * only)
            )
        return loss, dict(state_loss=state, reward_loss=reward)

    def state_loss(
        out: Outputs, s: Array, s_next: Array, weight: Array, scales: Any
    ) -> Array:
        target = scales.delta(s, s_next)
        if config.head == "gaussian":
            return divide(losses.gaussian_nll, (out.mean, out.log_var, target, weight))
        return divide(losses.squared_error, (out.mean, target, weight))

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        rows = world_model.resample(batch, key, members, config.bootstrap)
        return world_model.advance(tx, batch_loss, state, rows)

    def predict(state: TrainState, window: Batch) -> Prediction:
        """Of all members for the newest step of each window."""
        scales = state.extra.scales
        s = scales.standardise(window["observation"])
        out = jax.vmap(
            lambda params: network.apply(
                params, s, window["action"], window["mask"], newest=True
            )
        )(state.params)
        return world_model.prediction(out, scales)

    return WorldModel(
        init=init,
        train_step=train_step,
        eval_step=world_model.make_eval_step(predict),
        produce=imagination.make_produce(config, info, predict, context),
        predict=predict,
        context=context,
        config=config,
    )


def divide(loss: Any, arrays: tuple[Array, ...]) -> Array:
    """Sum of a window loss over the batch, divided by what it counted."""
    total, count = jax.vmap(loss)(*arrays)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1.0)
