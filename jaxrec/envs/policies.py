"""The behaviour policies that ship with jaxrec: choosing, reading and running them.

A policy is a file of `WEIGHTS`, <environment>_<name>.npz: the float32 parameters of
the actor and, beside them, the facts of its making. Names: "medium", "expert", and
"0040k" for the checkpoint after 40,000 steps on the way to medium.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.envs import gym
from jaxrec.types import UserError

WEIGHTS = Path(__file__).parent / "weights"
# Mean returns of D4RL's medium data: the targets that choose the medium checkpoint.
MEDIUM = {"hopper": 1400, "halfcheetah": 4800, "walker2d": 2900}
CHAIN = 8  # checkpoints up to medium, the policies of medium-replay


def act(params: dict[str, Any], observations: np.ndarray) -> np.ndarray:
    """The policy in numpy: float[B, od] -> float32[B, ad] in [-1, 1]."""
    x = np.asarray(observations, np.float32)
    x = np.maximum(x @ params["w0"] + params["b0"], 0)
    x = np.maximum(x @ params["w1"] + params["b1"], 0)
    return np.tanh(x @ params["w2"] + params["b2"])


def select(workdir: Path | str, out: Path | str = WEIGHTS) -> list[Path]:
    """Writes the chain, medium and expert of a finished run; returns their paths.

    medium: the evaluation nearest D4RL's mean return, of those before the first that
    is above it and that one. chain: evenly spread in steps up to medium. expert: the
    best evaluation.
    """
    runs = [dict(np.load(path)) for path in sorted(Path(workdir).glob("[0-9]*.npz"))]
    if not runs:
        raise UserError(f"no checkpoints in {workdir}: train there first")
    env_id = str(runs[0]["env"])
    means = np.array([run["evaluation"].mean() for run in runs])
    goal = MEDIUM[gym.family(env_id)]
    above = int(np.argmax(means > goal)) if (means > goal).any() else len(runs) - 1
    medium = int(np.argmin(abs(means[: above + 1] - goal)))
    spread = np.linspace(0, medium, min(CHAIN, medium + 1)).round().astype(int)
    chosen = {f"{int(runs[i]['step']) // 1000:04d}k": i for i in spread[:-1]}
    chosen |= {"medium": medium, "expert": int(np.argmax(means))}
    Path(out).mkdir(exist_ok=True)
    paths = []
    for name, i in chosen.items():
        paths.append(Path(out) / f"{env_id}_{name}.npz")
        np.savez_compressed(paths[-1], **runs[i], name=name)
    return paths


def weights(env_id: str) -> dict[str, dict[str, Any]]:
    """What ships for `env_id`: name -> dict of parameters and facts, in training order.

    The facts: name, env, step, seed, command, evaluation float64[episodes] (returns of
    the noiseless policy), and sha256 of the file. Raises UserError if nothing ships.
    """
    paths = sorted(WEIGHTS.glob(f"{env_id}_*.npz"))
    if not paths:
        have = sorted({path.name.split("_")[0] for path in WEIGHTS.glob("*.npz")})
        raise UserError(
            f"no behaviour policies ship for {env_id!r}: use one of {', '.join(have)}"
        )
    found = [
        dict(np.load(path)) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in paths
    ]
    found.sort(key=lambda facts: int(facts["step"]))
    return {str(facts["name"]): facts for facts in found}


def table() -> str:
    """One line a policy that ships, for `--list`."""
    lines = [f"{'policy':<26}{'step':>9}{'return':>8}{'+-':>6}{'score':>7}"]
    for env_id in sorted({path.name.split("_")[0] for path in WEIGHTS.glob("*.npz")}):
        for name, facts in weights(env_id).items():
            mean, std = facts["evaluation"].mean(), facts["evaluation"].std()
            score = gym.normalized_score(env_id, mean)
            lines.append(
                f"{env_id + ' ' + name:<26}{int(facts['step']):>9}{mean:>8.0f}"
                f"{std:>6.0f}{score:>7.1f}"
            )
    return "\n".join(lines)
