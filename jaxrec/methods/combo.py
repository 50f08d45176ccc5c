"""COMBO: conservative Q-learning on the data and on rollouts in a world model.

Yu et al., "COMBO: Conservative Offline Model-Based Policy Optimization" (NeurIPS 2021),
with the constants of OfflineRL-Kit ("kit"). No penalty on rewards: the regulariser of
CQL pushes Q down where the model's rollouts are and up on the data. Half of each batch
is real. Rollouts are those of `world_buffer`, of the current policy; the rest is as in
`cql`, whose two differences from the kit hold here too.

(horizon, weight) of the kit, which pushes down on the mixed batch: hopper 5, 5 and 5,
0.5 (replay); halfcheetah 5, 0.5 and 5, 5 (medium-expert); walker2d 1, 5 and 1, 0.5
(replay).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import world_buffer
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    gamma=0.99,  # kit
    tau=0.005,  # Polyak rate of the target critics, kit
    weight=0.5,  # of the regulariser, kit for hopper-medium-replay
    push_down="model",  # rows whose Q is pushed down, as the paper's rho; kit: "mix"
    temperature=1.0,  # of the log-sum-exp, kit
    num_actions=10,  # sampled from each of the three distributions, kit
    actions_at_once=1,  # of them valued in one product: see cql
    real_ratio=0.5,  # share of real rows in a batch, kit
    widths=(256, 256, 256),  # kit
    standardise=False,  # observations, kit
    actor_optim=optim.spec(lr=1e-4, schedule="cosine"),  # kit
    critic_optim=optim.spec(lr=3e-4),  # kit
    alpha_optim=optim.spec(lr=1e-4),  # of the entropy's weight, kit
    **world_buffer.HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """COMBO for actions in [-1, 1], with the world model of an earlier stage."""
    if config.push_down not in ("model", "mix"):
        raise UserError(f"push_down {config.push_down!r} is unknown: model or mix")
    world = world_buffer.world_of(config, info)
    generate = world_buffer.make_round(config, info, world)
    num_model = world_buffer.model_rows(config.real_ratio, config.batch_size)
    num_real = config.batch_size - num_model
    down = slice(num_real if config.push_down == "model" else 0, None)
    num = config.num_actions
    size = info["action_size"]
    actor = control.TanhGaussianActor(config.widths, size)
    critics = control.Critics(config.widths)
    actor_optim = optim.make(config.actor_optim, config.steps)
    critic_optim = optim.make(config.critic_optim, config.steps)
    alpha_optim = optim.make(config.alpha_optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_actor, key_critic = jax.random.split(key)
        s, a = batch["observation"], batch["action"]
        params = dict(
            actor=actor.init(key_actor, s),
            critic=critics.init(key_critic, s, a),
            log_alpha=jnp.zeros(()),
        )
        opt_state = dict(
            actor=actor_optim.init(params["actor"]),
            critic=critic_optim.init(params["critic"]),
            log_alpha=alpha_optim.init(params["log_alpha"]),
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state,
            target_params=jax.tree.map(jnp.copy, params["critic"]),
            extra=world_buffer.AgentExtra(
                standardiser=control.standardiser(info, config.standardise),
                world=world_buffer.keep_world(config, earlier),
                buffer=world_buffer.empty(config, batch),
            ),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        params, opt_state, extra = state.params, state.opt_state, state.extra
        key_round, key_draw, key_pi, key_next, key_cat = jax.random.split(key, 5)
        key_here, key_there, key_uniform = jax.random.split(key_cat, 3)
        sample = jax.vmap(value.tanh_gaussian)

        # Rollouts of the current policy from the real states of this batch.
        def policy(s: Array, key: Array) -> Array:
            mean, log_std = actor.apply(params["actor"], extra.standardiser(s))
            return sample(mean, log_std, jax.random.normal(key, mean.shape))[0]

        buffer = world_buffer.refresh(
            extra.buffer,
            state.step,
            config.rollout_every,
            lambda: generate(extra.world, policy, batch["observation"], key_round),
        )
        model = world_buffer.draw(buffer, key_draw, num_model)
        real = {name: x[:num_real] for name, x in batch.items()}
        rows = world_buffer.mix(real, model)
        s, a = extra.standardiser(rows["observation"]), rows["action"]
        s_next = extra.standardiser(rows["next_observation"])

        # Actor and entropy weight (Haarnoja et al. 2018).
        alpha = jnp.exp(params["log_alpha"])
        noise = jax.random.normal(key_pi, a.shape)

        def actor_loss(params_actor: Any) -> tuple[Array, Array]:
            mean, log_std = actor.apply(params_actor, s)
            pi, log_pi = jax.vmap(value.tanh_gaussian)(mean, log_std, noise)
            q = critics.apply(params["critic"], s, pi)
            loss = jax.vmap(value.sac_actor, (1, 0, None))(q, log_pi, alpha)
            return jnp.mean(loss), log_pi

        (loss_actor, log_pi), grads = jax.value_and_grad(actor_loss, has_aux=True)(
            params["actor"]
        )
        updates, opt_actor = actor_optim.update(
            grads, opt_state["actor"], params["actor"]
        )
        params_actor = optax.apply_updates(params["actor"], updates)

        def alpha_loss(log_alpha: Array) -> Array:
            losses = jax.vmap(value.entropy_temperature, (None, 0, None))
            return jnp.mean(losses(log_alpha, log_pi, -float(size)))

        grads = jax.grad(alpha_loss)(params["log_alpha"])
        updates, opt_alpha = alpha_optim.update(
            grads, opt_state["log_alpha"], params["log_alpha"]
        )
        log_alpha = optax.apply_updates(params["log_alpha"], updates)

        # Bellman target without the entropy ("deterministic backup").
        mean, log_std = actor.apply(params_actor, s)
        mean_next, log_std_next = actor.apply(params_actor, s_next)
        sample = jax.vmap(value.tanh_gaussian)
        a_next, _ = sample(
            mean_next, log_std_next, jax.random.normal(key_next, a.shape)
        )
        next_v = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        y = value.bellman_target(rows["reward"], rows["terminal"], next_v, config.gamma)

        # Actions to push down, all valued at s: pi(s), pi(s'), uniform. [K, R, ad].
        # The network's output is shared by the samples of a state.
        s_down = s[down]
        samples = jax.vmap(sample, (None, None, 0))
        shape = (num, len(s_down), size)
        here, log_here = samples(
            mean[down], log_std[down], jax.random.normal(key_here, shape)
        )
        there, log_there = samples(
            mean_next[down], log_std_next[down], jax.random.normal(key_there, shape)
        )
        uniform = jax.random.uniform(key_uniform, shape, minval=-1.0)
        log_uniform = jnp.full(shape[:2], size * math.log(0.5))
        # An infinite density takes an action out of the sum.
        known = rows["valid_next"][down][None] > 0
        log_there = jnp.where(known, log_there, jnp.inf)
        a_cat = jnp.concatenate([here, there, uniform])
        log_cat = jnp.concatenate([log_here, log_there, log_uniform])

        # The data's Q stands apart: it is that of other rows.
        pushed = jax.vmap(value.cql_regulariser, (1, None, None, None))  # critics
        pushed = jax.vmap(pushed, (2, 1, None, None))  # rows

        def critic_loss(params_critic: Any) -> tuple[Array, tuple[Array, Array, Array]]:
            q = critics.apply(params_critic, s, a)
            q_cat = jax.lax.map(
                lambda a_k: critics.apply(params_critic, s_down, a_k),
                a_cat,
                batch_size=config.actions_at_once,
            )
            td = jnp.mean(jax.vmap(value.critic, (1, 0))(q, y))
            q_real = q[:, :num_real]
            gap = jnp.mean(pushed(q_cat, log_cat, jnp.zeros(()), config.temperature))
            gap = len(q) * (gap - jnp.mean(q_real))
            return td + config.weight * gap, (td, gap, jnp.mean(q_real))

        (loss, (td, gap, q_data)), grads = jax.value_and_grad(
            critic_loss, has_aux=True
        )(params["critic"])
        updates, opt_critic = critic_optim.update(
            grads, opt_state["critic"], params["critic"]
        )
        params_critic = optax.apply_updates(params["critic"], updates)

        state = state.replace(
            step=state.step + 1,
            params=dict(actor=params_actor, critic=params_critic, log_alpha=log_alpha),
            opt_state=dict(actor=opt_actor, critic=opt_critic, log_alpha=opt_alpha),
            target_params=optax.incremental_update(
                params_critic, state.target_params, config.tau
            ),
            extra=extra.replace(buffer=buffer),
        )
        metrics = dict(
            loss=loss,
            td_loss=td,
            gap=gap,
            q_data=q_data,
            actor_loss=loss_actor,
            entropy=-jnp.mean(log_pi),
            alpha=alpha,
            model_reward=jnp.mean(model["reward"]),
            uncertainty=jnp.mean(model["uncertainty"]),
        )
        return state, metrics

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        s, a = state.extra.standardiser(batch["observation"]), batch["action"]
        pi = jnp.tanh(actor.apply(state.params["actor"], s)[0])
        rows = dict(
            bc_distance=jax.vmap(value.behaviour_cloning)(pi, a),
            q_data=jnp.min(critics.apply(state.params["critic"], s, a), axis=0),
            q_policy=jnp.min(critics.apply(state.params["critic"], s, pi), axis=0),
        )
        sums = {name: jnp.sum(batch["weight"] * row) for name, row in rows.items()}
        return dict(sums, count=jnp.sum(batch["weight"]))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        s = state.extra.standardiser(observation)
        return jnp.tanh(actor.apply(state.params["actor"], s)[0])

    return Method(init, train_step, eval_step, act)
