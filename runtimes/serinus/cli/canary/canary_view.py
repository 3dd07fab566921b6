"""What `serinus canary run` shows: a live picture on a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...canary.rollout.run_events import Event
from ..tables import make_console

__all__ = ["RunView"]

_STYLES = {
    "problem": "red",
    "move": "bold",
    "end": "bold",
    "note": "dim",
    "promote": "green",
    "rollback": "red",
    "hold": "yellow",
    "advance": "cyan",
}
_LINES = 8


class RunView:
    """Shows events as they come.

    Args:
        output: auto is live on a terminal and lines elsewhere.
        console: where to; None: standard output.
    """

    def __init__(self, output: Literal["auto", "live", "lines", "json"], console: Console | None = None) -> None:
        self._console = console or make_console()
        self._output = output if output != "auto" else ("live" if self._console.is_terminal else "lines")
        self._live: Live | None = None
        self._begun: dict[str, Any] = {}
        self._look: dict[str, Any] = {}
        self._verdict: dict[str, Any] = {}
        self._recent: deque[Text] = deque(maxlen=_LINES)

    def start(self) -> None:
        """Begin the live picture, where there is one."""
        if self._output == "live":
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._picture)
            self._live.start()

    def stop(self) -> None:
        """Leave the last picture as it is."""
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Take an event."""
        details = dict(event.details)
        if self._output == "json":
            sys.stdout.write(json.dumps({"kind": event.kind, "words": event.words, **details}) + "\n")
            sys.stdout.flush()
            return
        if event.kind == "begin":
            self._begun = details
        if event.kind == "look":
            self._look, self._verdict = details["counts"], details["verdict"]
        line = Text(f"{time.strftime('%H:%M:%S', time.localtime(details['time']))} ", style="dim")
        style = _STYLES.get(self._verdict.get("decision", "") if event.kind == "look" else event.kind, "")
        line.append(event.words if event.kind in ("look", "begin") else f"{event.kind}: {event.words}", style=style)
        self._recent.append(line)
        if self._output == "lines":
            self._console.print(line)
            for reason in self._verdict.get("reasons", ())[1:] if event.kind == "look" else ():
                self._console.print(f"         {reason}", markup=False)

    def _picture(self) -> Group:
        """Draw both arms, the verdict with its reasons, and what was told last."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("ARM", "REVISION", "TRAFFIC", "REQUESTS", "ERRORS", "MEDIAN BUCKET"):
            table.add_column(name, no_wrap=True, justify="left" if name in ("ARM", "REVISION") else "right")
        percent = self._look.get("percent", self._begun.get("percent") or 0)
        for arm, share in (("stable", 100 - percent), ("canary", percent)):
            counts = self._look.get(arm, {})
            requests, errors = counts.get("requests", 0), counts.get("errors")
            rate = f"{errors:,} ({100 * errors / requests:.2f} %)" if errors is not None and requests else "-"
            table.add_row(
                arm,
                str(self._begun.get(arm, "")),
                f"{share:g} %",
                f"{requests:,}",
                rate,
                _median(counts.get("latency")),
            )
        parts: list[Any] = [table]
        if self._verdict:
            decision = self._verdict["decision"]
            parts.append(
                Text(f"\n{decision} after look {self._verdict['look']}", style=f"bold {_STYLES.get(decision, '')}")
            )
            parts += [Text(f"  {reason}") for reason in self._verdict["reasons"]]
        return Group(*parts, Text(""), *self._recent)


def _median(latency: dict[str, Any] | None) -> str:
    """Name the bucket of a histogram that its median is in."""
    counts = latency["counts"] if latency else []
    half, seen = sum(counts) / 2, 0
    if not half or latency is None:
        return "-"
    for bound, count in zip([*latency["le_s"], None], counts, strict=True):
        seen += count
        if seen >= half:
            return "beyond" if bound is None else f"<= {bound * 1000:g} ms"
    return "-"
