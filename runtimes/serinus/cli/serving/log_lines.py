"""The lines of the server's log, in text or JSON.

Names, paths and frameworks' messages come from model directories and clients. In a log they must not begin a line that another process
would take for the server's own, nor move a terminal's cursor: what cannot be printed is written as an escape. Credentials in them are hidden.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ...impatient_stream import ImpatientStream
from ...secrecy import hide

__all__ = ["JsonLines", "StreamLines", "TextLines", "escape"]

_SETTLE_S: Final = 0.5
"""For a reader to take the last lines, when the process ends."""


def escape(text: str) -> str:
    r"""Write control characters, line ends and halves of surrogate pairs as escapes (`\n`, `\x1b`)."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class StreamLines(logging.Handler):
    """Writes lines to standard error, and waits for no reader of it."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = ImpatientStream(2)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; one that cannot be rendered is logging's to tell."""
        try:
            self._stream.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 # as of logging's own handlers
            self.handleError(record)

    def close(self) -> None:
        """Give the reader a moment for the last lines."""
        self._stream.settle(_SETTLE_S)
        super().close()


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO serinus: message`; the lines of a traceback are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 # logging's name
        """Render a record without its traceback: one line, with the ids of the request that it is of."""
        ids: Mapping[str, str] = getattr(record, "ids", {})
        return hide(escape(super().formatMessage(record) + "".join(f" {name} {value}" for name, value in ids.items())))

    def formatException(self, ei: Any) -> str:  # noqa: N802 # logging's name
        """Render a traceback."""
        return "\n".join(f"    {escape(line)}" for line in hide(super().formatException(ei)).split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object a line, times in seconds since 1970.

    A record's `ids` (of the request that it is of) are fields, and those of what it was given as `structured`, whose `fields()` has them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
        }
        structured = getattr(record, "structured", None)
        entry |= {"message": hide(record.getMessage())} if structured is None else _hidden(structured.fields())
        entry |= getattr(record, "ids", {})
        if record.exc_info:
            entry["traceback"] = hide(self.formatException(record.exc_info))
        try:
            text = orjson.dumps(entry).decode()
        except TypeError:  # halves of surrogate pairs
            return json.dumps(entry)
        return text if text.isprintable() else json.dumps(entry)


def _hidden(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Hide what is secret in each text."""
    return {name: hide(value) if isinstance(value, str) else value for name, value in fields.items()}
