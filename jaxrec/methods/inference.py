"""The seam between the learners of teams and what agents infer of the state.

A host (`team_q`, `team_ppo`) plays and learns with an `Inference`: before acting, each
agent `imagine`s the state from what it sees, without gradient; the host keeps what was
imagined in its chunks and feeds it to the `extractor`, which the host's own loss
trains. Who imagines how (a diffusion model, a regressor, an oracle) is not the host's
affair.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrec.models.team import Network
from jaxrec.types import Array, Method, TrainState


class Inference(NamedTuple):
    """How agents infer, beside the function `imagine` that changes with training.

    `imagine(key, states, view, hidden)` -> a tree of arrays [E, A, ...]; `states` [E]
    of the games, `view` what is seen in them, `hidden` float[E, A, D] the agents' GRU
    before this observation. Agents may use their own row of `view.observation` and
    `hidden` only; the controls (oracle, placebo) look at `states`.
    `blank(E)`: zeros of that shape.
    `extractor`: a Flax module (imagined, hidden float[..., D]) -> z float[..., dz].
    `opened(step)` -> float[], 0.0 while the gate is closed, during warm-up.
    `resample`: learn on what is imagined anew instead of what was kept.
    """

    blank: Callable[[int], Any]
    extractor: nn.Module | None = None
    opened: Callable[[Array], Any] = lambda step: 1.0
    resample: bool = False

    def nothing(self, key: Array, states: Any, view: Any, hidden: Array) -> Any:
        """Imagines nothing, in the right shape."""
        return self.blank(hidden.shape[0])


class Host(NamedTuple):
    """Parts of a train step, on states whose trees may hold more than the host's.

    `init(key)` -> TrainState. `collect(state, key, imagine)` -> (state, chunk): plays.
    `learn(state, key, imagine, chunk)` -> (state, metrics): gradient steps. Neither
    counts `state.step`. `report(state)` -> metrics. `act(state, (hidden, states,
    reward), key, imagine)` -> (hidden, actions), `memory(E)`: as of a Method.

    For what learns beside the host: `pairs(state, key, chunk, count)` -> a chunk of
    `count` games as they were lately; `memories(params, chunk, view)` -> float[T, B, A,
    D], the agents' GRU before each observation.
    """

    init: Callable[..., TrainState]
    collect: Callable[..., Any]
    learn: Callable[..., Any]
    report: Callable[..., Any]
    act: Callable[..., Any]
    memory: Callable[..., Any]
    pairs: Callable[..., Any]
    memories: Callable[..., Array]
    network: Network


NONE = Inference(blank=lambda games: ())


def before(start: Array, fresh: Array, hidden: Array) -> Array:
    """Memories before each observation from those after it, constants.

    start: float[B, A, D], before the first; fresh: bool[T, B]; hidden: float[T, B, A,
    D]. Zero where an episode begins.
    """
    found = jnp.concatenate([start[None], hidden[:-1]])
    found = jnp.where(fresh[..., None, None], 0.0, found)
    return jax.lax.stop_gradient(found)


def flat(tree: Any) -> Any:
    """[N, A, ...] -> [N A, ...] in all leaves."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def by_games(tree: Any) -> Any:
    """[T, B, ...] -> [B T, ...] in all leaves: a mesh that splits B splits the rows."""
    return flat(jax.tree.map(lambda x: x.swapaxes(0, 1), tree))


def alone(host: Host) -> Method:
    """The host as a method whose agents act on what they see."""
    nothing = NONE.nothing

    def init(key: Array, batch: Any, earlier: Any) -> TrainState:
        return host.init(key)

    def train_step(state: TrainState, batch: Any, key: Array) -> Any:
        key_play, key_learn = jax.random.split(key)
        state, chunk = host.collect(state, key_play, nothing)
        state, metrics = host.learn(state, key_learn, nothing, chunk)
        metrics = metrics | host.report(state)
        return state.replace(step=state.step + 1), metrics

    def act(state: TrainState, seen: Any, key: Array) -> Any:
        return host.act(state, seen, key, nothing)

    return Method(init, train_step, act=act, memory=host.memory, rules=("games",))
