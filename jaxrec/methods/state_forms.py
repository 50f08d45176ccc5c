"""What of a game's state is inferred, from what: the forms of `sidiff`.

vector     the whole state as one vector, from observation and memory; any environment
entities   the tanks as rows, from the rows that an agent sees (observation=entity)
grid       the map, from the agent's window at its place on it (observation=flat)

The last two are Battle City's. All states are scaled from the environment's [0, 1] to
[-1, 1]. All of it is ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrec.envs.battle_city.observe import ENEMY, ENTITY, NUMBER, Observation
from jaxrec.envs.teams import Team
from jaxrec.models import denoiser, unet
from jaxrec.models.denoiser import Condition
from jaxrec.types import Array, UserError

ALLY = 1  # column of an entity that says no more than the one before it


class Form(NamedTuple):
    """One way to write a state.

    `shape` of a state. `encode(states [N])` -> float32[N, *shape] in [-1, 1], the
    truth. `condition(observation float[N, A, od], hidden float[N, A, D])` -> Condition
    [N, A, ...]. `known(observation)` -> (values, mask) [N, A, *shape], what each agent
    sees for certain, or None: neither is given the states. `weight`: float32[*shape],
    0 where a number says nothing of its own. `network`: the denoiser. Of a flat state,
    or None: `present`, int32[n], which numbers are above 0 where there is an enemy;
    `place`, (int32[n, 2], float32[2]), their rows and columns, and tiles in a unit.
    """

    shape: tuple[int, ...]
    encode: Callable[[Any], Array]
    condition: Callable[[Array, Array], Condition]
    known: Callable[[Array], tuple[Array, Array] | None]
    weight: np.ndarray
    network: nn.Module
    present: np.ndarray | None = None
    place: tuple[np.ndarray, np.ndarray] | None = None


def make(config: Any, team: Team) -> Form:
    """`config`: form, width, num_layers, widths (of the U-Net), num_heads, history.

    The form "auto" is that of the agents' observations, vector outside Battle City.
    Raises UserError for one that is unknown or not made from such observations.
    """
    city = team.name.startswith("battle_city/")
    seen = team.game.game.observation if city else ""
    name = config.form
    if name == "auto":
        name = dict(entity="entities", flat="grid").get(seen, "vector")
    if name not in FORMS:
        raise UserError(f"form {name!r} is unknown: use auto, {', '.join(FORMS)}")
    if name != "vector" and not city:
        raise UserError(f"form {name!r} is Battle City's: use vector")
    needed = dict(entities="entity", grid="flat").get(name, seen)
    if seen != needed:
        raise UserError(
            f"form {name!r} completes what agents see as observation={needed}, not "
            f"{seen}: set data.settings to observation={needed}"
        )
    if not config.widths or min(config.widths) < 1:
        raise UserError(f"widths={tuple(config.widths)}: of the U-Net, one or more")
    width = dict(entities=config.width, grid=config.widths[-1]).get(name, 0)
    if config.num_heads < 1 or width % config.num_heads:
        raise UserError(
            f"num_heads={config.num_heads} must divide the width {width} of form {name}"
        )
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
        condition=lambda seen, hidden: Condition(told(config, seen, hidden)),
        known=lambda seen: None,
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

    def rows_of(observation: Array) -> Array:
        rows = observation[..., : -own_size(env)]
        return rows.reshape(*rows.shape[:-1], *shape)

    def known(observation: Array) -> tuple[Array, Array]:
        seen = rows_of(observation)
        tank = jnp.broadcast_to(seen[..., :1] > 0, (*seen.shape[:-1], ENTITY - 3))
        shell = seen[..., ENTITY - 3 : ENTITY - 2] > 0
        shell = jnp.broadcast_to(shell, (*seen.shape[:-1], 3))
        return 2.0 * seen - 1.0, jnp.concatenate([tank, shell], axis=-1)

    def condition(seen: Array, hidden: Array) -> Condition:
        rows = rows_of(seen)
        mask = (rows != 0).any(-1)
        # What the rows do not tell: place, counters, base and time of the agent itself.
        own = seen[..., -own_size(env) :]
        return Condition(vector=told(config, own, hidden), tokens=rows, mask=mask)

    enemies = np.arange(env.num_agents, env.game.tanks)[:, None] * ENTITY
    size = np.array(env.game.map.terrain.shape, np.float32)
    return Form(
        shape=shape,
        encode=lambda states: 2.0 * jax.vmap(env.entities)(states) - 1.0,
        condition=condition,
        known=known,
        weight=weight,
        network=denoiser.EntityTransformer(
            config.width, config.num_layers, config.num_heads
        ),
        present=enemies[:, 0],
        place=(enemies + np.array([[2, 3]]), (size - 1) / 2),
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

    def pasted(observation: Array) -> tuple[Array, Array]:
        """Each agent's window at its place: [N, A, H, W, 16], and what is known."""
        own = own_size(env)
        window, vector = observation[..., :-own], observation[..., -own:]
        side = 2 * env.game.radius + 1
        window = window.reshape(*window.shape[:-1], side, side, shape[-1])
        return jax.vmap(env.canvas)(Observation(window, vector))

    def known(observation: Array) -> tuple[Array, Array]:
        canvas, mask = pasted(observation)
        return 2.0 * canvas - 1.0, mask

    def condition(seen: Array, hidden: Array) -> Condition:
        canvas, mask = pasted(seen)
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
