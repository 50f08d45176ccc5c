"""python -m jaxrec.watch --run=RUN [--out=game.gif]: a trained team plays Battle City.

One greedy episode as GIF, or its last step as PNG if the name ends so. From the left:
the whole field; what one agent sees; and, where the method infers the state (`sidiff`
with entities or grid), each sample of what that agent believes, the one it acts on.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from jaxrec import finished
from jaxrec.envs import teams
from jaxrec.envs.battle_city import beliefs as drawn
from jaxrec.envs.battle_city import render
from jaxrec.errors import UserError, fail
from jaxrec.methods import beliefs
from jaxrec.program import Stage
from jaxrec.types import TrainState

SHOWN = 4  # samples beside each other, at most
GAMES = 2  # the first is shown; a placebo shows its agents the state of another game


def episode(
    team: teams.Team, act: Callable[..., Any], memory: Any, seed: int
) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
    """(state, samples [A, M, ...] or None) of each step, and how it ended.

    `act(seen, key)` -> (memory, actions, samples), for GAMES games.
    """

    @jax.jit
    def advance(carry: Any, key: jax.Array) -> Any:
        state, memory, reward = carry
        key_act, key_step = jax.random.split(key)
        memory, actions, samples = act((memory, state, reward), key_act)
        keys = jax.random.split(key_step, GAMES)
        after, outcome = jax.vmap(team.step)(keys, state, actions)
        return (after, memory, outcome.reward), (samples, outcome)

    first = lambda tree: jax.tree.map(lambda x: np.asarray(x[0]), tree)  # noqa: E731
    key_start, key = jax.random.split(jax.random.key(seed))
    state = jax.jit(jax.vmap(team.reset))(jax.random.split(key_start, GAMES))
    carry, steps, returned = (state, memory, np.zeros(GAMES, np.float32)), [], 0.0
    for number in range(team.limit):
        state = carry[0]
        carry, found = advance(carry, jax.random.fold_in(key, number))
        samples, outcome = first(found)
        steps.append((first(state), samples))
        returned += float(outcome.reward)
        if outcome.done:
            break
    facts = dict(won=bool(outcome.won), kills=int(outcome.kills), steps=len(steps))
    return steps, facts | {"return": round(returned, 2)}


def player(stage: Stage, state: TrainState) -> Callable[..., Any]:
    """act(seen, key) -> (memory, actions, samples or None)."""
    name = stage.config.method
    section = stage.config[name]
    if name == "sidiff" and section.inference != "none":
        shared = {field: stage.config[field] for field in ("steps", "batch_size")}
        config = FrozenConfigDict(section.to_dict() | shared)
        return partial(beliefs.acting(config, stage.dataset.info), state)

    def plain(seen: Any, key: jax.Array) -> Any:
        return *stage.method.act(state, seen, key), None

    return plain


def pictures(
    team: teams.Team, steps: Sequence[tuple[Any, Any]], agent: int
) -> list[np.ndarray]:
    """A frame for each step: field, view, samples."""
    game = team.game.game
    forms = {2: drawn.from_entities, 3: drawn.from_grid}

    def frame(state: Any, samples: Any) -> np.ndarray:
        parts = [render.frame(game, state), render.frame(game, state, agent=agent)]
        for sample in () if samples is None else samples[agent][:SHOWN]:
            if sample.ndim in forms:
                numbers = (sample.astype(np.float32) + 1) / 2
                believed = forms[sample.ndim](game, state, numbers)
                parts.append(render.frame(game, believed))
        return render.side_by_side(parts)

    return [frame(*step) for step in steps]


def watch(
    run: str | Path, out: str | Path, stage: str, number: int, agent: int, seed: int
) -> dict[str, Any]:
    """Write the episode; returns how it ended. Raises UserError for other runs."""
    config, name = finished.find(run, stage, number)
    found, state = finished.restore(config, run, name, number)
    info = found.dataset.info
    if info.get("team", {}).get("kind") != "battle_city":
        raise UserError(f"stage {name} of {run} plays no Battle City: give another run")
    team = teams.make(**info["team"])
    if not 0 <= agent < team.num_agents:
        raise UserError(f"--agent={agent}: it has agents 0 to {team.num_agents - 1}")
    act = player(found, state)
    steps, facts = episode(team, act, found.method.memory(GAMES), seed)
    frames = pictures(team, steps, agent)
    if str(out).endswith(".png"):
        render.save_png(out, frames[-1])
    else:
        render.save_gif(out, frames)
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """Watch; returns the exit status: 0, or 2 for a fault of the input."""
    flags = finished.parser(
        "jaxrec.watch", "A trained team plays.", "folder of a finished run"
    )
    flags.add_argument("--out", default="game.gif", help="a GIF, or a PNG")
    flags.add_argument("--agent", type=int, default=0, help="whose view is shown")
    flags.add_argument("--game_seed", type=int, default=0)
    given = flags.parse_args(argv)
    try:
        facts = watch(
            given.run, given.out, given.stage, given.seed_number, given.agent,
            given.game_seed,
        )  # fmt: skip
    except UserError as error:
        return fail(error)
    print(f"{given.out}: {facts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
