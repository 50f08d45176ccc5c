"""Simulation by a world model: action rules, and the scan over steps.

There is no cache of keys and values: with learned positions in a sliding window it
would be wrong, so each step is a fresh forward pass of the last K steps. The rules are
our own reading of "perturbing the actions" (see imagination).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.methods import world_evaluator
from jaxrec.methods.world_model import Prediction, Scales, mean_over_members
from jaxrec.types import Array, Batch


class Tools(NamedTuple):
    """What action rules and corrections may ask beside the step itself."""

    act: Callable[[Array, Array], Array] | None = None  # (s, key) -> a of a policy
    retrieve: Callable[[Array], Array] | None = None  # s -> a of the data
    nearest: Callable[[Array], Array] | None = None  # s -> s of the data


NO_TOOLS = Tools()


def as_planned(config: Any, tools: Tools, s: Array, planned: Array, key: Array):
    """The planned action itself."""
    return planned


def noise(config: Any, tools: Tools, s: Array, planned: Array, key: Array) -> Array:
    """clip(a^D + sigma eps, -1, 1), eps ~ N(0, I)."""
    eps = jax.random.normal(key, planned.shape)
    return jnp.clip(planned + config.sigma * eps, -1, 1)


def uniform_scale(
    config: Any, tools: Tools, s: Array, planned: Array, key: Array
) -> Array:
    """clip(a^D (1 + u), -1, 1), u ~ U(-delta, delta) in each dimension."""
    u = jax.random.uniform(
        key, planned.shape, minval=-config.delta, maxval=config.delta
    )
    return jnp.clip(planned * (1 + u), -1, 1)


def retrieval(config: Any, tools: Tools, s: Array, planned: Array, key: Array) -> Array:
    """The action of the nearest state of the best episodes but its own."""
    return tools.retrieve(s)


def policy(config: Any, tools: Tools, s: Array, planned: Array, key: Array) -> Array:
    """clip(pi(s) + sigma eps, -1, 1): `act` is deterministic, the noise explores."""
    key_act, key_noise = jax.random.split(key)
    eps = jax.random.normal(key_noise, planned.shape)
    return jnp.clip(tools.act(s, key_act) + config.sigma * eps, -1, 1)


ACTION_RULES = {
    "noise": noise,
    "uniform_scale": uniform_scale,
    "retrieval": retrieval,
    "policy": policy,
}
FOLLOWS_SOURCE = ("noise", "uniform_scale")  # end where the source episode does


def choose(prediction: Prediction, member: Array | None):
    """(delta float[B, od], reward float[B], logit float[B] or None) of a rollout.

    member: int32[B], or None for the mean of all.
    """
    parts = prediction.mean, prediction.reward, prediction.terminal
    if member is None:
        return tuple(None if x is None else mean_over_members(x) for x in parts)
    row = jnp.arange(len(member))
    return tuple(None if x is None else x[member, row] for x in parts)


def rollout(
    predict: Callable[[Any, Batch], Prediction],
    state: Any,
    scales: Scales,
    window: Batch,
    planned: Array,
    key: Array,
    *,
    rule: Callable = as_planned,
    config: Any = None,
    tools: Tools = NO_TOOLS,
    evaluator: world_evaluator.Evaluator,
    ends: Callable | None = None,
    member: str = "mean",
    available: Array | None = None,
) -> dict[str, Array]:
    """Simulate H steps from B windows whose last slot is the present.

    window: observation float[B, K, od], action float[B, K, ad] (the newest is not
        read), mask bool[B, K]. planned: float[B, H, ad], the actions that `rule`
        perturbs. available: bool[B, H], False from where a rollout is cut. `rule` is
        one of ACTION_RULES with its `config`.

    Returns arrays [B, H, ...]: observation, action, reward, next_observation, terminal
    bool, uncertainty, keep bool (the row is part of the data), changed bool (the
    evaluator corrected it), cut bool (the evaluator ended the rollout before this row).
    A state or reward that is not finite is dropped and ends the rollout.
    """
    B, H, _ = planned.shape
    key_member, key_steps = jax.random.split(key)
    members = jax.eval_shape(predict, state, window).reward.shape[0]
    fixed = None
    if member == "per_traj":
        fixed = jax.random.randint(key_member, (B,), 0, members)
    if available is None:
        available = jnp.ones((B, H), bool)

    def step(carry, inputs):
        window, alive, total = carry
        planned, available, key = inputs
        key_rule, key_member = jax.random.split(key)
        s = window["observation"][:, -1]
        a = rule(config, tools, s, planned, key_rule)
        window = dict(window, action=window["action"].at[:, -1].set(a))
        prediction = predict(state, window)
        chosen = fixed
        if member == "per_step":
            chosen = jax.random.randint(key_member, (B,), 0, members)
        delta, reward, logit = choose(prediction, chosen)
        s_next = s + delta * scales.delta_std[None]
        u = evaluator.uncertainty(prediction)
        total = total + u
        verdict = world_evaluator.judge(
            evaluator, prediction, s_next, reward, u, total, tools.nearest
        )
        s_next, reward = verdict.next_observation, verdict.reward
        finite = jnp.isfinite(s_next).all(-1) & jnp.isfinite(reward) & jnp.isfinite(u)
        s_next = jnp.where(finite[:, None], s_next, s)
        terminal = ends(s_next, logit) if ends else jnp.zeros(B, bool)
        happens = alive & available & finite
        keep = happens & verdict.keep
        row = dict(
            observation=s,
            action=a,
            reward=reward,
            next_observation=s_next,
            terminal=terminal,
            uncertainty=u,
            keep=keep,
            changed=keep & verdict.changed,
            cut=happens & ~verdict.go_on,
        )

        def append(x, new):
            return jnp.concatenate([x[:, 1:], new[:, None]], axis=1)

        window = dict(
            observation=append(window["observation"], s_next),
            action=append(window["action"], jnp.zeros_like(a)),
            mask=append(window["mask"], jnp.ones(B, bool)),
        )
        return (window, happens & verdict.go_on & ~terminal, total), row

    first = {name: jnp.asarray(window[name]) for name in ("observation", "action")}
    first["mask"] = jnp.asarray(window["mask"])
    inputs = (
        jnp.moveaxis(planned, 1, 0),
        jnp.moveaxis(available, 1, 0),
        jax.random.split(key_steps, H),
    )
    carry = (first, jnp.ones(B, bool), jnp.zeros(B))
    _, rows = jax.lax.scan(step, carry, inputs)
    return {name: jnp.moveaxis(x, 0, 1) for name, x in rows.items()}
