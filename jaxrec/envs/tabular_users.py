"""Users whose optimal values are computable: the state is the last item alone.

Popularity, a Markov kernel, purchases and a hazard: after item i (0 = nothing yet) the
user takes whatever item j is shown, as a purchase with probability p_ij and else as a
click, and leaves with hazard h_j. The logging policy beta(j | i) mixes popularity with
a kernel and has full support. Then, with the mean reward
rbar_ij = r_click (1 - p_ij) + r_buy p_ij,

    Q*(i, j)    = rbar_ij + gamma (1 - h_j) max_k Q*(j, k)
    Q^pi(i, j)  = rbar_ij + gamma (1 - h_j) sum_k pi(k | j) Q^pi(j, k)

are exact tables: SQN should approach Q*, EVAL Q^beta. A filter on session length would
bias h, so logs of these users keep every session. The numbers are ours.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.envs.platform import draw
from jaxrec.envs.users import Feedback, Preview, Users
from jaxrec.types import Array, UserError

HPARAMS = dict(  # all ours
    num_items=20,
    world=0,  # seed of the tables
    r_click=0.2,
    r_buy=1.0,
    popular=0.4,  # share of popularity in the logging policy; the rest is the kernel
    kernel_spread=1.5,  # std of the kernel's logits
    hazard_low=0.1,
    hazard_high=0.4,
    purchase_low=0.02,
    purchase_high=0.6,
)


class Tables(NamedTuple):
    """float64; rows are the last item, columns the next, column 0 is no action."""

    behaviour: np.ndarray  # [N + 1, N + 1], rows sum to 1, column 0 is 0
    purchase: np.ndarray  # [N + 1, N + 1], p_ij
    hazard: np.ndarray  # [N + 1], h_j
    reward: np.ndarray  # [N + 1, N + 1], rbar_ij


class State(NamedTuple):
    """B users."""

    item: Array  # int32[B], the last one, 0 at the start
    alive: Array  # bool[B]


def settings(config: Any = None) -> dict[str, Any]:
    """HPARAMS with the overrides of `config`; UserError for what cannot be."""
    given = dict(config or {})
    if unknown := sorted(set(given) - set(HPARAMS)):
        raise UserError(
            f"tabular users have no {unknown[0]!r}: use {', '.join(HPARAMS)}"
        )
    p = HPARAMS | given
    if p["num_items"] < 2:
        raise UserError(f"num_items={p['num_items']}: tabular users need 2 or more")
    if not 0 < p["hazard_low"] <= p["hazard_high"] <= 1:
        raise UserError(
            f"hazard_low={p['hazard_low']}, hazard_high={p['hazard_high']}: "
            "0 < low <= high <= 1, or sessions would not end"
        )
    if not 0 <= p["popular"] <= 1:
        raise UserError(f"popular={p['popular']}: a share is between 0 and 1")
    if not 0 <= p["purchase_low"] <= p["purchase_high"] <= 1:
        raise UserError(
            f"purchase_low={p['purchase_low']}, purchase_high={p['purchase_high']}: "
            "probabilities, 0 <= low <= high <= 1"
        )
    return p


def tables(config: Any = None) -> Tables:
    """The world, a function of `config.world` and the sizes."""
    p = settings(config)
    size = p["num_items"] + 1
    generator = np.random.default_rng([p["world"], 1])
    popularity = generator.dirichlet(np.full(size - 1, 2.0))
    kernel = np.exp(generator.normal(0, p["kernel_spread"], (size, size)))
    kernel[:, 0] = 0
    kernel /= kernel.sum(1, keepdims=True)
    behaviour = (1 - p["popular"]) * kernel
    behaviour[:, 1:] += p["popular"] * popularity
    # Most purchase probabilities are low: the square of a uniform.
    spread = p["purchase_high"] - p["purchase_low"]
    purchase = p["purchase_low"] + spread * generator.uniform(size=(size, size)) ** 2
    hazard = generator.uniform(p["hazard_low"], p["hazard_high"], size)
    reward = p["r_click"] * (1 - purchase) + p["r_buy"] * purchase
    return Tables(behaviour, purchase, hazard, reward)


def iterate(
    world: Tables,
    gamma: float,
    backup: Callable[[np.ndarray], np.ndarray],
    tolerance: float = 1e-13,
) -> np.ndarray:
    """The fixed point of Q(i, j) = rbar_ij + gamma (1 - h_j) backup(Q)_j.

    `backup`: Q float64[N + 1, N] -> float64[N + 1]. Returns float64[N + 1, N + 1] with
    column 0 = -inf. The hazard makes it a contraction even at gamma = 1.
    """
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma={gamma}: it must lie between 0 and 1")
    stay = gamma * (1 - world.hazard[1:])
    q = np.zeros_like(world.reward[:, 1:])
    while True:
        following = world.reward[:, 1:] + stay * backup(q)[1:]
        change = np.abs(following - q).max()
        q = following
        if change <= tolerance * max(1.0, np.abs(q).max()):
            break
    return np.concatenate([np.full((len(q), 1), -np.inf), q], axis=1)


def optimal_q(world: Tables, gamma: float = 0.5) -> np.ndarray:
    """Q*: float64[N + 1, N + 1], column 0 = -inf."""
    return iterate(world, gamma, lambda q: q.max(axis=1))


def policy_q(
    world: Tables, gamma: float = 0.5, policy: np.ndarray | None = None
) -> np.ndarray:
    """Q^pi: float64[N + 1, N + 1], column 0 = -inf; by default Q^beta.

    `policy`: [N + 1, N + 1], a distribution over the items 1 .. N in every row.
    """
    policy = world.behaviour if policy is None else policy
    return iterate(world, gamma, lambda q: (policy[:, 1:] * q).sum(axis=1))


def horizon(world: Tables, cut: float = 1e-6) -> int:
    """Steps after which a share `cut` of users at most is still there."""
    hazard = world.hazard[1:].min()
    return 1 if hazard >= 1 else math.ceil(math.log(cut) / math.log1p(-hazard))


def make(config: Any = None) -> Users:
    """The population as `jaxrec.envs.users.Users`; `facts["tables"]` has the Tables."""
    p = settings(config)
    world = tables(p)
    num_items = p["num_items"]
    behaviour = jnp.asarray(world.behaviour, jnp.float32)
    cumulative = jnp.asarray(np.cumsum(world.behaviour, axis=1), jnp.float32)
    bought = jnp.asarray(world.purchase, jnp.float32).at[:, 0].set(0)
    hazard = jnp.asarray(world.hazard, jnp.float32)
    rewards = (float(p["r_click"]), float(p["r_buy"]))

    def reset(key: Array, num: int) -> State:
        del key  # all users start alike
        return State(jnp.zeros(num, jnp.int32), jnp.ones(num, bool))

    def step(key: Array, state: State, j: Array) -> tuple[State, Feedback]:
        key_buy, key_leave = jax.random.split(key)
        taken = state.alive & (j > 0)
        buys = jax.random.uniform(key_buy, j.shape) < bought[state.item, j]
        purchase = taken & buys
        left = taken & (jax.random.uniform(key_leave, j.shape) < hazard[j])
        after = State(jnp.where(taken, j, state.item), state.alive & ~left)
        click = taken & ~purchase
        reward = rewards[0] * click + rewards[1] * purchase
        return after, Feedback(click, purchase, reward, left)

    def behave(key: Array, state: State) -> tuple[Array, Array]:
        j = draw(key, cumulative[state.item])
        return j, behaviour[state.item, j]

    def propensities(state: State) -> Array:
        return behaviour[state.item]

    def preview(state: State) -> Preview:
        there = state.alive[:, None] & (jnp.arange(num_items + 1) > 0)[None]
        buy = bought[state.item]
        return Preview(there * (1 - buy), there * buy, there * hazard[None])

    facts = dict(name="tabular-users", attributes=None, hparams=p, tables=world)
    return Users(reset, step, behave, propensities, preview, num_items, rewards, facts)
