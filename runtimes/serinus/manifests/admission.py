"""What the API server and KServe's webhooks refuse, checked offline.

Source: `inference_service_validation.go`, `servingruntime_webhook.go`, `component.go` and the defaulting webhook of
KServe 0.21. Numbers in comments are those of the rules as the project's notes on KServe list them (E, webhook).
What the webhook lets through and the controller or the gateway then refuses is in `serinus.manifests.linter`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .documents import Document, FieldPath
from .problems import Problems, nearest
from .schema import INFERENCE_SERVICE, LEGACY_FRAMEWORKS, SERVING_RUNTIME, check_shape

__all__ = [
    "AUTOSCALER",
    "DEPLOYMENT_MODE",
    "check_inference_service",
    "check_runtimes",
    "deployment_mode",
    "implementations",
    "listed",
    "mapping",
]

PREFIX = "serving.kserve.io/"
DEPLOYMENT_MODE = PREFIX + "deploymentMode"
AUTOSCALER = PREFIX + "autoscalerClass"
NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
KSERVE_CONTAINER = "kserve-container"
TRANSFORMER_CONTAINER = "transformer-container"
WORKER_ENV = {"PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE"}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one; its shape was judged elsewhere."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> Sequence[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else ()


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def deployment_mode(annotations: Mapping[str, Any]) -> str:
    """`Standard`, `Knative`, `ModelMesh`, or whatever is written, after the webhook's renaming; Knative where none is.

    Source: constants.go 564-590 and defaults.go 166-176: the deprecated names are rewritten, unknown ones are not refused.
    """
    written = str(annotations.get(DEPLOYMENT_MODE) or "Knative")
    return {"RawDeployment": "Standard", "Serverless": "Knative"}.get(written, written)


def implementations(predictor: Mapping[str, Any]) -> list[str]:
    """Every implementation that a predictor block names: `model`, legacy frameworks, `containers` (predictor.go 168-196)."""
    found = [name for name in (*LEGACY_FRAMEWORKS, "model") if predictor.get(name) is not None]
    containers = [mapping(item).get("name") for item in listed(predictor.get("containers"))]
    if KSERVE_CONTAINER in containers or (containers and not found):
        found.append("containers")
    return found


def check_inference_service(document: Document, problems: Problems) -> None:
    """Everything that would make `kubectl apply` of this InferenceService fail."""
    _check_envelope(document, "serving.kserve.io/v1beta1", problems)
    check_shape(document, (), document.value, INFERENCE_SERVICE, problems)
    _check_name(document, problems)  # 1
    annotations = mapping(document.metadata.get("annotations"))
    scaler = annotations.get(AUTOSCALER)
    scalers = ("hpa", "external", "keda", "none")
    if scaler is not None and scaler not in scalers:  # 2
        path = ("metadata", "annotations", AUTOSCALER)
        problems.error(document, path, f"{scaler!r} is not an autoscaler class", f"use one of {', '.join(scalers)}")
    spec = mapping(document.value.get("spec"))
    for part in ("predictor", "transformer", "explainer"):
        if isinstance(spec.get(part), dict):
            _check_component(document, ("spec", part), spec[part], annotations, problems)
    if spec.get("canary"):
        _check_canaries(document, spec, annotations, problems)  # 14


def _check_envelope(document: Document, version: str, problems: Problems) -> None:
    if document.api_version != version:
        problems.error(
            document, ("apiVersion",), f"{document.api_version!r} does not serve kind {document.kind}", f"use {version}"
        )
    for path in document.duplicates:
        problems.error(document, path, "written twice", "keep one; strict decoding refuses duplicate keys")


def _check_name(document: Document, problems: Problems) -> None:
    name = document.metadata.get("name")
    if not isinstance(name, str) or not name:
        problems.error(document, ("metadata", "name"), "missing", "add a name such as fraud")
    elif not NAME.match(name):
        problems.error(
            document,
            ("metadata", "name"),
            f"{name!r} is not a name for an InferenceService",
            "use lower-case letters, digits and dashes, beginning with a letter",
        )


def _check_component(
    document: Document, path: FieldPath, block: Mapping[str, Any], annotations: Mapping[str, Any], problems: Problems
) -> None:
    _check_environment(document, path, block, problems)
    _check_implementation(document, path, block, problems)
    _check_replicas(document, path, block, problems)
    _check_logger(document, path, block, problems)
    _check_storage(document, path, block, problems)
    _check_scaling(document, path, block, annotations, problems)
    if isinstance(block.get("workerSpec"), dict):
        _check_workers(document, path, block, annotations, problems)
    name = block.get("name")
    if path[-1] == "predictor" and isinstance(name, str) and not NAME.match(name):
        problems.error(
            document,
            (*path, "name"),
            f"{name!r} is not a name for a predictor",
            "use lower-case letters, digits and dashes",
        )


def _containers(path: FieldPath, block: Mapping[str, Any]) -> list[tuple[FieldPath, Mapping[str, Any]]]:
    found: list[tuple[FieldPath, Mapping[str, Any]]] = []
    for key in ("containers", "initContainers"):
        found += [((*path, key, i), mapping(item)) for i, item in enumerate(listed(block.get(key)))]
    found += [((*path, key), mapping(block[key])) for key in (*LEGACY_FRAMEWORKS, "model") if block.get(key)]
    return found


def _environment(path: FieldPath, container: Mapping[str, Any]) -> list[tuple[FieldPath, Mapping[str, Any]]]:
    return [((*path, "env", i), mapping(item)) for i, item in enumerate(listed(container.get("env")))]


def _check_environment(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    for where, container in _containers(path, block):
        for at, variable in _environment(where, container):
            name = variable.get("name")
            if name == "PYTHONPATH":  # 3
                problems.error(
                    document, at, "PYTHONPATH is forbidden in every container", "build the code into the image instead"
                )
            if name == "STORAGE_URI" and container.get("name") == TRANSFORMER_CONTAINER:  # 5
                problems.error(
                    document,
                    at,
                    f"STORAGE_URI is forbidden on {TRANSFORMER_CONTAINER}",
                    f"set it on {KSERVE_CONTAINER}",
                )
            custom = where[len(path)] == "containers" and path[-1] == "predictor"
            if custom and name == "PROTOCOL" and variable.get("value") not in {"v1", "v2"}:  # 10
                problems.error(
                    document,
                    (*at, "value"),
                    f"{variable.get('value')!r} is not a protocol of a custom predictor",
                    "use v1 or v2; gRPC is served beside v2 whatever is declared here",
                )


def _check_implementation(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    part = str(path[-1])
    if part == "predictor":
        found = implementations(block)
        for name in found:
            if name != "containers" and isinstance(mapping(block.get(name)).get("name"), str):  # 6
                problems.error(
                    document, (*path, name, "name"), f"name is not allowed inside {name}", "remove it; KServe sets it"
                )
    else:
        found = [name for name in ("art", "containers") if block.get(name)]
    if len(found) == 1:
        return
    if not found:
        mend = "add model: or containers:" if part == "predictor" else "add containers:"
        problems.error(document, path, f"{part} has no implementation", mend)
    else:  # 9
        problems.error(
            document,
            (*path, found[-1]),
            f"{part} has {len(found)} implementations: {', '.join(found)}",
            f"keep one; beside model, a container must not be called {KSERVE_CONTAINER}",
        )


def _check_replicas(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    for key in ("containerConcurrency", "minReplicas", "maxReplicas"):  # 11
        value = _number(block.get(key))
        if value is not None and value < 0:
            problems.error(document, (*path, key), f"{value} is less than 0", "use 0 or more")
    low, high = _number(block.get("minReplicas")), _number(block.get("maxReplicas"))
    if high and high > 0 and (1 if low is None else low) > high:
        problems.error(
            document,
            (*path, "minReplicas"),
            f"{1 if low is None else low} is more than maxReplicas {high}",
            "raise maxReplicas",
        )


def _check_logger(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    logger = block.get("logger")
    if not isinstance(logger, dict):
        return
    if logger.get("mode") in {None, ""}:  # 12
        problems.error(document, (*path, "logger", "mode"), "missing", "add mode: all, request or response")
    storage = logger.get("storage")
    if isinstance(storage, dict):
        for key in ("path", "parameters", "key"):
            if not storage.get(key):
                problems.error(document, (*path, "logger", "storage", key), "missing", f"add {key}")


def _check_storage(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    for name in (*LEGACY_FRAMEWORKS, "model"):
        model = block.get(name)
        if isinstance(model, dict) and model.get("confidential") and not model.get("storageUri"):  # 8
            problems.error(document, (*path, name, "confidential"), "needs storageUri", f"add {name}.storageUri")
    uris = listed(block.get("storageUris"))
    if block.get("storageUris") is not None and not uris:
        problems.error(document, (*path, "storageUris"), "is empty", "add an item with uri, or remove it")
    if not uris:
        return
    single = next((name for name in (*LEGACY_FRAMEWORKS, "model") if mapping(block.get(name)).get("storageUri")), None)
    if single:  # 7
        problems.error(document, (*path, "storageUris"), f"{single}.storageUri is set as well", "keep one of the two")
    parents: dict[str, int] = {}
    claims: dict[str, int] = {}
    for index, item in enumerate(uris):
        at = (*path, "storageUris", index)
        uri, mount = mapping(item).get("uri"), mapping(item).get("mountPath", "/mnt/models")
        if uri == "":
            problems.error(document, (*at, "uri"), "is empty", "write the model's URI")
        if not isinstance(mount, str) or not isinstance(uri, str):
            continue
        if not mount.startswith("/") or mount == "/" or ".." in mount.split("/") or len(mount) > 255:
            problems.error(
                document,
                (*at, "mountPath"),
                f"{mount!r} is not accepted",
                "use an absolute path of at most 255 characters other than /, without ..",
            )
            continue
        clean = mount.rstrip("/")
        if uri.startswith("pvc://"):
            if claims.setdefault(clean, index) != index:
                problems.error(
                    document, (*at, "mountPath"), f"{mount!r} is taken by another volume", "use another path"
                )
        else:
            parents.setdefault(clean.rsplit("/", 1)[0], index)
    if len(parents) > 1:
        problems.error(
            document,
            (*path, "storageUris"),
            f"mount paths share no parent: {', '.join(parent or '/' for parent in parents)}",
            "put them all below one folder, such as /mnt/models/a and /mnt/models/b",
        )


def _check_scaling(
    document: Document, path: FieldPath, block: Mapping[str, Any], annotations: Mapping[str, Any], problems: Problems
) -> None:
    metric, target = block.get("scaleMetric"), _number(block.get("scaleTarget"))
    scaler = annotations.get(AUTOSCALER, "hpa")
    metrics = listed(mapping(block.get("autoScaling")).get("metrics"))
    at_metric, at_target = (*path, "scaleMetric"), (*path, "scaleTarget")
    if deployment_mode(annotations) == "Standard":  # 13
        if scaler == "hpa":
            if metric not in {None, "cpu", "memory"}:
                problems.error(document, at_metric, f"{metric!r} is not scaled on by hpa", "use cpu or memory")
            if target is not None and not 1 <= target <= 100:
                problems.error(document, at_target, f"{target} is not a utilisation", "use 1 to 100")
            for index, item in enumerate(metrics):
                if mapping(item).get("type") != "Resource":
                    at = (*path, "autoScaling", "metrics", index, "type")
                    problems.error(
                        document, at, "hpa takes metrics of type Resource only", "use Resource, or class keda"
                    )
        elif scaler == "keda":
            if metric is not None:
                problems.error(document, at_metric, "forbidden with keda", "write autoScaling.metrics instead")
            for index, item in enumerate(metrics):
                kind = mapping(item).get("type")
                if kind not in {"Resource", "External", "PodMetric"}:
                    at = (*path, "autoScaling", "metrics", index, "type")
                    problems.error(
                        document, at, f"{kind!r} is not a metric of keda", "use Resource, External or PodMetric"
                    )
        return
    if block.get("deploymentStrategy") is not None:
        problems.error(
            document,
            (*path, "deploymentStrategy"),
            "forbidden outside Standard mode",
            f"remove it, or set the annotation {DEPLOYMENT_MODE}: Standard",
        )
    if mapping(annotations).get("autoscaling.knative.dev/class", "").startswith("hpa"):
        return
    if metric not in {None, "concurrency", "rps"}:
        problems.error(document, at_metric, f"{metric!r} is not scaled on in Knative mode", "use concurrency or rps")
    if metric == "rps" and target is not None and target < 1:
        problems.error(document, at_target, f"{target} is less than 1", "use 1 or more")


def _check_workers(
    document: Document, path: FieldPath, block: Mapping[str, Any], annotations: Mapping[str, Any], problems: Problems
) -> None:
    worker = mapping(block["workerSpec"])
    for key in ("pipelineParallelSize", "tensorParallelSize"):  # 4
        size = _number(worker.get(key))
        if size is not None and size < 1:
            problems.error(document, (*path, "workerSpec", key), f"{size} is less than 1", "use 1 or more")
    if annotations.get(AUTOSCALER) not in {None, "none"}:
        problems.error(document, (*path, "workerSpec"), "several nodes cannot be autoscaled", f"set {AUTOSCALER}: none")
    uri = str(mapping(block.get("model")).get("storageUri") or "")
    if uri and not uri.startswith(("pvc://", "oci://")):
        problems.error(
            document, (*path, "model", "storageUri"), "several nodes need shared storage", "use pvc:// or oci://"
        )
    if len(listed(worker.get("containers"))) > 1:
        problems.error(document, (*path, "workerSpec", "containers"), "has several containers", "keep one")


def _check_canaries(
    document: Document, spec: Mapping[str, Any], annotations: Mapping[str, Any], problems: Problems
) -> None:
    at: FieldPath = ("spec", "canary")
    if deployment_mode(annotations) != "Standard":
        problems.error(
            document,
            at,
            "spec.canary needs Standard mode",
            f"set the annotation {DEPLOYMENT_MODE}: Standard, or use predictor.canaryTrafficPercent",
        )
    stable = mapping(spec.get("predictor"))
    if not _has_storage(stable):
        problems.error(
            document,
            ("spec", "predictor"),
            "a service with spec.canary needs a storage URI or a model in its predictor",
            f"use predictor.model, or set env STORAGE_URI on {KSERVE_CONTAINER}",
        )
    names: dict[str, int] = {}
    total = 0
    for index, item in enumerate(listed(spec.get("canary"))):
        here = (*at, index)
        percent = _number(mapping(item).get("trafficPercent"))
        if percent is not None:
            total += percent
            if not 0 <= percent <= 100:
                problems.error(document, (*here, "trafficPercent"), f"{percent} is not a percentage", "use 0 to 100")
        predictor = mapping(mapping(item).get("predictor"))
        path = (*here, "predictor")
        name = predictor.get("name")
        if not name:
            problems.error(document, (*path, "name"), "missing", "name the canary, such as v2")
        elif name == stable.get("name"):
            problems.error(document, (*path, "name"), f"{name!r} is the stable predictor's", "use another name")
        elif names.setdefault(str(name), index) != index:
            problems.error(document, (*path, "name"), f"{name!r} names two canaries", "use another name")
        elif not NAME.match(str(name)):
            problems.error(
                document, (*path, "name"), f"{name!r} is not a name", "use lower-case letters, digits and dashes"
            )
        _check_environment(document, path, predictor, problems)
        found = implementations(predictor)
        if len(found) != 1:
            problems.error(document, path, f"a canary has one implementation, this one {len(found)}", "add one model:")
        for key in ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if predictor.get(key) is not None:
                problems.error(
                    document, (*path, key), "forbidden in a canary", "remove it; the stable predictor's counts"
                )
        low, most = _number(predictor.get("minReplicas")), _number(stable.get("minReplicas"))
        if low is not None and low > (1 if most is None else most):
            problems.error(
                document,
                (*path, "minReplicas"),
                f"{low} is more than the stable predictor's",
                "lower it, or raise the stable's",
            )
    if total > 100:
        problems.error(document, at, f"the canaries take {total} % together", "lower them to 100 or less")


def _has_storage(predictor: Mapping[str, Any]) -> bool:
    if any(predictor.get(name) is not None for name in (*LEGACY_FRAMEWORKS, "model", "storageUris")):
        return True
    return any(
        variable.get("name") == "STORAGE_URI"
        for where, container in _containers((), predictor)
        if container.get("name") == KSERVE_CONTAINER
        for _, variable in _environment(where, container)
    )


def check_runtimes(documents: Sequence[Document], problems: Problems) -> None:
    """What the webhook refuses in ServingRuntimes and ClusterServingRuntimes, alone and against one another."""
    taken: dict[tuple[str, str, str, str, str, int], str] = {}
    for document in documents:
        _check_envelope(document, "serving.kserve.io/v1alpha1", problems)
        check_shape(document, (), document.value, SERVING_RUNTIME, problems)
        if not document.name:
            problems.error(document, ("metadata", "name"), "missing", "add a name")
        spec = mapping(document.value.get("spec"))
        _check_environment(document, ("spec",), spec, problems)
        names = [mapping(item).get("name") for item in listed(spec.get("containers"))]
        if names and KSERVE_CONTAINER not in names:
            hint = nearest(KSERVE_CONTAINER, [str(name) for name in names])
            at = ("spec", "containers", names.index(hint) if hint else 0, "name")
            problems.error(
                document, at, f"no container is called {KSERVE_CONTAINER}", f"rename it to {KSERVE_CONTAINER}"
            )
        if not spec.get("disabled"):
            _check_priorities(document, spec, taken, problems)


def _check_priorities(
    document: Document,
    spec: Mapping[str, Any],
    taken: dict[tuple[str, str, str, str, str, int], str],
    problems: Problems,
) -> None:
    own: dict[str, int | None] = {}
    scope = "cluster" if document.kind == "ClusterServingRuntime" else document.namespace
    for index, item in enumerate(listed(spec.get("supportedModelFormats"))):
        entry = mapping(item)
        name, priority = str(entry.get("name")), _number(entry.get("priority"))
        at = ("spec", "supportedModelFormats", index, "priority")
        if priority is not None and priority < 1:
            problems.error(document, at, f"{priority} is less than 1", "use 1 or more")
        if not entry.get("autoSelect"):
            continue
        if own.setdefault(name, priority) != priority:
            problems.error(
                document, at, f"{name} has two priorities in one runtime: {own[name]} and {priority}", "make them equal"
            )
        if priority is None:
            continue
        for protocol in listed(spec.get("protocolVersions")) or ("",):
            key = (document.kind, scope, name, str(entry.get("version") or ""), str(protocol), priority)
            other = taken.setdefault(key, document.name)
            if other != document.name:
                problems.error(
                    document,
                    at,
                    f"runtime {other} has priority {priority} for {name} over {protocol or 'any protocol'} as well",
                    "use another priority",
                )
