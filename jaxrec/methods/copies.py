"""Two copies of a recommender, a coin, and the switch between two optimisers.

SQN and its kin (arXiv 2006.05779, 2111.03474) keep two full copies of everything. At
each update a coin makes one the main copy, which is trained, and the other the target,
which is only read; nothing is averaged or copied. Copy 1 is the one that ranks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import flops, logs, optim
from jaxrec.methods import windows
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, TrainState, UserError


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


def make_init(
    network: networks.Recommender, optimiser: Callable[[Any], Any]
) -> Callable[..., TrainState]:
    """`Method.init` of two copies of a network; `optimiser` as in `init_both`."""

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        event = windows.transition(batch)
        return init_both(
            lambda key: network.init(key, event.items, event.length), optimiser, key
        )

    return init


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

    A loop of one round or none for each copy: XLA runs a loop's body on its operands in
    place, while the results of a `cond` are new arrays, into which every update would
    copy both networks and both optimisers.
    """
    one, two, opt = state.params, state.target_params, state.opt_state
    shapes = jax.eval_shape(update, one, two, opt["first"])[2]
    metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def once(rounds: Array, main: Any, target: Any, opt_state: Any, metrics: Any):
        def body(_: Array, carry: Any) -> Any:
            main, opt_state, _ = carry
            return update(main, target, opt_state)

        with flops.scope(0.5):  # one of the two loops makes a round
            return jax.lax.fori_loop(0, rounds, body, (main, opt_state, metrics))

    heads = coin(state.step).astype(jnp.int32)
    one, first, metrics = once(heads, one, two, opt["first"], metrics)
    two, second, metrics = once(1 - heads, two, one, opt["second"], metrics)
    state = state.replace(
        step=state.step + 1,
        params=one,
        target_params=two,
        opt_state=dict(first=first, second=second),
    )
    return state, metrics


class Phases(NamedTuple):
    """The optimiser before and after the switch at update T (SAC, SA2C, VPQ).

    `init(params)` -> its state; `descend(step int32[], grads, opt_state, params)` ->
    (new params, new opt_state), `step` the updates of both copies done before.
    """

    init: Callable[[Any], Any]
    descend: Callable[..., tuple[Any, Any]]


def make_phases(config: Any) -> Phases:
    """The optimiser `optim`, from update T = `switch` on `optim_after`.

    With `reset_optim` the second starts with moments of its own (the code of SAC and
    SA2C has two Adams); otherwise it goes on with those of the first. A schedule of
    the second starts at T. Raises UserError where the moments do not fit.
    """
    later = optim.follow(config.optim_after, config.optim)
    before = optim.make_timed(config.optim, config.steps)
    after = optim.make_timed(later, config.steps, config.switch)
    if config.switch >= config.steps:
        logs.say(
            f"switch={config.switch} is not reached in {config.steps} updates: the "
            "second phase never comes, lower switch or raise steps"
        )
    one, two = (
        jax.tree.structure(jax.eval_shape(tx.init, jnp.zeros(1)))
        for tx in (before, after)
    )
    if one != two and not config.reset_optim:
        raise UserError(
            f"reset_optim=False: optim_after (name={later.name}, clip={later.clip}) "
            f"cannot go on with the moments of optim (name={config.optim.name}, "
            f"clip={config.optim.clip}): make them alike or set reset_optim=True"
        )
    late = "after" if config.reset_optim else "before"

    def init(params: Any) -> Any:
        states = dict(before=before.init(params))
        if config.reset_optim:
            states["after"] = after.init(params)
        return states

    def descend(step: Array, grads: Any, opt_state: Any, params: Any) -> Any:
        def by(tx: Any, name: str) -> Any:
            new, moved = optim.descend(tx, grads, opt_state[name], params, step=step)
            return new, opt_state | {name: moved}

        return jax.lax.cond(
            step >= config.switch, lambda: by(after, late), lambda: by(before, "before")
        )

    return Phases(init, descend)
