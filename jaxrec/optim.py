"""From a few config fields to an optax optimiser."""

from typing import Any

import optax

from jaxrec.types import UserError


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


def make(config: Any, steps: int) -> optax.GradientTransformation:
    """The optimiser described by `spec` fields, for a stage of `steps` updates."""
    parts = []
    if config.clip > 0:
        parts.append(optax.clip_by_global_norm(config.clip))
    rate = learning_rate(config, steps)
    if config.name == "adam":
        parts.append(optax.adam(rate))
    elif config.name == "adamw":
        parts.append(optax.adamw(rate, weight_decay=config.weight_decay))
    elif config.name == "sgd":
        parts.append(optax.sgd(rate))
    else:
        raise UserError(f"optimiser {config.name!r} is unknown: use adam, adamw or sgd")
    if config.name != "adamw" and config.weight_decay:
        raise UserError(f"weight_decay needs optimiser adamw, not {config.name}")
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


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
