"""An option's text, or JSON value, as the number that it must be."""

from __future__ import annotations

from typing import Any

from ...bounds import BOUNDS
from ...errors import ConfigError

__all__ = ["number_of"]

_BOUND_OF = {"nthread": "threads"}
"""Options that are not called as the setting whose bound is theirs."""


def number_of(name: str, kind: type[int | float], text: Any, where: str) -> float:
    """Read a number and hold it to the bounds that are known without other settings.

    Args:
        name: the option's.
        kind: what it is turned into.
        text: as given.
        where: the flag, variable or key that it came by, for messages.

    Raises:
        ConfigError: naming where it came from, what came and what is accepted.
    """
    if isinstance(text, bool):
        raise ConfigError(f"{where}: {text!r} is not a number")
    try:
        number = kind(text)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from None
    if number != number:
        raise ConfigError(f"{where}: {text!r} is not a number")
    if number < 0:
        unlimited = f"; 'no limit' is {2**31 - 1}, the most that gRPC takes" if "message_length" in name else ""
        raise ConfigError(f"{where}: {text!r} must not be negative{unlimited}")
    if name == "max_batch_rows" and number == 0:
        raise ConfigError(f"{where}: {text!r} must be at least 1, which predicts every request alone")
    if name.endswith("_port") and number > 65535:
        raise ConfigError(f"{where}: {text!r} is no port; ports are 0 to 65535")
    bound = BOUNDS.get(_BOUND_OF.get(name, name))
    if bound is not None and number > bound.most and not bound.raised_by:
        raise ConfigError(f"{where}: {str(text)[:40]!r} is more than {bound.most:.0f}, the most that {name} may be")
    if bound is not None and number < bound.least:
        raise ConfigError(f"{where}: {text!r} is less than {bound.least:.0f}, the least that {name} may be")
    return number
