"""TD3+BC: TD3 whose actor also regresses onto the data's actions.

Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning" (2021),
following the official code: observations are standardised, rewards left alone, actor
and targets move at every second update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import transitions
from jaxrec.models import control
from jaxrec.types import Array, Batch, Method, TrainState

HPARAMS = dict(
    gamma=0.99,  # official
    tau=0.005,  # Polyak rate of the targets, official
    alpha=2.5,  # weight of Q against cloning, official
    delay=2,  # critic updates for one of the actor and the targets, official
    noise=0.2,  # target policy smoothing, official
    noise_clip=0.5,  # official
    widths=(256, 256),  # official
    standardise=True,  # observations, official
    actor_optim=optim.spec(lr=3e-4),  # official
    critic_optim=optim.spec(lr=3e-4),  # official
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """TD3+BC for actions in [-1, 1]."""
    transitions.check("td3bc", info)
    actor = control.DeterministicActor(config.widths, info["action_size"])
    critics = control.Critics(config.widths)
    critic = control.Critic(config.widths)
    actor_optim = optim.make(config.actor_optim, config.steps // config.delay)
    critic_optim = optim.make(config.critic_optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        key_actor, key_critic = jax.random.split(key)
        s, a = batch["observation"], batch["action"]
        params = dict(
            actor=actor.init(key_actor, s), critic=critics.init(key_critic, s, a)
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=dict(
                actor=actor_optim.init(params["actor"]),
                critic=critic_optim.init(params["critic"]),
            ),
            target_params=jax.tree.map(jnp.copy, params),  # donation needs its own
            extra=control.standardiser(info, config.standardise),
        )

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        params, target = state.params, state.target_params
        opt_state = state.opt_state
        s, a = state.extra(batch["observation"]), batch["action"]
        s_next = state.extra(batch["next_observation"])

        noise = config.noise * jax.random.normal(key, a.shape)
        noise = jnp.clip(noise, -config.noise_clip, config.noise_clip)
        a_next = jnp.clip(actor.apply(target["actor"], s_next) + noise, -1.0, 1.0)
        next_v = jnp.min(critics.apply(target["critic"], s_next, a_next), axis=0)
        y = value.bellman_target(
            batch["reward"], batch["terminal"], next_v, config.gamma
        )

        def critic_loss(params_critic: Any) -> tuple[Array, Array]:
            q = critics.apply(params_critic, s, a)
            return jnp.mean(jax.vmap(value.critic, (1, 0))(q, y)), jnp.mean(q)

        (loss, q_data), grads = jax.value_and_grad(critic_loss, has_aux=True)(
            params["critic"]
        )
        params_critic, opt_critic = optim.descend(
            critic_optim, grads, opt_state["critic"], params["critic"]
        )

        def actor_loss(params_actor: Any) -> Array:
            pi = actor.apply(params_actor, s)
            q = critic.apply(control.first(params_critic), s, pi)
            lam = value.td3bc_lambda(q, config.alpha)
            losses = jax.vmap(value.td3bc_actor, (0, 0, 0, None))(q, pi, a, lam)
            return jnp.mean(losses)

        state = delayed(
            state, params_critic, opt_critic, actor_loss, actor_optim, config
        )
        return state, dict(loss=loss, q_data=q_data, target=jnp.mean(y))

    def values(state: TrainState, batch: Batch) -> dict[str, Array]:
        s, a = state.extra(batch["observation"]), batch["action"]
        pi = actor.apply(state.params["actor"], s)
        params_critic = control.first(state.params["critic"])
        return dict(
            q_data=critic.apply(params_critic, s, a),
            q_policy=critic.apply(params_critic, s, pi),
        )

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        s, a = state.extra(batch["observation"]), batch["action"]
        pi = actor.apply(state.params["actor"], s)
        distance = jax.vmap(value.behaviour_cloning)(pi, a)
        rows = dict(bc_distance=distance, **values(state, batch))
        sums = {name: jnp.sum(batch["weight"] * row) for name, row in rows.items()}
        return dict(sums, count=jnp.sum(batch["weight"]))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        return actor.apply(state.params["actor"], state.extra(observation))

    return Method(init, train_step, eval_step, act, values=values)


def delayed(
    state: TrainState,
    params_critic: Any,
    opt_critic: Any,
    actor_loss: Callable[[Any], Array],
    actor_optim: optax.GradientTransformation,
    config: Any,
) -> TrainState:
    """The state after an update whose critics moved already, as given.

    At every `config.delay`-th update the actor descends `actor_loss(its parameters)`
    and all targets follow at the rate `config.tau`.
    """
    actor, opt_actor = state.params["actor"], state.opt_state["actor"]

    def move() -> tuple[Any, Any, Any]:
        grads = jax.grad(actor_loss)(actor)
        params_actor, opt = optim.descend(actor_optim, grads, opt_actor, actor)
        new = dict(actor=params_actor, critic=params_critic)
        targets = optax.incremental_update(new, state.target_params, config.tau)
        return params_actor, opt, targets

    actor, opt_actor, targets = jax.lax.cond(
        (state.step + 1) % config.delay == 0,
        move,
        lambda: (actor, opt_actor, state.target_params),
    )
    return state.replace(
        step=state.step + 1,
        params=dict(actor=actor, critic=params_critic),
        opt_state=dict(actor=opt_actor, critic=opt_critic),
        target_params=targets,
    )
