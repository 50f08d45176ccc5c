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

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import soft_actor, transitions, world_buffer
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
    transitions.check("combo", info)
    if config.push_down not in ("model", "mix"):
        raise UserError(f"push_down {config.push_down!r} is unknown: model or mix")
    world = world_buffer.world_of(config, info)
    num_model = world_buffer.model_rows(config.real_ratio, config.batch_size)
    num_real = config.batch_size - num_model
    down = slice(num_real if config.push_down == "model" else 0, None)
    agent = soft_actor.make(config, info)
    roll_out = world_buffer.make_refresh(config, info, world, agent)
    actor, critics = agent.actor, agent.critics

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        learner, extra = soft_actor.Learner(agent, state), state.extra
        key_round, key_draw, key_pi, key_next, key_cat = jax.random.split(key, 5)

        buffer = roll_out(state, batch["observation"], key_round)
        model = world_buffer.draw(buffer, key_draw, num_model)
        real = {name: x[:num_real] for name, x in batch.items()}
        rows = world_buffer.mix(real, model)
        s, a = extra.standardiser(rows["observation"]), rows["action"]
        s_next = extra.standardiser(rows["next_observation"])

        # Actor and entropy weight, by the critics as they are.
        metrics = learner.improve_actor(s, jax.random.normal(key_pi, a.shape))

        # Bellman target without the entropy ("deterministic backup").
        here = actor.apply(learner.params["actor"], s)
        there = actor.apply(learner.params["actor"], s_next)
        noise = jax.random.normal(key_next, a.shape)
        a_next, _ = jax.vmap(value.tanh_gaussian)(*there, noise)
        next_v = jnp.min(critics.apply(state.target_params, s_next, a_next), axis=0)
        y = value.bellman_target(rows["reward"], rows["terminal"], next_v, config.gamma)

        # Actions to push down, all valued at the states to push down: [K, R, ad].
        a_cat, log_cat = soft_actor.contrast(
            jax.random.split(key_cat, 3),
            tuple(x[down] for x in here),
            tuple(x[down] for x in there),
            rows["valid_next"][down],
            config.num_actions,
        )
        # The data's Q stands apart: it is that of other rows.
        pushed = jax.vmap(value.cql_regulariser, (1, None, None, None))  # critics
        pushed = jax.vmap(pushed, (2, 1, None, None))  # rows

        def critic_loss(params: Any) -> tuple[Array, tuple[Array, Array, Array]]:
            q = critics.apply(params, s, a)
            q_cat = jax.lax.map(
                lambda a_k: critics.apply(params, s[down], a_k),
                a_cat,
                batch_size=config.actions_at_once,
            )
            td = jnp.mean(jax.vmap(value.critic, (1, 0))(q, y))
            q_real = q[:, :num_real]
            gap = jnp.mean(pushed(q_cat, log_cat, jnp.zeros(()), config.temperature))
            gap = len(q) * (gap - jnp.mean(q_real))
            return td + config.weight * gap, (td, gap, jnp.mean(q_real))

        loss, (td, gap, q_data) = learner.descend("critic", critic_loss)
        metrics |= dict(
            loss=loss,
            td_loss=td,
            gap=gap,
            q_data=q_data,
            model_reward=jnp.mean(model["reward"]),
            uncertainty=jnp.mean(model["uncertainty"]),
        )
        extra = extra.replace(buffer=buffer)
        return learner.finish(state, config.tau, extra=extra), metrics

    eval_step, act = soft_actor.evaluation(agent, lambda s: s.extra.standardiser)
    init = world_buffer.make_init(config, info, agent)
    return Method(init, train_step, eval_step, act)
