"""Trajectories collected in gymnasium simulators: `gym/<Env>-v4/<level>`.

The local ladder, for work without a download. It is not D4RL: simulators are those of
gymnasium v4, behaviour policies are our own (jaxrec/envs/behaviour.py, weights ship),
and names always carry the environment id.

| level | episodes of |
|---|---|
| random | uniform actions |
| medium | the checkpoint nearest the mean return of D4RL's medium |
| medium-replay | the checkpoints up to medium in equal parts: each next episode is |
|  | by the policy with the fewest rows so far |
| expert | the best checkpoint; its score is reported, not assumed to be 100 |
| medium-expert | half the rows medium, then half expert |
| noisy | expert with a noise drawn per episode from {0.1, 0.2, ..., 0.8} |

Policies act with clipped Gaussian noise whose size is drawn for each episode (ours;
D4RL samples SAC's own stochastic policy): expert 0.1, as in training; medium and
medium-replay from {0.1, 0.2, 0.3, 0.4}. With 0.1 alone the actions of a nearly
deterministic policy cover too little to tell a better action from a worse one.

Actions are stored as executed, next observations are the true ones also at the time
limit, which is a timeout and not a terminal, and (qpos, qvel) before each action allow
replaying any step. 100,000 rows take about 10 s of HalfCheetah, 20 s of Hopper and
Walker2d.
"""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrec import logs
from jaxrec.data import cache
from jaxrec.data.trajectories import Trajectories, concatenate, flatten, unflatten
from jaxrec.data.trajectories import returns as episode_returns
from jaxrec.envs import gym, policies
from jaxrec.types import UserError

VERSION = 2  # of the ladder: raise it when weights or the collection change
NOISE = {"expert": (0.1,), "noisy": tuple(np.arange(1, 9) / 10)}
WIDE = (0.1, 0.2, 0.3, 0.4)  # of the other levels
ENVS = ("Hopper-v4", "HalfCheetah-v4", "Walker2d-v4")
LEVELS = ("random", "medium", "medium-replay", "medium-expert", "expert", "noisy")


def load(config: Any) -> Trajectories:
    """The rows of `config.name`, collected once and then read from the cache.

    config: name ("Hopper-v4/medium-replay", with or without "gym/"), rows, seed,
        data_dir ("" for the default cache).
    Raises UserError for an unknown environment or level, naming the nearest.
    """
    env_id, level = parse(config.name)
    rows, seed = int(config.rows), int(config.seed)
    hashes = {k: v["sha256"] for k, v in behaviour(env_id, level).items()}

    def build():
        progress = logs.Progress(f"collecting gym/{env_id}/{level}", rows)
        found = collect(env_id, level, rows, seed, progress.update)
        return flatten(found), found.info

    settings = dict(
        source="gym",
        env_id=env_id,
        level=level,
        rows=rows,
        seed=seed,
        version=VERSION,
        policies=hashes,
    )
    root = cache.directory(config.data_dir)
    arrays, manifest = cache.cached(root, f"gym-{env_id}-{level}", settings, build)
    sums = {name: entry["sha256"] for name, entry in manifest["arrays"].items()}
    return unflatten(arrays, manifest["facts"] | {"sha256": sums})


def parse(name: str) -> tuple[str, str]:
    """ "Hopper-v4/medium" or "gym/Hopper-v4/medium" -> ("Hopper-v4", "medium")."""
    env_id, _, level = name.removeprefix("gym/").partition("/")
    for value, known, what in (
        (env_id, ENVS, "environment"),
        (level, LEVELS, "level"),
    ):
        if value not in known:
            near = difflib.get_close_matches(value, known, 3, 0.5) or known
            raise UserError(
                f"unknown {what} {value!r} in data {name!r}, which is "
                f"<environment>/<level>: did you mean {', '.join(near)}?"
            )
    return env_id, level


def behaviour(env_id: str, level: str) -> dict[str, dict]:
    """The shipped policies behind a level: name -> parameters and facts."""
    if level == "random":
        return {}
    found = policies.weights(env_id)
    if level == "medium-replay":
        return {name: p for name, p in found.items() if name != "expert"}
    names = level.replace("noisy", "expert").split("-")
    if not found.keys() >= set(names):
        raise UserError(
            f"no {level} policy ships for {env_id}: use medium or medium-replay"
        )
    return {name: found[name] for name in names}


def collect(
    env_id: str,
    level: str,
    num_rows: int = 100_000,
    seed: int = 0,
    progress: Callable[[int], None] = lambda rows: None,
) -> Trajectories:
    """`num_rows` rows of new episodes, the last one cut (a timeout) where it must be.

    extras: qpos float64[N, nq], qvel float64[N, nv], the state before the action.
    progress: called now and then with the number of rows there are.
    """
    if num_rows < 1:
        raise UserError(f"data.rows={num_rows}: it must be at least 1")
    if level == "medium-expert":
        half = num_rows // 2
        parts = [
            _collect(env_id, "medium", half, seed, progress),
            _collect(
                env_id, "expert", num_rows - half, seed, lambda n: progress(half + n)
            ),
        ]
        parts = [part for part in parts if len(part.reward)]
        return _described(concatenate(parts, {}), env_id, level, seed)
    return _described(
        _collect(env_id, level, num_rows, seed, progress), env_id, level, seed
    )


def _collect(env_id, level, num_rows, seed, progress):
    env, limit = gym.make(env_id), gym.time_limit(env_id)
    actors = list(behaviour(env_id, level).values())
    used = np.zeros(len(actors), int)  # rows of each actor
    random = np.random.default_rng([seed, LEVELS.index(level)])
    low, high = env.action_space.low, env.action_space.high
    od, ad = env.observation_space.shape[0], env.action_space.shape[0]
    columns = dict(
        observation=np.zeros((num_rows, od), np.float32),
        action=np.zeros((num_rows, ad), np.float32),
        reward=np.zeros(num_rows, np.float32),
        next_observation=np.zeros((num_rows, od), np.float32),
        terminal=np.zeros(num_rows, bool),
        timeout=np.zeros(num_rows, bool),
        qpos=np.zeros((num_rows, env.model.nq)),
        qvel=np.zeros((num_rows, env.model.nv)),
    )
    row = 0
    while row < num_rows:
        observation, _ = env.reset(seed=int(random.integers(2**31)))
        if actors:
            chosen = int(used.argmin())
            sigma = random.choice(NOISE.get(level, WIDE))
            noise = sigma * random.standard_normal((limit, ad))
        else:
            uniform = random.uniform(low, high, (limit, ad))
        start, end = row, min(row + limit, num_rows)
        while True:
            if actors:
                action = policies.act(actors[chosen], observation)
                action = action + noise[row - start]
            else:
                action = uniform[row - start]
            # What is stored is what is executed, to the bit: clip, then round.
            action = np.clip(action, low, high).astype(np.float32)
            columns["qpos"][row], columns["qvel"][row] = env.data.qpos, env.data.qvel
            columns["observation"][row], columns["action"][row] = observation, action
            observation, reward, terminal, _, _ = env.step(action)
            columns["next_observation"][row] = observation
            columns["reward"][row], columns["terminal"][row] = reward, terminal
            row += 1
            if terminal or row == end:
                columns["timeout"][row - 1] = not terminal
                break
        if actors:
            used[chosen] += row - start
        progress(row)
    extras = {name: columns.pop(name) for name in ("qpos", "qvel")}
    return Trajectories(
        **columns, valid_next=np.ones(num_rows, bool), extras=extras, info={}
    )


def _described(trajectories, env_id, level, seed):
    """With the facts of the manifest; sha256 is added by the cache."""
    import gymnasium
    import mujoco

    score = episode_returns(trajectories)
    actors = behaviour(env_id, level)
    info = dict(
        name=f"gym/{env_id}/{level}",
        env_id=env_id,
        level=level,
        version=f"jaxrec-{VERSION}",
        gymnasium=gymnasium.__version__,
        mujoco=mujoco.__version__,
        seed=seed,
        policies={name: facts["sha256"] for name, facts in actors.items()},
        rows=len(trajectories.reward),
        episodes=len(score),
        mean_return=float(score.mean()),
        normalized_score=float(gym.normalized_score(env_id, score.mean())),
    )
    return trajectories._replace(info=info)
