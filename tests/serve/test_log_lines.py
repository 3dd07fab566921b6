"""A line of the log is the server's own, whatever a model directory or a client wrote into it."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from serinus.cli.serving.log_lines import JsonLines, TextLines, escape

FORGED = "m\n2026-01-01 00:00:00.000 INFO serinus: all is well\x1b[31m\x9b2J\u2028\ud800"


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    caught = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("serinus", logging.INFO, __file__, 1, message, values, caught)


@pytest.mark.parametrize("lines", [TextLines(), JsonLines()], ids=["text", "json"])
def test_a_record_without_a_traceback_is_one_printable_line(lines):
    line = lines.format(record("model '%s' is ready", FORGED))
    assert line.isprintable()
    assert "model 'm\\n2026" in line


def test_a_line_of_text_without_odd_characters_is_as_it_was():
    line = TextLines().format(record("model '%s': %d rows, 20 µs, 金", "m", 3))
    assert line.endswith(" INFO serinus: model 'm': 3 rows, 20 µs, 金")


def test_the_lines_of_a_traceback_are_indented_and_printable():
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        first, *rest = TextLines().format(record("failed", error=error)).split("\n")
    assert first.endswith("INFO serinus: failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_json_record_with_a_traceback_is_one_line_that_json_reads():
    try:
        raise ValueError(FORGED)
    except ValueError:
        line = JsonLines().format(record("failed %s", "\u2028", error=sys.exc_info()[1]))
    assert "\n" not in line
    assert json.loads(line)["message"] == "failed \u2028"


@pytest.mark.parametrize(
    ("text", "shown"), [("a\tb", "a\\tb"), ("\x1b[0m", "\\x1b[0m"), ("\udcff", "\\udcff"), ("é\\n", "é\\n")]
)
def test_what_cannot_be_printed_is_an_escape(text, shown):
    assert escape(text) == shown
