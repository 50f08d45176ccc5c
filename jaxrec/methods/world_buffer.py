"""Short rollouts of the current policy in a world model, and the buffer they fill.

What MOPO and COMBO share. OfflineRL-Kit ("kit") starts 50,000 rollouts from the data at
every 1,000th update and keeps five such rounds. Here a round starts from the batch at
hand, 256 real states, at every 5th update: as many rollouts an update (51 for 50), by a
policy that is never old, without a second copy of the data in the state.

Any world model will do (`world_model.WorldModel`): the policy and the start are those
of single steps, so a transformer begins with a history of one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.methods import imagination, soft_actor
from jaxrec.methods.soft_actor import SoftActor
from jaxrec.methods.world_model import Extra, Prediction, Scales, WorldModel
from jaxrec.models.control import Standardiser, standardiser
from jaxrec.types import Array, Batch, TrainState, UserError

HPARAMS = dict(
    world_stage="world",  # the earlier stage that trained the model
    rollout_every=5,  # updates between two rounds; ours, kit: 1,000 with 50,000 starts
    rounds=100,  # that the buffer keeps, ours; kit: 5 of its own, 5,000 updates
    horizon=5,  # steps of a rollout, kit (walker2d: 1)
    termination="auto",  # analytic, learned, none: see imagination.termination
)


@struct.dataclass
class Buffer:
    """`rows`: arrays [rounds, n, ...]; the first `count` (int32[rounds]) of a round
    exist, the rest belong to rollouts that had ended."""

    rows: dict[str, Array]
    count: Array


@struct.dataclass
class AgentExtra:
    """`TrainState.extra` of MOPO and COMBO."""

    standardiser: Standardiser
    world: TrainState  # the model's parameters and scales
    buffer: Buffer


def world_of(config: Any, info: dict[str, Any]) -> WorldModel:
    """The world model of the earlier stage.

    Raises UserError where there is none, and for settings that cannot work with it.
    """
    stages, name = info.get("stages", {}), config.world_stage
    if name not in stages or getattr(stages[name][1], "predict", None) is None:
        raise UserError(
            f"world_stage={name!r} is no earlier stage with a world model: name one of "
            f"{sorted(stages)}"
        )
    world = stages[name][1]
    if getattr(world.config, "head", "gaussian") != "gaussian":
        raise UserError(f"stage {name}: rollouts are sampled, use head=gaussian")
    imagination.termination(config, info, world.config.predict_terminal)
    for field in ("rollout_every", "rounds", "horizon"):
        if config[field] < 1:
            raise UserError(f"{field}={config[field]}: it must be at least 1")
    return world


def model_rows(real_ratio: float, batch_size: int) -> int:
    """ceil((1 - real_ratio) B): the rows of a batch that come from the model.

    Raises UserError unless there is a row of each kind.
    """
    num = -int(-((1 - real_ratio) * batch_size - 1e-6) // 1)
    if not 0 < num < batch_size:
        raise UserError(
            f"real_ratio={real_ratio} of a batch of {batch_size} leaves {num} rows of "
            "the model: there must be some of both kinds"
        )
    return num


def keep_world(config: Any, earlier: dict[str, TrainState]) -> TrainState:
    """A copy of the model's state, without its optimiser."""
    if config.world_stage not in earlier:
        raise UserError(f"name the stage {config.world_stage!r} in `uses` too")
    world = earlier[config.world_stage]
    world = TrainState(
        world.step, world.params, None, extra=Extra(world.extra.scales, None)
    )
    return jax.tree.map(jnp.copy, world)  # donation needs its own


def empty(config: Any, batch: Batch) -> Buffer:
    """A buffer for rounds that start from every row of `batch`."""
    shape = (config.rounds, config.horizon * len(batch["reward"]))
    names = ("observation", "action", "reward", "next_observation", "terminal")
    rows = {name: jnp.zeros(shape + batch[name].shape[1:]) for name in names}
    rows["uncertainty"] = jnp.zeros(shape)
    return Buffer(rows, jnp.zeros(config.rounds, jnp.int32))


def make_init(
    config: Any, info: dict[str, Any], agent: SoftActor
) -> Callable[..., TrainState]:
    """`Method.init` of MOPO and COMBO: the agent, the model, an empty buffer."""

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        keys = jax.random.split(key)
        extra = AgentExtra(
            standardiser=standardiser(info, config.standardise),
            world=keep_world(config, earlier),
            buffer=empty(config, batch),
        )
        return soft_actor.init(agent, batch, (keys[0], keys[1]), extra)

    return init


def make_refresh(
    config: Any,
    info: dict[str, Any],
    world: WorldModel,
    agent: SoftActor,
    penalty: float = 0.0,
) -> Callable[[TrainState, Array, Array], Buffer]:
    """(state, real states float[B, od], key) -> the buffer that this update uses.

    At every `rollout_every`-th update with a new round, of the present policy.
    """
    generate = make_round(config, info, world, penalty)

    def renewed(state: TrainState, starts: Array, key: Array) -> Buffer:
        extra = state.extra

        def policy(s: Array, key: Array) -> Array:
            noise = jax.random.normal(key, (len(s), agent.action_size))
            s = extra.standardiser(s)
            return soft_actor.sample(agent, state.params["actor"], s, noise)[0]

        return refresh(
            extra.buffer,
            state.step,
            config.rollout_every,
            lambda: generate(extra.world, policy, starts, key),
        )

    return renewed


def refresh(
    buffer: Buffer, step: Array, every: int, generate: Callable[[], Buffer]
) -> Buffer:
    """At every `every`-th step the oldest round becomes generate()'s."""
    slot = (step // every) % len(buffer.count)
    # Only the round passes through the branch, so the buffer is written in place.
    new = jax.lax.cond(
        step % every == 0,
        generate,
        lambda: jax.tree.map(lambda x: x[slot], buffer),
    )
    return jax.tree.map(lambda x, y: x.at[slot].set(y), buffer, new)


def draw(buffer: Buffer, key: Array, num: int) -> dict[str, Array]:
    """`num` rows, uniform over all that exist."""
    ends = jnp.cumsum(buffer.count)
    number = jax.random.randint(key, (num,), 0, jnp.maximum(ends[-1], 1))
    index = jnp.searchsorted(ends, number, side="right", method="compare_all")
    row = number - (ends - buffer.count)[index]
    rows = {name: array[index, row] for name, array in buffer.rows.items()}
    return rows | dict(valid_next=jnp.ones(num))


def sigma(prediction: Prediction, scales: Scales) -> Array:
    """MOPO's u(s, a) = max_e ||sigma_e(s, a)||_2: float[B].

    In the data's units, of the next state and, where modelled, of the reward: as the
    kit, whose penalties are tuned for them.
    """
    std = scales.delta_std
    if prediction.log_var.shape[-1] > len(std):
        std = jnp.append(std, scales.reward_std)
    deviation = jnp.exp(0.5 * prediction.log_var) * std[None, None, :]
    return jnp.max(jnp.linalg.norm(deviation, axis=-1), axis=0)


def make_round(
    config: Any,
    info: dict[str, Any],
    world: WorldModel,
    penalty: float = 0.0,
) -> Callable[[TrainState, Callable, Array, Array], Buffer]:
    """round(world state, policy, starts float[B, od], key) -> one round of a Buffer.

    policy: (s, key) -> a. Each step draws a member a row, then the next state and the
    reward from its Gaussian; r <- r - penalty u(s, a). A rollout ends with a terminal
    state, or before a row that is not finite.
    """

    def generate(state: TrainState, policy: Callable, starts: Array, key: Array):
        B, od = starts.shape
        scales, each = state.extra.scales, jnp.arange(B)

        def step(carry, number):
            window, alive = carry
            # Folded, not scanned over: JAX's check of key reuse takes a scan over keys
            # that is mapped over seeds for a reuse.
            key_step = jax.random.fold_in(key, number)
            key_policy, key_member, key_noise = jax.random.split(key_step, 3)
            s = window["observation"][:, -1]
            a = policy(s, key_policy)
            window = dict(window, action=window["action"].at[:, -1].set(a))
            found = world.predict(state, window)
            member = jax.random.randint(key_member, (B,), 0, len(found.reward))
            noise = jax.random.normal(key_noise, (B, od + 1))
            noise = noise[:, : found.log_var.shape[-1]]  # the reward's, if modelled
            noise = noise * jnp.exp(0.5 * found.log_var[member, each])
            delta = found.mean[member, each] + noise[:, :od]
            s_next = s + delta * scales.delta_std[None]
            reward = found.reward[member, each]
            reward += jnp.sum(noise[:, od:], axis=-1) * scales.reward_std
            u = sigma(found, scales)
            reward -= penalty * u
            exists = alive & jnp.isfinite(s_next).all(-1) & jnp.isfinite(reward)
            s_next = jnp.where(exists[:, None], s_next, s)
            logit = None if found.terminal is None else found.terminal[member, each]
            ends = imagination.termination(config, info, logit is not None)
            terminal = ends(s_next, logit) if ends else jnp.zeros(B, bool)
            row = dict(
                observation=s,
                action=a,
                reward=jnp.where(exists, reward, 0.0),
                next_observation=s_next,
                terminal=terminal.astype(jnp.float32),
                uncertainty=jnp.where(exists, u, 0.0),
            )
            window = dict(
                observation=append(window["observation"], s_next),
                action=append(window["action"], jnp.zeros_like(a)),
                mask=append(window["mask"], jnp.ones(B, bool)),
            )
            return (window, exists & ~terminal), (row, exists)

        K = world.context
        window = dict(
            observation=jnp.repeat(starts[:, None], K, axis=1),
            action=jnp.zeros((B, K, info["action_size"])),
            mask=jnp.repeat((jnp.arange(K) == K - 1)[None], B, axis=0),
        )
        steps = jnp.arange(config.horizon)
        _, (rows, exists) = jax.lax.scan(step, (window, jnp.ones(B, bool)), steps)
        rows, exists = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), (rows, exists)
        )
        first = jnp.argsort(~exists)  # stable: rows that exist to the front
        rows = {name: array[first] for name, array in rows.items()}
        return Buffer(rows, jnp.sum(exists, dtype=jnp.int32))

    return generate


def append(x: Array, new: Array) -> Array:
    """x[:, 1:] and the new last one."""
    return jnp.concatenate([x[:, 1:], new[:, None]], axis=1)


def mix(real: Batch, model: Batch) -> dict[str, Array]:
    """Real rows first, the columns of transitions."""
    names = ("observation", "action", "reward", "next_observation", "terminal")
    names += ("valid_next",)
    return {name: jnp.concatenate([real[name], model[name]]) for name in names}
