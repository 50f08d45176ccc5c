"""What `config.rules` may say: which axis of the mesh splits which parameters.

A rule is one of
- (pattern, axes): where the pattern is found in a leaf's path, such as
  `params/params/item_table/embedding`, axes name the mesh axis of each dimension, such
  as ("model", None);
- (pattern, axis): the longest dimension that the axis divides; leaves of fewer than
  SMALLEST numbers and those without such a dimension stay whole;
- the name of a preset: `items` splits the tables of items and what is stored for each
  item over `model`, `fsdp` all other parameters, their target copies and their
  optimiser moments over `data`. `--config.rules=items,fsdp` does both. `games`, the
  games being played and their replay over `data`, is a rule of the methods that play.

The first rule that can split a leaf decides: a method's new table of items needs a path
that `_ROWS` or `_NUMBERS` finds, or `items` leaves it whole, which
`tests/test_split_catalogue.py` notices. Optimiser moments and target networks carry the
parameter's path inside their own, so one rule places them all.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrec.types import UserError

Axes = tuple[str | None, ...]
AXES = ("data", "model")
SMALLEST = 1_024  # splitting less costs more messages than it saves memory
_ROWS = r"(item_table/embedding|_head/table|^extra|^extra/items)$"
_ROWS += r"|item_table/embedding/(mean|square)$"  # of `row_optim`
_NUMBERS = r"(_head/bias|ce_bias|shown_bias|outcome_bias)$"
PRESETS: Mapping[str, tuple[tuple[str, Axes | str], ...]] = {
    # Members of an ensemble or heads stand before the items.
    "items": (
        (_ROWS, (None, "model", None)),
        (_ROWS, ("model", None)),
        (_NUMBERS, (None, None, "model")),
        (_NUMBERS, (None, "model")),
        (_NUMBERS, ("model",)),
    ),
    "fsdp": ((r"^(params|target_params|opt_state)/", "data"),),
    "games": (
        (r"^extra/(replay|games/(state|hidden|fresh|returned))(/|$)", ("data",)),
    ),
}
COUNTED = {"'games'": " (num_envs)"}  # what a user sets to change them
FORMS = (
    "give (pattern, (axis or None, ...)), (pattern, axis) or one of "
    f"{', '.join(PRESETS)}"
)


class Rule(NamedTuple):
    """A rule in full; `source` is what the user wrote, which has to fit a leaf."""

    pattern: str
    axes: Axes | str
    source: str

    @property
    def named(self) -> set[str]:
        """The axes of the mesh that it names."""
        return {self.axes} if isinstance(self.axes, str) else set(self.axes) - {None}

    def fits(self, name: str, ndim: int) -> bool:
        """Whether it decides on a leaf of that path and rank, if it can split it.

        Too few dimensions: a scalar beside the parameter, such as Adam's count.
        """
        rank = 1 if isinstance(self.axes, str) else len(self.axes)
        return ndim >= rank and re.search(self.pattern, name) is not None

    def split(self, name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> Any:
        """The axis of each dimension; None where the leaf stays for other rules.

        Raises UserError where named axes do not divide the shape.
        """
        if isinstance(self.axes, str):
            return _longest(shape, self.axes, sizes[self.axes])
        for size, axis in zip(shape, self.axes):
            if axis is not None and size % sizes[axis]:
                counted = COUNTED.get(self.source, "")
                raise UserError(
                    f"sharding rule {self.source}: {name} has {size} rows{counted}, "
                    f"not divisible by mesh.{axis}={sizes[axis]}: change one of the two"
                )
        return self.axes


def _longest(shape: Sequence[int], axis: str, size: int) -> Axes | None:
    total = 1
    for length in shape:
        total *= length
    able = [(length, -place) for place, length in enumerate(shape) if not length % size]
    if total < SMALLEST or not able:
        return None
    place = -max(able)[1]
    return (None,) * place + (axis,)


def parse(rules: Sequence[Any] | str) -> tuple[Rule, ...]:
    """Rules in full. Raises UserError for what is none of the forms above."""
    found: list[Rule] = []
    for rule in (rules,) if isinstance(rules, str) else rules:
        if isinstance(rule, Rule):
            found.append(rule)
        elif isinstance(rule, str):
            for name in rule.split(","):
                source = repr(name := name.strip())
                if name not in PRESETS:
                    raise UserError(f"sharding rule {source} is unknown: {FORMS}")
                found += [Rule(*pair, source) for pair in PRESETS[name]]
        else:
            found.append(_pair(rule))
    return tuple(found)


def _pair(rule: Any) -> Rule:
    if not isinstance(rule, (tuple, list)) or len(rule) != 2:
        raise UserError(f"sharding rule {rule!r} is no rule: {FORMS}")
    pattern, axes = rule
    if not isinstance(pattern, str) or not isinstance(axes, (str, tuple, list)):
        raise UserError(f"sharding rule {rule!r} is no rule: {FORMS}")
    named = [axes] if isinstance(axes, str) else [a for a in axes if a is not None]
    for axis in named:
        if axis not in AXES:
            raise UserError(
                f"sharding rule {pattern!r} names axis {axis!r}: use data or model"
            )
    if len(set(named)) != len(named) or not named:
        raise UserError(
            f"sharding rule {pattern!r} has the axes {axes!r}: name one or both, each "
            "once"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"sharding rule {pattern!r} is no regular expression ({error})"
        ) from error
    return Rule(pattern, axes if isinstance(axes, str) else tuple(axes), repr(pattern))
