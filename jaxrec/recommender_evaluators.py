"""Evaluators of recommenders: ranks of held-out events, and simulated users.

Each is `make(config, method, dataset)`, as in `jaxrec.evaluators`, which lists them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import held_out, logs, metrics
from jaxrec.envs import online
from jaxrec.envs import users as users_lib
from jaxrec.methods import profiles, windows
from jaxrec.ops import catalogue
from jaxrec.types import Array, Batch, Dataset, Method, TrainState

Metrics = dict[str, Any]


def ranking(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Rank of every held-out event in the whole catalogue: see `metrics.finish`.

    `<set>/ndcg@10` of all events, `<set>/purchase/ndcg@10` of a kind. Items of the
    whole history, however much of it is encoded, are left out where the data say
    `mask_seen`.
    Arrays of the events in their order, for paired tests: `<set>/rank` float32[N],
    `<set>/kind` int8[N], `<set>/session` int32[N] (equal within a session).
    """
    facts = {k: jnp.asarray(v) for k, v in metrics.facts(dataset.info).items()}
    size = config.eval.batch_size
    if not dataset.evals:
        logs.say("ranking: nothing is held out, choose another data.split")

    step = jax.jit(make_ranker(method))

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for name, arrays in dataset.evals.items():
            sums: dict[str, Any] = {}
            shown = []
            rank = functools.partial(step, state, facts)
            for new, placed in held_out.each(rank, dataset, name, size):
                sums = {k: sums.get(k, 0.0) + v for k, v in new.items()}
                shown.append(placed)
            steps = np.asarray(arrays["timestep"])
            rows = dataset.drawn.get(name, np.arange(len(steps)))
            best, ranks = (
                np.concatenate(parts)[: len(rows)]
                for parts in zip(*jax.device_get(shown))
            )
            session = (rows - steps[rows]).astype(np.int32)
            sums = jax.device_get(sums) | metrics.repetition_sums(best, session)
            for metric, value in metrics.finish(sums, dataset.info).items():
                found[f"{name}/{metric}"] = value
            found[f"{name}/rank"], found[f"{name}/session"] = ranks, session
            found[f"{name}/kind"] = np.asarray(arrays["kind"])[rows].astype(np.int8)
        return found

    return evaluate


def make_ranker(method: Method) -> Callable[..., Any]:
    """(state, facts, number, batch) -> (sums, (best int32[B, K], rank float32[B])).

    Items of `batch["seen"]`, int32[B, H], where there is one, are left out.
    """

    def step(state: TrainState, facts: Any, number: int, batch: Batch) -> Any:
        event = windows.transition(batch)
        scores = method.scores(state, *event.history)
        if "seen" in batch:
            row = jnp.arange(len(scores))[:, None]
            scores = scores.at[row, batch["seen"]].set(-jnp.inf)
        rows = dict(target=event.action, kind=event.kind, reward=event.reward)
        best = metrics.top_k(scores, max(metrics.KS))
        ranks = metrics.rank(scores, event.action)
        rows["weight"] = batch["weight"]
        return metrics.ranking_sums(ranks, best, rows, facts), (best, ranks)

    return step


def recall_by_lag(
    config: Any, method: Method, dataset: Dataset
) -> Callable[..., Metrics]:
    """HR@10 of the held-out events by the lag that was planted: `<set>/lag_1500/hr@10`.

    `lag_0`: events without a task. Only for data with `info["cues"]` (the item before a
    recall -> the marker of its pair), those of the source synthetic_lifelong; full
    ranking. The lag is that of the whole history, whatever of it a window shows.
    """
    if not dataset.info.get("cues"):
        logs.say("recall_by_lag: the data have no planted lags; no numbers")
        return lambda state, key: {}
    lags = {name: planted_lags(dataset, name) for name in dataset.evals}
    size = config.eval.batch_size

    @jax.jit
    def step(state: TrainState, number: int, batch: Batch) -> Array:
        event = windows.transition(batch)
        scores = method.scores(state, *event.history)
        return metrics.rank(scores, event.action) <= 10

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for name, lag in lags.items():
            find = functools.partial(step, state)
            hits = jax.device_get(list(held_out.each(find, dataset, name, size)))
            hit = np.concatenate(hits)[: len(lag)]
            for one in np.unique(lag).tolist():
                found[f"{name}/lag_{one}/hr@10"] = float(hit[lag == one].mean())
        return found

    return evaluate


def planted_lags(dataset: Dataset, name: str) -> np.ndarray:
    """int64[N]: how many events before each event to predict its item was planted, 0
    where no cue stands before it."""
    item, step = (np.asarray(dataset.evals[name][k]) for k in ("item", "timestep"))
    place = np.arange(len(item))
    before = np.where(step > 0, np.roll(item, 1), 0)
    lag = np.zeros(len(item), np.int64)
    for cue, marker in dataset.info["cues"].items():
        last = np.maximum.accumulate(np.where(item == marker, place, -1))
        asked = (before == cue) & (last >= place - step)
        lag[asked] = (place - last - 1)[asked]
    return lag[dataset.drawn.get(name, place)]


def users(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """What simulated users give when the policy serves them: see `envs.online`.

    They are none of those that wrote the log. Until a user's first event every method
    shows the items most popular in training, and all items of the history are left out
    where the data say `mask_seen`.
    """
    lack = (
        "these data have no simulator of users"
        if "users" not in dataset.info
        else "this method ranks no items"
        if method.scores is None
        else ""
    )
    if lack:
        logs.say(f"users: {lack}; no numbers")
        return lambda state, key: {}
    serve = jax.jit(make_server(config, method, dataset))

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        # The same users at every evaluation, and for every method.
        found = jax.device_get(serve(state, jax.random.key(config.eval.seed)))
        return {f"users/{name}": float(value) for name, value in found.items()}

    return evaluate


def numbering(
    info: dict[str, Any], population: users_lib.Users
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the simulator's items in the data, and back: int32 each, 0 for none.

    The data number the items that occur in them; the simulator knows more.
    """
    ids = np.asarray(info["item_ids"], np.int32)
    code = np.zeros(population.num_items + 1, np.int32)
    code[ids[1:]] = np.arange(1, len(ids))
    return code, ids


def make_server(config: Any, method: Method, dataset: Dataset) -> Callable[..., Any]:
    """(state, key) -> what `online.evaluate` measures of the policy, as scalars."""
    population = users_lib.make(dataset.info["users"])
    seq_len = kept = dataset.info["seq_len"]
    if dataset.info["mask_seen"]:  # all events of a session are left out, L are encoded
        kept = max(seq_len, config.eval.horizon)
    code, ids = numbering(dataset.info, population)
    popularity = np.full(len(dataset.info["item_count"]), -np.inf, np.float32)
    # The log keeps the order and makes a draw at temperature 1 one by share.
    popularity[1 : len(ids)] = np.log1p(dataset.info["item_count"][1 : len(ids)])
    habits = dict(
        popularity=jnp.asarray(popularity),
        mask_seen=dataset.info["mask_seen"],
        # Scores stay where the catalogue is split: neither renumbered nor gathered.
        best=catalogue.argmax,
    )

    def serve(state: TrainState, key: jax.Array) -> dict[str, jax.Array]:
        number, item_of = jnp.asarray(code), jnp.asarray(ids)

        def scores(items: Array, length: Array, timestep: Array) -> Array:
            known = jnp.isfinite(habits["popularity"])
            last = profiles.recent(items, length, seq_len, seq_len)
            return jnp.where(
                known[None], method.scores(state, *last, timestep), -jnp.inf
            )

        own = online.from_scores(scores, **habits)

        def policy(items, length, timestep, key, shown):
            best = own(number[items], length, timestep, key, number[shown])
            return item_of[best]

        sizes = dict(num_users=config.eval.users, horizon=config.eval.horizon)
        return online.evaluate(policy, population, key, seq_len=kept, **sizes)

    return serve
