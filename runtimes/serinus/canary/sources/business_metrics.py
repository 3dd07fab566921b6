"""Business metrics of a rollout: clicks, sales, labels that come later; from a file, an HTTP endpoint or Prometheus.

`NAME=labels:WHERE[,WHERE]` joins outcomes that come late with predictions, by id: see `late_labels`.

`NAME=rate:WHERE` is how often something happened of the times that it could have, `NAME=mean:WHERE` a number for each request. WHERE is

- a file `*.csv` or `*.jsonl` (`*.ndjson`) that grows: a line an outcome, with `revision`, `value` (0 or 1 for a rate) and, where the file
  is older than the rollout, `time` (seconds since the epoch). Without `time` only lines count that come after the first look.
- `http://` or `https://`: asked with `?stable=REVISION&canary=REVISION`, and answers `{"stable": {...}, "canary": {...}}` with cumulative
  `count` and `events` (rate; `waiting`, where outcomes come late), or `count`, `sum` and `sum_squares` (mean).
- `prom+http://HOST:9090/?count=offers_total&events=clicks_total` (mean: `count`, `sum`, `sum_squares`): counters with a label `revision`
  (another one: `&label=`). Of a rate whose outcomes come late, `&predictions=SERIES` counts what was predicted: what is beyond `count` waits.

Counts of an endpoint or a Prometheus are taken from the first look on. Those that go back, and answers that are none, are problems of the
look; nothing is guessed.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from ...errors import ConfigError, InvalidInput, SerinusError
from ..looks import Arm, Mean, Rate, parse_look
from .late_labels import LateLabels
from .prometheus_source import query, quoted_regex
from .source import ArmNames, Observation, Source, SourceFailed, fetch

__all__ = ["BusinessMetric", "WithBusiness", "parse_metric"]

Kind = Literal["rate", "mean"]
Value = Rate | Mean
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {"rate": ("count", "events"), "mean": ("count", "sum", "sum_squares")}
_SPEC: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=(rate|mean|labels):(.+)")
_TIMEOUT_S: Final = 20.0
_MOST_LINE: Final = 1 << 20


class _Reader(Protocol):
    def read(self, names: ArmNames) -> tuple[Value, Value]:
        """Give stable's and the canary's, cumulative.

        Raises:
            SerinusError: there is no sense in what came.
        """
        ...


@dataclass(slots=True)
class BusinessMetric:
    """One metric: its name in the policy, its kind, and where it is read."""

    name: str
    kind: Kind
    where: str
    reader: _Reader
    is_whole: bool = False
    """Whether it counts from the beginning of the run, whoever has driven it meanwhile."""


def parse_metric(text: str, *, clock: Callable[[], float] = time.time) -> BusinessMetric:
    """Read `NAME=rate:WHERE`, `NAME=mean:WHERE` or `NAME=labels:WHERE[,WHERE]`.

    Args:
        text: as given.
        clock: seconds since the epoch; the rollout begins now.

    Raises:
        ConfigError: it is none of the forms.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r}: NAME=rate:WHERE, NAME=mean:WHERE or NAME=labels:WHERE was expected, such as clicks=rate:clicks.csv"
        )
    name, where = found[1], found[3]
    if found[2] == "labels":
        return BusinessMetric(name, "rate", where, LateLabels(where, clock()), is_whole=True)
    kind: Kind = "rate" if found[2] == "rate" else "mean"
    reader: _Reader
    if where.startswith(("prom+http://", "prom+https://")):
        reader = _FromPrometheus(where, name, kind)
    elif where.startswith(("http://", "https://")):
        reader = _Since(_FromEndpoint(where, name, kind))
    elif Path(where).suffix in {".csv", ".jsonl", ".ndjson"}:
        reader = _FromFile(Path(where), kind, clock())
    else:
        raise ConfigError(
            f"{text!r}: a file *.csv or *.jsonl, http://, https:// or prom+http:// was expected after {kind}:"
        )
    return BusinessMetric(name, kind, where, reader)


class WithBusiness:
    """A source with business metrics added to its arms."""

    def __init__(self, source: Source, metrics: list[BusinessMetric]) -> None:
        self._source = source
        self._metrics = metrics

    def observe(self, names: ArmNames) -> Observation:
        """See `Source.observe`."""
        observed = self._source.observe(names)
        problems, notes = list(observed.problems), list(observed.notes)
        arms = [observed.stable, observed.canary]
        for metric in self._metrics:
            try:
                values = metric.reader.read(names)
            except SerinusError as error:
                problems.append(f"metric {metric.name}: {error}")
                continue
            arms = [_with(arm, metric, value) for arm, value in zip(arms, values, strict=True)]
            if isinstance(metric.reader, LateLabels):
                notes += [f"metric {metric.name}: {note}" for note in metric.reader.take_notes()]
        whole = observed.whole | {metric.name for metric in self._metrics if metric.is_whole}
        return replace(
            observed, stable=arms[0], canary=arms[1], problems=tuple(problems), notes=tuple(notes), whole=whole
        )


def _with(arm: Arm, metric: BusinessMetric, value: Value) -> Arm:
    if isinstance(value, Rate):
        return replace(arm, rates={**arm.rates, metric.name: value})
    return replace(arm, means={**arm.means, metric.name: value})


def _checked(name: str, kind: Kind, stable: Any, canary: Any) -> tuple[Value, Value]:
    """Hold numbers to what a look may have; the messages are the look's."""
    part = f"{kind}s"
    arms = {arm: {"requests": 0, part: {name: value}} for arm, value in (("stable", stable), ("canary", canary))}
    try:
        look = parse_look(json.dumps({"seconds": 0, **arms}))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    return getattr(look.stable, part)[name], getattr(look.canary, part)[name]


def _minus(now: Value, base: Value) -> Value:
    if isinstance(now, Rate) and isinstance(base, Rate):
        if now.count < base.count or now.events < base.events:
            raise SourceFailed(
                f"went back from {base.events} of {base.count} to {now.events} of {now.count}; cumulative counts were expected"
            )
        return Rate(now.count - base.count, now.events - base.events, now.waiting)
    assert isinstance(now, Mean) and isinstance(base, Mean)  # noqa: S101, PT018 # one reader gives one kind
    if now.count < base.count or now.total_squares < base.total_squares * (1 - 1e-9):
        raise SourceFailed(f"went back from {base.count} values to {now.count}; cumulative counts were expected")
    return Mean(now.count - base.count, now.total - base.total, max(0.0, now.total_squares - base.total_squares))


class _Since:
    """Takes what a reader said first as 0, and refuses what goes back."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._base: tuple[Value, Value] | None = None
        self._last: tuple[Value, Value] | None = None

    def read(self, names: ArmNames) -> tuple[Value, Value]:
        now = self._reader.read(names)
        if self._base is None or self._last is None:
            self._base = self._last = now
        for value, last in zip(now, self._last, strict=True):
            _minus(value, last)
        self._last = now
        return _minus(now[0], self._base[0]), _minus(now[1], self._base[1])


class _FromEndpoint:
    def __init__(self, url: str, name: str, kind: Kind) -> None:
        self._url, self._name = url, name
        self._kind: Kind = kind

    def read(self, names: ArmNames) -> tuple[Value, Value]:
        separator = "&" if urlsplit(self._url).query else "?"
        url = f"{self._url}{separator}{urlencode({'stable': names.stable, 'canary': names.canary})}"
        body = fetch(url, timeout_s=_TIMEOUT_S).body
        try:
            document = json.loads(body)
            stable, canary = document["stable"], document["canary"]
        except (ValueError, KeyError, TypeError):
            raise SourceFailed(
                f'{self._url}: {{"stable": {{...}}, "canary": {{...}}}} was expected, {body[:80]!r} came'
            ) from None
        return _checked(self._name, self._kind, stable, canary)


class _FromPrometheus:
    """Counters of many processes, added up from the first look on: each counts anew after a restart, and keeps what it had when it goes."""

    def __init__(self, where: str, name: str, kind: Kind) -> None:
        parts = urlsplit(where.removeprefix("prom+"))
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        given = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self._label = given.pop("label", "revision")
        optional = {"predictions"} if kind == "rate" else set()
        if set(given) - optional != set(_FIELDS[kind]):
            raise ConfigError(
                f"{where}: a {kind} is read from the series {', '.join(f'{key}=SERIES' for key in _FIELDS[kind])}"
            )
        self._series = given
        self._name = name
        self._kind: Kind = kind
        self._counters: dict[tuple[str, str], _Counter] = {}
        """By part and labels."""
        self._begun = False

    def read(self, names: ArmNames) -> tuple[Value, Value]:
        """Add up what each series has grown by since the first look."""
        matcher = f'{self._label}=~"{quoted_regex(names.stable)}|{quoted_regex(names.canary)}"'
        for part, series in self._series.items():
            text = f"{series[:-1]},{matcher}}}" if series.endswith("}") else f"{series}{{{matcher}}}"
            for entry in query(self._url, text, timeout_s=_TIMEOUT_S)[0]:
                self._enter(part, entry)
        self._begun = True
        stable, canary = (
            {part: self._sum(revision, part) for part in self._series} for revision in (names.stable, names.canary)
        )
        for arm in (stable, canary):
            if "predictions" in arm:
                # Scraped at another moment than the outcomes, so that it may be behind them.
                arm["waiting"] = max(0.0, arm.pop("predictions") - arm["count"])
        return _checked(self._name, self._kind, stable, canary)

    def _enter(self, part: str, entry: Any) -> None:
        try:
            labels, value = entry["metric"], float(entry["value"][1])
            revision = labels[self._label]
        except (KeyError, TypeError, ValueError, IndexError):
            raise SourceFailed(f"{self._url}: a series is none of Prometheus' HTTP API: {str(entry)[:120]}") from None
        key = (part, json.dumps(labels, sort_keys=True))
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(revision, part, value if not self._begun else 0.0)
        counter.grown += value - counter.last if value >= counter.last else value
        counter.last = value

    def _sum(self, revision: str, part: str) -> float:
        total = sum(each.grown for each in self._counters.values() if (each.revision, each.part) == (revision, part))
        return round(total) if part in ("count", "events", "predictions") else total


@dataclass(slots=True)
class _Counter:
    revision: str
    part: str
    last: float
    grown: float = 0.0


@dataclass(slots=True)
class _Tally:
    count: int = 0
    total: float = 0.0
    squares: float = 0.0


@dataclass(slots=True)
class _FromFile:
    """A file that grows: each look reads on from where the last one ended."""

    path: Path
    kind: Kind
    begun_s: float
    offset: int = 0
    opened: bool = False
    header: list[str] = field(default_factory=list)
    tallies: dict[str, _Tally] = field(default_factory=dict)

    def read(self, names: ArmNames) -> tuple[Value, Value]:
        """Count the lines that have come."""
        try:
            size = self.path.stat().st_size
            if size < self.offset:
                raise SourceFailed(
                    f"{self.path}: has {size} bytes and had {self.offset}; a file that only grows was expected, so that nothing counts twice"
                )
            with self.path.open("rb") as file:
                file.seek(self.offset)
                # A half-written last line waits for the next look.
                for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE), b"")):
                    if not line.endswith(b"\n"):
                        if len(line) >= _MOST_LINE:
                            raise SourceFailed(f"{self.path}: a line has more than {_MOST_LINE} bytes")
                        break
                    self._line(line, number)
                    self.offset += len(line)
        except OSError as error:
            raise SourceFailed(f"{self.path}: cannot be read: {error.strerror}") from None
        self.opened = True
        return self._value(names.stable), self._value(names.canary)

    def _line(self, line: bytes, number: int) -> None:
        try:
            text = line.decode().strip()
            if not text:
                return
            if self.path.suffix == ".csv":
                cells = next(csv.reader([text]))
                if not self.header:
                    header = [cell.strip() for cell in cells]
                    if not {"revision", "value"} <= set(header):
                        raise SourceFailed(
                            f"{self.path}: its first line names the columns; revision and value were expected, {text[:80]!r} came"
                        )
                    self.header = header
                    return
                row: Any = dict(zip(self.header, cells, strict=False))
            else:
                row = json.loads(text)
            revision, value = str(row["revision"]), _number(row["value"])
            when = _number(row["time"]) if row.get("time") not in (None, "") else None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceFailed(
                f"{self.path}: {line[:80]!r}, {number} lines on from byte {self.offset}: revision and a number as value were expected"
            ) from None
        if (when is None and not self.opened) or (when is not None and when < self.begun_s):
            return
        if self.kind == "rate" and value not in (0.0, 1.0):
            raise SourceFailed(f"{self.path}: {line[:80]!r}: the value of a rate is 0 or 1")
        tally = self.tallies.setdefault(revision, _Tally())
        tally.count += 1
        tally.total += value
        tally.squares += value * value

    def _value(self, revision: str) -> Value:
        tally = self.tallies.get(revision, _Tally())
        if self.kind == "rate":
            return Rate(tally.count, round(tally.total))
        return Mean(tally.count, tally.total, tally.squares)


def _number(value: Any) -> float:
    words = {"true": 1.0, "false": 0.0}
    number = words[value.lower()] if isinstance(value, str) and value.lower() in words else float(value)
    if number - number != 0.0:  # inf and NaN
        raise ValueError(value)
    return number
