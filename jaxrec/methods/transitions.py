"""What methods that learn from single transitions ask of their data."""

from typing import Any

from jaxrec.types import UserError


def check(method: str, info: dict[str, Any]) -> None:
    """Raises UserError for windows of steps, whose padding would be learned from."""
    if info.get("window"):
        raise UserError(
            f"{method} learns from single transitions: data.window={info['window']} "
            "must be 0"
        )
