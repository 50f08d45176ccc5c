"""EVALS: name -> make(config, method, dataset) -> (state, key) -> metrics.

`config` is that of the whole run; the state is that of one seed. Metrics are numbers,
and arrays of numbers, which the loop keeps in `<stage>/arrays/<step>.npz`. An evaluator
that cannot work here (no simulator installed, nothing held out) says so once, when it
is made, and gives no metrics: training goes on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import logs, metrics, sampled_ranking, team_episodes
from jaxrec.data import loader
from jaxrec.envs import gym, online
from jaxrec.envs import users as users_lib
from jaxrec.errors import UserError
from jaxrec.methods import fqe, windows, world_accuracy
from jaxrec.types import Array, Batch, Dataset, Method, TrainState

Metrics = dict[str, Any]


def held_out(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """`method.eval_step` over every held-out set: sums, divided once by the count."""
    batch_size = config.eval.batch_size
    step = jax.jit(method.eval_step)
    if not dataset.evals:
        logs.say("held_out: nothing is held out, set data.valid_fraction")

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for name in dataset.evals:
            sums: dict[str, Any] = {}
            batches = loader.eval_batches(dataset, name, batch_size)
            for number, batch in enumerate(batches):
                new = step(state, batch, jax.random.fold_in(key, number))
                sums = {k: sums.get(k, 0.0) + v for k, v in new.items()}
            sums = jax.device_get(sums)
            count = sums.pop("count")
            found |= {f"{name}/{k}": v / count for k, v in sums.items()}
        return found

    return evaluate


def simulator(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Deterministic episodes in the data's simulator: return and normalised score.

    `eval/normalized_score`: 100 (G - random) / (expert - random), the constants of the
    data set or D4RL's, G the mean undiscounted return; `eval/length` in steps. The
    first states are the same at every evaluation. Where the simulator is not installed,
    fitted Q evaluation takes its place. Raises UserError for another's simulator and
    for a `data.env_id` that cannot be made.
    """
    env_id, episodes = dataset.info["env_id"], config.eval.episodes
    act = jax.jit(method.act)
    try:
        if not env_id:
            raise UserError("the data name no simulator, set data.env_id if it has one")
        envs = [gym.make(env_id) for _ in range(episodes)]
    except UserError as error:
        if config.data.get("env_id", "") and gym.installed():
            raise  # the user named a simulator, and this is no missing package
        logs.say(f"no roll-outs: {error}; fitted Q evaluation takes their place")
        return fitted_q(config, method, dataset)
    gym.check_sizes(envs[0], env_id, dataset.info)
    reference = gym.reference(dataset.info)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        def policy(observation: np.ndarray, reward: np.ndarray) -> np.ndarray:
            return np.asarray(act(state, observation, key))

        def remembering(memory: Any, observation: np.ndarray, reward: np.ndarray):
            return act(state, (memory, observation, reward), key)

        memory = method.memory(episodes) if method.memory else None
        found = gym.rollout(
            env_id,
            policy if memory is None else remembering,
            episodes,
            config.eval.seed,
            memory,
            envs,
        )
        values = {
            "eval/return": found["returns"].mean(),
            "eval/return_std": found["returns"].std(),
            "eval/length": found["lengths"].mean(),
        }
        if reference is not None:
            score = reference.score(found["returns"].mean())
            values["eval/normalized_score"] = score
        return values

    return evaluate


def fitted_q(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Value of the policy at the starts of episodes, from the data alone."""
    if method.memory is not None:
        logs.say("fitted_q: not for policies that act on a history")
        return lambda state, key: {}

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found = fqe.evaluate(
            method.act,
            state,
            dataset.train,
            dataset.info,
            key,
            steps=config.eval.fqe_steps,
        )
        return {f"eval/fqe_{name}": value for name, value in found.items()}

    return evaluate


def ranking(config: Any, method: Method, dataset: Dataset) -> Callable[..., Metrics]:
    """Rank of every held-out event in the whole catalogue: see `metrics.finish`.

    `<set>/ndcg@10` of all events, `<set>/purchase/ndcg@10` of a kind. Items of the
    history are left out where the data say `mask_seen` (as far as it is encoded).
    Arrays of the events in their order, for paired tests: `<set>/rank` float32[N],
    `<set>/kind` int8[N], `<set>/session` int32[N] (equal within a session).
    """
    facts = {k: jnp.asarray(v) for k, v in metrics.facts(dataset.info).items()}
    mask_seen = dataset.info["mask_seen"]
    if not dataset.evals:
        logs.say("ranking: nothing is held out, choose another data.split")

    @jax.jit
    def step(state: TrainState, batch: Batch, facts: Any) -> Any:
        event = windows.transition(batch)
        scores = method.scores(state, event.items, event.length, event.timestep)
        if mask_seen:
            row = jnp.arange(len(event.items))[:, None]
            scores = scores.at[row, event.items].set(-jnp.inf)
        rows = dict(target=event.action, kind=event.kind, reward=event.reward)
        best = metrics.top_k(scores, max(metrics.KS))
        ranks = metrics.rank(scores, event.action)
        rows["weight"] = batch["weight"]
        return metrics.ranking_sums(ranks, best, rows, facts), (best, ranks)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for name, arrays in dataset.evals.items():
            sums: dict[str, Any] = {}
            shown = []
            for batch in loader.eval_batches(dataset, name, config.eval.batch_size):
                new, placed = step(state, batch, facts)
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

    @jax.jit
    def step(state: TrainState, batch: Batch) -> Array:
        event = windows.transition(batch)
        scores = method.scores(state, event.items, event.length, event.timestep)
        return metrics.rank(scores, event.action) <= 10

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        found: Metrics = {}
        for name, lag in lags.items():
            batches = loader.eval_batches(dataset, name, config.eval.batch_size)
            hits = jax.device_get([step(state, batch) for batch in batches])
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
    shows the items most popular in training, and items of the history are left out
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
    population = users_lib.make(dataset.info["users"])
    seq_len = dataset.info["seq_len"]
    # The data number the items that occur in them; the simulator knows more.
    known = np.asarray(dataset.info["item_ids"])[1:]
    code = np.zeros(population.num_items + 1, np.int32)
    code[known] = np.arange(1, len(known) + 1)
    popularity = np.full(population.num_items + 1, -np.inf, np.float32)
    # The log keeps the order and makes a draw at temperature 1 one by share.
    popularity[known] = np.log1p(dataset.info["item_count"][1 : len(known) + 1])
    habits = dict(
        popularity=jnp.asarray(popularity), mask_seen=dataset.info["mask_seen"]
    )

    @jax.jit
    def serve(state: TrainState, key: jax.Array) -> dict[str, jax.Array]:
        def scores(items: Array, length: Array, timestep: Array) -> Array:
            found = method.scores(state, jnp.asarray(code)[items], length, timestep)
            whole = jnp.full((len(items), population.num_items + 1), -jnp.inf)
            return whole.at[:, known].set(found[:, 1 : len(known) + 1])

        policy = online.from_scores(scores, **habits)
        sizes = dict(num_users=config.eval.users, horizon=config.eval.horizon)
        return online.evaluate(policy, population, key, seq_len=seq_len, **sizes)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        # The same users at every evaluation, and for every method.
        found = jax.device_get(serve(state, jax.random.key(config.eval.seed)))
        return {f"users/{name}": float(value) for name, value in found.items()}

    return evaluate


EVALS = {
    "episodes": team_episodes.evaluator,
    "held_out": held_out,
    "ranking": ranking,
    "recall_by_lag": recall_by_lag,
    "sampled_1000": sampled_ranking.evaluator,
    "users": users,
    "simulator": simulator,
    "fitted_q": fitted_q,
    "world_accuracy": world_accuracy.make,
}
NEEDS = dict(  # evaluator: what a method must have
    held_out="eval_step",
    ranking="scores",
    recall_by_lag="scores",
    sampled_1000="scores",
    episodes="act",
    simulator="act",
    fitted_q="act",
)


def make(
    name: str, config: Any, method: Method, dataset: Dataset
) -> Callable[..., Metrics]:
    """The evaluator `name`; one that says why it measures nothing where it cannot."""
    need = NEEDS.get(name)
    if need and getattr(method, need) is None:
        logs.say(f"{name}: this method has no {need}; no numbers")
        return lambda state, key: {}
    return EVALS[name](config, method, dataset)
