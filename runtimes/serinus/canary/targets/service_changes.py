"""An InferenceService as KServe's canaries see it, and the changes that move them. Pure: objects in, states and patches out.

Knative mode (ksvc_reconciler.go 132-164, status.go 567-636 of KServe 0.21): `predictor.canaryTrafficPercent` splits between the newest revision
and the last that had everything. Removing it promotes; 0 gives everything back.

Standard mode (inference_service.go 36-59, inference_service_validation.go 183-266, 691-713): `spec.canary[]`, each entry a predictor of its own.
Making an entry's predictor the service's own, under its name, keeps its Deployment: nothing restarts. The webhook allows it only with another
storage URI; a version that differs in its image alone is written into the stable predictor under the old name, whose pods are rolled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from ...manifests.documents import Document
from ...manifests.fields import flag_value
from ...manifests.linter import check_inference_service
from ...manifests.problems import Problems
from ...manifests.rules.update_rules import check_updates
from .pairing import unpaired
from .target import Change, TargetFailed, TargetState

__all__ = [
    "can_rename",
    "canary_names",
    "knative_change",
    "knative_state",
    "mode_of",
    "refusals",
    "standard_change",
    "standard_state",
]

Object = Mapping[str, Any]

_STABLE_ONLY = ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "deploymentStrategy")
"""What a canary's predictor may not have; all of it is the stable predictor's, and stays with whoever is that."""
_OF_STABLE = ("minReplicas", *_STABLE_ONLY)
_LEGACY = ("sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle")


def mode_of(service: Object) -> str:
    """Give the deployment mode that the controller has chosen, else that the annotation asks for, else what the object shows."""
    status = _object(service.get("status"))
    annotations = _object(_object(service.get("metadata")).get("annotations"))
    told = status.get("deploymentMode") or annotations.get("serving.kserve.io/deploymentMode")
    old = {"RawDeployment": "Standard", "Serverless": "Knative"}
    if told:
        return old.get(str(told), str(told))
    return "Standard" if _object(service.get("spec")).get("canary") else "Knative"


def can_rename(service: Object, predictor: Object) -> bool:
    """Whether KServe lets a service have this predictor under its other name: with another storage URI alone."""
    problems = Problems()
    new = {**service, "spec": {**_object(service.get("spec")), "predictor": predictor}}
    check_updates([_document(service)], [_document(new)], problems)
    return not problems.errors


def refusals(before: Object, after: Object) -> tuple[str, ...]:
    """Say beforehand what KServe's admission would refuse of an update, each with how to mend it."""
    problems = Problems()
    check_inference_service(_document(after), problems)
    check_updates([_document(before)], [_document(after)], problems)
    return tuple(f"{each.field}: {each.message}; {each.mend}" for each in problems.errors)


def _document(service: Object) -> Document:
    """Make a document of an object: without what the server writes, but for the status, which says the mode in force."""
    kept = ("name", "namespace", "labels", "annotations")
    metadata = {key: value for key, value in _object(service.get("metadata")).items() if key in kept}
    own = {key: value for key, value in service.items() if key in ("apiVersion", "kind", "spec", "status")}
    return Document({**own, "metadata": metadata}, {}, "InferenceService")


# Knative mode ----------------------------------------------------------------------------------------------------------


def knative_state(service: Object) -> TargetState:
    """Read a service in Knative mode."""
    name, predictor, status = _parts(service)
    latest = str(status.get("latestCreatedRevision") or "")
    ready = str(status.get("latestReadyRevision") or "")
    rolled = str(status.get("latestRolledoutRevision") or "")
    percent = predictor.get("canaryTrafficPercent")
    canary = latest if rolled and latest != rolled else ""
    problems = []
    if not rolled:
        problems.append("no revision has been rolled out yet; the first one takes all traffic by itself")
    elif not canary:
        problems.append(
            f"the newest revision {latest} already has all traffic; apply the new version with canaryTrafficPercent: 0 beside it first"
        )
    elif percent is None:
        problems.append(
            f"predictor.canaryTrafficPercent is not set, so {canary} gets all traffic as soon as it is ready; set it to 0 to begin"
        )
    served = None
    for entry in status.get("traffic") or ():
        if entry.get("revisionName") == canary or (entry.get("latestRevision") and ready == canary):
            served = int(entry.get("percent") or 0)
    if canary and served is None and any(entry.get("revisionName") == rolled for entry in status.get("traffic") or ()):
        served = 0
    refused, notes = unpaired(_document(service))
    problems.extend(refused)
    return TargetState(
        service=name,
        mode="Knative",
        stable=rolled,
        canary=canary,
        percent=None if percent is None else int(percent),
        served_percent=served,
        ready=bool(canary) and ready == canary,
        model=_model_name(service),
        version=f"{_generation(service)}",
        problems=tuple(problems),
        notes=tuple(notes),
    )


def knative_change(action: str, percent: int, service: Object, old: Object | None = None) -> Change:
    """Tell a change of a service in Knative mode.

    Args:
        action: see `Target.change`.
        percent: of the traffic.
        service: the object.
        old: `spec.predictor` of the old version; for `restore`.
    """
    at = "/spec/predictor/canaryTrafficPercent"
    predictor = _object(_object(service.get("spec")).get("predictor"))
    has = "canaryTrafficPercent" in predictor
    if action == "promote":
        patch = [{"op": "remove", "path": at}] if has else []
        return Change("remove predictor.canaryTrafficPercent: the newest revision gets all traffic", patch)
    if action == "finish":
        return Change("nothing is kept warm in Knative mode; the old revision scales to zero by itself")
    if action == "restore":
        # At 0 % until it is ready: without the field Knative sends everything to the newest *ready* revision, the one rolled back.
        restored = {**copy.deepcopy(dict(old or {})), "canaryTrafficPercent": 0}
        patch = [] if restored == dict(predictor) else [{"op": "replace", "path": "/spec/predictor", "value": restored}]
        return Change("describe the old version again, at 0 % until its revision is ready", patch)
    value = 0 if action == "rollback" else percent
    words = f"predictor.canaryTrafficPercent: {value}"
    notes: tuple[str, ...] = ()
    if action == "rollback":
        text = (
            "the InferenceService still describes the version that was rolled back, at 0 %; apply the old one's manifest with "
            "canaryTrafficPercent: 0, wait until its revision is ready, and then remove the field (--restore does all of it)"
        )
        notes = (text,)
    return Change(words, [{"op": "replace" if has else "add", "path": at, "value": value}], notes)


# Standard mode ---------------------------------------------------------------------------------------------------------


def standard_state(service: Object, wanted: str = "") -> TargetState:
    """Read a service in Standard mode.

    Args:
        service: the object.
        wanted: name of the canary, where there are several; empty: the only one.
    """
    name, predictor, _ = _parts(service)
    own = str(_object(service.get("metadata")).get("name"))
    entries = _canaries(service)
    problems = []
    chosen = [entry for entry in entries if not wanted or _object(entry.get("predictor")).get("name") == wanted]
    if not entries:
        problems.append("spec.canary has no entry; add one with trafficPercent: 0 and the new version as its predictor")
    elif not chosen:
        told = ", ".join(str(_object(each.get("predictor")).get("name")) for each in entries)
        problems.append(f"spec.canary has no entry {wanted!r}; its entries are {told}")
    elif len(chosen) > 1:
        told = ", ".join(str(_object(each.get("predictor")).get("name")) for each in chosen)
        problems.append(f"spec.canary has several entries: {told}; name one with --canary")
    entry = chosen[0] if len(chosen) == 1 else {}
    canary = _object(entry.get("predictor"))
    title = str(canary.get("name") or "")
    percent = int(entry.get("trafficPercent") or 0) if entry else None
    statuses = _object(service.get("status")).get("canaryStatuses") or ()
    told_status = next((each for each in statuses if each.get("name") == title), {})
    ready = bool(told_status.get("ready"))
    image_only = bool(entry) and not can_rename(service, promoted_predictor(predictor, canary))
    notes = []
    if entry:
        notes.append(capacity(predictor, canary, percent or 0))
        address = _object(_object(_object(service.get("status")).get("address"))).get("url")
        if address:
            notes.append(
                f"callers in the cluster that use status.address.url ({address}) reach the stable predictor alone and never meet the canary; "
                "they are in no arm"
            )
        if image_only:
            notes.append(
                "both versions have the same storage URI, so KServe refuses to promote by renaming (predictor.name change requires a model "
                "change); the stable predictor's pods are rolled to the new version instead"
            )
        refused, warned = unpaired(_document(service))
        problems.extend(refused)
        notes.extend(warned)
    return TargetState(
        service=name,
        mode="Standard",
        stable=deployment_of(own, predictor),
        canary=deployment_of(own, canary) if entry else "",
        percent=percent,
        # The gateway's weights follow the entry once the canary is ready; until then it gets none (httproute_reconciler.go 684-743).
        served_percent=int(told_status.get("trafficPercent") or 0) if ready else (0 if entry else None),
        ready=ready,
        model=_model_name(service),
        version=f"{_generation(service)}",
        problems=tuple(problems),
        notes=tuple(notes),
        image_only=image_only,
    )


def standard_change(action: str, percent: int, service: Object, title: str, *, keep_warm: bool = False) -> Change:
    """Tell a change of a service in Standard mode.

    Args:
        action: see `Target.change`.
        percent: of the traffic.
        service: the object.
        title: name of the canary's predictor.
        keep_warm: after a promotion by renaming the old version stays as a canary of 0 %.
    """
    spec = _object(service.get("spec"))
    predictor = _object(spec.get("predictor"))
    entries = _canaries(service)
    index = next((i for i, each in enumerate(entries) if _object(each.get("predictor")).get("name") == title), None)
    if index is None:
        if action in ("finish", "rollback"):
            return Change("there is no canary any more")
        raise TargetFailed(f"spec.canary has no entry {title!r} any more")
    canary = _object(entries[index].get("predictor"))
    if action == "percent":
        at = f"/spec/canary/{index}/trafficPercent"
        has = "trafficPercent" in entries[index]
        return Change(
            f"trafficPercent of canary {title}: {percent}",
            [{"op": "replace" if has else "add", "path": at, "value": percent}],
            (capacity(predictor, canary, percent),),
        )
    drop = {"op": "remove", "path": f"/spec/canary/{index}" if len(entries) > 1 else "/spec/canary"}
    if action in ("rollback", "finish"):
        return Change(f"remove canary {title}", [drop])
    promoted = promoted_predictor(predictor, canary)
    if not can_rename(service, promoted):
        named = {key: value for key, value in promoted.items() if key != "name"}
        if predictor.get("name"):
            named["name"] = predictor["name"]
        if named == dict(predictor):
            return Change(f"remove canary {title}: the stable predictor has its version", [drop])
        return Change(
            f"write the version of canary {title} into the stable predictor, whose pods are rolled; the canary goes on at its share until "
            "they are ready, and is removed then",
            [{"op": "replace", "path": "/spec/predictor", "value": named}],
        )
    operations: list[dict[str, Any]] = [{"op": "replace", "path": "/spec/predictor", "value": promoted}]
    notes: tuple[str, ...] = ()
    if keep_warm and predictor.get("name"):
        old = {key: copy.deepcopy(value) for key, value in predictor.items() if key not in _STABLE_ONLY}
        old["minReplicas"] = max(1, int(predictor.get("minReplicas") or 1))
        operations.append(
            {"op": "replace", "path": f"/spec/canary/{index}", "value": {"trafficPercent": 0, "predictor": old}}
        )
    else:
        operations.append(drop)
        if keep_warm:
            notes = ("the old version cannot be kept warm: its predictor has no name, and a canary needs one",)
    return Change(f"make {title} the stable predictor; its pods go on, none restarts", operations, notes)


def promoted_predictor(stable: Object, canary: Object) -> dict[str, Any]:
    """Give the stable predictor with a canary's overrides, but for its scaling.

    As KServe makes the canary's own (predictor.go 861-1038): mappings are merged, lists and values replaced.
    """
    model = {key for key in (*_LEGACY, "model", "containers") if canary.get(key)}
    base = {
        key: value
        for key, value in stable.items()
        # A canary of another kind of implementation replaces stable's.
        if key not in (*_LEGACY, "model") or not model or key in model
    }
    merged = _merged(base, {key: value for key, value in canary.items() if key not in _OF_STABLE})
    for key in _OF_STABLE:
        if key in stable:
            merged[key] = copy.deepcopy(stable[key])
    return merged


def capacity(stable: Object, canary: Object, percent: int) -> str:
    """Say what a step needs: a canary's pods do not scale (its HPA has min = max, predictor.go 905-940)."""
    minimum = stable.get("minReplicas")
    least = 1 if minimum is None else int(minimum)
    most = max(least, int(stable.get("maxReplicas") or 0))
    own = canary.get("minReplicas")
    pods = int(own) if own is not None else math.ceil(least * percent / 100)
    wanted = math.ceil(most * percent / 100)
    text = f"at {percent} % the canary has {pods} pod{'' if pods == 1 else 's'} and does not scale"
    if wanted > pods:
        text += f"; under load that keeps stable at its {most} pods it would need {wanted}: give the canary minReplicas (at most stable's {least})"
    return text


def deployment_of(service: str, predictor: Object) -> str:
    """Give the name of a predictor's Deployment, which is its revision."""
    middle = f"-{predictor['name']}" if predictor.get("name") else ""
    return f"{service}{middle}-predictor"


def _merged(base: Object, over: Object) -> dict[str, Any]:
    """Merge as mergo does with override: what is empty overrides nothing (the webhook writes empty values into objects)."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        kept = result.get(key)
        if isinstance(kept, dict) and isinstance(value, dict):
            result[key] = _merged(kept, value)
        elif key not in result or not (value is None or value in ("", [], {})):
            result[key] = copy.deepcopy(value)
    return result


def _parts(service: Object) -> tuple[str, Object, Object]:
    metadata = _object(service.get("metadata"))
    name = f"{metadata.get('namespace') or 'default'}/{metadata.get('name')}"
    status = _object(_object(_object(service.get("status")).get("components")).get("predictor"))
    return name, _object(_object(service.get("spec")).get("predictor")), status


def canary_names(service: Object) -> set[str]:
    """Names of the predictors of `spec.canary`."""
    return {str(_object(entry.get("predictor")).get("name")) for entry in _canaries(service)}


def _canaries(service: Object) -> list[Object]:
    entries = _object(service.get("spec")).get("canary")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _generation(service: Object) -> int:
    return int(_object(service.get("metadata")).get("generation") or 0)


def _model_name(service: Object) -> str:
    """Give the model's name: what a container or the model's arguments say, else the service's, which runtimes pass ({{.Name}})."""
    predictor = _object(_object(service.get("spec")).get("predictor"))
    for block in (_object(predictor.get("model")), *(_object(each) for each in predictor.get("containers") or ())):
        words = [str(word) for part in ("command", "args") for word in block.get(part) or ()]
        named = flag_value(words, "model_name")
        if named and "{{" not in named:
            return named
    return str(_object(service.get("metadata")).get("name") or "")


def _object(value: Any) -> Object:
    return value if isinstance(value, dict) else {}
