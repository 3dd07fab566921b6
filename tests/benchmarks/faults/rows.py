"""What a row of the fault table is, and the watch beside a fault: what the client, a neighbour and the probes saw, and how long it was not well."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["NEIGHBOUR", "ROWS", "Expected", "Observed", "Row", "Seen", "Watch", "ask", "infer", "row"]

NEIGHBOUR = "steady"
"""The model that nothing is done to, on the same server."""
PAUSE_S = 0.05
PATIENCE_S = 60.0
"""Longest wait for healing; what takes longer has not healed."""


@dataclass
class Seen:
    """Answers of one question that was asked again and again."""

    counts: Counter[str] = field(default_factory=Counter)
    changes: list[str] = field(default_factory=list)
    """Each answer that differs from the one before it."""

    def add(self, answer: str) -> None:
        """Note an answer."""
        self.counts[answer] += 1
        if not self.changes or self.changes[-1] != answer:
            self.changes.append(answer)

    @property
    def bad(self) -> Counter[str]:
        """All that were not 200."""
        return Counter({answer: count for answer, count in self.counts.items() if answer != "200"})


@dataclass
class Observed:
    """What one fault led to."""

    client: Counter[str] = field(default_factory=Counter)
    """What the requests that met the fault were answered: an HTTP status, or how the connection ended."""
    neighbour: Seen = field(default_factory=Seen)
    live: Seen = field(default_factory=Seen)
    ready: Seen = field(default_factory=Seen)
    healed_s: float | None = None
    """From the fault to the first good answer after it; None: it did not heal."""
    note: str = ""


@dataclass(frozen=True)
class Expected:
    """What must hold, on any machine."""

    client: frozenset[str]
    """Every answer to the client that meets the fault is one of these."""
    neighbour_loses: bool = False
    """Whether requests to the other model may be lost (they share what dies)."""
    stays_live: bool = True
    ends_a_probe: bool = False
    """Whether what dies may have accepted a probe's connection, which ends with it: one answer of liveness may be `reset`."""
    turns_unready: bool | None = False
    """Whether readiness must turn false meanwhile; None: it may."""
    heals: bool = True


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    fault: str
    expected: Expected
    run: Callable[[Path], Observed]
    needs: str = ""
    """A program that must be on the PATH, or `mount`."""


ROWS: dict[str, Row] = {}


def row(
    name: str, fault: str, client: str, *, needs: str = "", **expected: bool | None
) -> Callable[[Callable[[Path], Observed]], Callable[[Path], Observed]]:
    """Register a row.

    Args:
        name: its id.
        fault: in words, for the table.
        client: the answers that the client may get, joined by `|`.
        needs: see `Row.needs`.
        expected: the other fields of `Expected`.
    """

    def add(run: Callable[[Path], Observed]) -> Callable[[Path], Observed]:
        ROWS[name] = Row(name, fault, Expected(frozenset(client.split("|")), **expected), run, needs)  # type: ignore[arg-type]
        return run

    return add


def ask(port: int, path: str, body: bytes | None = None, *, timeout_s: float = 20.0, host: str = "") -> str:
    """One request on a connection of its own: the status, or in a word what happened to the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, http.client.HTTPException):
        return "reset"
    except TimeoutError:
        return "no answer"
    finally:
        connection.close()


def infer(port: int, model: str, value: float, *, timeout_s: float = 20.0) -> str:
    """One row of one number."""
    body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[%g]}]}' % value
    return ask(port, f"/v2/models/{model}/infer", body, timeout_s=timeout_s)


class Watch:
    """Asks the neighbour and both probes all along, from threads, and measures the healing."""

    def __init__(self, observed: Observed, ask_neighbour: Callable[[], str], ask_probe: Callable[[str], str]) -> None:
        self._end = threading.Event()
        self._ask = (
            (observed.neighbour, ask_neighbour),
            (observed.live, lambda: ask_probe("live")),
            (observed.ready, lambda: ask_probe("ready")),
        )
        self._observed = observed

    @contextlib.contextmanager
    def during(self) -> Iterator[None]:
        """Ask as long as the block runs, once before it and once after it at the least."""
        for seen, question in self._ask:
            seen.add(question())
        threads = [threading.Thread(target=self._go_on, args=one) for one in self._ask]
        for thread in threads:
            thread.start()
        try:
            yield
            time.sleep(4 * PAUSE_S)  # what comes after healing is seen too
        finally:
            self._end.set()
            for thread in threads:
                thread.join()
        for seen, question in self._ask:
            seen.add(question())

    def _go_on(self, seen: Seen, question: Callable[[], str]) -> None:
        while not self._end.wait(PAUSE_S):
            seen.add(question())

    def heal(self, is_well: Callable[[], bool], began: float) -> None:
        """Wait until it is well, and note how long that took since `began` (`time.monotonic`)."""
        while time.monotonic() - began < PATIENCE_S:
            if is_well():
                self._observed.healed_s = time.monotonic() - began
                return
            time.sleep(PAUSE_S)  # processes start and end, and nobody tells
