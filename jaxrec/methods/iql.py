"""IQL: implicit Q-learning, which never asks for the value of an unseen action.

Kostrikov, Nair & Levine, "Offline Reinforcement Learning with Implicit Q-Learning"
(ICLR 2022), following the official code: observations are left alone, rewards are
scaled by the range of the returns, and the policy is a Gaussian that is *not* squashed
(a squashed one loses much). For AntMaze: return_range=0, reward_shift=-1,
expectile=0.9, beta=10.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import transitions
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    gamma=0.99,  # official
    tau=0.005,  # Polyak rate of the target critics, official
    expectile=0.7,  # official for locomotion
    beta=3.0,  # inverse temperature of the weights, official for locomotion
    cap=100.0,  # largest weight, official
    # Rewards scaled so that returns span this, 0 = off: official, but with a range that
    # reaches down to 0 (ours, see reward_scale).
    return_range=1000.0,
    reward_shift=0.0,  # added to every reward before scaling, official
    widths=(256, 256),  # official
    standardise=False,  # observations, official (CORL: True)
    actor_optim=optim.spec(lr=3e-4, schedule="cosine"),  # official
    critic_optim=optim.spec(lr=3e-4),  # official
    value_optim=optim.spec(lr=3e-4),  # official
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """IQL for actions in [-1, 1]; reads the range of returns from `info`.

    Raises UserError if all returns are 0 and rewards should be scaled by them.
    """
    transitions.check("iql", info)
    if not 0 < config.expectile < 1:
        raise UserError(f"expectile={config.expectile}: it must be between 0 and 1")
    actor = control.GaussianActor(config.widths, info["action_size"])
    critics = control.Critics(config.widths, init_scheme="orthogonal")
    value_net = control.Value(config.widths, init_scheme="orthogonal")
    actor_optim = optim.make(config.actor_optim, config.steps)
    critic_optim = optim.make(config.critic_optim, config.steps)
    value_optim = optim.make(config.value_optim, config.steps)
    scale = reward_scale(config.return_range, info)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_actor, key_critic, key_value = jax.random.split(key, 3)
        s, a = batch["observation"], batch["action"]
        params = dict(
            actor=actor.init(key_actor, s),
            critic=critics.init(key_critic, s, a),
            value=value_net.init(key_value, s),
        )
        opt_state = dict(
            actor=actor_optim.init(params["actor"]),
            critic=critic_optim.init(params["critic"]),
            value=value_optim.init(params["value"]),
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
        s = state.extra(batch["observation"])
        s_next = state.extra(batch["next_observation"])
        a = jnp.clip(batch["action"], -control.LIMIT, control.LIMIT)
        reward = scale * (batch["reward"] + config.reward_shift)

        # V: expectile regression onto the target critics (eq. 5).
        q_target = jnp.min(critics.apply(state.target_params, s, a), axis=0)

        def value_loss(params_value: Any) -> Array:
            u = q_target - value_net.apply(params_value, s)
            return jnp.mean(jax.vmap(value.expectile, (0, None))(u, config.expectile))

        loss_value, grads = jax.value_and_grad(value_loss)(params["value"])
        updates, opt_value = value_optim.update(
            grads, opt_state["value"], params["value"]
        )
        params_value = optax.apply_updates(params["value"], updates)

        # Policy: regression weighted by the advantage, with the new V (eq. 7).
        v = value_net.apply(params_value, s)
        weight = value.advantage_weight(q_target, v, config.beta, config.cap)

        def actor_loss(params_actor: Any) -> Array:
            mean, log_std = actor.apply(params_actor, s)
            return -jnp.mean(
                weight * jax.vmap(value.gaussian_log_prob)(a, mean, log_std)
            )

        loss_actor, grads = jax.value_and_grad(actor_loss)(params["actor"])
        updates, opt_actor = actor_optim.update(
            grads, opt_state["actor"], params["actor"]
        )
        params_actor = optax.apply_updates(params["actor"], updates)

        # Q: one-step backup of the new V (eq. 6).
        v_next = value_net.apply(params_value, s_next)
        y = value.bellman_target(reward, batch["terminal"], v_next, config.gamma)

        def critic_loss(params_critic: Any) -> Array:
            q = critics.apply(params_critic, s, a)
            return jnp.mean(jax.vmap(value.critic, (1, 0))(q, y))

        loss_critic, grads = jax.value_and_grad(critic_loss)(params["critic"])
        updates, opt_critic = critic_optim.update(
            grads, opt_state["critic"], params["critic"]
        )
        params_critic = optax.apply_updates(params["critic"], updates)

        state = state.replace(
            step=state.step + 1,
            params=dict(actor=params_actor, critic=params_critic, value=params_value),
            opt_state=dict(actor=opt_actor, critic=opt_critic, value=opt_value),
            target_params=optax.incremental_update(
                params_critic, state.target_params, config.tau
            ),
        )
        metrics = dict(
            loss=loss_critic + loss_value + loss_actor,
            critic_loss=loss_critic,
            value_loss=loss_value,
            actor_loss=loss_actor,
            value=jnp.mean(v),
            advantage=jnp.mean(q_target - v),
            weight=jnp.mean(weight),
        )
        return state, metrics

    def values(state: TrainState, batch: Batch) -> dict[str, Array]:
        s, a = state.extra(batch["observation"]), batch["action"]
        pi, _ = actor.apply(state.params["actor"], s)
        return dict(
            q_data=jnp.min(critics.apply(state.params["critic"], s, a), axis=0),
            q_policy=jnp.min(critics.apply(state.params["critic"], s, pi), axis=0),
            value=value_net.apply(state.params["value"], s),
        )

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        s, a = state.extra(batch["observation"]), batch["action"]
        pi, _ = actor.apply(state.params["actor"], s)
        distance = jax.vmap(value.behaviour_cloning)(pi, a)
        rows = dict(bc_distance=distance, **values(state, batch))
        sums = {name: jnp.sum(batch["weight"] * row) for name, row in rows.items()}
        return dict(sums, count=jnp.sum(batch["weight"]))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        return actor.apply(state.params["actor"], state.extra(observation))[0]

    return Method(init, train_step, eval_step, act, values=values)


def reward_scale(return_range: float, info: dict[str, Any]) -> float:
    """`return_range` / (largest - smallest return of an episode); 1 if it is 0.

    The range reaches down to 0 at least (ours): where all episodes return alike, the
    official one would blow up the rewards, and with them the weights of the policy.
    Where no episode returns about 0 ours is smaller: on our HalfCheetah-v4 sets medium
    and medium-expert the official factor is 1.22 and 1.26 times this one.
    """
    if not return_range:
        return 1.0
    low, high = float(info["return_min"]), float(info["return_max"])
    low, high = min(low, 0.0), max(high, 0.0)
    if not high > low:
        raise UserError(
            "iql scales rewards by the range of returns, but all are 0: set "
            "return_range=0"
        )
    return return_range / (high - low)
