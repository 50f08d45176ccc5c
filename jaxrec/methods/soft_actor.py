"""Soft actor-critic (Haarnoja et al. 2018): what CQL, MCQ, MOPO and COMBO share.

A tanh-Gaussian actor, two critics with slow copies, and an entropy weight alpha that
holds the entropy at -(number of action dimensions). The methods differ in their
critics' losses and in the order of the updates: those stay in their files.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxrec import optim
from jaxrec.losses import value
from jaxrec.models import control
from jaxrec.types import Array, Batch, TrainState


class SoftActor(NamedTuple):
    """Networks and optimisers; parameters are dicts actor, critic, log_alpha, ..."""

    actor: nn.Module
    critics: nn.Module
    optims: dict[str, optax.GradientTransformation]
    action_size: int


def make(config: Any, info: dict[str, Any], *more: str) -> SoftActor:
    """Reads config.widths and actor_, critic_, alpha_ and `<more>_optim`."""
    names = dict(actor="actor", critic="critic", log_alpha="alpha")
    names |= {name: name for name in more}
    optims = {
        name: optim.make(config[f"{field}_optim"], config.steps)
        for name, field in names.items()
    }
    size = info["action_size"]
    actor = control.TanhGaussianActor(config.widths, size)
    return SoftActor(actor, control.Critics(config.widths), optims, size)


def init(
    agent: SoftActor, batch: Batch, keys: tuple[Array, Array], extra: Any, **more: Any
) -> TrainState:
    """A fresh state; `keys` of the actor and the critics, `more` further parameters."""
    s, a = batch["observation"], batch["action"]
    params = dict(
        actor=agent.actor.init(keys[0], s),
        critic=agent.critics.init(keys[1], s, a),
        log_alpha=jnp.zeros(()),
        **more,
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={name: tx.init(params[name]) for name, tx in agent.optims.items()},
        # A copy: buffers shared with params could not be donated.
        target_params=jax.tree.map(jnp.copy, params["critic"]),
        extra=extra,
    )


class Learner:
    """Parameters and optimiser states during one update, replaced part by part.

    Lives inside one call of a train step, so that a step reads in the paper's order.
    """

    def __init__(self, agent: SoftActor, state: TrainState):
        self.agent = agent
        self.params, self.opt_state = dict(state.params), dict(state.opt_state)

    def descend(self, name: str, loss: Callable[[Any], tuple[Array, Any]]):
        """One step of part `name`; `loss(its parameters)` -> (value, aux), returned."""
        grad = jax.value_and_grad(loss, has_aux=True)
        found, grads = grad(self.params[name])
        updates, self.opt_state[name] = self.agent.optims[name].update(
            grads, self.opt_state[name], self.params[name]
        )
        self.params[name] = optax.apply_updates(self.params[name], updates)
        return found

    def improve_actor(self, s: Array, noise: Array) -> dict[str, Array]:
        """Actor by the present critics, then alpha: actor_loss, entropy, (old) alpha.

        s: float[B, od]; noise: float[B, ad], standard normal.
        """
        alpha = jnp.exp(self.params["log_alpha"])

        def actor_loss(params: Any) -> tuple[Array, Array]:
            pi, log_pi = sample(self.agent, params, s, noise)
            q = self.agent.critics.apply(self.params["critic"], s, pi)
            loss = jax.vmap(value.sac_actor, (1, 0, None))(q, log_pi, alpha)
            return jnp.mean(loss), log_pi

        def alpha_loss(log_alpha: Array) -> tuple[Array, None]:
            losses = jax.vmap(value.entropy_temperature, (None, 0, None))
            target = -float(self.agent.action_size)
            return jnp.mean(losses(log_alpha, log_pi, target)), None

        loss, log_pi = self.descend("actor", actor_loss)
        self.descend("log_alpha", alpha_loss)
        return dict(actor_loss=loss, entropy=-jnp.mean(log_pi), alpha=alpha)

    def finish(self, state: TrainState, tau: float, **changes: Any) -> TrainState:
        """The state after the update, target critics moved by `tau`."""
        slow = optax.incremental_update(self.params["critic"], state.target_params, tau)
        return state.replace(
            step=state.step + 1,
            params=self.params,
            opt_state=self.opt_state,
            target_params=slow,
            **changes,
        )


def sample(
    agent: SoftActor, params: Any, s: Array, noise: Array
) -> tuple[Array, Array]:
    """(action float[B, ad], its log density float[B]) at s float[B, od]."""
    mean, log_std = agent.actor.apply(params, s)
    return jax.vmap(value.tanh_gaussian)(mean, log_std, noise)


def contrast(
    keys: tuple[Array, Array, Array],
    here: tuple[Array, Array],
    there: tuple[Array, Array],
    valid_next: Array,
    num: int,
) -> tuple[Array, Array]:
    """Actions that CQL pushes down and their log densities: [3 num, B, ad], [3 num, B].

    `num` each of pi(s), of pi(s') and uniform ones, all to be valued at s. `here` and
    `there`: (mean, log_std) float[B, ad] of the actor at s and s', one forward pass
    for all samples. Actions at an s' that is none (`valid_next` 0) get an infinite
    density, which takes them out of the sum.
    """
    rows, size = here[0].shape
    shape = (num, rows, size)
    samples = jax.vmap(jax.vmap(value.tanh_gaussian), (None, None, 0))
    a_here, log_here = samples(*here, jax.random.normal(keys[0], shape))
    a_there, log_there = samples(*there, jax.random.normal(keys[1], shape))
    uniform = jax.random.uniform(keys[2], shape, minval=-1.0)
    log_uniform = jnp.full((num, rows), size * math.log(0.5))
    log_there = jnp.where(valid_next[None] > 0, log_there, jnp.inf)
    actions = jnp.concatenate([a_here, a_there, uniform])
    return actions, jnp.concatenate([log_here, log_there, log_uniform])


def evaluation(
    agent: SoftActor, standardiser: Callable[[TrainState], Callable[[Array], Array]]
) -> tuple[Callable[..., dict[str, Array]], Callable[..., Array]]:
    """(eval_step, act) of a method; `standardiser(state)` scales observations."""

    def eval_step(state: TrainState, batch: Batch, key: Array) -> dict[str, Array]:
        s, a = standardiser(state)(batch["observation"]), batch["action"]
        pi = jnp.tanh(agent.actor.apply(state.params["actor"], s)[0])
        critic = state.params["critic"]
        rows = dict(
            bc_distance=jax.vmap(value.behaviour_cloning)(pi, a),
            q_data=jnp.min(agent.critics.apply(critic, s, a), axis=0),
            q_policy=jnp.min(agent.critics.apply(critic, s, pi), axis=0),
        )
        sums = {name: jnp.sum(batch["weight"] * row) for name, row in rows.items()}
        return dict(sums, count=jnp.sum(batch["weight"]))

    def act(state: TrainState, observation: Array, key: Array) -> Array:
        s = standardiser(state)(observation)
        return jnp.tanh(agent.actor.apply(state.params["actor"], s)[0])

    return eval_step, act
