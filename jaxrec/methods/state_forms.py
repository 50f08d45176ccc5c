"""What of a game's state is inferred, from what: the forms of `sidiff`.

vector     the whole state as one vector, from observation and memory; any environment
entities   the tanks as rows, from the rows that an agent sees; Battle City
grid       the map, from the agent's window at its place on it; Battle City

All states are scaled from the environment's [0, 1] to [-1, 1]. All of it is ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrec.envs.battle_city.observe import ENEMY, ENTITY, NUMBER
from jaxrec.envs.teams import Team
from jaxrec.models import denoiser, unet
from jaxrec.models.denoiser import Condition
from jaxrec.types import Array, UserError

ALLY = 1  # column of an entity that is the same in every state


class Form(NamedTuple):
    """One way to write a state.

    `shape` of a state. `encode(states [N])` -> float32[N, *shape] in [-1, 1], the
    truth. `condition(states, observation float[N, A, od], hidden float[N, A, D])` ->
    Condition [N, A, ...]. `known(states)` -> (values, mask) [N, A, *shape], what each
    agent sees for certain, or None. `weight`: float32[*shape], 0 where a number is
    constant. `network`: the denoiser. `present`: int32[n], which numbers of a flat
    state are above 0 where there is an enemy, or None.
    """

    shape: tuple[int, ...]
    encode: Callable[[Any], Array]
    condition: Callable[..., Condition]
    known: Callable[[Any], tuple[Array, Array] | None]
    weight: np.ndarray
    network: nn.Module
    present: np.ndarray | None = None


def make(config: Any, team: Team) -> Form:
    """`config`: form, width, num_layers, widths (of the U-Net), num_heads, history.

    The form "auto" is entities on Battle City, vector elsewhere. Raises UserError for
    one that is unknown or that the environment does not have.
    """
    city = team.name.startswith("battle_city/")
    name = config.form
    if name == "auto":
        name = "entities" if city else "vector"
    if name not in FORMS:
        raise UserError(f"form {name!r} is unknown: use auto, {', '.join(FORMS)}")
    if name != "vector" and not city:
        raise UserError(f"form {name!r} is Battle City's: use vector")
    return FORMS[name](config, team)


def told(config: Any, observation: Array, hidden: Array) -> Array:
    """The vector of the condition: float[N, A, od (+ D)]."""
    if not config.history:
        return observation
    return jnp.concatenate([observation, hidden], axis=-1)


def vector(config: Any, team: Team) -> Form:
    return Form(
        shape=(team.state_size,),
        encode=lambda states: 2.0 * jax.vmap(team.world)(states) - 1.0,
        condition=lambda states, seen, hidden: Condition(told(config, seen, hidden)),
        known=lambda states: None,
        weight=np.ones(team.state_size, np.float32),
        network=denoiser.MLP(config.width, config.num_layers),
    )


def entities(config: Any, team: Team) -> Form:
    """Rows of M tanks, 14 numbers each: see `battle_city.observe.entities`.

    Known is a tank that is seen, and a bullet that is; that none is seen says nothing.
    """
    env = team.game
    shape = (env.game.tanks, ENTITY)
    weight = np.ones(shape, np.float32)
    weight[:, ALLY] = 0.0

    def known(states: Any) -> tuple[Array, Array]:
        seen = jax.vmap(env.seen_entities)(states)
        tank = jnp.broadcast_to(seen[..., :1] > 0, (*seen.shape[:-1], ENTITY - 3))
        shell = seen[..., ENTITY - 3 : ENTITY - 2] > 0
        shell = jnp.broadcast_to(shell, (*seen.shape[:-1], 3))
        return 2.0 * seen - 1.0, jnp.concatenate([tank, shell], axis=-1)

    def condition(states: Any, seen: Array, hidden: Array) -> Condition:
        rows = jax.vmap(env.seen_entities)(states)
        mask = (rows != 0).any(-1)
        # What the rows do not tell: place, counters, base and time of the agent itself.
        own = seen[..., -own_size(env) :]
        return Condition(vector=told(config, own, hidden), tokens=rows, mask=mask)

    return Form(
        shape=shape,
        encode=lambda states: 2.0 * jax.vmap(env.entities)(states) - 1.0,
        condition=condition,
        known=known,
        weight=weight,
        network=denoiser.EntityTransformer(
            config.width, config.num_layers, config.num_heads
        ),
        present=np.arange(env.num_agents, env.game.tanks) * ENTITY,
    )


def own_size(env: Any) -> int:
    """Length of the vector part of an observation, which stands behind the rest."""
    seen = jax.eval_shape(lambda key: env.observe(env.reset(key)[1]), jax.random.key(0))
    return seen.vector.shape[-1]


def grid(config: Any, team: Team) -> Form:
    """The map with its 16 channels but for the numbers of the allies."""
    env = team.game
    shape = (*env.game.map.terrain.shape, 16)
    weight = np.ones(shape, np.float32)
    weight[..., NUMBER] = 0.0

    def pasted(states: Any) -> tuple[Array, Array]:
        """Each agent's window at its place: [N, A, H, W, 16], and what is known."""
        return jax.vmap(lambda s: env.canvas(s, env.observe(s).window))(states)

    def known(states: Any) -> tuple[Array, Array]:
        canvas, mask = pasted(states)
        return 2.0 * canvas - 1.0, mask

    def condition(states: Any, seen: Array, hidden: Array) -> Condition:
        canvas, mask = pasted(states)
        own = told(config, seen[..., -own_size(env) :], hidden)
        return Condition(vector=own, canvas=canvas, seen=mask)

    return Form(
        shape=shape,
        encode=lambda states: 2.0 * jax.vmap(env.grid)(states) - 1.0,
        condition=condition,
        known=known,
        weight=weight,
        network=unet.UNet(config.widths, config.num_heads),
        present=np.arange(ENEMY, np.prod(shape), shape[-1]),
    )


FORMS = {"vector": vector, "entities": entities, "grid": grid}
