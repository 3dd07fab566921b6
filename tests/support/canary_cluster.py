"""A cluster with a canary and steady traffic, as the commands of `serinus canary` see it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from canary_pages import page_of, pages
from kubernetes_server import KubernetesServer, kubernetes, service_object

__all__ = ["POLICY", "cluster"]

POLICY = """
steps: [10, 50, 100]
level: 0.05
minimum: {canary_requests: 200, seconds: 0}
maximum: {seconds: 3600, then: hold}
guardrails:
  errors: {margin_percentage_points: 2}
"""


@contextlib.contextmanager
def cluster(folder: Path, *, bad: float = 0.005, percent: int = 0) -> Iterator[tuple[KubernetesServer, list[str]]]:
    """A cluster with a canary and steady traffic; gives the options that name it."""
    with kubernetes() as server, pages() as stable, pages() as canary:
        server.put(service_object())
        server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=percent))
        names = ("m-predictor-00001", "m-predictor-00002")
        for served, name in zip((stable, canary), names, strict=True):
            labels = {
                "serving.kserve.io/inferenceservice": "m",
                "component": "predictor",
                "serving.knative.dev/revision": name,
            }
            metadata = {"name": name, "labels": labels, "annotations": {"prometheus.io/port": str(served.port)}}
            server.pods.append({"metadata": metadata, "status": {"podIP": "127.0.0.1", "phase": "Running"}})
        counts = {name: [0.0, 0.0] for name in names}
        done = threading.Event()

        def flow() -> None:
            while not done.wait(0.01):
                traffic = server.service()["status"]["components"]["predictor"]["traffic"]
                for entry in traffic:
                    share, wrong = entry["percent"] / 100 * 200, bad if entry["revisionName"] == names[1] else 0.005
                    counts[entry["revisionName"]][0] += share * (1 - wrong)
                    counts[entry["revisionName"]][1] += share * wrong
                for served, name in zip((stable, canary), names, strict=True):
                    good, failed = counts[name]
                    served.answers["/metrics"] = page_of(name, started=900.0, success=int(good), failed=int(failed))

        thread = threading.Thread(target=flow, daemon=True)
        thread.start()
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        (folder / "policy.yaml").write_text(POLICY)
        try:
            yield server, ["--kubeconfig", str(folder / "kubeconfig"), "--state-dir", str(folder / "state")]
        finally:
            done.set()
            thread.join(10)
