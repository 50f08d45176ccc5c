"""How the agents of `sidiff` imagine the state, by a generator or a control."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import FrozenConfigDict

from jaxrec import optim
from jaxrec.methods import generator as generators
from jaxrec.methods.state_forms import Form
from jaxrec.types import Array, UserError

LEARNED = generators.KINDS
SHOWN = ("oracle", "placebo")


def learner(
    config: Any, form: Form
) -> tuple[generators.Generator, optax.GradientTransformation]:
    """The generator and its optimiser."""
    settings = config.generator.to_dict() | dict(kind=config.inference)
    model = generators.make(FrozenConfigDict(settings), form.network, form.shape)
    updates = config.steps * config.generator_updates
    return model, optim.make(config.generator_optim, updates)


def for_agents(x: Array, num: int) -> Array:
    """[N, ...] -> [N, A, ...], the same for every agent."""
    return jnp.broadcast_to(x[:, None], (len(x), num, *x.shape[1:]))


def make_imagine(config: Any, form: Form, samples: int) -> Any:
    """(average, key, states, view, hidden) -> bfloat16[E, A, M, *shape].

    M = `samples`. Only what is shown is made from the states.
    """

    def shown(average: Any, key: Array, states: Any, view: Any, hidden: Array) -> Array:
        found = form.encode(states)
        if config.inference == "placebo":
            if len(found) < 2:
                raise UserError(
                    "inference placebo shows the state of another game, and one is "
                    "played at a time: set num_envs and eval.episodes to 2 or more"
                )
            found = jnp.roll(found, 1, axis=0)
        found = for_agents(found, hidden.shape[1])[:, :, None]
        lead = (*hidden.shape[:2], samples)
        return jnp.broadcast_to(found, (*lead, *form.shape)).astype(jnp.bfloat16)

    if config.inference in SHOWN:
        return shown
    model, _ = learner(config, form)

    def sampled(
        average: Any, key: Array, states: Any, view: Any, hidden: Array
    ) -> Array:
        told = form.condition(view.observation, hidden), form.known(view.observation)
        lead = (*hidden.shape[:2], samples)  # games first: a mesh splits them

        def each(x: Array) -> Array:
            return jnp.broadcast_to(x[:, :, None], (*lead, *x.shape[2:]))

        condition, known = jax.tree.map(each, told)
        found = model.sample(average, key, condition, lead, known)
        return found.astype(jnp.bfloat16)

    return sampled
