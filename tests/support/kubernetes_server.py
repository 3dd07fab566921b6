"""A small API server for InferenceServices and ConfigMaps: real HTTP, the semantics that a canary relies on, KServe's admission and bookkeeping.

What it enforces:
- resource versions: each write, of the status too, moves them; a patch that names another one is refused (409);
- server-side apply: a field manager is needed; a leaf (lists are one) that another manager owns with another value is a conflict (409, with
  the manager's name) unless forced; leaves that the manager has left out go, unless another owns them;
- JSON patches (RFC 6902: add, replace, remove) with `replace /metadata/resourceVersion` as the precondition;
- the schema and the webhook's rules as `serinus lint` knows them (403), and those of updates: predictor.name with the same storage, and the
  deployment mode (inference_service_validation.go 691-713);
- KServe's controller: revisions, traffic and latestRolledoutRevision in Knative mode (status.go 567-636), Deployments (with a generation
  that counts restarts) and canaryStatuses in Standard mode.
What it does not: watches, authorisation, quotas, other kinds, list types other than atomic.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from serinus.manifests.documents import Document
from serinus.manifests.linter import check_inference_service
from serinus.manifests.problems import Problems

__all__ = ["KubernetesServer", "kubernetes", "service_object"]

ISVC = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices/{}"
SCALING = ("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "canaryTrafficPercent")


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, causes: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.causes = causes or []


@dataclass
class KubernetesServer:
    """Objects by path, and what was done to them."""

    port: int = 0
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: dict[str, dict[str, set[tuple[str, ...]]]] = field(default_factory=dict)
    """By object: by manager: leaves."""
    deployments: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Standard mode: digest of the template, and how often it has changed."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    uid: str = "u-1"
    """Of what is put; an API server gives each new object another."""
    terminating: set[str] = field(default_factory=set)
    """Namespaces that are being deleted: nothing is created in them any more (plugin/pkg/admission/namespace/lifecycle)."""
    ready: bool = True
    """New revisions and canaries become ready at once."""
    writes: list[tuple[str, str, Any]] = field(default_factory=list)
    late: bool = False
    """The controller looks at a change when `reconcile` is called, not at once."""
    noise: int = 0
    """So many of the next reads are followed by a write of the status by the controller."""
    fail_next: list[int] = field(default_factory=list)
    """Statuses of the next patches, in place of doing them; 0: the connection is cut after it was done."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _version: int = 100

    def service(self, name: str = "m", namespace: str = "default") -> dict[str, Any]:
        return self.objects[ISVC.format(namespace, name)]

    def put(self, document: Mapping[str, Any], manager: str = "kubectl-client-side-apply") -> None:
        """Apply a whole object as a person does; what its manifest leaves out goes."""
        with self.lock:
            metadata = document["metadata"]
            path = ISVC.format(metadata.get("namespace", "default"), metadata["name"])
            old = self.objects.get(path)
            new = copy.deepcopy(dict(document))
            new["metadata"] = {**metadata, "namespace": metadata.get("namespace", "default"), "uid": self.uid}
            if old is not None:
                new["metadata"] = {**old["metadata"], **new["metadata"]}
                new["status"] = old.get("status", {})
            self.owners[path] = {manager: set(leaves(new["spec"], ("spec",)))}
            self._store(path, new, old)

    def edit(self, **spec: Any) -> None:
        """Change the specification as `kubectl edit` does."""
        with self.lock:
            path = ISVC.format("default", "m")
            old = self.objects[path]
            new = copy.deepcopy(old)
            new["spec"].update(spec)
            self._store(path, new, old)

    # What is asked over HTTP

    def get(self, path: str, query: Mapping[str, str]) -> Any:
        if path.endswith("/pods"):
            wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
            pods = [each for each in self.pods if wanted.items() <= each["metadata"]["labels"].items()]
            return {"kind": "PodList", "items": pods}
        if path not in self.objects:
            raise Refusal(404, f"{path} not found")
        found = copy.deepcopy(self.objects[path])
        if self.noise and path in self.objects and "inferenceservices" in path:
            self.noise -= 1
            self._touch(self.objects[path])
        return found

    def patch(self, path: str, query: Mapping[str, str], content_type: str, body: Any) -> Any:
        manager = query.get("fieldManager", "")
        self.writes.append((path, content_type, body))
        failure = self.fail_next.pop(0) if self.fail_next else None
        if failure:
            raise Refusal(failure, "the server is having a bad day")
        old = self.objects.get(path)
        namespace = path.partition("/namespaces/")[2].partition("/")[0]
        if old is None and namespace in self.terminating:
            because = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise Refusal(403, f"{path} is forbidden: {because}")
        if content_type == "application/apply-patch+yaml":
            if not manager:
                raise Refusal(422, "fieldManager: Required value: is required for apply patch")
            new = self._apply(path, old, body, manager, force=query.get("force") == "true")
        elif content_type == "application/json-patch+json":
            if old is None:
                raise Refusal(404, f"{path} not found")
            new = json_patched(old, body)
            if new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "the object has been modified; please apply your changes to the latest version")
            changed = set(leaves(new.get("spec", {}), ("spec",)))
            for leaf in self.owners.setdefault(path, {}).values():
                leaf &= changed
            self.owners[path].setdefault(manager, set()).update(changed)
        else:
            raise Refusal(415, f"{content_type} is not offered")
        self._store(path, new, old)
        if failure == 0:
            raise ConnectionAbortedError
        return copy.deepcopy(new)

    def delete(self, path: str) -> Any:
        if self.objects.pop(path, None) is None:
            raise Refusal(404, f"{path} not found")
        return {"kind": "Status", "status": "Success"}

    def _apply(
        self, path: str, old: dict[str, Any] | None, body: dict[str, Any], manager: str, *, force: bool
    ) -> dict[str, Any]:
        version = body["metadata"].get("resourceVersion")
        if version is not None and (old is None or version != old["metadata"]["resourceVersion"]):
            raise Refusal(409, "the object has been modified; please apply your changes to the latest version")
        new = copy.deepcopy(old) if old is not None else {"metadata": {}}
        mine = set(
            leaves({key: value for key, value in body.items() if key not in ("apiVersion", "kind", "metadata")}, ())
        )
        mine.discard(())
        owners = self.owners.setdefault(path, {})
        causes = []
        for other, owned in owners.items():
            for leaf in sorted(owned):
                clash = [each for each in mine if each[: len(leaf)] == leaf or leaf[: len(each)] == each]
                if other != manager and any(value_at(new, each) != value_at(body, each) for each in clash):
                    message = f'conflict with "{other}" using serving.kserve.io/v1beta1'
                    causes.append({"reason": "FieldManagerConflict", "message": message, "field": ".".join(leaf)})
        if causes and not force:
            raise Refusal(
                409, f"Apply failed with {len(causes)} conflict: {causes[0]['message']}: .{causes[0]['field']}", causes
            )
        if causes:
            for other in owners:
                if other != manager:
                    owners[other] = {leaf for leaf in owners[other] if leaf not in mine}
        for leaf in owners.get(manager, set()) - mine:
            if not any(leaf in owned for other, owned in owners.items() if other != manager):
                remove_at(new, leaf)
        owners[manager] = mine
        for leaf in mine:
            set_at(new, leaf, value_at(body, leaf))
        for key in ("apiVersion", "kind"):
            new[key] = body[key]
        for key, value in body["metadata"].items():
            if key != "resourceVersion":
                new["metadata"][key] = copy.deepcopy(value)
        return new

    def _store(self, path: str, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        if "inferenceservices" in path:
            admit(new, old)
            generation = old["metadata"].get("generation", 0) if old is not None else 0
            if old is None or new["spec"] != old["spec"]:
                generation += 1
            new["metadata"]["generation"] = generation
            if not self.late:
                self._reconcile(new)
        self._touch(new)
        self.objects[path] = new

    def _touch(self, document: dict[str, Any]) -> None:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)

    # KServe's controller

    def reconcile(self) -> None:
        """Let the controller look again, as when pods have become ready."""
        with self.lock:
            for path, document in self.objects.items():
                if "inferenceservices" in path:
                    self._reconcile(document)
                    self._touch(document)

    def _reconcile(self, service: dict[str, Any]) -> None:
        annotations = service["metadata"].get("annotations", {})
        status = service.setdefault("status", {})
        mode = annotations.get("serving.kserve.io/deploymentMode", "Knative")
        status["deploymentMode"] = mode
        if mode == "Knative":
            self._knative(service, status)
        else:
            self._standard(service, status)

    def _knative(self, service: dict[str, Any], status: dict[str, Any]) -> None:
        predictor = service["spec"]["predictor"]
        own = status.setdefault("components", {}).setdefault("predictor", {})
        template = digest({key: value for key, value in predictor.items() if key != "canaryTrafficPercent"})
        if status.get("_template") != template:
            status["_template"] = template
            status["_count"] = status.get("_count", 0) + 1
            own["latestCreatedRevision"] = f"{service['metadata']['name']}-predictor-{status['_count']:05d}"
        # KServe copies the generation of what it made, here a Knative Service: its template and its traffic.
        made = [template, predictor.get("canaryTrafficPercent")]
        if status.get("_made") != made:
            status["_made"] = made
            status["observedGeneration"] = status.get("observedGeneration", 0) + 1
        latest = own["latestCreatedRevision"]
        if self.ready or "latestReadyRevision" not in own:
            own["latestReadyRevision"] = latest
        percent = predictor.get("canaryTrafficPercent")
        rolled = own.get("latestRolledoutRevision", "")
        if not rolled:
            own["latestRolledoutRevision"] = rolled = latest
        elif (percent is None or percent >= 100) and own["latestReadyRevision"] == latest and latest != rolled:
            own["previousRolledoutRevision"] = rolled
            own["latestRolledoutRevision"] = rolled = latest
        if rolled == own["latestReadyRevision"]:
            own["traffic"] = [{"latestRevision": True, "percent": 100, "revisionName": rolled}]
        else:
            share = 100 if percent is None else percent
            own["traffic"] = [
                {"latestRevision": True, "percent": share, "revisionName": own["latestReadyRevision"]},
                {"revisionName": rolled, "percent": 100 - share, "tag": "prev"},
            ]

    def _standard(self, service: dict[str, Any], status: dict[str, Any]) -> None:
        name, spec = service["metadata"]["name"], service["spec"]
        stable = spec["predictor"]
        wanted = {title(name, stable): template_of(stable)}
        for entry in spec.get("canary") or ():
            wanted[title(name, entry["predictor"])] = template_of(merged(stable, entry["predictor"]))
        for deployment, template in wanted.items():
            kept = self.deployments.get(deployment)
            if kept is None:
                self.deployments[deployment] = (template, 1)
            elif kept[0] != template:
                self.deployments[deployment] = (template, kept[1] + 1)
        for gone in self.deployments.keys() - wanted.keys():
            del self.deployments[gone]
        status["canaryStatuses"] = [
            {
                "name": entry["predictor"]["name"],
                "ready": self.ready,
                "trafficPercent": entry["trafficPercent"] if self.ready else 0,
            }
            for entry in spec.get("canary") or ()
        ]
        status["observedGeneration"] = self.deployments[title(name, stable)][
            1
        ]  # the stable Deployment's, as KServe does
        status["conditions"] = [{"type": "PredictorReady", "status": "True" if self.ready else "False"}]
        status["address"] = {"url": f"http://{title(name, stable)}.default.svc.cluster.local"}


def admit(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Refuse what the API server and KServe's webhook do."""
    problems = Problems()
    metadata = {
        key: value for key, value in new["metadata"].items() if key in ("name", "namespace", "labels", "annotations")
    }
    document = {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": metadata, "spec": new["spec"]}
    check_inference_service(Document(document, {}, "object"), problems)
    if problems.errors:
        told = "; ".join(f"{each.field}: {each.message}" for each in problems.errors)
        raise Refusal(
            403, f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {told}'
        )
    if old is None:
        return
    before, after = old["spec"]["predictor"], new["spec"]["predictor"]
    if before.get("name") != after.get("name") and storage(before) == storage(after):
        raise Refusal(403, "admission webhook denied the request: predictor.name change requires a model change")
    mode = new["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode", "Knative")
    if old.get("status", {}).get("deploymentMode", mode) != mode:
        raise Refusal(403, "admission webhook denied the request: deploymentMode cannot be changed")


def storage(predictor: Mapping[str, Any]) -> Any:
    model = predictor.get("model") or {}
    environment = [
        variable.get("value")
        for container in predictor.get("containers") or ()
        for variable in container.get("env") or ()
        if variable.get("name") == "STORAGE_URI"
    ]
    return (model.get("storageUri"), environment)  # storageUris are not looked at (validation.go 703-713)


def title(service: str, predictor: Mapping[str, Any]) -> str:
    return "-".join(filter(None, (service, predictor.get("name"), "predictor")))


def template_of(predictor: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in predictor.items() if key not in (*SCALING, "name")})


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}
    return over


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path


def value_at(document: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        document = document.get(part) if isinstance(document, dict) else None
    return document


def set_at(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        document = document.setdefault(part, {})
    document[path[-1]] = copy.deepcopy(value)


def remove_at(document: Any, path: tuple[str, ...]) -> None:
    for part in path[:-1]:
        document = document.get(part, {}) if isinstance(document, dict) else {}
    if isinstance(document, dict):
        document.pop(path[-1], None)


def json_patched(document: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    new: Any = copy.deepcopy(document)
    for operation in operations:
        *parents, last = operation["path"].split("/")[1:]
        place = new
        try:
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            key: Any = int(last) if isinstance(place, list) else last
            if operation["op"] == "remove":
                del place[key]
            elif operation["op"] == "replace":
                place[key]  # must be there
                place[key] = copy.deepcopy(operation["value"])
            else:
                place[key] = copy.deepcopy(operation["value"])
        except (KeyError, IndexError, ValueError):
            raise Refusal(422, f"the server rejected our request: {operation}") from None
    return new


@contextlib.contextmanager
def kubernetes() -> Iterator[KubernetesServer]:
    """Serve from a thread."""
    server = KubernetesServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, ask: Any) -> None:
            try:
                with server.lock:
                    status, document = 200, ask()
            except Refusal as refusal:
                status = refusal.status
                document = {
                    "kind": "Status",
                    "status": "Failure",
                    "message": str(refusal),
                    "code": status,
                    "details": {"causes": refusal.causes},
                }
            except ConnectionAbortedError:
                self.close_connection = True
                return
            body = json.dumps(document).encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _target(self) -> tuple[str, dict[str, str]]:
            parts = urlsplit(self.path)
            return parts.path, {key: values[-1] for key, values in parse_qs(parts.query).items()}

        def do_GET(self) -> None:
            self._answer(lambda: server.get(*self._target()))

        def do_DELETE(self) -> None:
            self._answer(lambda: server.delete(self._target()[0]))

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda: server.patch(*self._target(), self.headers["Content-Type"], body))

        def log_message(self, *_: Any) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(10)


def service_object(
    mode: str = "Knative", *, uri: str = "gs://b/v1", runtime: str | None = None, canary: Any = None, **predictor: Any
) -> dict[str, Any]:
    """Write an InferenceService `m` with one model."""
    model: dict[str, Any] = {"modelFormat": {"name": "xgboost"}, "storageUri": uri}
    if runtime is not None:
        model["runtime"] = runtime
    spec: dict[str, Any] = {"predictor": {"model": model, **predictor}}
    if canary is not None:
        spec["canary"] = canary
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "m", "annotations": {"serving.kserve.io/deploymentMode": mode}},
        "spec": spec,
    }
