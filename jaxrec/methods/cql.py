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

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import soft_actor, transitions
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
    transitions.check("cql", info)
    agent = soft_actor.make(config, info)
    actor, critics = agent.actor, agent.critics

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        keys = jax.random.split(key)
        extra = control.standardiser(info, config.standardise)
        return soft_actor.init(agent, batch, (keys[0], keys[1]), extra)

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        learner = soft_actor.Learner(agent, state)
        key_pi, key_next, *keys = jax.random.split(key, 5)
        s = state.extra(batch["observation"])
        s_next = state.extra(batch["next_observation"])
        a = batch["action"]
        reward = config.reward_scale * (batch["reward"] + config.reward_shift)

        # Actor and entropy weight, by the critics as they are.
        metrics = learner.improve_actor(s, jax.random.normal(key_pi, a.shape))

        # Bellman target without the entropy ("deterministic backup").
        here = actor.apply(learner.params["actor"], s)
        there = actor.apply(learner.params["actor"], s_next)
        noise = jax.random.normal(key_next, a.shape)
        a_next, _ = jax.vmap(value.tanh_gaussian)(*there, noise)
        next_v = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        y = value.bellman_target(reward, batch["terminal"], next_v, config.gamma)

        # Actions to push down, all valued at s: [K, B, ad].
        a_cat, log_cat = soft_actor.contrast(
            keys, here, there, batch["valid_next"], config.num_actions
        )
        regulariser = jax.vmap(value.cql_regulariser, (1, None, 0, None))  # critics
        regulariser = jax.vmap(regulariser, (2, 1, 1, None))  # batch

        def critic_loss(params: Any) -> tuple[Array, tuple[Array, Array, Array]]:
            q = critics.apply(params, s, a)
            q_cat = jax.lax.map(
                lambda a_k: critics.apply(params, s, a_k),
                a_cat,
                batch_size=config.actions_at_once,
            )
            td = jnp.mean(jax.vmap(value.critic, (1, 0))(q, y))
            gap = regulariser(q_cat, log_cat, q, config.temperature)
            gap = jnp.mean(jnp.sum(gap, axis=1))
            return td + config.weight * gap, (td, gap, jnp.mean(q))

        loss, (td, gap, q_data) = learner.descend("critic", critic_loss)
        metrics |= dict(loss=loss, td_loss=td, gap=gap, q_data=q_data)
        return learner.finish(state, config.tau), metrics

    eval_step, act = soft_actor.evaluation(agent, lambda state: state.extra)
    return Method(init, train_step, eval_step, act)
