"""A recommender that acts in the space of item embeddings: TD3+BC, nearest item served.

States are those of a frozen encoder of an earlier stage, an action is a unit vector,
and an item is the direction of its row in that stage's softmax. The actor and the two
critics learn as in TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860). What is served is as
in "Deep Reinforcement Learning in Large Discrete Action Spaces" (Dulac-Arnold et al.
2015, arXiv 1512.07679): of the items nearest to the action the one that the critic
values most. The combination and its defaults are ours.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.methods import ranked, recommender, td3bc, windows
from jaxrec.models import control
from jaxrec.models import recommender as networks
from jaxrec.ops import catalogue
from jaxrec.types import Array, Batch, Method, TrainState, UserError

HPARAMS = dict(
    encoder_stage="encoder",  # the earlier stage whose states and items are used
    gamma=0.5,  # as SQN
    tau=0.005,  # TD3+BC
    alpha=2.5,  # weight of Q against cloning, TD3+BC
    delay=2,  # critic updates for one of the actor and the targets, TD3+BC
    noise=0.05,  # std of the target's smoothing in each dimension, ours
    noise_clip=0.1,  # ours
    widths=(256, 256),  # TD3+BC
    nearest=3,  # items that the critic chooses from; 1 = the nearest, ours
    actor_optim=optim.spec(lr=3e-4),  # TD3+BC
    critic_optim=optim.spec(lr=3e-4),  # TD3+BC
)


def make(config: Any, info: dict[str, Any]) -> Method:
    """TD3+BC on frozen states; actions are unit vectors float[B, D]."""
    network, tied = frozen_network(config, info)
    if not 1 <= config.nearest <= info["num_items"]:
        raise UserError(
            f"nearest={config.nearest}: must be 1 to {info['num_items']}, the items"
        )
    width = network.width if tied else network.out_width
    actor = control.DeterministicActor(config.widths, width)
    critics = control.Critics(config.widths)
    critic = control.Critic(config.widths)
    actor_optim = optim.make(config.actor_optim, config.steps // config.delay)
    critic_optim = optim.make(config.critic_optim, config.steps)

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        if config.encoder_stage not in earlier:
            raise UserError(
                f"encoder_stage={config.encoder_stage!r}: put it in `uses` too"
            )
        params = earlier[config.encoder_stage].params
        frozen = jax.tree.map(jnp.copy, params)
        table, _ = recommender.apply(network, frozen, "ce_table")
        event = windows.transition(batch)
        s = recommender.state_of(network, frozen, event.items, event.length)
        key_actor, key_critic = jax.random.split(key)
        a = jnp.zeros((len(s), width))
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
            extra=dict(network=frozen, items=unit(table)),
        )

    def act(params: Any, s: Array) -> Array:
        """The action, a unit vector: float[B, D'] -> float[B, D]."""
        return unit(actor.apply(params, s))

    def train_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        event = windows.transition(batch)
        params, target, opt_state = state.params, state.target_params, state.opt_state
        frozen, items = state.extra["network"], state.extra["items"]
        s = recommender.state_of(network, frozen, event.items, event.length)
        s_next = recommender.state_of(
            network, frozen, event.next_items, event.next_length
        )
        a = items[event.action]

        noise = config.noise * jax.random.normal(key, a.shape)
        noise = jnp.clip(noise, -config.noise_clip, config.noise_clip)
        a_next = unit(act(target["actor"], s_next) + noise)
        next_v = jnp.min(critics.apply(target["critic"], s_next, a_next), axis=0)
        y = value.bellman_target(event.reward, event.done, next_v, config.gamma)

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
            pi = act(params_actor, s)
            q = critic.apply(control.first(params_critic), s, pi)
            lam = value.td3bc_lambda(q, config.alpha)
            # The squared distance of unit vectors is a number near 1 whatever their
            # dimension; td3bc_actor takes the mean over dimensions of about unit size.
            size = width**0.5
            rows = jax.vmap(value.td3bc_actor, (0, 0, 0, None))
            return jnp.mean(rows(q, size * pi, size * a, lam))

        state = td3bc.delayed(
            state, params_critic, opt_critic, actor_loss, actor_optim, config
        )
        return state, dict(loss=loss, q_data=q_data, target=jnp.mean(y))

    def scores(state: TrainState, seen: Array, length: Array, timestep: Array) -> Array:
        """Inner products in [-1, 1]; the nearest items by their value, from 2 on."""
        items = state.extra["items"]
        s = recommender.state_of(network, state.extra["network"], seen, length)
        y = ranked.only_items(act(state.params["actor"], s) @ items.T, info)
        near = catalogue.top_k(y, config.nearest)[1]  # [B, n]
        each = jnp.broadcast_to(s[:, None], (*near.shape, s.shape[-1]))
        q = critic.apply(control.first(state.params["critic"]), each, items[near])
        rows = jnp.arange(y.shape[0])[:, None]
        return y.at[rows, near].set(2.0 + q - jnp.min(q, axis=1, keepdims=True))

    return Method(init, train_step, ranked.make_eval_step(scores), scores=scores)


def unit(x: Array) -> Array:
    """float[..., D] of length 1; zeros stay."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def frozen_network(config: Any, info: dict[str, Any]) -> tuple[Any, bool]:
    """The network of the earlier stage, and whether its two item tables are one."""
    stage, stages = config.encoder_stage, info.get("stages", {})
    if stage not in stages:
        raise UserError(
            f"encoder_stage={stage!r} is no earlier stage: use one of "
            f"{', '.join(stages) or 'none here, name one in stages'}"
        )
    section, _ = stages[stage]
    hparams = section[section.method]
    if section.method != "ce":
        raise UserError(f"encoder_stage={stage!r} runs {section.method}: it must be ce")
    return networks.make(hparams, info), hparams.tied
