"""A namespace of its own on the cluster of KUBECONFIG, for `make e2e`; nothing here touches a cluster otherwise.

Environment: `E2E=1` (set by `make e2e`) allows it at all; `E2E_CONTROL_PLANE_ONLY=1` for a control plane without nodes, whose pods and routes
are then marked ready by the tests; `E2E_NAMESPACE` takes a namespace that exists and leaves it; `E2E_INGRESS` is the gateway's address for requests
(`http://127.0.0.1:8080`); `E2E_TIMEOUT_S` bounds each wait (120; 600 with nodes).
"""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .cluster import Cluster, is_control_plane_only, mark_ready, render

ROOT = Path(__file__).resolve().parents[2]
MARK_EVERY_S = 1.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(1200))
            if os.environ.get("E2E") != "1":
                item.add_marker(pytest.mark.skip(reason="make e2e runs it against the cluster of KUBECONFIG"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A namespace of the cluster, with our runtimes; ready marks are set while it lives where there are no nodes."""
    given = os.environ.get("E2E_NAMESPACE", "")
    name = given or f"serinus-e2e-{uuid.uuid4().hex[:8]}"
    timeout = float(os.environ.get("E2E_TIMEOUT_S") or (120 if is_control_plane_only() else 600))
    found = Cluster(name, timeout)
    found.kubectl("version", namespaced=False)  # says in kubectl's words that no cluster answers
    assert found.has_kind("inferenceservices.serving.kserve.io"), (
        "the cluster of KUBECONFIG has no KServe: its CRDs are missing"
    )
    if not given:
        found.kubectl("create", "namespace", name, namespaced=False)
    documents = list(yaml.safe_load_all(render(ROOT / "manifests/overlays/local")))
    # The overlay's own namespace stays out: these tests have one for themselves.
    runtimes = [document for document in documents if document["kind"] == "ClusterServingRuntime"]
    overlay = yaml.safe_dump_all(runtimes)
    names = [document["metadata"]["name"] for document in runtimes]
    there = found.kubectl("get", "clusterservingruntimes", "-o", "name", namespaced=False).split()
    made = [runtime for runtime in names if f"clusterservingruntime.serving.kserve.io/{runtime}" not in there]
    found.apply(overlay)
    stop = threading.Event()

    def mark() -> None:
        while not stop.wait(MARK_EVERY_S):
            try:
                mark_ready(found)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                # An object that went meanwhile: the next round sees what is left. One that stays is told by what waits for it.
                found.marks.append(str(error))

    marker = threading.Thread(target=mark, name="mark ready", daemon=True)
    if is_control_plane_only():
        marker.start()
    try:
        yield found
    finally:
        stop.set()
        if marker.is_alive():
            marker.join(timeout=60)
        if not given:
            found.kubectl("delete", "namespace", name, "--wait=false", namespaced=False, check=False)
        for runtime in made:
            found.kubectl(
                "delete", "clusterservingruntime", runtime, "--ignore-not-found", namespaced=False, check=False
            )
