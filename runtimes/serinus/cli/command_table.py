"""A table of commands, each imported when it is asked for: a command pays for its own imports, not for everybody's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

__all__ = ["CommandTable"]


class CommandTable(TyperGroup):
    """The commands of `table`, and what is registered with typer beside them."""

    table: ClassVar[Mapping[str, str]] = {}
    """Name to module, as seen from `serinus.cli`, and function (or table of commands), in the order of the help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all commands."""
        return [*self.table, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None where there is none of this name."""
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.table[cmd_name].partition(":")
        found = getattr(importlib.import_module(module, __package__), name)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
            alone.command(cmd_name)(found)
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command
