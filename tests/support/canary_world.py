"""A cluster with a canary whose clock only sleeping moves: what runs of the controller are tested in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canary_pages import Pages, page_of, pages
from kubernetes_server import KubernetesServer, kubernetes, service_object
from serinus.canary.policy import parse_policy
from serinus.canary.rollout.controller import Controller, RunOptions
from serinus.canary.rollout.run_events import Ending, Event
from serinus.canary.rollout.run_files import RunFiles
from serinus.canary.sources.pod_scrape import PodScrape
from serinus.canary.targets.kserve_target import KServeTarget
from serinus.canary.targets.kubeconfig import Access
from serinus.canary.targets.kubernetes_client import KubernetesClient

__all__ = ["POLICY", "Crash", "World", "crash", "world"]

POLICY = """
steps: [10, 50, 100]
level: 0.05
minimum: {canary_requests: 200, seconds: 60}
maximum: {seconds: 3600, then: hold}
guardrails:
  errors: {margin_percentage_points: 2}
"""


@dataclass
class World:
    """A cluster with an InferenceService, its two pods' pages, a clock that only sleeping moves, and what happened."""

    server: KubernetesServer
    stable: Pages
    canary: Pages
    folder: Path
    bad: float = 0.0
    """Share of the canary's requests that fail."""
    requests: int = 3000
    """Of both arms, at each look."""
    now: float = 1_000_000.0
    counts: dict[str, list[int]] = field(default_factory=lambda: {"stable": [10_000, 50], "canary": [0, 0]})
    """Successes and failures, by arm."""
    events: list[Event] = field(default_factory=list)
    on_sleep: list[Callable[[], None]] = field(default_factory=list)
    """Done at the next sleeps between looks, one each."""
    revisions: tuple[str, str] = ("m-predictor-00001", "m-predictor-00002")
    old_predictor: dict[str, Any] | None = None
    becomes_ready: bool = False
    """Pods that are not ready are so at the next wait."""
    shares: list[tuple[str, int]] = field(default_factory=list)
    """Revision and percent of what got traffic, at each wait."""

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds < 10:
            if self.server.service()["status"]["deploymentMode"] == "Knative":
                traffic = self.server.service()["status"]["components"]["predictor"]["traffic"]
                self.shares += [(each["revisionName"], each["percent"]) for each in traffic if each["percent"]]
            if self.becomes_ready and not self.server.ready:
                self.server.ready = True
                self.server.reconcile()
            return
        if self.on_sleep:
            self.on_sleep.pop(0)()
        share = self.share() / 100
        for arm, part, bad in (("canary", share, self.bad), ("stable", 1 - share, 0.005)):
            count = round(self.requests * part)
            failed = round(count * bad)
            self.counts[arm][0] += count - failed
            self.counts[arm][1] += failed
        self.publish()

    def share(self) -> int:
        status = self.server.service()["status"]
        if status["deploymentMode"] == "Standard":
            return sum(each["trafficPercent"] for each in status["canaryStatuses"])
        return next(
            (
                each["percent"]
                for each in status["components"]["predictor"]["traffic"]
                if each["revisionName"] == self.revisions[1]
            ),
            0,
        )

    def publish(self) -> None:
        for served, arm, revision in (
            (self.stable, "stable", self.revisions[0]),
            (self.canary, "canary", self.revisions[1]),
        ):
            good, failed = self.counts[arm]
            served.answers["/metrics"] = page_of(revision, started=900.0, success=good, failed=failed)

    def controller(self, policy: str = POLICY, files: str = "runs", **options: Any) -> Controller:
        keep_warm = options.get("warm_s", 0.0) > 0
        client = KubernetesClient(Access("127.0.0.1", self.server.port))
        target = KServeTarget(client, "default", "m", keep_warm=keep_warm, old_predictor=self.old_predictor)
        return Controller(
            target,
            PodScrape(target.endpoints),
            parse_policy(policy),
            RunFiles(self.folder / files, "m"),
            RunOptions(interval_s=30.0, **options),
            tell=self.events.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def run(self, **options: Any) -> Ending:
        return self.controller(**options).run()

    def told(self, kind: str) -> list[str]:
        return [event.words for event in self.events if event.kind == kind]

    @property
    def moves(self) -> list[Any]:
        """Percentages of the moves, None for other changes."""
        return [event.details.get("percent") for event in self.events if event.kind == "move"]


def pod(name: str, port: int, revision: str) -> dict[str, Any]:
    labels = {
        "serving.kserve.io/inferenceservice": "m",
        "component": "predictor",
        "serving.knative.dev/revision": revision,
    }
    metadata = {"name": name, "labels": labels, "annotations": {"prometheus.io/port": str(port)}}
    return {"metadata": metadata, "status": {"podIP": "127.0.0.1", "phase": "Running"}}


@contextlib.contextmanager
def world(folder: Path, mode: str = "Knative", **changes: Any) -> Iterator[World]:
    with kubernetes() as server, pages() as stable, pages() as canary:
        if mode == "Knative":
            server.put(service_object())
            server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=0))
            revisions = ("m-predictor-00001", "m-predictor-00002")
        else:
            model = {"modelFormat": {"name": "xgboost"}, "storageUri": "gs://b/v2", **changes.pop("model", {})}
            entry = {"trafficPercent": 0, "predictor": {"name": "v2", "model": model}}
            server.put(service_object("Standard", canary=[entry], **changes.pop("predictor", {})))
            name = server.service()["spec"]["predictor"].get("name")
            revisions = (f"m-{name}-predictor" if name else "m-predictor", "m-v2-predictor")
        server.pods = [pod("s", stable.port, revisions[0]), pod("c", canary.port, revisions[1])]
        made = World(server, stable, canary, folder, revisions=revisions, **changes)
        made.publish()
        yield made


class Crash(BaseException):
    """What ends a controller in the middle of things."""


def crash() -> None:
    raise Crash
