"""Proximal policy optimisation for teams: the host of MAPPO and IPPO.

Yu et al. 2022, arXiv 2103.01955, with their official code's choices: recurrent actor
and critic shared by the agents, generalised advantages, clipped and Huber value loss on
normalised returns, death masking, action masks. The two methods differ in what their
critic sees. Ours: a chunk of T steps of all games is the unit, re-unrolled from the
hidden state it began in, and mini-batches are of whole games.

What was inferred of the state while playing is kept in the chunk, so that the ratio
compares the policies on the same inputs and is 1 before the first gradient step.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec import optim
from jaxrec.envs.teams import Team
from jaxrec.losses import teams as losses
from jaxrec.methods import inference as inference_lib
from jaxrec.methods import teams
from jaxrec.methods.inference import Host, Inference
from jaxrec.methods.team_returns import (
    centre_and_scale,
    mean,
    renewed,
    returns,
    standardised,
)
from jaxrec.models.team import Network, masked
from jaxrec.ops import batches
from jaxrec.types import Array, Method, TrainState, UserError

HPARAMS = dict(
    num_envs=64,  # games at a time, ours
    chunk=32,  # steps of each between updates, ours
    epochs=4,  # passes over a chunk; official: 5 to 15
    minibatches=2,  # of an epoch, ours; official: 1
    gamma=0.99,  # official
    gae_lambda=0.95,  # official
    clip=0.2,  # official
    entropy=0.01,  # official
    value_weight=1.0,  # official
    huber=10.0,  # official
    width=64,  # official
    decay=0.99,  # of the running moments of returns, a chunk, ours; official: 0.99999
    optim=optim.spec(lr=5e-4, clip=10.0),  # official
)


@struct.dataclass
class Extra:
    """State of learning besides parameters."""

    games: teams.Games  # hidden: dict(actor, critic)
    moments: Array  # float32[3]: of returns, first and second, and their weight


class Critic(NamedTuple):
    """What the critic sees: `inputs(view)` -> float32[..., J, d] for J values.

    J is 1, a value of the team, or A, one an agent.
    """

    inputs: Callable[[teams.View], Array]
    values: int


def make_host(
    config: Any, team: Team, critic: Critic, inference: Inference | None = None
) -> Host:
    """The host with this critic; with `inference` its actor sees what it infers."""
    teams.check(config, ("num_envs", "chunk", "epochs", "minibatches"))
    teams.check_shares(config, ("gamma", "gae_lambda", "decay"))
    if config.num_envs % config.minibatches:
        raise UserError(
            f"minibatches={config.minibatches} must divide num_envs={config.num_envs}"
        )
    about = inference or inference_lib.NONE
    num, num_envs = team.num_agents, config.num_envs
    network = Network(team.num_actions, config.width, about.extractor, head_scale=0.01)
    judge = Network(1, config.width)
    updates = config.steps * config.epochs * config.minibatches
    optimiser = optim.make(config.optim, updates)

    def hidden_of(games: int) -> dict[str, Array]:
        return dict(
            actor=jnp.zeros((games, num, config.width)),
            critic=jnp.zeros((games, critic.values, config.width)),
        )

    def init(key: Array) -> TrainState:
        key_actor, key_critic, key_games = jax.random.split(key, 3)
        games = teams.start(team, key_games, num_envs, hidden_of(num_envs))
        view = teams.views(team, games.state)
        blank = about.blank(num_envs)
        hidden = games.hidden
        params = dict(
            utility=network.init(key_actor, hidden["actor"], view.observation, blank),
            critic=judge.init(key_critic, hidden["critic"], critic.inputs(view)),
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=dict(rl=optimiser.init(params)),
            extra=Extra(games, jnp.zeros(3)),
        )

    def logits_of(params: Any, hidden: Array, imagined: Any, legal: Array, opened: Any):
        found = network.apply(params, hidden, imagined, opened, method="head")
        return masked(found, legal)

    def policy(params: Any, imagine: Callable, opened: Any, greedy: bool) -> Callable:
        def choose(key: Array, states: Any, view: teams.View, hidden: Any) -> Any:
            key_imagine, key_act = jax.random.split(key)
            imagined = imagine(key_imagine, states, view, hidden["actor"])
            actor = network.apply(
                params["utility"], hidden["actor"], view.observation, method="step"
            )
            judged = judge.apply(
                params["critic"], hidden["critic"], critic.inputs(view), method="step"
            )
            logits = logits_of(params["utility"], actor, imagined, view.legal, opened)
            if greedy:
                action = jnp.argmax(logits, axis=-1)
            else:
                action = jax.random.categorical(key_act, logits, axis=-1)
            value = judge.apply(params["critic"], judged, method="head")[..., 0]
            log_prob = log_probability(logits, action)
            seen = dict(imagined=imagined, value=value, log_prob=log_prob)
            action = action.astype(jnp.int32)
            return action, dict(actor=actor, critic=judged), seen

        return choose

    def collect(state: TrainState, key: Array, imagine: Callable) -> Any:
        chosen = policy(state.params, imagine, about.opened(state.step), greedy=False)
        games, chunk = teams.play(team, chosen, state.extra.games, key, config.chunk)
        return state.replace(extra=state.extra.replace(games=games)), chunk

    def loss(params: Any, rows: Any, opened: Any) -> tuple[Array, dict[str, Array]]:
        """Over chunks [T, B] with their views, advantages and targets."""
        chunk, view, advantage, target = rows
        actor = network.apply(
            params["utility"], chunk.hidden["actor"], view.observation[:-1],
            chunk.fresh[:-1], method="unroll",
        )  # fmt: skip
        judged = judge.apply(
            params["critic"], chunk.hidden["critic"], critic.inputs(view)[:-1],
            chunk.fresh[:-1], method="unroll",
        )  # fmt: skip
        seen = jax.tree.map(lambda x: x[:-1], chunk.seen)
        logits = logits_of(
            params["utility"], actor, seen["imagined"], view.legal[:-1], opened
        )
        value = judge.apply(params["critic"], judged, method="head")[..., 0]
        log_prob = log_probability(logits, chunk.action)
        each = over(losses.clipped_policy, 3, 1)
        old = seen["log_prob"]
        pi = each(log_prob, old, jnp.broadcast_to(advantage, old.shape), config.clip)
        v = over(losses.clipped_value, 3, 2)(
            value, seen["value"], target, config.clip, config.huber
        )
        bonus = over(losses.entropy, 1, 0)(logits)
        # Neither agents that are out nor steps that the limit cut off teach anything.
        lives = jnp.where(chunk.cut, 0.0, 1.0)[..., None] * view.active[:-1]
        judges = judged_by(chunk, view)
        pi, bonus, v = mean(pi, lives), mean(bonus, lives), mean(v, judges)
        total = pi + config.value_weight * v - config.entropy * bonus
        rho = jnp.exp(log_prob - old)
        clipped = mean((abs(rho - 1) > config.clip).astype(jnp.float32), lives)
        return total, dict(
            policy=pi, value=v, entropy=bonus, clipped=clipped,
            ratio_error=jnp.max(lives * abs(rho - 1)),
        )  # fmt: skip

    def judged_by(chunk: teams.Chunk, view: teams.View) -> Array:
        """Weights [T, B, J] of the values: none for agents that are out."""
        kept = jnp.where(chunk.cut, 0.0, 1.0)[..., None]
        return kept if critic.values == 1 else kept * view.active[:-1]

    def learn(state: TrainState, key: Array, _: Any, chunk: teams.Chunk) -> Any:
        mine = {name: state.params[name] for name in ("utility", "critic")}
        view = teams.views(team, chunk.state)
        centre, scale = centre_and_scale(state.extra.moments)
        advantage, target = returns(
            chunk, chunk.seen["value"] * scale + centre, config.gamma, config.gae_lambda
        )
        counted = judged_by(chunk, view)
        moments = renewed(state.extra.moments, target, counted, config.decay)
        centre, scale = centre_and_scale(moments)
        advantage = standardised(advantage, counted)
        rows = (chunk, view, advantage, (target - centre) / scale)
        opened = about.opened(state.step)

        def update(carry: Any, games: Array) -> Any:
            params, opt_state = carry
            some = take_games(rows, games)
            (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(
                params, some, opened
            )
            params, opt_state = optim.descend(optimiser, grads, opt_state, params)
            return (params, opt_state), dict(loss=total, **parts)

        orders = [
            dealt(k, num_envs, config.minibatches)
            for k in jax.random.split(key, config.epochs)
        ]
        carry = mine, state.opt_state["rl"]
        (mine, opt), metrics = jax.lax.scan(update, carry, jnp.concatenate(orders))
        first = metrics.pop("ratio_error")[0]  # before any gradient step: zero
        state = state.replace(
            params=state.params | mine,
            opt_state=state.opt_state | dict(rl=opt),
            extra=state.extra.replace(moments=moments),
        )
        return state, jax.tree.map(jnp.mean, metrics) | dict(ratio_error=first)

    def report(state: TrainState) -> dict[str, Array]:
        played = (state.step + 1.0) * num_envs * config.chunk
        return teams.score(state.extra.games) | dict(env_steps=played)

    def act(state: TrainState, seen: Any, key: Array, imagine: Callable) -> Any:
        hidden, states, _ = seen
        best = policy(state.params, imagine, about.opened(state.step), greedy=True)
        action, hidden, _ = best(key, states, teams.views(team, states), hidden)
        return hidden, action

    def pairs(state: TrainState, key: Array, chunk: Any, count: int) -> teams.Chunk:
        groups = math.gcd(num_envs, count)
        shape = groups, count // groups
        games = jax.random.randint(key, shape, 0, num_envs // groups)
        return take_games((chunk,), games)[0]

    def memories(params: Any, chunk: teams.Chunk, view: teams.View) -> Array:
        start = chunk.hidden["actor"]
        hidden = network.apply(
            params["utility"], start, view.observation, chunk.fresh, method="unroll"
        )
        return inference_lib.before(start, chunk.fresh, hidden)

    return Host(
        init, collect, learn, report, act, hidden_of, pairs, memories, network,
    )  # fmt: skip


def log_probability(logits: Array, action: Array) -> Array:
    """float[..., n], int[...] -> float[...]."""
    log_p = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_p, action[..., None], axis=-1)[..., 0]


def over(loss: Callable, mapped: int, fixed: int) -> Callable:
    """A loss of one example on [T, B, A]: its first `mapped` arguments are mapped."""
    axes = (0,) * mapped + (None,) * fixed
    return jax.vmap(jax.vmap(jax.vmap(loss, axes), axes), axes)


def dealt(key: Array, num: int, parts: int) -> Array:
    """`num` games dealt into `parts` minibatches: int32[parts, num / parts, 1].

    Of neighbours, as many as there are parts, each goes to another part at random: what
    `take_games` takes for a part, and no game leaves the device that plays it.
    """
    order = jax.random.uniform(key, (num // parts, parts)).argsort(axis=1)
    return order.T[..., None].astype(jnp.int32)


def take_games(rows: Any, games: Array) -> Any:
    """Of (chunk, view, advantage, target) the games int32[g, k], [T, g k, ...].

    The games are g groups of neighbours, of each of which k are taken.
    """

    def one(x: Array) -> Array:
        groups = x.reshape(len(games), -1, *x.shape[1:])
        found = jax.vmap(lambda group, index: group[index])(groups, games)
        return batches.split_rows(found.reshape(-1, *x.shape[1:]))

    chunk, *rest = rows
    hidden = jax.tree.map(one, chunk.hidden)
    found = jax.tree.map(
        lambda x: one(x.swapaxes(0, 1)).swapaxes(0, 1),
        (chunk._replace(hidden=()), *rest),
    )
    return (found[0]._replace(hidden=hidden), *found[1:])


def make(config: Any, team: Team, critic: Critic) -> Method:
    """The host alone: agents act on what they see."""
    return inference_lib.alone(make_host(config, team, critic))
