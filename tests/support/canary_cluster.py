"""A cluster with a canary and steady traffic, and a model for `serinus up`, as the commands of `serinus canary` see them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from canary_pages import page_of, pages
from kubernetes_server import KubernetesServer, kubernetes, service_object

__all__ = ["BODY", "MODEL", "POLICY", "cluster", "local_manifest"]

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


MODEL = """
from serinus import Model, TensorSpec


class Scores(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    calls = 0

    def predict(self, inputs, call):
        Scores.calls += bool(inputs["x"].any())  # what warms it up does not count
        if EVERY and Scores.calls % EVERY == 0:
            raise RuntimeError("every so often")
        return {"y": inputs["x"]}
"""
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()


RUNTIME: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ServingRuntime",
    "metadata": {"name": "scores"},
    "spec": {
        "supportedModelFormats": [{"name": "scores", "autoSelect": True}],
        "protocolVersions": ["v2"],
        "containers": [
            {
                "name": "kserve-container",
                "image": "local",
                "command": ["python", "-m", "serinus.cli", "serve"],
                "args": ["--model_name={{.Name}}", "--http_port=8080", "--grpc_port=8081", "--execution=inline"],
                "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
            }
        ],
    },
}


def local_manifest(folder: Path, mode: str, file: str, percent: int | None) -> str:
    """Write one version, or in Standard mode both, of a model in a file."""

    def model(name: str) -> dict[str, Any]:
        return {"modelFormat": {"name": "scores"}, "runtime": "scores", "args": ["--class", f"{folder}/{name}:Scores"]}

    predictor: dict[str, Any] = {"model": model("one.py" if mode == "Standard" else file)}
    spec: dict[str, Any] = {"predictor": predictor}
    if mode == "Standard":
        predictor["name"] = "v1"
        spec["canary"] = [{"trafficPercent": percent, "predictor": {"name": "v2", "model": model(file)}}]
    elif percent is not None:
        predictor["canaryTrafficPercent"] = percent
    metadata = {"name": "fraud", "annotations": {"serving.kserve.io/deploymentMode": mode}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": spec,
    }
    return yaml.safe_dump_all([RUNTIME, service])
