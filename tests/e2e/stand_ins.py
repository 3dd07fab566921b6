"""What a control plane without nodes lacks, stood in for in a test's namespace: kubelets, a gateway, and Knative's controllers.

Only status is written, in the words of those programs, so that KServe's own controller goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from .cluster import KNATIVE, ROUTES, Cluster

__all__ = ["mark_ready"]

_TEMPLATE = "serinus.dev/e2e-template"
"""Annotation of a Knative Service's status: which template its latest revision was made of."""


def mark_ready(cluster: Cluster) -> None:
    """Do one round: pods are running and ready, HTTPRoutes are accepted, Knative Services have revisions and their traffic.

    What is ready already is left alone. Knative's part is left to its controller where the cluster runs it.
    """
    _mark_pods(cluster)
    if cluster.has_kind(ROUTES):
        _mark_routes(cluster)
    if cluster.has_kind(KNATIVE) and not cluster.runs_knative():
        _mark_knative(cluster)


def _mark_pods(cluster: Cluster) -> None:
    now = _now()
    for pod in cluster.all("pods"):
        if pod["metadata"].get("deletionTimestamp") or Cluster.condition(pod, "Ready").get("status") == "True":
            continue
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("Initialized", "ContainersReady", "Ready", "PodScheduled")
        ]
        statuses = [
            {
                "name": item["name"],
                "ready": True,
                "started": True,
                "restartCount": 0,
                "image": item.get("image", ""),
                "imageID": "",
                "state": {"running": {"startedAt": now}},
            }
            for item in pod["spec"]["containers"]
        ]
        status = {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": statuses,
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "startTime": now,
        }
        cluster.patch("pod", pod["metadata"]["name"], {"status": status}, subresource="status")


def _mark_routes(cluster: Cluster) -> None:
    now = _now()
    for route in cluster.all(ROUTES):
        generation = route["metadata"]["generation"]
        parents = [_accepted(parent, route, generation, now) for parent in route["spec"].get("parentRefs", [])]
        known = route.get("status", {}).get("parents", [])
        if [_told(parent) for parent in known] != [_told(parent) for parent in parents]:
            cluster.patch(ROUTES, route["metadata"]["name"], {"status": {"parents": parents}}, subresource="status")


def _accepted(parent: Mapping[str, Any], route: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    reasons = (("Accepted", "Accepted"), ("ResolvedRefs", "ResolvedRefs"))
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": "",
            "observedGeneration": generation,
            "lastTransitionTime": now,
        }
        for kind, reason in reasons
    ]
    reference = {
        key: value
        for key, value in parent.items()
        if key in {"group", "kind", "name", "namespace", "sectionName", "port"}
    }
    return {"parentRef": reference, "controllerName": "serinus.dev/e2e", "conditions": conditions}


def _told(parent: Mapping[str, Any]) -> tuple[str, list[tuple[str, int]]]:
    conditions = [(c["type"], c.get("observedGeneration", 0)) for c in parent.get("conditions", [])]
    return str(parent.get("parentRef", {}).get("name")), conditions


def _mark_knative(cluster: Cluster) -> None:
    for service in cluster.all(KNATIVE):
        metadata, status = service["metadata"], service.get("status", {})
        if metadata.get("deletionTimestamp") or status.get("observedGeneration") == metadata["generation"]:
            continue
        cluster.patch(KNATIVE, metadata["name"], {"status": _knative_status(service)}, subresource="status")


def _knative_status(service: Mapping[str, Any]) -> dict[str, Any]:
    """The status that Knative gives a Service whose pods are ready; a changed template makes the next revision."""
    metadata, status = service["metadata"], service.get("status", {})
    name, space = metadata["name"], metadata["namespace"]
    template = hashlib.sha256(json.dumps(service["spec"]["template"], sort_keys=True).encode()).hexdigest()[:16]
    revision = str(status.get("latestCreatedRevisionName", ""))
    if status.get("annotations", {}).get(_TEMPLATE) != template:
        revision = f"{name}-{int(revision.rpartition('-')[2] or 0) + 1:05d}"
    traffic = [
        {**target, "revisionName": target.get("revisionName") or revision}
        for target in service["spec"].get("traffic") or [{"latestRevision": True, "percent": 100}]
    ]
    return {
        "annotations": {_TEMPLATE: template},
        "observedGeneration": metadata["generation"],
        "latestCreatedRevisionName": revision,
        "latestReadyRevisionName": revision,
        "traffic": traffic,
        "url": f"http://{name}.{space}.example.com",
        "address": {"url": f"http://{name}.{space}.svc.cluster.local"},
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": _now()}
            for kind in ("ConfigurationsReady", "RoutesReady", "Ready")
        ],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
