"""Outcomes that come late, joined with predictions by id: files that grow, endpoints.

`NAME=labels:WHERE[,WHERE]`; the lines of all of them are joined, whichever comes first. A line is

- a prediction: `id`, `revision`, and where there is one `predicted`;
- an outcome: `id`, `outcome`; or both at once.

An outcome equal to what was predicted is an event; of a prediction that says nothing, an outcome of 1 (or true) is. A prediction counts as soon
as its outcome has come, and is told as waiting until then. Predictions with a `time` (seconds since the epoch) count from the run's beginning on,
also where the run is driven by another process than the one that began it: the files are read from their beginning, and what they say is of the
whole run. Those without a time count where they come after the first look.

- A file is `*.csv`, whose first line names the columns, or `*.jsonl` (`*.ndjson`).
- An endpoint (`http://`, `https://`) is asked with `?stable=REVISION&canary=REVISION&after=CURSOR` and answers `{"lines": [...], "next": CURSOR}`;
  without `next` it answers all lines each time, of which each id counts once.

What makes no sense is a problem of the look, and nothing is judged by it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlsplit

from ...errors import ConfigError
from ..labels import ArmName, LabelJoiner
from ..looks import Rate
from .source import ArmNames, SourceFailed, fetch

__all__ = ["LateLabels"]

_SUFFIXES: Final = frozenset({".csv", ".jsonl", ".ndjson"})
_TIMEOUT_S: Final = 20.0
_MOST_LINE: Final = 1 << 20
_MOST_PAGES: Final = 100
"""Of an endpoint, a look: what is left comes with the next one."""
_TRUTHS: Final[Mapping[str, bool]] = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}

Row = Mapping[str, Any]


class _Lines(Protocol):
    def rows(self, names: ArmNames) -> Iterator[tuple[str, Row]]:
        """Give the lines that have come since the last time, each with its place, for messages.

        Raises:
            SourceFailed: there is no sense in what came.
        """
        ...


class LateLabels:
    """Reads predictions and outcomes, and counts those that have both.

    Args:
        where: files and URLs, separated by commas.
        begun_s: seconds since the epoch; predictions before it are of no run, unless the run began earlier.

    Raises:
        ConfigError: a part is neither a file nor a URL.
    """

    def __init__(self, where: str, begun_s: float) -> None:
        self._lines: list[_Lines] = [_lines(part.strip(), where) for part in where.split(",")]
        self._begun_s = begun_s
        self._joiner = LabelJoiner()
        self._has_looked = False
        self._told_forgotten = 0

    def read(self, names: ArmNames) -> tuple[Rate, Rate]:
        """Take in what has come, and give stable's and the canary's counts since the run began.

        Raises:
            SourceFailed: a source was not heard, or a line makes no sense.
        """
        since_s = self._begun_s if names.since_s is None else min(names.since_s, self._begun_s)
        for lines in self._lines:
            for place, row in lines.rows(names):
                self._take(place, row, names, since_s)
        self._has_looked = True
        return self._rate("stable"), self._rate("canary")

    def take_notes(self) -> list[str]:
        """Say what was not counted since the last time."""
        forgotten = self._joiner.unjoined.forgotten
        if forgotten == self._told_forgotten:
            return []
        self._told_forgotten = forgotten
        return [
            f"{forgotten:,} predictions and outcomes were forgotten, since too many others wait for their counterpart"
        ]

    def _rate(self, arm: ArmName) -> Rate:
        rate = self._joiner.rate(arm)
        return Rate(rate.count, rate.events, self._joiner.waiting_of(arm))

    def _take(self, place: str, row: Row, names: ArmNames, since_s: float) -> None:
        key, revision, outcome = (_text(row.get(name)) for name in ("id", "revision", "outcome"))
        if not key or not (revision or outcome):
            raise SourceFailed(f"{place}: an id and a revision (a prediction), an outcome, or both were expected")
        predicted = _outcome(_text(row.get("predicted")))
        arm: ArmName | None = "stable" if revision == names.stable else "canary" if revision == names.canary else None
        if arm is not None and self._is_of_the_run(place, row, since_s):
            self._joiner.predict(key, arm, predicted or "true")
        if outcome:
            self._joiner.observe(key, _outcome(outcome))

    def _is_of_the_run(self, place: str, row: Row, since_s: float) -> bool:
        when = row.get("time")
        if when in (None, ""):
            return self._has_looked
        try:
            seconds = float(when)
        except (TypeError, ValueError):
            seconds = float("nan")
        if seconds - seconds != 0.0:  # inf and NaN
            raise SourceFailed(f"{place}: time is {str(when)[:40]!r}; seconds since the epoch were expected")
        return seconds >= since_s


def _lines(part: str, where: str) -> _Lines:
    if part.startswith(("http://", "https://")):
        return _FromEndpoint(part)
    if Path(part).suffix in _SUFFIXES:
        return _FromFile(Path(part))
    raise ConfigError(
        f"labels:{where}: files *.csv or *.jsonl, http:// or https:// were expected, separated by commas; {part!r} came"
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


def _outcome(text: str) -> str:
    truth = _TRUTHS.get(text.lower())
    return text if truth is None else "true" if truth else "false"


@dataclass(slots=True)
class _FromFile:
    """A file that grows; each look reads on from where the last one ended."""

    path: Path
    offset: int = 0
    number: int = 0
    header: list[str] = field(default_factory=list)

    def rows(self, names: ArmNames) -> Iterator[tuple[str, Row]]:
        try:
            size = self.path.stat().st_size
            if size < self.offset:
                raise SourceFailed(
                    f"{self.path}: has {size} bytes and had {self.offset}; a file that only grows was expected"
                )
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for line in iter(lambda: file.readline(_MOST_LINE), b""):
                    if not line.endswith(b"\n"):
                        if len(line) >= _MOST_LINE:
                            raise SourceFailed(f"{self.path}: a line has more than {_MOST_LINE} bytes")
                        break  # half-written; it is read with the next look
                    place = f"{self.path}:{self.number + 1}"
                    row = self._row(line, place)
                    if row is not None:
                        yield place, row
                    # A line that makes no sense stays the next one to read: it is told at each look until it is mended.
                    self.offset += len(line)
                    self.number += 1
        except OSError as error:
            raise SourceFailed(f"{self.path}: cannot be read: {error.strerror}") from None

    def _row(self, line: bytes, place: str) -> Row | None:
        try:
            text = line.decode().strip("\r\n\ufeff ")
            if not text:
                return None
            if self.path.suffix != ".csv":
                row = json.loads(text)
                return row if isinstance(row, dict) else {}  # which lacks an id, and is refused
            cells = next(csv.reader([text]))
        except (ValueError, csv.Error):
            raise SourceFailed(f"{place}: {line[:80]!r} is no line of {self.path.suffix.removeprefix('.')}") from None
        if self.header:
            return dict(zip(self.header, cells, strict=False))
        self.header = [cell.strip() for cell in cells]
        if "id" not in self.header or not {"revision", "outcome"} & set(self.header):
            self.header = []
            raise SourceFailed(
                f"{place}: its first line names the columns; id with revision, outcome or both were expected, {text[:80]!r} came"
            )
        return None


@dataclass(slots=True)
class _FromEndpoint:
    """An endpoint, from a cursor on."""

    url: str
    after: str = ""

    def rows(self, names: ArmNames) -> Iterator[tuple[str, Row]]:
        for _ in range(_MOST_PAGES):
            found, following = self._page(names)
            for number, row in enumerate(found):
                yield f"{self.url}: line {number}", row
            if following is None or following == self.after:
                return
            self.after = following
            if not found:
                return

    def _page(self, names: ArmNames) -> tuple[list[Row], str | None]:
        asked = {"stable": names.stable, "canary": names.canary, "after": self.after}
        body = fetch(
            f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode(asked)}", timeout_s=_TIMEOUT_S
        ).body
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        found = document.get("lines") if isinstance(document, dict) else None
        if (
            not isinstance(document, dict)
            or not isinstance(found, list)
            or not all(isinstance(row, dict) for row in found)
        ):
            raise SourceFailed(
                f'{self.url}: {{"lines": [{{"id": ...}}, ...], "next": ...}} was expected, {body[:80]!r} came'
            )
        following = document.get("next")
        return found, None if following is None else str(following)
