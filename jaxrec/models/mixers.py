"""Mixers: from the agents' values of their actions to what is learned.

All have one call, `(q, greedy, action, world) -> float[..., J]`: q float[..., A], the
value of the action that each agent took; greedy float[..., A], that of its best legal
one; action int32[..., A]; world float[..., ds], the true state, in training only. J is
1 for a value of the team, A for one value an agent.

For all but the first, what is best for each agent alone is best together.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.types import Array


class Apart(nn.Module):
    """Independent Q-learning (Tan 1993): no mixing, J = A."""

    def __call__(self, q: Array, greedy: Array, action: Array, world: Array) -> Array:
        return q


class Sum(nn.Module):
    """VDN (Sunehag et al. 2018, arXiv 1706.05296): sum_i Q_i."""

    def __call__(self, q: Array, greedy: Array, action: Array, world: Array) -> Array:
        return jnp.sum(q, axis=-1, keepdims=True)


class Hyper(nn.Module):
    """float[..., ds] -> float[..., size]: Dense of `width`, ReLU, Dense; PyMARL2."""

    size: int
    width: int = 64

    @nn.compact
    def __call__(self, world: Array) -> Array:
        hidden = nn.relu(nn.Dense(self.width, name="hidden")(world))
        return nn.Dense(self.size, name="out")(hidden)


class QMix(nn.Module):
    """QMIX (Rashid et al. 2018, arXiv 1803.11485, fig. 2).

    Q_tot = ELU(q |H_1(s)| + b_1(s)) |H_2(s)| + b_2(s): monotone in every Q_i.
    """

    embed: int = 32  # official
    hyper_width: int = 64  # PyMARL2; the first version had a single layer

    @nn.compact
    def __call__(self, q: Array, greedy: Array, action: Array, world: Array) -> Array:
        num, e = q.shape[-1], self.embed
        w_1 = jnp.abs(Hyper(num * e, self.hyper_width, name="first")(world))
        w_1 = w_1.reshape(*q.shape, e)
        b_1 = nn.Dense(e, name="first_bias")(world)
        hidden = nn.elu(jnp.einsum("...a,...ae->...e", q, w_1) + b_1)
        w_2 = jnp.abs(Hyper(e, self.hyper_width, name="second")(world))
        b_2 = Hyper(1, e, name="second_bias")(world)
        return jnp.sum(hidden * w_2, axis=-1, keepdims=True) + b_2


class QPlex(nn.Module):
    """QPLEX, the duplex dueling mixer (Wang et al. 2021, arXiv 2008.01062).

    In PyMARL2's form: Q'_i = w_i(s) Q_i + v_i(s), w_i > 0, A_i = w_i (Q_i - max Q_i) <=
    0 without gradient, Q_tot = sum_i Q'_i + sum_i A_i (lambda_i(s, a) - 1), lambda_i =
    sum_h |key_h(s)| sigmoid(agent_hi(s)) sigmoid(action_hi(s, a)) > 0. The value is
    sum_i (V'_i + lambda_i A_i).
    """

    num_actions: int
    heads: int = 4  # PyMARL2, as all numbers here
    width: int = 64

    @nn.compact
    def __call__(self, q: Array, greedy: Array, action: Array, world: Array) -> Array:
        num = q.shape[-1]
        w = jnp.abs(Hyper(num, self.width, name="weight")(world)) + 1e-10
        v = Hyper(num, self.width, name="value")(world)
        total = w * q + v
        advantage = jax.lax.stop_gradient(w * (q - greedy))
        joint = jax.nn.one_hot(action, self.num_actions)
        joint = joint.reshape(*action.shape[:-1], num * self.num_actions)
        both = jnp.concatenate([world, joint], axis=-1)
        importance = 0.0
        for head in range(self.heads):
            key = Hyper(1, self.width, name=f"key_{head}")(world)
            agent = Hyper(num, self.width, name=f"agent_{head}")(world)
            chosen = Hyper(num, self.width, name=f"action_{head}")(both)
            gates = nn.sigmoid(agent) * nn.sigmoid(chosen)
            importance = importance + (jnp.abs(key) + 1e-10) * gates
        mixed = jnp.sum(total + advantage * (importance - 1.0), axis=-1)
        return mixed[..., None]
