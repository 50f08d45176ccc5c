"""From a few config fields to an optax optimiser."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.types import TrainState, UserError

# Parameters that weight decay leaves alone, with or without the number of a layer at
# the end: Mamba's decays, step sizes and skip, as its code.
NO_DECAY = ("A_log", "dt_bias", "skip")


def spec(
    name: str = "adam",
    lr: float = 3e-4,
    schedule: str = "constant",
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> dict[str, Any]:
    """All fields of an optimiser, for a method's HPARAMS.

    `schedule`: "constant" or "cosine" (to zero at the last step of the stage);
    `warmup`: steps of linear rise from zero; `clip`: global gradient norm, 0 = off.
    """
    return dict(
        name=name,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
    )


def spec_after(lr: float = -1.0) -> dict[str, Any]:
    """All fields of the optimiser after a switch: "" and -1 are those of before it.

    But for `warmup`: the rate does not rise from zero a second time unless asked to.
    """
    return dict(name="", lr=lr, schedule="", warmup=0, weight_decay=-1.0, clip=-1.0)


def follow(after: Any, before: Any) -> SimpleNamespace:
    """The fields of `spec`: those of `after`, where it has none those of `before`."""
    kept = {
        field: before[field] if after[field] in ("", -1.0) else after[field]
        for field in spec_after()
    }
    return SimpleNamespace(**kept)


def make(config: Any, steps: int) -> optax.GradientTransformation:
    """The optimiser described by `spec` fields, for a stage of `steps` updates."""
    return build(config, learning_rate(config, steps))


def make_timed(
    config: Any, steps: int, start: int = 0
) -> optax.GradientTransformationExtraArgs:
    """As `make`, with a schedule that goes from update `start` of the stage to its end.

    `update(grads, state, params, step=step)`: the rate is that of the stage's update,
    not of how often this state was updated, which differ where several copies take
    turns. The state is that of a constant rate whatever the schedule.
    """
    rate = learning_rate(config, steps - start)
    unit = build(config, 1.0)

    def update(
        grads: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        now = rate(jnp.maximum(step - start, 0)) if callable(rate) else rate
        updates, state = unit.update(grads, state, params)
        return jax.tree.map(lambda u: now * u, updates), state

    return optax.GradientTransformationExtraArgs(unit.init, update)


def build(config: Any, rate: float | optax.Schedule) -> optax.GradientTransformation:
    """The optimiser at that rate. Raises UserError for fields that do not fit."""
    parts = []
    if config.clip > 0:
        parts.append(optax.clip_by_global_norm(config.clip))
    if config.name == "adam":
        parts.append(optax.adam(rate))
    elif config.name == "adamw":
        decay = _decay(config.weight_decay)
        down = optax.scale_by_learning_rate(rate)
        parts.append(optax.chain(optax.scale_by_adam(), decay, down))
    elif config.name == "sgd":
        parts.append(optax.sgd(rate))
    else:
        raise UserError(f"optimiser {config.name!r} is unknown: use adam, adamw or sgd")
    if config.name != "adamw" and config.weight_decay:
        raise UserError(f"weight_decay needs optimiser adamw, not {config.name}")
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def decays(path: tuple[Any, ...]) -> bool:
    """Whether weight decay moves the parameter at this path of a tree."""
    name = str(getattr(path[-1], "key", path[-1])) if path else ""
    stem, _, number = name.rpartition("_")
    return name not in NO_DECAY and not (number.isdigit() and stem in NO_DECAY)


def _decay(rate: float) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` but for NO_DECAY.

    Its `mask` would do, with a state of another form: checkpoints would not fit.
    """

    def one(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        return update + rate * param if decays(path) else update

    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map_with_path(one, updates, params)

    return optax.stateless(add)


def descend(
    optimiser: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    **timed: jax.Array,
) -> tuple[Any, Any]:
    """(new params, new opt_state) of one step down; `timed`: see `make_timed`."""
    updates, opt_state = optimiser.update(grads, opt_state, params, **timed)
    return optax.apply_updates(params, updates), opt_state


def advance(
    optimiser: optax.GradientTransformation, grads: Any, state: TrainState
) -> TrainState:
    """The state after an update of all its parameters by one optimiser."""
    params, opt_state = descend(optimiser, grads, state.opt_state, state.params)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def learning_rate(config: Any, steps: int) -> float | optax.Schedule:
    """A constant stays a float: no schedule state, one multiply less a step."""
    if config.schedule == "constant" and not config.warmup:
        return config.lr
    if config.schedule == "constant":
        return optax.linear_schedule(0.0, config.lr, config.warmup)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.lr, max(steps - config.warmup, 1))
        if not config.warmup:
            return decay
        rise = optax.linear_schedule(0.0, config.lr, config.warmup)
        return optax.join_schedules([rise, decay], [config.warmup])
    raise UserError(f"schedule {config.schedule!r} is unknown: use constant or cosine")
