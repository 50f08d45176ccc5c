"""What the losses of the sequential recommenders share: states, heads, targets.

A session is a trajectory of a Markov decision process: the state is what an encoder
makes of the last L events, the action the next item, the reward its kind (a click or a
purchase). Methods differ in their losses; each keeps its own step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import logs, optim
from jaxrec.losses import recommender as losses
from jaxrec.losses import softmax
from jaxrec.methods import windows
from jaxrec.methods.windows import Transition
from jaxrec.models import encoders
from jaxrec.models import recommender as networks
from jaxrec.types import Array, Batch, TrainState, UserError

# Settings of every method of the family; "code" is that of SQN, SNQN and SA2C.
HPARAMS = dict(
    encoder=encoders.SPEC,  # gru, caser, nextitnet, sasrec
    tied=False,  # softmax rows = item table; code: a table of its own
    positions="last",  # code; "all": every event of a window is an example, ours
    chunk=4_096,  # items at a time in softmax and argmax, for speed; 0 = all, ours
    optim=optim.spec(lr=5e-3),  # Adam; papers: 0.005 RetailRocket, 0.01 RC15
)
# Settings of those with a value head.
VALUE_HPARAMS = dict(
    gamma=0.5,  # paper
    weight=1.0,  # of the value loss, code
    td_scale=0.5,  # code (trfl); the papers write the square alone
    target_dropout=True,  # dropout in target and selector passes, code
)
# Settings of those with a softmax head beside the values.
RANKING_HPARAMS = dict(rank_by="logits")  # papers; "q": by the values, ours
# Settings of those that learn from items not taken.
NEGATIVE_HPARAMS = dict(
    negatives=10,  # paper
    negative_reward=0.0,  # r_n, paper
    mask_negative_target=False,  # True: no bootstrap at the last event, ours; code: off
)


def check(config: Any, info: dict[str, Any]) -> None:
    """Raises UserError where the data are no sessions or the network does not fit."""
    if "num_items" not in info:
        raise UserError(
            f"the data {info.get('name', '')!r} are no sessions of items: use a source "
            "of events, such as --config.data.source=simulated"
        )
    width = config.encoder.width
    if config.tied and (states := encoders.out_width(config.encoder)) != width:
        raise UserError(
            f"tied=True: states of encoder {config.encoder.name} have {states} numbers "
            f"and items {width}: set tied=False or choose another encoder"
        )
    encoder = encoders.make(config.encoder, info["seq_len"])
    if scan := getattr(encoder, "implementation", ""):
        logs.say(f"encoder {config.encoder.name}: scan {scan} on this backend")


def check_negatives(config: Any, info: dict[str, Any], fewest: int = 0) -> None:
    """Raises UserError where `negatives` other items cannot be drawn or are too few."""
    if config.negatives < fewest:
        raise UserError(f"negatives={config.negatives}: this needs {fewest} or more")
    if config.negatives and info["num_items"] < 2:
        raise UserError(
            f"negatives={config.negatives}: the data {info.get('name', '')!r} have no "
            "item beside the one taken, give data of two items or more"
        )


def network_params(stage: str, earlier: dict[str, TrainState]) -> dict[str, Any]:
    """The network's own parameters, "item_table" among them, of an earlier stage.

    Raises UserError where the stage was not handed over or trains no network.
    """
    if stage not in earlier:
        raise UserError(
            f"stage {stage!r} is not among the earlier ones that this stage uses "
            f"({', '.join(earlier) or 'none'}): put it into stages and `uses`"
        )
    params = earlier[stage].params
    # Methods with parts beside the network keep it under its name.
    params = params.get("network", params).get("params", {})
    if "item_table" not in params:
        raise UserError(
            f"stage {stage!r} trains no item table: name one with an encoder, as ce"
        )
    return params


def make_init(
    network: networks.Recommender, optimiser: optax.GradientTransformation
) -> Callable[..., TrainState]:
    """`Method.init` of one network; two copies: see `copies.make_init`."""

    def init(key: Array, batch: Batch, earlier: dict[str, TrainState]) -> TrainState:
        event = windows.transition(batch)
        params = network.init(key, event.items, event.length)
        return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))

    return init


def apply(network: networks.Recommender, params: Any, method: str, *args, key=None):
    """network.<method>(*args) with these params; `key` turns dropout on.

    Methods that end in `states` or `state` take `train` themselves; see the network.
    """
    rngs = None if key is None else {"dropout": key}
    return network.apply(params, *args, method=method, rngs=rngs)


def state_of(
    network: networks.Recommender, params: Any, items: Array, length: Array, key=None
) -> Array:
    """The user's state float[B, D']; with a key dropout is on."""
    return apply(network, params, "state", items, length, key is not None, key=key)


def states(
    network: networks.Recommender, params: Any, event: Transition, key=None
) -> Array:
    """s, the state before each event: float[N, D']; with a key dropout is on."""
    if event.next_place is None:
        return state_of(network, params, event.items, event.length, key)
    args = event.items, event.length, key is not None
    x = apply(network, params, "states", *args, key=key)
    if event.next_place.shape[1] > x.shape[1]:
        # The state of the empty history, alike in all rows.
        none = jnp.zeros_like(event.items[:1])
        key = None if key is None else jax.random.fold_in(key, 1)
        start = state_of(network, params, none, jnp.zeros_like(none[:, 0]), key)
        start = jnp.broadcast_to(start[:, None], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([start, x], axis=1)
    return x.reshape(-1, x.shape[-1])


def next_states(
    network: networks.Recommender, params: Any, event: Transition, key=None
) -> Array:
    """s', the state after each event: float[N, D']; with a key dropout is on."""
    args = event.next_items, event.next_length
    if event.next_place is None:
        return state_of(network, params, *args, key)
    x = apply(network, params, "states", *args, key is not None, key=key)
    x = jnp.take_along_axis(x, event.next_place[..., None], axis=1)
    return x.reshape(-1, x.shape[-1])


def cross_entropy(
    network: networks.Recommender, params: Any, x: Array, action: Array, chunk: int
) -> Array:
    """L_ce of the softmax head: float[B, D'], int32[B] -> float32[B]."""
    if not chunk:
        return softmax.cross_entropy(apply(network, params, "logits", x), action)
    table, bias = apply(network, params, "ce_table")
    size = softmax.chunk_size(network.vocab, chunk)
    return softmax.chunked_cross_entropy(
        x, table, bias, action, size, network.num_items
    )


def best_item(
    network: networks.Recommender,
    params: Any,
    x: Array,
    chunk: int,
    head: str = "q_table",
    *args: Any,
) -> Array:
    """argmax over the items of a head: float[B, D'] -> int32[B].

    `head`: the network's method that gives its rows and biases, called with `args`.
    """
    table, bias = apply(network, params, head, *args)
    size = softmax.chunk_size(network.vocab, chunk)
    return softmax.chunked_argmax(x, table, bias, size, network.num_items)[0]


def double_q(
    network: networks.Recommender,
    main: Any,
    target: Any,
    states: Callable[[Any, Array | None], Array],
    keys: tuple[Array | None, Array | None],
    chunk: int,
) -> Array:
    """Q_target(s, argmax_a Q_main(s, a)) in the states of (params, key): float32[N].

    Only the selector needs the values of all items.
    """
    best = best_item(network, main, states(main, keys[0]), chunk)
    return apply(network, target, "q_at", states(target, keys[1]), best)


def bellman(
    network: networks.Recommender,
    main: Any,
    target: Any,
    event: Transition,
    keys: tuple[Array | None, Array | None],
    config: Any,
) -> Array:
    """Double Q-learning: y = r + gamma (1 - d) Q_target(s', argmax_a Q_main(s', a)).

    float32[N]. `keys`: of the dropout of the selector and the target, None for off.
    """

    def after(params: Any, key: Array | None) -> Array:
        return next_states(network, params, event, key)

    q_next = double_q(network, main, target, after, keys, config.chunk)
    return losses.target(event.reward, event.done, q_next, config.gamma)


def negative_bellman(
    network: networks.Recommender,
    main: Any,
    target: Any,
    event: Transition,
    keys: tuple[Array | None, Array | None],
    config: Any,
) -> Array:
    """SNQN's target of items not taken: r_n + gamma Q_target(s, argmax_a Q_main(s, a)).

    float32[N], one for all negatives of a row.
    """

    def before(params: Any, key: Array | None) -> Array:
        return states(network, params, event, key)

    q_same = double_q(network, main, target, before, keys, config.chunk)
    done = event.done if config.mask_negative_target else 0.0
    return losses.negative_target(config.negative_reward, q_same, config.gamma, done)


def dropout_keys(config: Any, key: Array, count: int) -> tuple[Array | None, ...]:
    """Keys for `count` target or selector passes; None where they have no dropout."""
    if not config.target_dropout:
        return (None,) * count
    return tuple(jax.random.split(key, count))


def negatives_of(key: Array, action: Array, num_items: int, count: int) -> Array:
    """Other items of each row, uniform: int32[B, n]."""
    keys = jax.random.split(key, len(action))
    draw = jax.vmap(losses.sample_negatives, in_axes=(0, 0, None, None))
    return draw(keys, action, num_items, count)
