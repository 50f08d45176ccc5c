"""Two copies of a recommender, a coin, and the switch between two optimisers.

SQN and its kin (arXiv 2006.05779, 2111.03474) keep two full copies of everything. At
each update a coin makes one the main copy, which is trained, and the other the target,
which is only read; nothing is averaged or copied. Copy 1 is the one that ranks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import optim
from jaxrec.methods import recommender
from jaxrec.types import Array, TrainState


def init_both(
    init: Callable[[Array], Any], optimiser: Callable[[Any], Any], key: Array
) -> TrainState:
    """Copy 1 in `params`, copy 2 in `target_params`, an optimiser state for each.

    `optimiser(params)` gives that state: the `init` of an optax transformation or of
    `Phases`. Each copy makes about half of the updates, and its optimiser counts
    those alone.
    """
    key_1, key_2 = jax.random.split(key)
    params, target = init(key_1), init(key_2)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=target,
        opt_state=dict(first=optimiser(params), second=optimiser(target)),
    )


def coin(step: Array) -> Array:
    """bool[]: whether copy 1 is the main one at this update.

    A fair coin that depends on the update alone: with `num_seeds` > 1 all seeds toss
    the same, so the choice stays a branch of the program and only one copy is trained.
    """
    return jax.random.bernoulli(jax.random.fold_in(jax.random.key(0x51), step))


def toss(
    update: Callable[[Any, Any, Any], tuple[Any, Any, dict[str, Array]]],
    state: TrainState,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the copy that the coin makes main; the other is only read.

    `update(main, target, opt_state)` -> (new main, new opt_state, metrics), as in SQN:
    two full copies, a coin at each update, no averaging and no copying between them.
    """
    one, two, opt = state.params, state.target_params, state.opt_state

    def first(_: None) -> Any:
        params, opt_state, metrics = update(one, two, opt["first"])
        return params, two, dict(first=opt_state, second=opt["second"]), metrics

    def second(_: None) -> Any:
        params, opt_state, metrics = update(two, one, opt["second"])
        return one, params, dict(first=opt["first"], second=opt_state), metrics

    one, two, opt, metrics = jax.lax.cond(coin(state.step), first, second, None)
    state = state.replace(
        step=state.step + 1, params=one, target_params=two, opt_state=opt
    )
    return state, metrics


class Phases(NamedTuple):
    """The optimiser before and after the switch at update T (SAC, SA2C).

    `init(params)` -> its state; `descend(after bool[], grads, opt_state, params)` ->
    (new params, new opt_state).
    """

    init: Callable[[Any], Any]
    descend: Callable[..., tuple[Any, Any]]


def make_phases(config: Any) -> Phases:
    """Adam by `optim`, from update T on by `optim_after`.

    With `reset_optim` the second starts with moments of its own (the code of SAC and
    SA2C has two Adams); otherwise it goes on with those of the first.
    """
    before = optim.make(config.optim, config.steps)
    after = optim.make(config.optim_after, config.steps)

    def init(params: Any) -> Any:
        states = dict(before=before.init(params))
        if config.reset_optim:
            states["after"] = after.init(params)
        return states

    def descend_one(is_after: Array, grads: Any, opt_state: Any, params: Any) -> Any:
        late = "after" if config.reset_optim else "before"

        def one(_: None) -> Any:
            new, moved = recommender.descend(before, grads, opt_state["before"], params)
            return new, dict(opt_state, before=moved)

        def two(_: None) -> Any:
            new, moved = recommender.descend(after, grads, opt_state[late], params)
            return new, dict(opt_state, **{late: moved})

        return jax.lax.cond(is_after, two, one, None)

    return Phases(init, descend_one)
