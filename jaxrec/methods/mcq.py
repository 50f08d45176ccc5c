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
import optax

from jaxrec import optim
from jaxrec.losses import value
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
    size = info["action_size"]
    actor = control.TanhGaussianActor(config.widths, size)
    critics = control.Critics(config.widths)
    vae = control.ActionVAE(config.vae_width, size)
    optims = {
        name: optim.make(config[f"{name}_optim"], config.steps)
        for name in ("actor", "critic", "alpha", "vae")
    }
    num = config.num_actions

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_actor, key_critic, key_vae = jax.random.split(key, 3)
        s, a = batch["observation"], batch["action"]
        latent = jnp.zeros((len(a), 2 * size))
        params = dict(
            actor=actor.init(key_actor, s),
            critic=critics.init(key_critic, s, a),
            alpha=jnp.zeros(()),  # its logarithm
            vae=vae.init(key_vae, s, a, latent),
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={name: tx.init(params[name]) for name, tx in optims.items()},
            # A copy: buffers shared with params could not be donated.
            target_params=jax.tree.map(jnp.copy, params["critic"]),
            extra=control.standardiser(info, config.standardise),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        params, opt_state = dict(state.params), dict(state.opt_state)
        key_vae, key_next, key_propose, key_ood, key_pi = jax.random.split(key, 5)
        s = state.extra(batch["observation"])
        s_next = state.extra(batch["next_observation"])
        a = batch["action"]
        reward = batch["reward"] + config.reward_shift
        rows = len(a)

        def descend(name: str, loss_fn: Any) -> tuple[Array, Any]:
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, aux), grads = grad_fn(params[name])
            updates, opt_state[name] = optims[name].update(
                grads, opt_state[name], params[name]
            )
            params[name] = optax.apply_updates(params[name], updates)
            return loss, aux

        def sample(params_actor: Any, s: Array, key: Array) -> tuple[Array, Array]:
            mean, log_std = actor.apply(params_actor, s)
            noise = jax.random.normal(key, mean.shape)
            return jax.vmap(value.tanh_gaussian)(mean, log_std, noise)

        # Behaviour model.
        def vae_loss(params_vae: Any) -> tuple[Array, None]:
            noise = jax.random.normal(key_vae, (rows, 2 * size))
            decoded, mean, log_std = vae.apply(params_vae, s, a, noise)
            return jnp.mean(jax.vmap(value.vae)(decoded, a, mean, log_std)), None

        loss_vae, _ = descend("vae", vae_loss)

        # Soft Bellman target.
        alpha = jnp.exp(params["alpha"])
        a_next, log_next = sample(params["actor"], s_next, key_next)
        next_q = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        next_v = next_q - alpha * log_next
        y = value.bellman_target(reward, batch["terminal"], next_v, config.gamma)

        # Targets for the policy's own actions on S_in, rows s then rows s'.
        s_in = jnp.concatenate([s, s_next])
        latent = jax.random.normal(key_propose, (2 * rows, num, 2 * size))
        latent = jnp.clip(latent, -config.latent_clip, config.latent_clip)
        s_rep = jnp.broadcast_to(s_in[:, None], (2 * rows, num, s.shape[-1]))
        proposals = vae.apply(params["vae"], s_rep, latent, method="decode")
        q_proposals = critics.apply(state.target_params, s_rep, proposals)
        y_ood = jax.vmap(value.mcq_target, 1)(q_proposals)
        a_ood, _ = sample(params["actor"], s_in, key_ood)
        use = jnp.stack([jnp.ones(rows), batch["valid_next"]])
        use = use * rows / jnp.sum(use)

        def critic_loss(params_critic: Any) -> tuple[Array, tuple[Array, Array]]:
            q = critics.apply(params_critic, s, a)
            q_ood = critics.apply(params_critic, s_in, a_ood).reshape(-1, 2, rows)
            loss = jax.vmap(value.mcq_critic, (1, 0, 2, 1, 1, None))(
                q, y, q_ood, y_ood.reshape(2, rows), use, config.lam
            )
            return jnp.mean(loss), (jnp.mean(q), jnp.mean(q_ood))

        loss, (q_data, q_policy) = descend("critic", critic_loss)

        # Actor and entropy weight (Haarnoja et al. 2018).
        def actor_loss(params_actor: Any) -> tuple[Array, Array]:
            pi, log_pi = sample(params_actor, s, key_pi)
            q = critics.apply(params["critic"], s, pi)
            losses = jax.vmap(value.sac_actor, (1, 0, None))(q, log_pi, alpha)
            return jnp.mean(losses), log_pi

        loss_actor, log_pi = descend("actor", actor_loss)

        def alpha_loss(log_alpha: Array) -> tuple[Array, None]:
            losses = jax.vmap(value.entropy_temperature, (None, 0, None))
            return jnp.mean(losses(log_alpha, log_pi, -float(size))), None

        descend("alpha", alpha_loss)

        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            target_params=optax.incremental_update(
                params["critic"], state.target_params, config.tau
            ),
        )
        metrics = dict(
            loss=loss,
            vae_loss=loss_vae,
            actor_loss=loss_actor,
            q_data=q_data,
            q_policy=q_policy,
            q_proposals=jnp.mean(y_ood),
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
