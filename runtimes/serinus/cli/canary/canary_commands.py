"""All commands of `serinus canary`."""

from __future__ import annotations

from .canary import canary
from .canary_by_hand import promote, report, rollback, status
from .canary_judge import judge
from .canary_route import route
from .canary_run import run

__all__ = ["canary"]

canary.command("run")(run)
canary.command("status")(status)
canary.command()(promote)
canary.command()(rollback)
canary.command()(report)
canary.command()(judge)
canary.command()(route)
