"""Thin adapters to gymnasium's MuJoCo environments (an optional package).

gymnasium is imported inside the functions: `import jaxrec` works without it. D4RL was
made on gym v2, whose closest living relatives are the v4 ids; v5 changed Walker2d, so
scores are always printed with the environment id.

Policies here are plain Python callables on numpy arrays; a jitted function will do.
A policy acts for E episodes at once, which costs one call a step, whatever E is.
"""

import difflib
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec.types import UserError

# D4RL's constants (d4rl/infos.py), the same for its v0, v1 and v2: (random, expert).
SCORES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}


def family(env_id: str) -> str:
    """ "Hopper-v4" and "hopper-medium-v2" -> "hopper"."""
    return re.split(r"[-/]", env_id.lower().removeprefix("mujoco/"))[0]


class Reference(NamedTuple):
    """The returns that score 0 and 100, and whose constants they are."""

    random: float
    expert: float
    source: str

    def score(self, returns: Any) -> Any:
        """100 (G - random) / (expert - random); any shape."""
        return 100 * (returns - self.random) / (self.expert - self.random)


def reference(info: Mapping[str, Any]) -> Reference | None:
    """Of the data set where it has its own (Minari), else D4RL's; None without."""
    low, high = info.get("ref_min_score"), info.get("ref_max_score")
    if low is not None and high is not None and low < high:
        return Reference(low, high, "data set")
    found = SCORES.get(family(info.get("env_id") or ""))
    return None if found is None else Reference(*found, "D4RL")


def normalized_score(env_id: str, returns: Any) -> Any:
    """100 (G - random) / (expert - random) with D4RL's constants; any shape."""
    found = reference(dict(env_id=env_id))
    if found is None:
        raise UserError(
            f"no normalised score for {env_id!r}: report returns, or use one of "
            f"{', '.join(sorted(SCORES))}"
        )
    return found.score(returns)


def gymnasium_module() -> Any:
    """The gymnasium package; UserError where the extra is missing."""
    try:
        import gymnasium
        import mujoco  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the simulator needs {error.name or 'gymnasium'}: "
            "pip install 'jaxrec[mujoco]'"
        ) from error
    return gymnasium


def installed() -> bool:
    """Whether there are simulators here."""
    try:
        gymnasium_module()
    except UserError:
        return False
    return True


def check_id(env_id: str) -> None:
    """Raises UserError, with the nearest names, for an id that gymnasium lacks."""
    registry = gymnasium_module().registry
    if env_id not in registry:
        near = difflib.get_close_matches(env_id, registry, 3, 0.5)
        raise UserError(
            f"unknown environment {env_id!r}: did you mean "
            f"{', '.join(near) or 'Hopper-v4'}?"
        )


def make(env_id: str) -> Any:
    """One simulator without wrappers: the caller counts steps and clips actions.

    Raises UserError for an unknown id or a missing package.
    """
    check_id(env_id)
    gymnasium = gymnasium_module()
    import mujoco

    # v4 ids warn that v5 exists, and old model files that an attribute is deprecated;
    # MuJoCo would also write the latter to MUJOCO_LOG.TXT in the working directory.
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.make(env_id, disable_env_checker=True).unwrapped
    except (gymnasium.error.Error, ImportError) as error:  # v2 and v3 are gone
        raise UserError(
            f"gymnasium cannot make {env_id!r} ({' '.join(str(error).split())}): "
            "use its v4 or v5"
        ) from error
    finally:
        mujoco.set_mju_user_warning(handler)


def check_sizes(env: Any, env_id: str, info: Mapping[str, Any]) -> None:
    """Raises UserError where a simulator's observations or actions are not the data's.

    info: observation_size, action_size and perhaps name.
    """
    for what, space in (
        ("observation", env.observation_space),
        ("action", env.action_space),
    ):
        size = int(np.prod(space.shape))
        if size != info[f"{what}_size"]:
            raise UserError(
                f"data.env_id={env_id!r} has {what}s of size {size}, "
                f"{info.get('name') or 'the data'} of {info[f'{what}_size']}: name the "
                "simulator that the data come from"
            )


def time_limit(env_id: str) -> int:
    """Steps after which an episode is cut, 1000 for the MuJoCo tasks."""
    return gymnasium_module().spec(env_id).max_episode_steps or 1000


def seeds(seed: int, num: int) -> list[int]:
    """`num` unrelated seeds for simulators: uint32 numbers as Python ints."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(num)]


def rollout(
    env_id: str,
    policy: Callable,
    num_episodes: int,
    seed: int,
    memory: Any = None,
    simulators: list | None = None,
) -> dict[str, np.ndarray]:
    """Whole episodes of a batched policy in lockstep.

    policy: (observations: float32[E, od], rewards: float32[E]) -> actions [E, ad],
        with the rewards that followed the previous actions (zeros at first). Actions
        are clipped to the simulator's range. Finished episodes go on being fed, with
        their last observation and reward 0, and no longer count.
    memory: where given, the policy is (memory, observations, rewards) ->
        (memory, actions) and this is its first memory.
    simulators: E simulators of `make` to use again; made here if None.

    Returns {"returns": float64[E], undiscounted; "lengths": int64[E]}. Raises UserError
    when an action is not finite.
    """
    envs = simulators or [make(env_id) for _ in range(num_episodes)]
    low, high = envs[0].action_space.low, envs[0].action_space.high
    observations = np.stack(
        [
            env.reset(seed=s)[0]
            for env, s in zip(envs, seeds(seed, num_episodes), strict=True)
        ]
    ).astype(np.float32)
    rewards = np.zeros(num_episodes, np.float32)
    returns, lengths = np.zeros(num_episodes), np.zeros(num_episodes, np.int64)
    alive = np.ones(num_episodes, bool)
    for _ in range(time_limit(env_id)):
        # Copies: a jitted policy may still read them after it has returned.
        if memory is None:
            actions = policy(observations.copy(), rewards.copy())
        else:
            memory, actions = policy(memory, observations.copy(), rewards.copy())
        actions = np.asarray(actions)
        if not np.isfinite(actions[alive]).all():
            raise UserError(
                f"the policy's actions in {env_id} are not finite, its parameters "
                "have diverged: lower the learning rate"
            )
        actions = np.clip(actions, low, high)
        rewards = np.zeros(num_episodes, np.float32)
        for i in np.flatnonzero(alive):
            observations[i], reward, terminal, _, _ = envs[i].step(actions[i])
            rewards[i] = reward
            returns[i] += reward
            lengths[i] += 1
            alive[i] = not terminal
        if not alive.any():
            break
    return {"returns": returns, "lengths": lengths}


def replay(
    env_id: str, qpos: np.ndarray, qvel: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the true simulator does from given states under given actions.

    qpos: float[N, nq], qvel: float[N, nv]; actions: float[N, H, ad].

    Returns observations float32[N, H, od] (after each action), rewards
    float32[N, H] and terminals bool[N, H]. The simulator is not stopped by a terminal
    state: from there on `terminals` tells what the rule says of each state. The
    constraint solver's warm start is not part of (qpos, qvel); with MuJoCo 4.0 stored
    steps are met to the last bit of float32 all the same, which others need not do.
    """
    env = make(env_id)
    if (qpos.shape[1], qvel.shape[1]) != (env.model.nq, env.model.nv):
        raise UserError(
            f"{env_id} has {env.model.nq} positions and {env.model.nv} velocities, the "
            f"data {qpos.shape[1]} and {qvel.shape[1]}: set data.env_id to their own"
        )
    env.reset(seed=0)
    num, horizon, _ = actions.shape
    observations = np.zeros((num, horizon, env.observation_space.shape[0]), np.float32)
    rewards = np.zeros((num, horizon), np.float32)
    terminals = np.zeros((num, horizon), bool)
    for i in range(num):
        env.data.qacc_warmstart[:] = 0  # else a start depends on the one before it
        env.set_state(np.asarray(qpos[i], float), np.asarray(qvel[i], float))
        for h in range(horizon):
            step = env.step(np.asarray(actions[i, h]))
            observations[i, h], rewards[i, h], terminals[i, h] = step[:3]
    return observations, rewards, terminals


def _hopper(obs):
    return ~(
        (obs[..., 0] > 0.7)
        & (obs[..., 0] < float("inf"))
        & (abs(obs[..., 1]) < 0.2)
        & (abs(obs[..., 1:]) < 100).all(-1)
    )


def _walker2d(obs):
    upright = (obs[..., 0] > 0.8) & (obs[..., 0] < 2.0) & (abs(obs[..., 1]) < 1)
    return ~(upright & (abs(obs) < 100).all(-1))


def _halfcheetah(obs):
    return ~(abs(obs) < 100).all(-1)


def _ant(obs):
    finite = (abs(obs) < float("inf")).all(-1)
    return ~(finite & (obs[..., 0] >= 0.2) & (obs[..., 0] <= 1.0))


TERMINATION = {
    "hopper": _hopper,
    "walker2d": _walker2d,
    "halfcheetah": _halfcheetah,
    "ant": _ant,
}


def terminated(env_id: str) -> Callable | None:
    """The analytic rule float[..., od] -> bool[...], for numpy and JAX arrays alike.

    On observations as the simulator gives them, not standardised. A NaN ends. The rules
    are the simulators' own with one guard, as OfflineRL-Kit has it: a magnitude of 100
    ends HalfCheetah, which never ends otherwise. None for environments without a rule.
    """
    return TERMINATION.get(family(env_id))
