"""A run's page while it goes on: the document, and what has changed since a version of it."""

from __future__ import annotations

import threading
import time

from ..rollout.run_events import Event
from ..rollout.run_files import RunFiles
from .history import RunHistory
from .listener import Answer, Request, as_json
from .page import content_security_policy, render_document, render_run, title_of

__all__ = ["LivePage"]


class LivePage:
    """Takes events in one thread, and answers in others.

    Args:
        files: of the service's runs; what a run had recorded before it was gone on with is shown too.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._history = RunHistory()
        self._version = 0
        self._rendered: tuple[int, str] | None = None
        self._asked = 0.0
        """When a page asked for news last, by the monotonic clock."""
        self._end_was_read = threading.Event()

    def take(self, event: Event) -> None:
        """Take an event of the run."""
        with self._lock:
            if event.kind == "begin":
                self._history = RunHistory()
                for kept in self._files.events(str(event.details.get("run") or "")):
                    self._history.take(kept)  # this one among them: it is written before it is told
            else:
                self._history.take({"kind": event.kind, "words": event.words, **event.details})
            self._version += 1

    def answer(self, request: Request) -> Answer:
        """Answer `/`, `/live.json?seen=VERSION` and `/healthz`."""
        if request.method != "GET":
            return as_json(405, {"error": f"{request.method} is not offered; the page is read with GET"})
        if request.path == "/":
            with self._lock:
                text = render_document([self._history], version=self._version)
            headers = {"Content-Security-Policy": f"{content_security_policy()}; frame-ancestors 'none'"}
            return Answer(200, text.encode(), "text/html; charset=utf-8", headers)
        if request.path == "/live.json":
            return self._news(request.query.get("seen", ""))
        if request.path == "/healthz":
            return as_json(200, {"status": "ok"})
        return as_json(404, {"error": "there are /, /live.json and /healthz"})

    def _news(self, seen: str) -> Answer:
        with self._lock:
            self._asked = time.monotonic()
            ended = bool(self._history.ending)
            news: dict[str, object] = {"version": self._version, "ended": ended}
            if seen != str(self._version):
                if self._rendered is None or self._rendered[0] != self._version:
                    self._rendered = (self._version, f"<section>{render_run(self._history)}</section>")
                news["html"], news["title"] = self._rendered[1], title_of(self._history)
        if ended:
            self._end_was_read.set()
        return as_json(200, news)

    def wait_for_readers(self, most_s: float) -> None:
        """Wait until a page that is open has read the end; at once where none is."""
        with self._lock:
            is_read = self._asked and time.monotonic() - self._asked < 2 * most_s
        if is_read:
            self._end_was_read.wait(most_s)
