"""Counts that a Prometheus has scraped.

Theory of operation. Raw samples are read (`series[window]`), not `rate` or `increase`: those extrapolate, and evidence needs counts. The samples
of each process are entered into the ledger in the order of their times, so that a restart between two looks is seen as it was scraped.
`window` reaches back to the look before, so no sample is missed; ages are all on Prometheus' own clock.

Revisions are told by a label: ours (`revision`), in Standard mode also the Service that a ServiceMonitor names (`service`, equal to the
predictor's name), or `revision_name` of Knative's queue-proxy for runtimes of another make (`KNATIVE`).

Sources: prometheus.io/docs/prometheus/latest/querying/api ("Instant queries"); knative.dev/docs/serving/services/service-metrics.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from ...errors import SerinusError
from .arms import observation_of
from .ledger import Ledger
from .revision_counts import FAMILIES, STARTED, ErrorClasses, Key, counters_of, key_of, models_of
from .source import ArmNames, Observation, SourceFailed, fetch
from .text_page import Sample

__all__ = ["KNATIVE", "SERINUS", "PrometheusSource", "Series", "query", "quoted_regex"]

_FIRST_WINDOW_S: Final = 300.0
"""Prometheus' own look-back for an instant query (--query.lookback-delta)."""
_MARGIN_S: Final = 120.0
"""Beyond the look before: late scrapes, and two minutes of the common 15 s to 60 s intervals."""
_STALE_S: Final = 180.0
_CLOCK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Series:
    """Which series count, and how they are read."""

    names: tuple[str, ...]
    revision_label: str
    key_of: Callable[[Sample, str], Key | None]
    has_models: bool = True


def _knative_key(sample: Sample, model: str) -> Key | None:  # noqa: ARG001 # queue-proxy knows no models
    labels = sample.labels
    if sample.name == "revision_app_request_count":
        outcome = {"2": "success", "3": "success", "4": "invalid", "5": "failed"}.get(
            labels.get("response_code", "")[:1]
        )
        return None if outcome is None else ("outcome", "rejected" if labels["response_code"] == "429" else outcome)
    bound = labels.get("le", "")
    try:
        return ("latency", repr(float(bound) / 1000.0))
    except ValueError:
        return None


SERINUS: Final = Series((*FAMILIES, STARTED), "revision", key_of)
KNATIVE: Final = Series(
    ("revision_app_request_count", "revision_app_request_latencies_bucket"),
    "revision_name",
    _knative_key,
    has_models=False,
)
"""Of the queue-proxy, in milliseconds; failures' latencies are in its histogram too."""


def query(url: str, text: str, *, timeout_s: float) -> tuple[list[Any], float | None]:
    """Ask for an instant query's result.

    Args:
        url: of the server, `http://prometheus:9090`.
        text: PromQL.
        timeout_s: of the answer.

    Returns:
        The series as Prometheus gives them, and its clock, seconds since the epoch.

    Raises:
        SourceFailed: no answer, no JSON of that form, or an error of Prometheus'.
    """
    address = f"{url.rstrip('/')}/api/v1/query?{urlencode({'query': text})}"
    fetched = fetch(address, timeout_s=timeout_s)
    try:
        document = json.loads(fetched.body)
        if document["status"] != "success":
            raise SourceFailed(f"{url}: {document.get('error', document)}")
        result = document["data"]["result"]
        if not isinstance(result, list):
            raise TypeError  # noqa: TRY301 # one message for all that is none of the form
    except (ValueError, KeyError, TypeError):
        raise SourceFailed(f"{url}: the answer is none of Prometheus' HTTP API: {fetched.body[:120]!r}") from None
    return result, fetched.date_s


class PrometheusSource:
    """A source that asks a Prometheus.

    Args:
        url: of the server.
        selector: further matchers, `namespace="prod",job="models"`.
        series: which series are read.
        revision_label: which label tells the revision; empty: the series' usual one.
        errors: which classes of outcomes are errors.
        timeout_s: of one query.
        clock: wall clock, seconds since the epoch.
        monotonic: for the time between looks.
    """

    def __init__(
        self,
        url: str,
        *,
        selector: str = "",
        series: Series = SERINUS,
        revision_label: str = "",
        errors: ErrorClasses = "all",
        timeout_s: float = 20.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._selector = selector.strip().strip("{}").strip(",")
        self._series = series
        self._label = revision_label or series.revision_label
        self._errors: ErrorClasses = errors
        self._timeout_s = timeout_s
        self._clock = clock
        self._monotonic = monotonic
        self._ledger = Ledger()
        self._seen: dict[str, float] = {}
        """Time of the last sample entered, by process."""
        self._opened: float | None = None
        self._asked: float | None = None

    def observe(self, names: ArmNames) -> Observation:
        """See `Source.observe`."""
        ledger = self._ledger
        ledger.begin()
        try:
            result, date = query(self._url, self.promql(names), timeout_s=self._timeout_s)
            processes = self._by_process(result)
        except SerinusError as error:
            return observation_of(ledger, names, self._errors, [str(error)])
        now = self._clock() if date is None else date
        if abs(now - self._clock()) > _CLOCK_S:
            ledger.notes.append(
                f"the clock of {self._url} differs from this machine's by {now - self._clock():+.0f} s; times are taken from it"
            )
        first = self._opened is None
        opened = self._opened = now if self._opened is None else self._opened
        self._asked = self._monotonic()
        self._find_twins(processes)
        newest: dict[str, float] = {}
        for process in processes.values():
            newest[process.revision] = max(newest.get(process.revision, 0.0), *process.times)
            self._enter(process, names, opened, first=first)
        silent = []
        for arm, revision in (("stable", names.stable), ("canary", names.canary)):
            last = newest.get(revision)
            if last is None:
                silent.append(
                    f'{self._url} has no series of the {arm} arm: {self._label}="{revision}"; is it scraped, and does its server '
                    "know its revision?"
                )
            elif now - last > _STALE_S:
                silent.append(f"{self._url} has scraped nothing of the {arm} arm ({revision}) for {now - last:.0f} s")
        return observation_of(ledger, names, self._errors, silent)

    def promql(self, names: ArmNames) -> str:
        """Give the query of the next look."""
        revisions = "|".join(quoted_regex(name) for name in (names.stable, names.canary))
        window = _FIRST_WINDOW_S if self._asked is None else self._monotonic() - self._asked + _MARGIN_S
        matchers = [f'__name__=~"{"|".join(self._series.names)}"', f'{self._label}=~"{revisions}"']
        if self._selector:
            matchers.append(self._selector)
        return f"{{{','.join(matchers)}}}[{math.ceil(max(window, _FIRST_WINDOW_S))}s]"

    def _by_process(self, result: list[Any]) -> dict[str, _Process]:
        processes: dict[str, _Process] = {}
        for entry in result:
            try:
                labels = {str(key): str(value) for key, value in entry["metric"].items()}
                values = [(float(at), float(value)) for at, value in entry["values"]]
                name = labels.pop("__name__")
            except (KeyError, TypeError, ValueError, AttributeError):
                raise SourceFailed(
                    f"{self._url}: a series is none of Prometheus' HTTP API: {str(entry)[:120]}"
                ) from None
            revision = labels.get(self._label, "")
            title = "/".join(filter(None, (labels.get("job", ""), labels.get("pod", ""), labels.get("instance", ""))))
            process = processes.setdefault(
                f"{revision} {title}", _Process(title, revision, labels.get("namespace", ""))
            )
            for at, value in values:
                process.times.setdefault(at, []).append(Sample(name, labels, value))
        return {key: process for key, process in processes.items() if process.times}

    def _find_twins(self, processes: Mapping[str, _Process]) -> None:
        """Say where one process is scraped twice: its requests would count twice, and evidence with them."""
        groups: dict[tuple[str, float], list[str]] = defaultdict(list)
        for process in processes.values():
            if process.started is not None:
                groups[process.revision, process.started].append(process.title)
        for (revision, _), titles in groups.items():
            if len(titles) > 1:
                self._ledger.problems.append(
                    f"one process of {revision} is scraped under several names: {', '.join(sorted(titles))}; choose with a selector, "
                    'such as job="..."'
                )
        for revision in {process.revision for process in processes.values()}:
            spaces = {process.namespace for process in processes.values() if process.revision == revision}
            if len(spaces) > 1:
                self._ledger.problems.append(
                    f'revision {revision} is in the namespaces {", ".join(sorted(spaces))}; choose with a selector: namespace="..."'
                )

    def _enter(self, process: _Process, names: ArmNames, opened: float, *, first: bool) -> None:
        ledger = self._ledger
        last = self._seen.get(process.title, -math.inf)
        times = sorted(at for at in process.times if at > last)
        for at in times[-1:] if first else times:
            samples = process.times[at]
            model = ""
            if self._series.has_models:
                models = models_of(samples)
                model = names.model or (next(iter(models)) if len(models) == 1 else "")
                if model not in models:
                    told = ", ".join(sorted(models)) or "none"
                    ledger.problems.append(
                        f"{process.title} has no model {model!r}; its models are {told}; name one with --model"
                    )
                    break
            started = next((sample.value for sample in samples if sample.name == STARTED), None)
            try:
                counters = counters_of(samples, model, self._series.key_of)
            except SerinusError as error:
                ledger.problems.append(f"{process.title}: {error}")
                break
            young = not first and started is not None and started > opened
            ledger.add(process.title, process.revision, counters, started_s=started, is_young=young)
            self._seen[process.title] = at


class _Process:
    """Samples of one scraped process, by their times."""

    def __init__(self, title: str, revision: str, namespace: str) -> None:
        self.title = title
        self.revision = revision
        self.namespace = namespace
        self.times: dict[float, list[Sample]] = {}

    @property
    def started(self) -> float | None:
        """When it started, as its last sample says."""
        last = self.times[max(self.times)]
        return next((sample.value for sample in last if sample.name == STARTED), None)


def quoted_regex(name: str) -> str:
    """Write a name for a regular expression inside a PromQL string, where a backslash is written twice."""
    return re.escape(name).replace("\\-", "-").replace("\\", "\\\\").replace('"', '\\"')
