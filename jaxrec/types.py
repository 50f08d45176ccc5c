"""What passes between the rooms of the house.

Shape legend, used in docstrings everywhere:

    B batch   T time   V items incl. padding   D width   N rows of a data set
    S seeds   E ensemble members   K cut-off or context length   A agents
    od, ad    size of an observation, size of an action
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

from jaxrec.errors import UserError as UserError

Array = jax.Array
Batch = Mapping[str, Array]


@struct.dataclass
class TrainState:
    """Everything that changes during training, in one pytree."""

    step: Array  # int32[], updates done
    params: Any
    opt_state: Any
    target_params: Any = None
    extra: Any = None  # the method's own: normalisers, replay, environment state


class Method(NamedTuple):
    """A learning algorithm as pure functions; `methods/<name>.make` returns one.

    `init(key, batch, earlier)`: a fresh TrainState. `batch` shows shapes and dtypes;
        `earlier` maps the names of finished stages to their TrainStates (empty for
        most methods). What acting needs (say, observation statistics) goes into the
        state, so that a checkpoint can act without its data.
    `train_step(state, batch, key)`: one update -> (state, metrics), metrics a flat
        dict of float scalars with at least "loss". `state.step` is the number of
        updates done before this one; the method adds one.
    `eval_step(state, batch, key)`: sums over a held-out batch, with their "count".
        Rows have `batch["weight"]`, 0.0 for the padding of the last batch.
    `act(state, observation, key)`: float[B, od] -> actions; deterministic.
    `memory(num)`: only for methods that act on a history: what `num` fresh episodes
        remember. `act` is then (state, (memory, observation, reward), key) ->
        (memory, action), with the reward that followed the previous action.
    `scores(state, items, length, timestep)`: only for recommenders. Histories
        int32[B, L] from the left, 0 behind their int32[B] `length` items; `timestep`
        int32[B] is the index in its session of the event to predict -> float32[B, V],
        higher is better, -inf for what is no item. Of data with `gaps` they also get
        float32[B, L], the seconds before each item.
    `produce(state, dataset, key)`: an artefact for later stages, a dict of equal-length
        numpy arrays. Called once after training (once a seed), not traced.
    `facts(arrays, info)`: numbers about that artefact, for the summary.
    `values(state, batch)`: what the method's value functions say of the rows of a
        batch: name -> float32[B], such as "q_data", of the actions taken.
    `factors`: of `scores` that are products with rows of items, for an index of them.
    `splits_time`: whether training can split histories over `mesh.time`, see
        `ops.context`.
    `rules`: what the mesh splits of its state whatever the config's rules, such as
        "games", see `jaxrec.rules`.
    """

    init: Callable[..., TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, Array]]]
    eval_step: Callable[..., dict[str, Array]] | None = None
    act: Callable[..., Any] | None = None
    memory: Callable[[int], Any] | None = None
    produce: Callable[..., dict[str, Any]] | None = None
    facts: Callable[..., dict[str, float]] | None = None
    scores: Callable[..., Array] | None = None
    values: Callable[..., dict[str, Array]] | None = None
    factors: "Factors | None" = None
    splits_time: bool = False
    rules: tuple[str, ...] = ()


class Factors(NamedTuple):
    """Scores as products of a state and rows of items: `query @ table.T + bias`.

    `query(state, items, length, timestep)` -> float32[B, D], arguments as of
    `Method.scores`; `items(state)` -> (table float[V, D], bias float[V]).
    """

    query: Callable[..., Array]
    items: Callable[[TrainState], tuple[Array, Array]]


class Mix(NamedTuple):
    """Rows blended into every training batch beside those of `Dataset.train`.

    `fraction` of the rows of each batch come from `arrays`, rounded up. A column
    `drawn`, bool[N], says which rows may be drawn; others are there to look back on.
    With `per_seed` the arrays have a leading axis S and each seed draws from its own.
    """

    arrays: Mapping[str, Any]
    fraction: float
    per_seed: bool = False


class Dataset(NamedTuple):
    """What a source returns.

    `train`: dict of arrays of equal length N; numpy, possibly memory-mapped. Row i is
        one example, or with `window` K > 0 the last row of a window of K rows.
    `evals`: name -> dict of arrays, held-out rows.
    `info`: facts that methods and evaluators need: sizes, names, statistics.
    `window`: K > 0 makes the loader hand out windows [B, K, ...] that end at the drawn
        row, with `mask: bool[B, K]`, False before the start of the episode (read
        from `timestep: int32[N]`, the row's index in its episode).
    `mix`: further rows blended into the batches.
    `drawn`: "train" or the name of a held-out set -> int32[M], the rows that may be
        drawn (or predicted); every row where a name is missing. So a held-out event
        can look back on a history that it shares with training.
    `run`: n > 0: rows of `train` are whole examples that belong to runs of n rows, and
        what follows a row in a run comes at the same place of the next batch.
    """

    train: Mapping[str, Any]
    evals: Mapping[str, Mapping[str, Any]]
    info: dict[str, Any]
    window: int = 0
    mix: tuple[Mix, ...] = ()
    drawn: Mapping[str, Any] = {}
    run: int = 0
