"""Decision Transformer: actions as the continuation of returns, states and actions.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling"
(NeurIPS 2021), following the authors' code ("official"): tokens (R_t, s_t, a_t) of the
last K steps, the action read at the state token, the squared error of actions alone.
To act, a return is asked for; each reward received is taken off it. Differences:

- windows end at a row drawn uniformly and reach back (official: begin there and reach
  forward); both draw trajectories in proportion to their lengths;
- states are standardised by std + 1e-3, as everywhere here (official: + 1e-6);
- where no target return is published, the best of the data is asked for.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.envs import gym
from jaxrec.losses import world as losses
from jaxrec.models import control
from jaxrec.models.world import DecisionTransformer
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    width=128,  # official
    num_layers=3,  # official
    num_heads=1,  # official
    dropout=0.1,  # official
    max_timestep=4096,  # steps of an episode that have an embedding, official
    return_scale=1000.0,  # returns are divided by this, official
    target_return=0.0,  # asked for when acting; 0 = the table, else the data's best
    standardise=True,  # observations, official
    optim=optim.spec(  # official; warmup 10_000 there, over 100_000 steps
        name="adamw", lr=1e-4, warmup=1_000, weight_decay=1e-4, clip=0.25
    ),
)

# The higher of the two targets that the official code evaluates.
TARGET_RETURNS = {"hopper": 3600.0, "halfcheetah": 12000.0, "walker2d": 5000.0}


def make(config: Any, info: dict[str, Any]) -> Method:
    """Decision Transformer; needs windows (data.window = K, official 20)."""
    context, size = info["window"], info["action_size"]
    if context < 1:
        raise UserError("dt needs windows: set data.window, say 20")
    if config.width % config.num_heads:
        raise UserError(f"width={config.width} must be a multiple of num_heads")
    network = DecisionTransformer(
        action_size=size,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        dropout=config.dropout,
        max_timestep=config.max_timestep,
    )
    tx = optim.make(config.optim, config.steps)
    target = target_return(config, info) / config.return_scale

    def inputs(state: TrainState, batch: Batch) -> tuple[Array, ...]:
        return (
            batch["return_to_go"] / config.return_scale,
            state.extra(batch["observation"]),
            batch["action"],
            batch["timestep"],
            batch["mask"],
        )

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=None,
            opt_state=None,
            extra=control.standardiser(info, config.standardise),
        )
        params = network.init(key, *inputs(state, batch))
        return state.replace(params=params, opt_state=tx.init(params))

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        def loss_fn(params: Any) -> Array:
            a = network.apply(
                params, *inputs(state, batch), train=True, rngs=dict(dropout=key)
            )
            total, count = jax.vmap(losses.action_error)(
                a, batch["action"], batch["mask"].astype(jnp.float32)
            )
            return jnp.sum(total) / jnp.sum(count)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return optim.advance(tx, grads, state), dict(loss=loss)

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        """`bc_distance` of the newest step, given the return that followed it."""
        a = network.apply(state.params, *inputs(state, batch))[:, -1]
        error = jnp.mean(jnp.square(a - batch["action"][:, -1]), axis=-1)
        weight = batch["weight"]
        return dict(bc_distance=jnp.sum(weight * error), count=jnp.sum(weight))

    def memory(num: int) -> dict[str, Array]:
        """The empty histories of `num` episodes that ask for the target return.

        `to_go`: float[num, K], scaled. The newest slot is the last; its `to_go` and
        `timestep` are those of the step before the next one.
        """
        return dict(
            to_go=jnp.full((num, context), target, jnp.float32),
            observation=jnp.zeros((num, context, info["observation_size"])),
            action=jnp.zeros((num, context, size)),
            timestep=jnp.full((num, context), -1, jnp.int32),
            mask=jnp.zeros((num, context), bool),
        )

    def act(
        state: TrainState, seen: tuple[dict[str, Array], Array, Array], key: Array
    ) -> tuple[dict[str, Array], Array]:
        """(memory, observation float[num, od], reward float[num]) -> memory, action.

        `reward` followed the previous action; it is 0 at the start of an episode.
        """
        history, observation, reward = seen
        new = dict(
            to_go=history["to_go"][:, -1] - reward / config.return_scale,
            observation=state.extra(observation),
            action=jnp.zeros((len(observation), size)),  # a later token: not seen
            timestep=history["timestep"][:, -1] + 1,
            mask=jnp.ones(len(observation), bool),
        )
        history = {
            name: jnp.concatenate([past[:, 1:], new[name][:, None]], axis=1)
            for name, past in history.items()
        }
        names = ("to_go", "observation", "action", "timestep", "mask")
        a = network.apply(state.params, *(history[name] for name in names))[:, -1]
        return dict(history, action=history["action"].at[:, -1].set(a)), a

    return Method(init, train_step, eval_step, act, memory)


def target_return(config: Any, info: dict[str, Any]) -> float:
    """What to ask for: the setting, the published value, or the best of the data."""
    if config.target_return:
        return config.target_return
    family = gym.family(info.get("env_id", ""))
    return TARGET_RETURNS.get(family, float(info["return_max"]))
