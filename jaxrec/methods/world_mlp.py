"""An ensemble of Gaussian MLPs as a world model: the one of MOPO, and OTTO's rival.

Yu et al., "MOPO: Model-based Offline Policy Optimization" (NeurIPS 2020), after PETS
(Chua et al. 2018); sizes, loss and weight decay are OfflineRL-Kit's ("kit"). What
differs from the kit:

- a fixed number of steps instead of stopping on held-out rows, and no choice of elites:
  all members are kept;
- targets are standardised, not only inputs, so that dimensions weigh alike at first;
- members resample each batch, where the kit draws a data set once for each member, so
  in the end all members see all rows;
- a transition without a true next state (`valid_next` 0) teaches the reward only.

It takes plain transitions (data.window = 0, as configs/mopo.py) or windows, whose
steps it sees one by one: with the data of `world_transformer` it trains on the same
rows. Predictions and simulations need the newest step alone, so `context` is 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import world as losses
from jaxrec.methods import imagination, world_model
from jaxrec.methods.world_model import Prediction, WorldModel
from jaxrec.models.world import WorldMLP
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    widths=(200, 200, 200, 200),  # kit
    members=7,  # kit, which then uses the best 5
    bootstrap=True,  # rows of a batch drawn anew for each member, ours
    bounds_weight=0.01,  # of the variance bounds, kit
    # Half the squared kernels of each layer count this much, kit; biases do not.
    decays=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
    predict_terminal=False,  # a head for termination, ours; the kit uses rules
    optim=optim.spec(lr=1e-3),  # kit
    **imagination.HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """Ensemble of MLPs on single transitions or on the steps of windows.

    Raises UserError when `decays` does not have one number more than `widths`.
    """
    if len(config.decays) != len(config.widths) + 1:
        raise UserError(
            f"decays={config.decays}: give a number for each of the "
            f"{len(config.widths) + 1} layers, the last for the head"
        )
    network = WorldMLP(info["observation_size"], config.widths, config.predict_terminal)
    members, size = config.members, info["observation_size"] + 1
    tx = optim.make(config.optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        batch = as_windows(batch)
        s, a = batch["observation"], batch["action"]
        keys = jax.random.split(key, members)
        params = jax.vmap(lambda key: network.init(key, s, a))(keys)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            extra=world_model.extra(config, info, earlier),
        )

    def batch_loss(params: Any, batch: Batch, scales: Any) -> tuple[Array, dict]:
        """One member on its rows [B, K, ...]; sums over the batch, divided once."""
        s, counts = batch["observation"], batch["mask"].astype(jnp.float32)
        known = counts * batch["valid_next"]  # the next state is the true one
        out = network.apply(params, scales.standardise(s), batch["action"])
        delta = scales.delta(s, batch["next_observation"])
        reward = scales.standardise_reward(batch["reward"])
        state_loss = mean_loss(
            losses.gaussian_nll, out.mean, out.log_var[..., :-1], delta, known
        )
        reward_loss = mean_loss(
            losses.gaussian_nll,
            out.reward[..., None],
            out.log_var[..., -1:],
            reward[..., None],
            counts,
        )
        # The kit averages over dimensions, which sets the scale of the other terms.
        loss = (state_loss + reward_loss) / size
        loss += config.bounds_weight * out.bounds + decay(params, config.decays)
        if config.predict_terminal:
            loss += mean_loss(
                losses.terminal_bce, out.terminal, batch["terminal"], counts
            )
        return loss, dict(state_loss=state_loss, reward_loss=reward_loss)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        rows = world_model.resample(as_windows(batch), key, members, config.bootstrap)
        return world_model.advance(tx, batch_loss, state, rows)

    def predict(state: TrainState, window: Batch) -> Prediction:
        """Of all members for the newest step of each window."""
        scales = state.extra.scales
        s = scales.standardise(window["observation"][:, -1:])
        a = window["action"][:, -1:]
        out = jax.vmap(lambda params: network.apply(params, s, a))(state.params)
        return world_model.prediction(out, scales)

    sums = world_model.make_eval_step(predict)

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        return sums(state, as_windows(batch), key)

    return WorldModel(
        init=init,
        train_step=train_step,
        eval_step=eval_step,
        produce=imagination.make_produce(config, info, predict, 1),
        predict=predict,
        context=1,
        config=config,
    )


def as_windows(batch: Batch) -> Batch:
    """Transitions [B, ...] as windows of one step [B, 1, ...]; windows unchanged."""
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    if "mask" in batch:
        return batch
    rows = {
        name: array if name == "weight" else array[:, None]
        for name, array in batch.items()
    }
    return rows | dict(mask=jnp.ones_like(rows["reward"], bool))


def mean_loss(loss: Any, *arrays: Array) -> Array:
    """Sum of a window loss over the batch, divided by what it counted."""
    total, count = jax.vmap(loss)(*arrays)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1.0)


def decay(params: Any, decays: tuple[float, ...]) -> Array:
    """sum_l c_l ||W_l||^2 / 2 over the kernels of one member, head last."""
    layers = params["params"]
    names = [f"layer_{number}" for number in range(len(decays) - 1)] + ["head"]
    squares = [jnp.sum(jnp.square(layers[name]["kernel"])) for name in names]
    return sum(c * 0.5 * square for c, square in zip(decays, squares, strict=True))
