"""CQL: conservative Q-learning, on top of soft actor-critic.

Kumar, Zhou, Tucker & Levine, "Conservative Q-Learning for Offline Reinforcement
Learning" (NeurIPS 2020), the variant CQL(H) with importance sampling and no Lagrange
multiplier. Constants and the order of the updates are OfflineRL-Kit's ("kit"), which
gives rewards and observations as they are. Two differences from the kit:

- the log-sum-exp runs over all 3 x 10 sampled actions of a state, as in the paper and
  the authors' code (the kit's runs over one action of each of the three kinds);
- actions drawn at s' are left out where the data has no true s' (`valid_next`).

For AntMaze the kit uses rewards 4 (r - 0.5): reward_shift=-0.5, reward_scale=4.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    gamma=0.99,  # kit
    tau=0.005,  # Polyak rate of the target critics, kit
    weight=5.0,  # of the regulariser, kit for all locomotion sets (CORL: 10)
    temperature=1.0,  # of the log-sum-exp, kit
    num_actions=10,  # sampled from each of the three distributions, kit
    # Of the sampled actions, how many a state are valued in one product. Ours, on speed
    # and memory alone: one is 12 % faster on a CPU, whose caches hold [2, 256, 256]; on
    # an accelerator take all, 30.
    actions_at_once=1,
    reward_shift=0.0,  # added to every reward before scaling, kit
    reward_scale=1.0,  # kit
    widths=(256, 256, 256),  # kit
    standardise=False,  # observations, kit (CORL: True)
    actor_optim=optim.spec(lr=1e-4),  # kit (CORL: 3e-5)
    critic_optim=optim.spec(lr=3e-4),  # kit
    alpha_optim=optim.spec(lr=1e-4),  # of the entropy's weight, kit
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """CQL for actions in [-1, 1]."""
    size = info["action_size"]
    actor = control.TanhGaussianActor(config.widths, size)
    critics = control.Critics(config.widths)
    actor_optim = optim.make(config.actor_optim, config.steps)
    critic_optim = optim.make(config.critic_optim, config.steps)
    alpha_optim = optim.make(config.alpha_optim, config.steps)
    num = config.num_actions

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
            # A copy: buffers shared with params could not be donated.
            target_params=jax.tree.map(jnp.copy, params["critic"]),
            extra=control.standardiser(info, config.standardise),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        params, opt_state = state.params, state.opt_state
        key_pi, key_next, key_here, key_there, key_uniform = jax.random.split(key, 5)
        s = state.extra(batch["observation"])
        s_next = state.extra(batch["next_observation"])
        a = batch["action"]
        reward = config.reward_scale * (batch["reward"] + config.reward_shift)
        rows = len(a)

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
        y = value.bellman_target(reward, batch["terminal"], next_v, config.gamma)

        # Actions to push down, all valued at s: pi(s), pi(s'), uniform. [K, B, ad].
        # The network's output is shared by the samples of a state.
        samples, shape = jax.vmap(sample, (None, None, 0)), (num, rows, size)
        here, log_here = samples(mean, log_std, jax.random.normal(key_here, shape))
        there, log_there = samples(
            mean_next, log_std_next, jax.random.normal(key_there, shape)
        )
        uniform = jax.random.uniform(key_uniform, shape, minval=-1.0)
        log_uniform = jnp.full((num, rows), size * math.log(0.5))
        # An infinite density takes an action out of the sum.
        log_there = jnp.where(batch["valid_next"][None] > 0, log_there, jnp.inf)
        a_cat = jnp.concatenate([here, there, uniform])
        log_cat = jnp.concatenate([log_here, log_there, log_uniform])

        regulariser = jax.vmap(value.cql_regulariser, (1, None, 0, None))  # critics
        regulariser = jax.vmap(regulariser, (2, 1, 1, None))  # batch

        def critic_loss(params_critic: Any) -> tuple[Array, tuple[Array, Array, Array]]:
            q = critics.apply(params_critic, s, a)
            q_cat = jax.lax.map(
                lambda a_k: critics.apply(params_critic, s, a_k),
                a_cat,
                batch_size=config.actions_at_once,
            )
            td = jnp.mean(jax.vmap(value.critic, (1, 0))(q, y))
            gap = regulariser(q_cat, log_cat, q, config.temperature)
            gap = jnp.mean(jnp.sum(gap, axis=1))
            return td + config.weight * gap, (td, gap, jnp.mean(q))

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
        )
        metrics = dict(
            loss=loss,
            td_loss=td,
            gap=gap,
            q_data=q_data,
            actor_loss=loss_actor,
            entropy=-jnp.mean(log_pi),
            alpha=alpha,
        )
        return state, metrics

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        s, a = state.extra(batch["observation"]), batch["action"]
        pi = jnp.tanh(actor.apply(state.params["actor"], s)[0])
        rows = dict(
            bc_distance=jax.vmap(value.behaviour_cloning)(pi, a),
            q_data=jnp.min(critics.apply(state.params["critic"], s, a), axis=0),
            q_policy=jnp.min(critics.apply(state.params["critic"], s, pi), axis=0),
        )
        sums = {name: jnp.sum(batch["weight"] * row) for name, row in rows.items()}
        return dict(sums, count=jnp.sum(batch["weight"]))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        mean, _ = actor.apply(state.params["actor"], state.extra(observation))
        return jnp.tanh(mean)

    return Method(init, train_step, eval_step, act)
