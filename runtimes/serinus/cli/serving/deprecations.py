"""What goes away, told one minor version ahead: flags and variables that still work and say what takes their place.

Versions are semantic (semver.org). What the documentation names is public; it goes in a minor version at the earliest, before 1.0 too, and only
after a whole minor version in which every use of it was warned of. An entry is removed with what it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["DEPRECATIONS", "Deprecation", "tell_deprecation"]


@dataclass(frozen=True, slots=True)
class Deprecation:
    """One name that goes away."""

    name: str
    """As users write it: `--old_flag`, `SERINUS_OLD_FLAG`."""
    since: str
    """First version that warns."""
    goes: str
    """First version without it: a minor version later than `since` at least."""
    instead: str
    """What takes its place, as it ends a sentence that begins with "use"."""

    def __post_init__(self) -> None:
        since, goes = (tuple(map(int, version.split(".")[:2])) for version in (self.since, self.goes))
        if goes <= since:
            raise ValueError(
                f"{self.name}: warned of since {self.since}, so it goes with a later minor version, not with {self.goes}"
            )


DEPRECATIONS: Final[tuple[Deprecation, ...]] = ()
"""None at present."""


def tell_deprecation(name: str, table: Sequence[Deprecation] = DEPRECATIONS) -> str | None:
    """Write the warning about a name; None: it stays.

    Args:
        name: a flag, in any spelling of its dashes, or a variable.
        table: of what goes.
    """
    if not table:
        return None
    plain = _plain(name)
    found = next((entry for entry in table if _plain(entry.name) == plain), None)
    if found is None:
        return None
    return f"{name} is deprecated since {found.since} and goes with {found.goes}: use {found.instead}"


def _plain(name: str) -> str:
    return "--" + name[2:].replace("_", "-") if name.startswith("--") else name
