"""What the agents of a trained SIDIFF believe while they play, to look at.

The same functions as in training, called once: the samples that come out are those that
the actions were chosen by.
"""

from collections.abc import Callable
from typing import Any

from jaxrec.envs import teams as envs
from jaxrec.methods import sidiff, state_forms, state_inference, team_hosts
from jaxrec.types import Array, TrainState


def acting(
    config: Any, info: dict[str, Any]
) -> Callable[..., tuple[Any, Array, Array]]:
    """(state, (memory, states, reward), key) -> (memory, actions, samples).

    Samples bfloat16[E, A, M, *shape] in [-1, 1]. `config`: of the method `sidiff`, with
    an inference other than none.
    """
    team = envs.of_info("sidiff", info)
    form = state_forms.make(config, team)
    host = team_hosts.make(config, team, sidiff.describe(config, team, form))
    imagine = state_inference.make_imagine(config, form, config.samples)

    def act(state: TrainState, seen: Any, key: Array) -> tuple[Any, Array, Array]:
        average = (state.target_params or {}).get("generator")
        kept = []

        def keeping(*args: Any) -> Array:
            kept.append(imagine(average, *args))
            return kept[-1]

        memory, actions = host.act(state, seen, key, keeping)
        return memory, actions, kept[0]

    return act
