"""What every world model offers: one interface for transformer and MLP ensemble.

A world model is a Method (the same fields, in the same order) that can also be asked
what happens next: `predict` maps a window that ends with the current step to the
members' predictions. Rollouts, the World Evaluator, MOPO, COMBO and the accuracy
against the simulator know nothing else of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrec import optim
from jaxrec.methods import world_rows
from jaxrec.ops import batches
from jaxrec.types import Array, Batch, TrainState, UserError

# Fields of the paper that no source known to us states; spec 3.1.
OPEN_IN_THE_PAPER = (
    "context",
    "width",
    "num_layers",
    "num_heads",
    "share_trunk",
    "head",
    "reward_weight",
    "members",
    "optim",
    "steps",
    "source",
    "top_fraction",
    "temperature",
    "action_rule",
    "sigma",
    "horizon",
    "generated",
    "u_kind",
    "quantile",
    "correction",
    "mix fraction",
    "termination",
)


class Prediction(NamedTuple):
    """Of E members for B rows; deltas in units of `Scales.delta_std`.

    mean: float[E, B, od]   log_var: float[E, B, od or od + 1], of the delta (reward)
    reward: float[E, B], in the data's units   terminal: float[E, B] logit, or None
    """

    mean: Array
    log_var: Array
    reward: Array
    terminal: Array | None


class WorldModel(NamedTuple):
    """The fields of `types.Method`, and what rollouts need.

    `predict(state, window)`: window holds observation float[B, K, od], action
        float[B, K, ad] and mask bool[B, K]; the prediction is for the last step.
    `context`: K. `config`: the method's hyper-parameters.
    """

    init: Callable[..., TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, Array]]]
    eval_step: Callable[..., dict[str, Array]] | None = None
    act: Callable[..., Any] | None = None
    memory: Callable[[int], Any] | None = None
    produce: Callable[..., dict[str, Any]] | None = None
    facts: Callable[..., dict[str, float]] | None = world_rows.summary
    scores: Callable[..., Array] | None = None
    values: Callable[..., dict[str, Array]] | None = None
    factors: Any = None
    splits_time: bool = False
    rules: tuple[str, ...] = ()
    predict: Callable[..., Prediction] | None = None
    context: int = 1
    config: Any = None


@struct.dataclass
class Scales:
    """Statistics of the training rows; kept in the state, so it predicts alone."""

    observation_mean: Array  # float32[od]
    observation_std: Array  # float32[od], + 1e-3: constant dimensions must not blow up
    delta_std: Array  # float32[od], of s_{t+1} - s_t
    reward_mean: Array  # float32[]
    reward_std: Array  # float32[]

    def standardise(self, observation: Array) -> Array:
        """float[..., od] -> float[..., od]."""
        shape = (1,) * (observation.ndim - 1) + self.observation_mean.shape
        mean = self.observation_mean.reshape(shape)
        return (observation - mean) / self.observation_std.reshape(shape)

    def delta(self, observation: Array, next_observation: Array) -> Array:
        """(s_{t+1} - s_t) / sd_delta, float[..., od]."""
        shape = (1,) * (observation.ndim - 1) + self.delta_std.shape
        return (next_observation - observation) / self.delta_std.reshape(shape)

    def standardise_reward(self, reward: Array) -> Array:
        """float[...] -> float[...]."""
        return (reward - self.reward_mean) / self.reward_std


@struct.dataclass
class Extra:
    """`TrainState.extra` of a world model.

    `agent`: the state of the stage named by `policy_stage`, for the action rule
    "policy"; None otherwise.
    """

    scales: Scales
    agent: TrainState | None = None


def extra(config: Any, info: dict[str, Any], earlier: dict[str, TrainState]) -> Extra:
    """From the data's facts and the states of earlier stages.

    Raises UserError when the stage that `policy_stage` names was not handed over.
    """
    stage = config.policy_stage
    if stage and stage not in earlier:
        raise UserError(
            f"policy_stage={stage!r}: name an earlier stage, and in `uses` too"
        )
    return Extra(scales(info), earlier[stage] if stage else None)


def scales(info: dict[str, Any]) -> Scales:
    """From the facts of a data set."""
    return Scales(
        observation_mean=jnp.asarray(info["observation_mean"], jnp.float32),
        observation_std=jnp.asarray(info["observation_std"], jnp.float32) + 1e-3,
        delta_std=jnp.maximum(jnp.asarray(info["delta_std"], jnp.float32), 1e-6),
        reward_mean=jnp.asarray(info["reward_mean"], jnp.float32),
        reward_std=jnp.maximum(jnp.asarray(info["reward_std"], jnp.float32), 1e-6),
    )


def prediction(outputs: Any, statistics: Scales) -> Prediction:
    """Members' `models.world.Outputs` [E, B, 1, ...] of the newest step."""
    reward = outputs.reward[..., 0] * statistics.reward_std + statistics.reward_mean
    terminal = None if outputs.terminal is None else outputs.terminal[..., 0]
    return Prediction(
        outputs.mean[..., 0, :], outputs.log_var[..., 0, :], reward, terminal
    )


def check_preset(config: Any) -> None:
    """`preset="paper"` is refused: the paper's settings are not known (spec 3.1)."""
    if config.preset == "paper":
        raise UserError(
            'preset="paper" is not available: no source known to us states '
            f"{', '.join(OPEN_IN_THE_PAPER)}; use preset=recommended (our own choices)"
        )
    if config.preset != "recommended":
        raise UserError(f"preset {config.preset!r} is unknown: use recommended")


def resample(batch: Batch, key: Array, members: int, bootstrap: bool) -> Batch:
    """The rows of each member: [E, B, ...], drawn with replacement from the batch.

    With a key per (seed, step), the batch of member e is a pure function of
    (seed, e, step). Members share the rows of a batch but not their weights; nothing is
    drawn once for all, which would need a stored row set (own choice). Without
    `bootstrap` all members see the same batch and differ by their initialisation.
    """
    size = len(batch["reward"])
    if bootstrap:
        rows = jax.random.randint(key, (members, size), 0, size)
    else:
        rows = jnp.broadcast_to(jnp.arange(size)[None, :], (members, size))
    drawn = {name: jnp.asarray(array)[rows] for name, array in batch.items()}
    return batches.split_rows(drawn, leading=1)


def mean_over_members(x: Array) -> Array:
    """Mean over axis 0, exactly x[0] when all members agree."""
    return x[0] + jnp.mean(x - x[:1], axis=0)


def advance(
    tx: optax.GradientTransformation,
    batch_loss: Callable[..., tuple[Array, dict[str, Array]]],
    state: TrainState,
    rows: Batch,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of all members: (state, metrics averaged over them).

    rows: [E, B, ...], those of each member; `batch_loss(a member's params, rows,
    scales)` -> (float32[], its parts).
    """

    def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
        loss, parts = jax.vmap(batch_loss, in_axes=(0, 0, None))(
            params, rows, state.extra.scales
        )
        # The sum: members do not share gradients, only the clipping of their norm.
        return jnp.sum(loss), jax.tree.map(jnp.mean, dict(parts, loss=loss))

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    return optim.advance(tx, grads, state), metrics


def make_eval_step(predict: Callable[..., Prediction]) -> Callable:
    """Sums over a held-out batch of windows, of the newest step of each.

    `nll` of the members' Gaussians, their mean; `state_mse_error` (in units of
    `delta_std`) and `reward_mae` (raw units) of the ensemble's mean prediction.
    """

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        scales = state.extra.scales
        found = predict(state, batch)
        newest = {name: batch[name][:, -1] for name in ("observation", "reward")}
        target = scales.delta(newest["observation"], batch["next_observation"][:, -1])
        weight = batch["weight"] * batch["valid_next"][:, -1]
        size = target.shape[-1]
        log_var = found.log_var[..., :size]
        nll = jnp.square(found.mean - target[None]) * jnp.exp(-log_var) + log_var
        error = jnp.square(mean_over_members(found.mean) - target)
        reward = mean_over_members(found.reward) - newest["reward"]
        return dict(
            nll=jnp.sum(weight * jnp.mean(jnp.sum(nll, axis=-1), axis=0)),
            state_mse_error=jnp.sum(weight * jnp.mean(error, axis=-1)),
            reward_mae=jnp.sum(weight * jnp.abs(reward)),
            count=jnp.sum(weight),
        )

    return eval_step
