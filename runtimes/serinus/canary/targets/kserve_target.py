"""An InferenceService in a cluster as a target.

Theory of operation. Each change reads the object, holds it against what was decided on, and sends one conditional request: steps and rollbacks of
Knative mode as server-side apply of the one field, those of Standard mode as server-side apply of `spec.canary` (a list that belongs to one
manager), promotions as a JSON patch, since they replace a predictor that others have written. All name the resource version that was read: an
edit in between makes the server refuse (409). KServe's own controller writes the status and so moves the resource version too; then the object is
read again, and if its specification is still what was decided on, the request is repeated.

Fields that somebody applied by kubectl are taken over. Those that a GitOps controller owns are not, unless that is asked for: it would set them
back, and the two would fight.

What a controller keeps (its record) is an annotation of a ConfigMap, `NAME-serinus-canary`, that the InferenceService owns. Not of the
InferenceService itself: KServe hands its annotations on to the pods' template (predictor.go, ServiceAnnotationDisallowedList), so each look would make
a revision in Knative mode, and restart every pod in Standard mode.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..policy_annotation import POLICY_ANNOTATION
from ..sources.pod_scrape import Endpoint
from .kubernetes_client import FIELD_MANAGER, FieldConflict, KubernetesClient, NotThere, Refused
from .service_changes import (
    canary_names,
    knative_change,
    knative_state,
    mode_of,
    refusals,
    standard_change,
    standard_state,
)
from .target import Action, Change, TargetChanged, TargetFailed, TargetGone, TargetState

__all__ = ["KServeTarget"]

_GROUP: Final = "/apis/serving.kserve.io/v1beta1"
_ANNOTATION: Final = "serinus.io/canary"
_TRIES: Final = 8
"""Of a conditional request against KServe's writes of the status, a few a second while pods come."""


class KServeTarget:
    """One InferenceService.

    Args:
        client: of the API server.
        namespace: of the service.
        name: of the service.
        canary: name of its canary in Standard mode, where there are several.
        take_over: fields that any other manager owns.
        keep_warm: the old version stays after a promotion, where that is possible.
        metrics_port: of the pods.
        old_predictor: `spec.predictor` of the old version, to be described again after a rollback in Knative mode.
    """

    lets_go = False
    can_shadow = False

    def __init__(
        self,
        client: KubernetesClient,
        namespace: str,
        name: str,
        *,
        canary: str = "",
        take_over: bool = False,
        keep_warm: bool = False,
        metrics_port: int = 8080,
        old_predictor: Mapping[str, Any] | None = None,
    ) -> None:
        self.can_restore = False
        """Known once a service is seen: it is in Knative mode."""
        self._old_predictor = old_predictor
        self.keeps_warm = False
        """Known once a service is seen: its stable predictor has a name."""
        self._client = client
        self._namespace, self._name = namespace, name
        self._canary = canary
        self._take_over = take_over
        self._keep_warm = keep_warm
        self._port = metrics_port
        self._path = f"{_GROUP}/namespaces/{namespace}/inferenceservices/{name}"
        self._record_path = f"/api/v1/namespaces/{namespace}/configmaps/{name}-serinus-canary"
        self._record_version = ""
        self._uid = ""
        self._rolls_from: int | None = None
        """Generation of the stable Deployment before a promotion that rolls it; None: none rolls."""

    # What it says

    def state(self) -> TargetState:
        """See `Target.state`."""
        return self._read(self._get())

    def _get(self) -> dict[str, Any]:
        try:
            service = self._client.get(self._path)
        except NotThere:
            raise TargetGone(
                f"there is no InferenceService {self._name} in namespace {self._namespace}; name another with --namespace"
            ) from None
        metadata = service.get("metadata", {})
        if metadata.get("deletionTimestamp"):
            # It goes when its finalizers are done, whatever is written until then: by its own deletion, or by its namespace's.
            raise TargetGone(
                f"{self._namespace}/{self._name} is being deleted since {metadata['deletionTimestamp']}; wait until it is gone, and create it anew"
            )
        self._uid = str(metadata.get("uid") or "")
        return service

    def _read(self, service: Mapping[str, Any]) -> TargetState:
        metadata = service.get("metadata", {})
        annotations = metadata.get("annotations") or {}
        return replace(
            self._read_split(service),
            identity=str(metadata.get("uid") or ""),
            policy=str(annotations.get(POLICY_ANNOTATION) or ""),
        )

    def _read_split(self, service: Mapping[str, Any]) -> TargetState:
        mode = mode_of(service)
        if mode == "Knative":
            self.can_restore = self._old_predictor is not None
            return knative_state(service)
        if mode == "Standard":
            self.keeps_warm = bool(service.get("spec", {}).get("predictor", {}).get("name"))
            return standard_state(service, self._canary)
        raise TargetFailed(
            f"{self._namespace}/{self._name} is in mode {mode}; canaries are in Knative and Standard mode"
        )

    def _title(self, action: Action, seen: TargetState) -> str:
        """Give the name of the entry of `spec.canary`: its Deployment's, without what KServe adds. What is kept warm is the old stable."""
        revision = seen.stable if action == "finish" else seen.canary
        return revision.removeprefix(f"{self._name}-").removesuffix("-predictor")

    def planned(self, action: Action, percent: int, seen: TargetState) -> Change:
        """See `Target.planned`."""
        return self._planned(self._get(), action, percent, seen)

    def _planned(self, service: dict[str, Any], action: Action, percent: int, seen: TargetState) -> Change:
        if seen.mode == "Knative":
            change = knative_change(action, percent, service, self._old_predictor)
        else:
            change = standard_change(action, percent, service, self._title(action, seen), keep_warm=self._keep_warm)
        refused = refusals(service, patched(service, change.patch)) if change.patch else ()
        if refused:
            raise Refused(f"KServe would refuse to {change.words}: {'; '.join(refused)}")
        return change

    # What it does

    def change(self, action: Action, percent: int, seen: TargetState) -> Change:
        """See `Target.change`."""
        for _ in range(_TRIES):
            service = self._get()
            if action != "finish":
                self._hold_to(service, seen)
            change = self._planned(service, action, percent, seen)
            if not change.patch:
                return change
            try:
                self._send(service, action, change, seen)
            except TargetChanged:
                continue
            rolls = action == "promote" and seen.image_only and bool(canary_names(patched(service, change.patch)))
            self._rolls_from = service.get("status", {}).get("observedGeneration") if rolls else None
            return change
        raise TargetFailed(f"{seen.service} is written to all the time; nothing was changed, try again")

    def _hold_to(self, service: Mapping[str, Any], seen: TargetState) -> None:
        now = self._read(service)
        differences = [
            f"{what} was {before}, and is {after}"
            for what, before, after in (
                ("its uid", seen.identity, now.identity),
                ("the specification's generation", seen.version, now.version),
                ("stable", seen.stable, now.stable),
                ("the canary", seen.canary, now.canary),
                ("its percentage", seen.percent, now.percent),
            )
            if before != after
        ]
        if differences:
            raise TargetChanged(
                f"{seen.service} was changed by somebody else: {'; '.join(differences)}; nothing was done"
            )

    def _send(self, service: dict[str, Any], action: Action, change: Change, seen: TargetState) -> None:
        metadata = service["metadata"]
        after = patched(service, change.patch)
        is_a_step = action == "percent" or (action == "rollback" and seen.mode == "Knative")
        if not is_a_step:
            self._client.patch(self._path, change.patch, str(metadata["resourceVersion"]))
            return
        body: dict[str, Any] = {
            "apiVersion": service.get("apiVersion", "serving.kserve.io/v1beta1"),
            "kind": "InferenceService",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "resourceVersion": metadata["resourceVersion"],
            },
        }
        if seen.mode == "Knative":
            body["spec"] = {"predictor": {"canaryTrafficPercent": after["spec"]["predictor"]["canaryTrafficPercent"]}}
        else:
            body["spec"] = {"canary": after["spec"]["canary"]}
        try:
            self._client.apply(self._path, body, force=self._take_over)
        except FieldConflict as conflict:
            others = sorted({each for each in conflict.managers if not each.startswith("kubectl")})
            if others:
                raise Refused(
                    f"{', '.join(others)} owns the field ({change.words}) and would set it back; take it out of what is applied there "
                    "(in Argo CD: ignoreDifferences), use --decide-only, or --take-over"
                ) from None
            self._client.apply(self._path, body, force=True)

    def is_settled(self, action: Action, percent: int) -> bool:
        """See `Target.is_settled`."""
        service = self._get()
        status = service.get("status", {})
        if mode_of(service) == "Standard":
            # Nothing in the status has the service's generation: KServe copies observedGeneration from the Deployment that it made, which
            # a change of weights leaves as it is. What it has seen shows in `canaryStatuses`, which it writes anew each time.
            told = {str(each.get("name")) for each in status.get("canaryStatuses") or ()}
            if told - canary_names(service):
                return False
            if action == "promote":
                rolling = self._rolls_from is not None and status.get("observedGeneration") == self._rolls_from
                ready = {each.get("type"): each.get("status") for each in status.get("conditions") or ()}
                return not rolling and ready.get("PredictorReady") == "True"
        now = self._read(service)
        if action == "restore":
            return now.ready
        if action in ("promote", "finish"):
            return not now.canary or action == "finish"
        if action == "rollback":
            return not now.canary or not now.served_percent
        return now.served_percent == percent

    # Pods

    def endpoints(self) -> list[Endpoint]:
        """See `Target.endpoints`: the predictor's pods that have an address, by Knative's or Standard mode's labels."""
        selector = f"serving.kserve.io/inferenceservice={self._name},component=predictor"
        pods = self._client.get(f"/api/v1/namespaces/{self._namespace}/pods", labelSelector=selector)
        found = []
        for pod in pods.get("items") or ():
            metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
            address = status.get("podIP")
            if not address or metadata.get("deletionTimestamp") or status.get("phase") not in (None, "Running"):
                continue
            labels = metadata.get("labels") or {}
            revision = labels.get("serving.knative.dev/revision") or str(labels.get("app") or "").removeprefix("isvc.")
            host = f"[{address}]" if ":" in address else address
            port = _annotated_port(metadata, self._port)
            found.append(Endpoint(str(metadata.get("name")), f"http://{host}:{port}/metrics", revision))
        return found

    # The record

    def load_record(self) -> dict[str, Any] | None:
        """See `Target.load_record`."""
        try:
            kept = self._client.get(self._record_path)
        except NotThere:
            self._record_version = ""
            return None
        metadata = kept.get("metadata") or {}
        self._record_version = str(metadata.get("resourceVersion") or "")
        text = (metadata.get("annotations") or {}).get(_ANNOTATION)
        try:
            record = json.loads(text) if text else None
        except ValueError:
            record = None
        if text and not isinstance(record, dict):
            raise TargetFailed(
                f"{self._record_path}: its annotation {_ANNOTATION} is no record of serinus; delete the ConfigMap to begin anew"
            )
        return record

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """See `Target.save_record`."""
        if record is None:
            self._client.delete(self._record_path)
            self._record_version = ""
            return
        metadata: dict[str, Any] = {
            "name": f"{self._name}-serinus-canary",
            "namespace": self._namespace,
            "annotations": {_ANNOTATION: json.dumps(record, separators=(",", ":"))},
            "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER, "serving.kserve.io/canary-of": self._name},
        }
        if self._uid:
            metadata["ownerReferences"] = [
                {
                    "apiVersion": "serving.kserve.io/v1beta1",
                    "kind": "InferenceService",
                    "name": self._name,
                    "uid": self._uid,
                }
            ]
        if self._record_version:
            metadata["resourceVersion"] = self._record_version
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        kept = self._client.apply(self._record_path, body, force=True)
        self._record_version = str((kept.get("metadata") or {}).get("resourceVersion") or "")


def _annotated_port(metadata: Mapping[str, Any], default: int) -> int:
    text = str((metadata.get("annotations") or {}).get("prometheus.io/port") or "")
    # 9091 and 9088 are KServe's for Knative's queue-proxy (CONST 132-133), which has no metrics of the model.
    return int(text) if text.isdecimal() and text not in ("9091", "9088") else default


def patched(service: Mapping[str, Any], operations: Any) -> dict[str, Any]:
    """Apply add, replace and remove of a JSON patch (RFC 6902) to a copy."""
    result = copy.deepcopy(dict(service))
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        parent: Any = result
        for part in parents:
            parent = parent[int(part)] if isinstance(parent, list) else parent.setdefault(part, {})
        key: Any = int(last) if isinstance(parent, list) else last
        if operation["op"] == "remove":
            del parent[key]
        else:
            parent[key] = copy.deepcopy(operation["value"])
    return result
