"""What a router counts: requests, errors and seconds of every node and step, as Prometheus reads them."""

from __future__ import annotations

import bisect

from ...exposition import Page

__all__ = ["BUCKETS_S", "RouterMetrics"]

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""prometheus-client's defaults, begun lower (a hop takes one millisecond) and ended at KServe's default limit of a request."""


class _Series:
    __slots__ = ("counts", "errors", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.errors = 0
        self.total_s = 0.0


class RouterMetrics:
    """Counters of one router.

    Args:
        graph: `namespace/name`, a label of everything.
    """

    def __init__(self, graph: str) -> None:
        self._graph = graph
        self._series: dict[tuple[str, str], _Series] = {}

    def record(self, node: str, step: str, seconds: float, *, failed: bool) -> None:
        """Count a node (empty step) or a step that has ended: answered, failed or been cancelled."""
        series = self._series.setdefault((node, step), _Series())
        series.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        series.errors += failed
        series.total_s += seconds

    def page(self) -> bytes:
        """The page of `/metrics`."""
        page = Page()
        for kind in ("node", "step"):
            chosen = [
                ({"graph": self._graph, "node": node, **({"step": step} if step else {})}, series)
                for (node, step), series in sorted(self._series.items())
                if bool(step) is (kind == "step")
            ]
            page.family(f"serinus_graph_{kind}_requests_total", "counter", f"Requests that a {kind} has ended.")
            for labels, series in chosen:
                page.sample(f"serinus_graph_{kind}_requests_total", labels, sum(series.counts))
            text = "Of those, the ones without a 2xx answer."
            page.family(f"serinus_graph_{kind}_errors_total", "counter", text)
            for labels, series in chosen:
                page.sample(f"serinus_graph_{kind}_errors_total", labels, series.errors)
            page.family(f"serinus_graph_{kind}_seconds", "histogram", f"How long a {kind} took.")
            for labels, series in chosen:
                page.histogram(f"serinus_graph_{kind}_seconds", labels, BUCKETS_S, series.counts, series.total_s)
        return page.encode()
