"""Counts read off the runtimes' own pages: nothing else needs to be installed.

Whom to ask comes from the target, anew for each look: pods come and go. A page says by its own label which revision it is of; where it has
none, the target's word for that pod counts, and where the two differ the look is not judged. Ages of processes are told by their own clocks
(the answer's Date against the process's start), so that clocks that differ from ours change nothing; a difference is noted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ...errors import SerinusError
from .arms import observation_of
from .ledger import Ledger
from .revision_counts import FAMILIES, STARTED, ErrorClasses, counters_of, models_of
from .source import ArmNames, Fetched, Observation, fetch
from .text_page import Sample, parse_page

__all__ = ["Endpoint", "PodScrape"]

_CLOCK_S: Final = 5.0
"""A clock that differs by more is told; NTP keeps machines within a fraction of a second."""
_AT_A_TIME: Final = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A process to ask."""

    pod: str
    """Its name, for people; one name, one process."""
    url: str
    """Of its page."""
    revision: str = ""
    """As the target knows it; empty: the page must say it."""


@dataclass(frozen=True, slots=True)
class _Page:
    endpoint: Endpoint
    samples: list[Sample]
    started_s: float | None
    age_s: float | None
    skew_s: float
    """The pod's clock minus ours."""


class PodScrape:
    """A source that asks every pod.

    Args:
        endpoints: gives whom to ask now; may raise a `SerinusError`.
        errors: which classes of outcomes are errors.
        timeout_s: of one page.
        clock: wall clock, seconds since the epoch.
        monotonic: for ages.
    """

    def __init__(
        self,
        endpoints: Callable[[], Sequence[Endpoint]],
        *,
        errors: ErrorClasses = "all",
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._errors: ErrorClasses = errors
        self._timeout_s = timeout_s
        self._clock = clock
        self._monotonic = monotonic
        self._ledger = Ledger()
        self._opened: float | None = None

    def observe(self, names: ArmNames) -> Observation:
        """See `Source.observe`."""
        ledger = self._ledger
        ledger.begin()
        now = self._monotonic()
        opened, self._opened = self._opened, self._opened if self._opened is not None else now
        try:
            endpoints = list(self._endpoints())
        except SerinusError as error:
            return observation_of(ledger, names, self._errors, [f"pods cannot be listed: {error}"])
        heard: Counter[str] = Counter()
        pages: list[_Page] = []
        for endpoint, outcome in zip(endpoints, self._ask(endpoints), strict=True):
            if isinstance(outcome, _Page):
                pages.append(outcome)
            elif endpoint.revision in ("", names.stable, names.canary):
                ledger.notes.append(f"{endpoint.pod} was not heard: {outcome}")
        for page in pages:
            revision = self._enter(page, names, None if opened is None else now - opened)
            heard[revision] += 1
            if abs(page.skew_s) > _CLOCK_S:
                ledger.notes.append(
                    f"the clock of {page.endpoint.pod} differs from this machine's by {page.skew_s:+.0f} s; ages are taken from its own"
                )
        silent = [
            f"no pod of the {arm} arm ({revision}) was heard"
            + (f"; those that were are of {', '.join(heard)}" if heard else "")
            for arm, revision in (("stable", names.stable), ("canary", names.canary))
            if not heard[revision]
        ]
        return observation_of(ledger, names, self._errors, silent)

    def _ask(self, endpoints: Sequence[Endpoint]) -> list[_Page | str]:
        if not endpoints:
            return []
        with ThreadPoolExecutor(min(_AT_A_TIME, len(endpoints)), thread_name_prefix="scrape") as pool:
            return list(pool.map(self._page, endpoints))

    def _page(self, endpoint: Endpoint) -> _Page | str:
        try:
            fetched: Fetched = fetch(endpoint.url, timeout_s=self._timeout_s)
            text = fetched.body.decode()
            samples = [sample for name in (*FAMILIES, STARTED) for sample in parse_page(text, name)]
        except (SerinusError, UnicodeDecodeError) as error:
            return str(error)
        started = next((sample.value for sample in samples if sample.name == STARTED), None)
        now = self._clock()
        there = now if fetched.date_s is None else fetched.date_s
        # Date has whole seconds: up to one is no difference.
        skew = 0.0 if fetched.date_s is None else there + 0.5 - now
        return _Page(endpoint, samples, started, None if started is None else there + 1.0 - started, skew)

    def _enter(self, page: _Page, names: ArmNames, open_s: float | None) -> str:
        """Enter a page into the ledger; gives the revision that it is of."""
        said = {sample.labels["revision"] for sample in page.samples if sample.labels.get("revision")}
        known = page.endpoint.revision
        revision = next(iter(said)) if len(said) == 1 else known
        if len(said) > 1 or (said and known and known not in said):
            self._ledger.problems.append(
                f"{page.endpoint.pod} says that it is of {', '.join(sorted(said))}, and was expected to be of {known or 'one revision'}"
            )
            return known
        if revision not in (names.stable, names.canary):
            return revision
        models = models_of(page.samples)
        model = names.model or (next(iter(models)) if len(models) == 1 else "")
        if model not in models:
            told = ", ".join(sorted(models)) or "none"
            self._ledger.problems.append(
                f"{page.endpoint.pod} has no model {model!r}; its models are {told}; name one with --model"
            )
            return revision
        try:
            counters = counters_of(page.samples, model)
        except SerinusError as error:
            self._ledger.problems.append(f"{page.endpoint.pod}: {error}")
            return revision
        young = open_s is not None and page.age_s is not None and page.age_s <= open_s + 1.0
        self._ledger.add(page.endpoint.pod, revision, counters, started_s=page.started_s, is_young=young)
        return revision
