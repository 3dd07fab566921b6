"""A namespace of its own on the cluster of KUBECONFIG, for `make e2e`; nothing here touches a cluster otherwise.

Rights: those of `needed` in the namespace, and to create namespaces unless one is given; a cluster's administrator has them.

Environment: `E2E=1` (set by `make e2e`) allows it at all; `E2E_CONTROL_PLANE_ONLY=1` for a control plane without nodes, whose pods, routes
and Knative Services are then marked ready by the tests; `E2E_NAMESPACE` takes a namespace that exists, has no InferenceService, and stays;
`E2E_INGRESS` is the gateway's address for requests (`http://127.0.0.1:8080`); `E2E_TIMEOUT_S` bounds each wait (120; 600 with nodes).
"""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster import KNATIVE, ROUTES, Cluster, is_control_plane_only, render
from .stand_ins import mark_ready

ROOT = Path(__file__).resolve().parents[2]
MARK_EVERY_S = 1.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(1200))
            if os.environ.get("E2E") != "1":
                item.add_marker(pytest.mark.skip(reason="make e2e runs it against the cluster of KUBECONFIG"))


RUNTIMES = ROOT / "manifests/overlays/local"


def needed(cluster: Cluster) -> list[str]:
    """Rights that the tests use and the user of KUBECONFIG does not have."""
    rights = [
        (verb, "inferenceservices.serving.kserve.io", "") for verb in ("create", "get", "list", "patch", "delete")
    ]
    rights += [(verb, "servingruntimes.serving.kserve.io", "") for verb in ("create", "list", "patch", "delete")]
    rights += [("get", kind, "") for kind in ("deployments.apps", "services", "pods", "events")]
    if is_control_plane_only():
        kinds = ("pods", *(kind for kind in (ROUTES, KNATIVE) if cluster.has_kind(kind)))
        rights += [("patch", kind, "status") for kind in kinds]
    return [
        f"{verb} {kind}{'/' + below if below else ''}"
        for verb, kind, below in rights
        if not cluster.may(verb, kind, subresource=below)
    ]


def runtimes() -> list[dict[str, Any]]:
    """Our ClusterServingRuntimes as ServingRuntimes, which are looked for first: other namespaces' services never see them."""
    documents = [item for item in yaml.safe_load_all(render(RUNTIMES)) if item["kind"] == "ClusterServingRuntime"]
    return [{**document, "kind": "ServingRuntime"} for document in documents]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A namespace of the cluster, with our runtimes; ready marks are set while it lives where there are no nodes.

    Everything that the tests make is in it, so that two runs on one cluster do not meet, and a run that was killed leaves a namespace alone.
    """
    given = os.environ.get("E2E_NAMESPACE", "")
    name = given or f"serinus-e2e-{uuid.uuid4().hex[:8]}"
    timeout = float(os.environ.get("E2E_TIMEOUT_S") or (120 if is_control_plane_only() else 600))
    found = Cluster(name, timeout)
    found.kubectl("version", namespaced=False)  # says in kubectl's words that no cluster answers
    assert found.has_kind("inferenceservices.serving.kserve.io"), (
        "the cluster of KUBECONFIG has no KServe: its CRDs are missing"
    )
    if not given:
        assert found.may("create", "namespaces", namespaced=False), (
            "the user of KUBECONFIG may not create namespaces: name one that is there and empty in E2E_NAMESPACE"
        )
    lacking = needed(found)
    assert not lacking, f"the user of KUBECONFIG may not {', '.join(lacking)} in namespace {name}"
    if given:
        there = [item["metadata"]["name"] for item in found.all("inferenceservices")]
        assert not there, f"namespace {name} has InferenceServices, which the tests could replace: {', '.join(there)}"
    else:
        found.kubectl("create", "namespace", name, namespaced=False)
    stop = threading.Event()

    def mark() -> None:
        while not stop.wait(MARK_EVERY_S):
            try:
                mark_ready(found)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                # An object that went meanwhile: the next round sees what is left. One that stays is told by what waits for it.
                found.marks.append(str(error))

    marker = threading.Thread(target=mark, name="mark ready", daemon=True)
    try:
        made = yaml.safe_dump_all(found.placed(runtimes()))
        found.apply(made)
        if is_control_plane_only():
            marker.start()
        yield found
    finally:
        stop.set()
        if marker.is_alive():
            marker.join(timeout=60)
        if given:
            # Also those that came with a service.
            found.kubectl("delete", "servingruntimes", "-l", "app.kubernetes.io/part-of=serinus", check=False)
        else:
            found.kubectl("delete", "namespace", name, "--wait=false", namespaced=False, check=False)
