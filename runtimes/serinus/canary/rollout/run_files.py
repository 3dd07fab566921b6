"""What a run leaves on disk: its looks, as `serinus canary replay` reads them, and its events, for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError, InvalidInput
from ..looks import Look, parse_look

__all__ = ["RunFiles"]


class RunFiles:
    """Two files of JSON lines, `NAME.looks.jsonl` and `NAME.events.jsonl`, appended to.

    Args:
        folder: made where it is not there.
        name: of the service.
    """

    def __init__(self, folder: Path, name: str) -> None:
        plain = name.replace("/", ".")
        self.looks_path = folder / f"{plain}.looks.jsonl"
        self.events_path = folder / f"{plain}.events.jsonl"

    def write_look(self, look: Look) -> None:
        """Append a look.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        self._append(self.looks_path, look.as_json())

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Append an event.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        self._append(self.events_path, event)

    def looks(self, run: str) -> list[Look]:
        """Read the looks of a run; a last line that was cut off by a crash is left out.

        Raises:
            ConfigError: another line is no look.
        """
        found = []
        lines = self._lines(self.looks_path)
        for number, line in enumerate(lines, 1):
            try:
                look = parse_look(line)
            except InvalidInput as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise ConfigError(f"{self.looks_path}:{number}: {error}") from None
            if look.run == run:
                found.append(look)
        return found

    def events(self, run: str = "") -> Iterator[dict[str, Any]]:
        """Read the events, of one run where it is named."""
        for line in self._lines(self.events_path):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by a crash
            if isinstance(event, dict) and (not run or event.get("run") == run):
                yield event

    def _append(self, path: Path, document: Mapping[str, Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if file.tell() and not self._ends_whole(path):
                    # What a crash, or a full disk, has cut off: kept, it would be a line amid others that is none.
                    file.truncate(path.read_bytes().rfind(b"\n") + 1)
                file.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    @staticmethod
    def _ends_whole(path: Path) -> bool:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    @staticmethod
    def _lines(path: Path) -> list[bytes]:
        try:
            return [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
