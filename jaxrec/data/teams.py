"""Sources of runs that learn by playing: the game, and no data.

The train set is one row of nothing, so that the loop has a batch to hand out; what a
learner draws from is its own replay, in its state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrec.envs import teams
from jaxrec.types import Dataset, UserError

VERSION = "1"  # of the rules: raise it when the same settings mean another game


def source(kind: str) -> Callable[[Any], Dataset]:
    """A source whose `data.name` is a game of the environment `kind`."""

    def load(config: Any) -> Dataset:
        if "settings" not in config:
            raise UserError(
                f"data.source={kind!r} is a game to play in: use it with a config of "
                "a team, such as configs/qmix.py"
            )
        named = dict(kind=kind, name=config.name, settings=parse(config.settings))
        team = teams.make(**named)
        info = dict(
            name=team.name,
            version=VERSION,
            team=named,
            env_id="",
            num_agents=team.num_agents,
            num_actions=team.num_actions,
        )
        return Dataset(train={"nothing": np.zeros(1, np.float32)}, evals={}, info=info)

    return load


def parse(given: Any) -> dict[str, Any]:
    """{name: value} of a mapping, or of text such as "agents=3,difficulty=hard".

    Raises UserError for text of another form.
    """
    if not isinstance(given, str):
        return dict(given) if isinstance(given, Mapping) else dict(given.items())
    found = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not name or not equals or not value:
            raise UserError(
                f"data.settings={given!r}: names with values, for example "
                "agents=3,difficulty=hard"
            )
        found[name] = constant(value)
    return found


def constant(text: str) -> Any:
    """A whole number, a number, True or False where it looks like one, else text.

    With slashes between, such as 0.25/0.25/0.5, a tuple of numbers where all are.
    """
    if "/" in text:
        found = tuple(map(constant, text.split("/")))
        return text if any(isinstance(part, str) for part in found) else found
    words = dict(true=True, false=False)
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
