"""MCQ: mildly conservative Q-learning.

Lyu, Ma, Li & Lu, "Mildly Conservative Q-Learning for Offline Reinforcement Learning"
(NeurIPS 2022): soft actor-critic whose critics, at actions of the policy, are pulled to
the best value among actions that a VAE of the data proposes. Constants are the official
code's; the update is the paper's, as in OfflineRL-Kit ("kit"): proposals valued by the
target critics, errors of both signs. (The official code values them by the current
critics and keeps positive errors only.) Rewards and observations are left alone.

S_in is {s} and {s'}; s' is left out where the data has no true one (`valid_next`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import soft_actor, transitions
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    gamma=0.99,  # official
    tau=0.005,  # Polyak rate of the target critics, official
    lam=0.9,  # kit and the official runs (default of the code: 0.7); tuned per set
    num_actions=10,  # proposals of the VAE a state, official
    latent_clip=0.5,  # of the VAE's prior samples, official
    vae_width=750,  # official
    reward_shift=0.0,  # added to every reward; kit: -1 for AntMaze
    widths=(400, 400),  # official
    standardise=False,  # observations, kit
    actor_optim=optim.spec(lr=3e-4),  # official
    critic_optim=optim.spec(lr=3e-4),  # official
    alpha_optim=optim.spec(lr=3e-4),  # of the entropy's weight, official
    vae_optim=optim.spec(lr=1e-3),  # official
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """MCQ for actions in [-1, 1]."""
    transitions.check("mcq", info)
    agent = soft_actor.make(config, info, "vae")
    critics, size = agent.critics, agent.action_size
    vae = control.ActionVAE(config.vae_width, size)
    num = config.num_actions

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_actor, key_critic, key_vae = jax.random.split(key, 3)
        s, a = batch["observation"], batch["action"]
        latent = jnp.zeros((len(a), 2 * size))
        return soft_actor.init(
            agent,
            batch,
            (key_actor, key_critic),
            control.standardiser(info, config.standardise),
            vae=vae.init(key_vae, s, a, latent),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        learner = soft_actor.Learner(agent, state)
        key_vae, key_next, key_propose, key_ood, key_pi = jax.random.split(key, 5)
        s = state.extra(batch["observation"])
        s_next = state.extra(batch["next_observation"])
        a = batch["action"]
        reward = batch["reward"] + config.reward_shift
        rows = len(a)

        def sample(s: Array, key: Array) -> tuple[Array, Array]:
            noise = jax.random.normal(key, (len(s), size))
            return soft_actor.sample(agent, state.params["actor"], s, noise)

        # Behaviour model.
        def vae_loss(params: Any) -> tuple[Array, None]:
            noise = jax.random.normal(key_vae, (rows, 2 * size))
            decoded, mean, log_std = vae.apply(params, s, a, noise)
            return jnp.mean(jax.vmap(value.vae)(decoded, a, mean, log_std)), None

        loss_vae, _ = learner.descend("vae", vae_loss)

        # Soft Bellman target.
        a_next, log_next = sample(s_next, key_next)
        next_q = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        next_v = next_q - jnp.exp(state.params["log_alpha"]) * log_next
        y = value.bellman_target(reward, batch["terminal"], next_v, config.gamma)

        # Targets for the policy's own actions on S_in, rows s then rows s'.
        s_in = jnp.concatenate([s, s_next])
        latent = jax.random.normal(key_propose, (2 * rows, num, 2 * size))
        latent = jnp.clip(latent, -config.latent_clip, config.latent_clip)
        s_rep = jnp.broadcast_to(s_in[:, None], (2 * rows, num, s.shape[-1]))
        proposals = vae.apply(learner.params["vae"], s_rep, latent, method="decode")
        q_proposals = critics.apply(state.target_params, s_rep, proposals)
        y_ood = jax.vmap(value.mcq_target, 1)(q_proposals)
        a_ood, _ = sample(s_in, key_ood)
        use = jnp.stack([jnp.ones(rows), batch["valid_next"]])
        use = use * rows / jnp.sum(use)

        def critic_loss(params: Any) -> tuple[Array, tuple[Array, Array]]:
            q = critics.apply(params, s, a)
            q_ood = critics.apply(params, s_in, a_ood).reshape(-1, 2, rows)
            loss = jax.vmap(value.mcq_critic, (1, 0, 2, 1, 1, None))(
                q, y, q_ood, y_ood.reshape(2, rows), use, config.lam
            )
            return jnp.mean(loss), (jnp.mean(q), jnp.mean(q_ood))

        loss, (q_data, q_policy) = learner.descend("critic", critic_loss)

        # Actor, by the new critics, and entropy weight.
        metrics = learner.improve_actor(s, jax.random.normal(key_pi, a.shape))
        metrics |= dict(
            loss=loss,
            vae_loss=loss_vae,
            q_data=q_data,
            q_policy=q_policy,
            q_proposals=jnp.mean(y_ood),
        )
        return learner.finish(state, config.tau), metrics

    eval_step, act = soft_actor.evaluation(agent, lambda state: state.extra)
    return Method(init, train_step, eval_step, act)
