"""Value decomposition for teams: the host of independent Q-learning, VDN, QMIX, QPLEX.

PyMARL2's learner (Hu et al. 2021, arXiv 2102.03479): one recurrent network shared by
the agents, double Q-learning, TD(lambda) targets by hard-copied target networks,
epsilon-greedy play in parallel games. The methods differ in their mixer. Ours: the
replay keeps chunks of fixed length with the hidden state they began in (Kapturowski et
al. 2019, R2D2) instead of whole episodes, and states of the environment instead of
observations.

What agents infer of the state comes in by the seam of `inference`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxrec import optim
from jaxrec.envs.teams import Team
from jaxrec.losses import teams as losses
from jaxrec.methods import inference as inference_lib
from jaxrec.methods import teams
from jaxrec.methods.inference import Host, Inference
from jaxrec.models.team import Network, masked
from jaxrec.ops import batches, ring
from jaxrec.types import Array, Method, TrainState

HPARAMS = dict(
    num_envs=32,  # games at a time, ours; PyMARL2: 8
    chunk=32,  # steps of each between updates, ours
    replay=1_024,  # chunks that are kept, ours; PyMARL: 5,000 episodes
    updates=2,  # gradient steps for a chunk of all games, ours
    gamma=0.99,  # PyMARL
    td_lambda=0.6,  # PyMARL2
    width=64,  # of the recurrent network, PyMARL
    target_every=50,  # gradient steps between copies, ours; PyMARL: 200 episodes
    epsilon=(1.0, 0.05),  # at first and in the end, PyMARL
    epsilon_steps=0.2,  # share of the training in which it falls, ours
    optim=optim.spec(lr=1e-3, clip=10.0),  # PyMARL2
)


@struct.dataclass
class Extra:
    """State of learning besides parameters."""

    games: teams.Games
    replay: teams.Chunk  # rows [E, C / E, T, ...], see `ring`


def make_host(
    config: Any, team: Team, mixer: nn.Module, inference: Inference | None = None
) -> Host:
    """The host with this mixer; with `inference` its agents act on what they infer.

    `config`: HPARAMS, steps (train steps) and batch_size (chunks of a gradient step).
    """
    teams.check(config, ("num_envs", "chunk", "replay", "updates", "target_every"))
    teams.check_shares(config, ("gamma", "td_lambda", "epsilon", "epsilon_steps"))
    ring.check("replay", config.replay, config.num_envs)
    about = inference or inference_lib.NONE
    network = Network(team.num_actions, config.width, about.extractor)
    optimiser = optim.make(config.optim, config.steps * config.updates)
    num, num_envs = team.num_agents, config.num_envs

    def hidden_of(games: int) -> Array:
        return jnp.zeros((games, num, config.width))

    def init(key: Array) -> TrainState:
        key_net, key_mix, key_games = jax.random.split(key, 3)
        games = teams.start(team, key_games, num_envs, hidden_of(num_envs))
        view = teams.views(team, games.state)
        imagined = about.blank(num_envs)
        utility = network.init(key_net, games.hidden, view.observation, imagined)
        q = jnp.zeros((num_envs, num))
        action = jnp.zeros((num_envs, num), jnp.int32)
        params = dict(
            utility=utility, mixer=mixer.init(key_mix, q, q, action, view.world)
        )

        def rows(params: Any, games: teams.Games, key: Array) -> teams.Chunk:
            return teams.by_game(collect_chunk(params, games, key, 1.0)[1])

        shapes = jax.eval_shape(rows, params, games, jax.random.key(0))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=dict(rl=optimiser.init(params)),
            target_params=jax.tree.map(jnp.copy, params),
            extra=Extra(games, ring.empty(shapes, config.replay)),
        )

    def q_values(params: Any, hidden: Array, imagined: Any, legal: Array, opened: Any):
        q = network.apply(params, hidden, imagined, opened, method="head")
        return masked(q, legal)

    def policy(params: Any, imagine: Callable, opened: Any, epsilon: Any) -> Callable:
        def choose(key: Array, states: Any, view: teams.View, hidden: Array) -> Any:
            key_imagine, key_explore, key_random = jax.random.split(key, 3)
            imagined = imagine(key_imagine, states, view, hidden)
            hidden = network.apply(params, hidden, view.observation, method="step")
            q = q_values(params, hidden, imagined, view.legal, opened)
            greedy = jnp.argmax(q, axis=-1).astype(jnp.int32)
            explores = jax.random.uniform(key_explore, greedy.shape) < epsilon
            anything = teams.random_actions(key_random, view.legal)
            return jnp.where(explores, anything, greedy), hidden, imagined

        return choose

    def collect_chunk(
        params: Any, games: teams.Games, key: Array, epsilon: Any,
        imagine: Callable = about.nothing, opened: Any = 1.0,
    ) -> tuple[teams.Games, teams.Chunk]:  # fmt: skip
        chosen = policy(params["utility"], imagine, opened, epsilon)
        return teams.play(team, chosen, games, key, config.chunk)

    def epsilon_at(step: Array) -> Array:
        first, last = config.epsilon
        share = step / max(config.epsilon_steps * config.steps, 1.0)
        return first + (last - first) * jnp.clip(share, 0.0, 1.0)

    def collect(state: TrainState, key: Array, imagine: Callable) -> Any:
        games, chunk = collect_chunk(
            state.params, state.extra.games, key, epsilon_at(state.step), imagine,
            about.opened(state.step),
        )  # fmt: skip
        rows = teams.by_game(chunk)
        replay = ring.put(state.extra.replay, rows, state.step)
        return state.replace(
            extra=state.extra.replace(games=games, replay=replay)
        ), chunk

    def draw(state: TrainState, key: Array, batch: int) -> teams.Chunk:
        size = ring.filled(config.replay, num_envs, state.step + 1)
        rows = batches.split_rows(ring.draw(state.extra.replay, key, size, batch))
        return teams.by_game(rows)

    def unroll(params: Any, chunk: teams.Chunk, view: teams.View) -> Array:
        return network.apply(
            params, chunk.hidden, view.observation, chunk.fresh, method="unroll"
        )

    def td_loss(params: Any, target: Any, chunk: teams.Chunk, imagine: Any, step: Any):
        view = teams.views(team, chunk.state)
        hidden = unroll(params["utility"], chunk, view)
        imagined = chunk.seen
        if about.resample:
            held = inference_lib.before(chunk.hidden, chunk.fresh, hidden)
            found = imagine(*inference_lib.by_games((chunk.state, view, held)))
            steps, games = chunk.fresh.shape
            imagined = jax.tree.map(
                lambda x: x.reshape(games, steps, *x.shape[1:]).swapaxes(0, 1), found
            )
        opened = about.opened(step)
        q = q_values(params["utility"], hidden, imagined, view.legal, opened)
        # Double Q: the best by the network, at its value by the target network.
        best = jnp.argmax(jax.lax.stop_gradient(q), axis=-1)
        q_target = q_values(
            target["utility"], unroll(target["utility"], chunk, view), imagined,
            view.legal, opened,
        )  # fmt: skip
        q_best = take(q_target, best)
        value = mixer.apply(target["mixer"], q_best, q_best, best, view.world)
        now = jax.tree.map(lambda x: x[:-1], view)
        q_now = q[:-1]
        total = mixer.apply(
            params["mixer"], take(q_now, chunk.action), jnp.max(q_now, axis=-1),
            chunk.action, now.world,
        )  # fmt: skip
        weight = jnp.where(chunk.cut, 0.0, 1.0)[..., None]
        if total.shape[-1] == num and num > 1:  # an agent that is out learns nothing
            weight = weight * now.active
        return losses_of(total, value, chunk, jnp.broadcast_to(weight, total.shape))

    def losses_of(total: Array, value: Array, chunk: teams.Chunk, weight: Array) -> Any:
        """Over games and values [T, B, J]."""

        def one(q, v, reward, done, cut, weight):
            target = losses.lambda_returns(
                reward, done, cut, v, config.gamma, config.td_lambda
            )
            return losses.td(q, target, weight), jnp.mean(target)

        over_values = jax.vmap(one, (1, 1, None, None, None, 1))
        over_games = jax.vmap(over_values, (1, 1, 1, 1, 1, 1))
        loss, target = over_games(
            total, value, chunk.reward, chunk.done, chunk.cut, weight
        )
        return jnp.mean(loss), dict(q=jnp.mean(total), target=jnp.mean(target))

    def learn(state: TrainState, key: Array, imagine: Callable, _: Any) -> Any:
        names = ("utility", "mixer")
        mine = {name: state.params[name] for name in names}
        target = {name: state.target_params[name] for name in names}

        def update(carry: Any, number: Array) -> Any:
            params, target, opt_state = carry
            key_draw, key_again = jax.random.split(jax.random.fold_in(key, number))
            chunk = draw(state, key_draw, config.batch_size)
            again = lambda *args: imagine(key_again, *args)  # noqa: E731
            (loss, parts), grads = jax.value_and_grad(td_loss, has_aux=True)(
                params, target, chunk, again, state.step
            )
            params, opt_state = optim.descend(optimiser, grads, opt_state, params)
            copies = number % config.target_every == 0
            target = jax.tree.map(
                lambda new, old: jnp.where(copies, new, old), params, target
            )
            squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
            norm = jnp.sqrt(sum(squares))
            return (params, target, opt_state), dict(loss=loss, grad=norm, **parts)

        numbers = state.step * config.updates + 1 + jnp.arange(config.updates)
        carry = mine, target, state.opt_state["rl"]
        (mine, target, opt), metrics = jax.lax.scan(update, carry, numbers)
        state = state.replace(
            params=state.params | mine,
            target_params=state.target_params | target,
            opt_state=state.opt_state | dict(rl=opt),
        )
        return state, jax.tree.map(jnp.mean, metrics)

    def report(state: TrainState) -> dict[str, Array]:
        played = (state.step + 1.0) * num_envs * config.chunk
        found = teams.score(state.extra.games)
        return found | dict(env_steps=played, epsilon=epsilon_at(state.step))

    def act(state: TrainState, seen: Any, key: Array, imagine: Callable) -> Any:
        hidden, states, _ = seen
        greedy = policy(state.params["utility"], imagine, about.opened(state.step), 0.0)
        action, hidden, _ = greedy(key, states, teams.views(team, states), hidden)
        return hidden, action

    def pairs(state: TrainState, key: Array, chunk: Any, count: int) -> teams.Chunk:
        return draw(state, key, count)

    def memories(params: Any, chunk: teams.Chunk, view: teams.View) -> Array:
        hidden = unroll(params["utility"], chunk, view)
        return inference_lib.before(chunk.hidden, chunk.fresh, hidden)

    return Host(
        init, collect, learn, report, act, hidden_of, pairs, memories, network,
    )  # fmt: skip


def take(q: Array, action: Array) -> Array:
    """q float[..., n], action int[...] -> float[...]."""
    return jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]


def make(config: Any, team: Team, mixer: nn.Module) -> Method:
    """The host alone: agents act on what they see."""
    return inference_lib.alone(make_host(config, team, mixer))
