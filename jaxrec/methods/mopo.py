"""MOPO: soft actor-critic in a world model whose rewards are penalised by its doubt.

Yu et al., "MOPO: Model-based Offline Policy Optimization" (NeurIPS 2020), with the
constants of OfflineRL-Kit ("kit"): the policy is rolled out for a few steps in the
ensemble of an earlier stage, r <- r - c max_e ||sigma_e(s, a)||_2, and soft
actor-critic (Haarnoja et al. 2018) learns from batches of which 5 % are real. What
differs: rollouts start from the batch at hand (see `world_buffer`), and all members
are kept, where the kit trains seven and samples from the best five.

(horizon, penalty) of the kit: hopper 5, 5 (medium, medium-expert) and 5, 2.5 (replay);
halfcheetah 5, 0.5 and 5, 2.5 (medium-expert); walker2d 5, 0.5 (medium) and 1, 2.5.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import world_buffer
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    gamma=0.99,  # kit
    tau=0.005,  # Polyak rate of the target critics, kit
    penalty=2.5,  # c, kit for hopper-medium-replay
    real_ratio=0.05,  # share of real rows in a batch, kit
    widths=(256, 256),  # kit
    standardise=False,  # observations, kit
    actor_optim=optim.spec(lr=1e-4, schedule="cosine"),  # kit
    critic_optim=optim.spec(lr=3e-4),  # kit
    alpha_optim=optim.spec(lr=1e-4),  # of the entropy's weight, kit
    **world_buffer.HPARAMS,
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """MOPO for actions in [-1, 1], with the world model of an earlier stage."""
    world = world_buffer.world_of(config, info)
    generate = world_buffer.make_round(config, info, world, config.penalty)
    num_model = world_buffer.model_rows(config.real_ratio, config.batch_size)
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

    def sample(params_actor: Any, s: Array, noise: Array) -> tuple[Array, Array]:
        mean, log_std = actor.apply(params_actor, s)
        return jax.vmap(value.tanh_gaussian)(mean, log_std, noise)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        params, opt_state, extra = state.params, state.opt_state, state.extra
        key_round, key_draw, key_next, key_pi = jax.random.split(key, 4)

        # Rollouts of the current policy from the real states of this batch.
        def policy(s: Array, key: Array) -> Array:
            noise = jax.random.normal(key, (len(s), size))
            return sample(params["actor"], extra.standardiser(s), noise)[0]

        buffer = world_buffer.refresh(
            extra.buffer,
            state.step,
            config.rollout_every,
            lambda: generate(extra.world, policy, batch["observation"], key_round),
        )
        model = world_buffer.draw(buffer, key_draw, num_model)
        real = {name: x[: len(x) - num_model] for name, x in batch.items()}
        rows = world_buffer.mix(real, model)
        s, a = extra.standardiser(rows["observation"]), rows["action"]
        s_next = extra.standardiser(rows["next_observation"])
        alpha = jnp.exp(params["log_alpha"])

        # Critics: the target has the entropy (Haarnoja et al. 2018, eq. 3 and 5).
        noise = jax.random.normal(key_next, a.shape)
        a_next, log_next = sample(params["actor"], s_next, noise)
        next_q = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        next_v = next_q - alpha * log_next
        y = value.bellman_target(rows["reward"], rows["terminal"], next_v, config.gamma)

        def critic_loss(params_critic: Any) -> tuple[Array, Array]:
            q = critics.apply(params_critic, s, a)
            return jnp.mean(jax.vmap(value.critic, (1, 0))(q, y)), jnp.mean(q)

        (loss, q_data), grads = jax.value_and_grad(critic_loss, has_aux=True)(
            params["critic"]
        )
        updates, opt_critic = critic_optim.update(
            grads, opt_state["critic"], params["critic"]
        )
        params_critic = optax.apply_updates(params["critic"], updates)

        # Actor and entropy weight.
        noise = jax.random.normal(key_pi, a.shape)

        def actor_loss(params_actor: Any) -> tuple[Array, Array]:
            pi, log_pi = sample(params_actor, s, noise)
            q = critics.apply(params_critic, s, pi)
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
            q_data=q_data,
            actor_loss=loss_actor,
            entropy=-jnp.mean(log_pi),
            alpha=alpha,
            model_reward=jnp.mean(model["reward"]),
            penalty=config.penalty * jnp.mean(model["uncertainty"]),
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
