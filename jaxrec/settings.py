"""The config of a run, checked whole before anything is read or trained."""

import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from jaxrec import evaluators, rules, summary
from jaxrec.data import lifelong
from jaxrec.errors import UserError
from jaxrec.methods import METHODS

# Fields of any method that count something there must be one of.
SIZES = {
    *("width", "widths", "vae_width", "num_layers", "num_heads", "max_timestep"),
    *("filters", "heights", "kernel", "dilations"),
    *("members", "num_actions", "delay", "unroll", "rounds", "rollout_every"),
}
PAIRS = {"epsilon", "advantage_clip", "importance_clip", "train_lags"}


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """Check names and ranges, drop the sections of methods not chosen, freeze.

    Raises UserError naming the field, its value and what it may be.
    """
    config = ConfigDict(config.to_dict())
    check_elements("stages", config.stages, ("",))
    if not config.stages or len(set(config.stages)) < len(config.stages):
        raise UserError(f"stages is {config.stages}: name at least one, none twice")
    for name in config.stages:
        section = config.get(name)
        if "method" not in (section if isinstance(section, ConfigDict) else ()):
            raise UserError(f"stage {name!r} has no section in the config")
        choose("method", section.method, METHODS)
        if section.method not in section:
            allowed = sorted(set(section) & set(METHODS))
            raise UserError(
                f"stage {name} of {config.name} has no settings for method "
                f"{section.method!r}: it takes {', '.join(allowed)}"
            )
        for other in set(section) & set(METHODS) - {section.method}:
            del section[other]
        name_encoder(name, section)
        for field in ("evals", "uses"):
            check_elements(f"{name}.{field}", section[field], ("",))
        for evaluator in section.evals:
            choose("evaluator", evaluator, evaluators.EVALS)
        before = config.stages[: config.stages.index(name)]
        for needed in (*section.uses, *filter(None, [section.mix.stage])):
            if needed not in before:
                raise UserError(f"stage {name} needs stage {needed!r} before it")
        check_mix(name, section.mix)
        check_pattern(
            f"{name}.warm_start.pattern",
            section.get("warm_start", {}).get("pattern", ""),
        )
        for field in ("steps", "batch_size", "log_every", "steps_per_call"):
            at_least(1, f"{name}.{field}", section[field])
        for field in ("eval_every", "checkpoint_every"):  # 0 = only at the end
            at_least(0, f"{name}.{field}", section[field])
        check_tuples(section, method_defaults(section.method), name, section.method)
        for field, value in sizes(section[section.method].to_dict()):
            at_least(1, f"{name}.{section.method}.{field}", value)
    for field, value in config.eval.items():
        at_least(0 if field == "seed" else 1, f"eval.{field}", value)
    check_tuples(config.data, lifelong.HPARAMS, "data", "lifelong")
    rules.parse(config.rules)
    at_least(0, "profile.steps", config.get("profile", {}).get("steps", 0))
    at_least(1, "num_seeds", config.num_seeds)
    at_least(0, "seed", config.seed)
    for field in ("seed", "time_limit"):
        at_least(0, f"data.{field}", config.data.get(field, 0))
    if config.seed + config.num_seeds > 2**32:
        raise UserError(f"seed is {config.seed}: seeds must be below 2**32")
    if config.select and summary.direction(config.select) == summary.NEITHER:
        raise UserError(
            f"select is {config.select!r}: it must name a metric that is better larger "
            "or smaller, such as valid/ndcg@10 or valid/loss"
        )
    return FrozenConfigDict(config)


def name_encoder(stage: str, section: ConfigDict) -> None:
    """`encoder`, the short form, into the method's section; raises UserError."""
    if "encoder" not in section:  # also runs of before it was there
        return
    given, method = section.encoder, section.method
    del section["encoder"]
    if given and "encoder" not in section[method]:
        raise UserError(f"{stage}.encoder is {given!r}, but {method} has no encoder")
    if given:
        section[method].encoder.name = given


def choose(what: str, name: str, table: dict[str, Any]) -> Any:
    """table[name], or a UserError with the nearest names."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table) or sorted(table)
    raise UserError(f"{what} {name!r} is unknown; did you mean {', '.join(near)}?")


def at_least(least: int, field: str, value: Any) -> None:
    """Raises UserError for a number, or one of a tuple of numbers, below `least`."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, (int, float)) for v in values):
        raise UserError(f"{field} is {value!r}: it must be numbers")
    if any(v < least for v in values):
        remedy = "must be positive" if least == 1 else f"must be {least} or more"
        raise UserError(f"{field} is {value}: {remedy}")


def check_mix(name: str, mix: Any) -> None:
    """Raises UserError for a share of no stage, or no share."""
    if not 0 <= mix.fraction <= 1:
        raise UserError(
            f"{name}.mix.fraction is {mix.fraction}: it is the share of a batch, 0 to 1"
        )
    if mix.fraction and not mix.stage:
        raise UserError(
            f"{name}.mix.fraction is {mix.fraction} of no stage: set {name}.mix.stage, "
            "or the fraction to 0"
        )


def check_pattern(field: str, value: str) -> None:
    """Raises UserError for what is no regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise UserError(f"{field} is {value!r}: no pattern ({error})") from error


def sizes(hparams: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(field, value) of a method's settings, nested ones too, that are SIZES."""
    for name, value in hparams.items():
        if isinstance(value, Mapping):
            yield from sizes(value, f"{prefix}{name}.")
        elif name in SIZES:
            yield prefix + name, value


def method_defaults(name: str) -> Mapping[str, Any]:
    """The HPARAMS of a method's module; {} where it has none of that name."""
    return getattr(sys.modules[METHODS[name].__module__], "HPARAMS", {})


def check_tuples(
    config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str, name: str
) -> None:
    """Raises UserError for a tuple of `config[name]` that is none of such elements.

    What they may be is read off the defaults; the flag of a tuple takes any.
    """
    for field, value in dict(config.get(name, {})).items():
        like, whole = defaults.get(field), f"{prefix}.{name}"
        if isinstance(like, Mapping):
            check_tuples(config[name], like, whole, field)
        elif isinstance(like, (tuple, list)) and like:
            check_elements(f"{whole}.{field}", value, like)
            lengths = (0, 2) if field == "advantage_clip" else (2,)  # () = no clipping
            if field in PAIRS and len(value) not in lengths:
                raise UserError(f"{whole}.{field} is {value}: give two numbers")


def check_elements(field: str, value: Any, like: tuple[Any, ...]) -> None:
    """Raises UserError for what is no tuple, or has elements of another type."""
    names = {str: "names", int: "whole numbers"}
    kind = next((k for k in names if all(type(x) is k for x in like)), float)
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, (tuple, list)) or not all(
        isinstance(x, wanted) and not isinstance(x, bool) for x in value
    ):
        raise UserError(
            f"{field} is {value!r}: it must be {names.get(kind, 'numbers')}"
        )
