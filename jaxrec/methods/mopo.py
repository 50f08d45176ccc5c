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

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import soft_actor, transitions, world_buffer
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
    transitions.check("mopo", info)
    world = world_buffer.world_of(config, info)
    num_model = world_buffer.model_rows(config.real_ratio, config.batch_size)
    agent = soft_actor.make(config, info)
    roll_out = world_buffer.make_refresh(config, info, world, agent, config.penalty)
    critics = agent.critics

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        learner, extra = soft_actor.Learner(agent, state), state.extra
        key_round, key_draw, key_next, key_pi = jax.random.split(key, 4)

        buffer = roll_out(state, batch["observation"], key_round)
        model = world_buffer.draw(buffer, key_draw, num_model)
        real = {name: x[: len(x) - num_model] for name, x in batch.items()}
        rows = world_buffer.mix(real, model)
        s, a = extra.standardiser(rows["observation"]), rows["action"]
        s_next = extra.standardiser(rows["next_observation"])

        # Critics: the target has the entropy (Haarnoja et al. 2018, eq. 3 and 5).
        noise = jax.random.normal(key_next, a.shape)
        a_next, log_next = soft_actor.sample(
            agent, state.params["actor"], s_next, noise
        )
        next_q = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        next_v = next_q - jnp.exp(state.params["log_alpha"]) * log_next
        y = value.bellman_target(rows["reward"], rows["terminal"], next_v, config.gamma)

        def critic_loss(params: Any) -> tuple[Array, Array]:
            q = critics.apply(params, s, a)
            return jnp.mean(jax.vmap(value.critic, (1, 0))(q, y)), jnp.mean(q)

        loss, q_data = learner.descend("critic", critic_loss)

        # Actor, by the new critics, and entropy weight.
        metrics = learner.improve_actor(s, jax.random.normal(key_pi, a.shape))
        metrics |= dict(
            loss=loss,
            q_data=q_data,
            model_reward=jnp.mean(model["reward"]),
            penalty=config.penalty * jnp.mean(model["uncertainty"]),
        )
        extra = extra.replace(buffer=buffer)
        return learner.finish(state, config.tau, extra=extra), metrics

    eval_step, act = soft_actor.evaluation(agent, lambda s: s.extra.standardiser)
    init = world_buffer.make_init(config, info, agent)
    return Method(init, train_step, eval_step, act)
