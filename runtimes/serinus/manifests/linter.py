"""What KServe accepts and then does not do as written; the linter's additions to the admission rules.

Every finding here was met in KServe 0.21's code or in its issue list. Errors are what the controller, Knative or Gateway API
refuses after `kubectl apply` has said yes; warnings are what runs, but not as the manifest reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .admission import (
    DEPLOYMENT_MODE,
    KSERVE_CONTAINER,
    PREFIX,
    TRANSFORMER_CONTAINER,
    check_inference_service,
    check_runtimes,
    deployment_mode,
    listed,
    mapping,
)
from .documents import Document, FieldPath
from .problems import Problems, nearest
from .schema import LEGACY_FRAMEWORKS

__all__ = ["STORAGE_SCHEMES", "check_documents", "flag_value"]

STORAGE_SCHEMES = [
    "gs",
    "s3",
    "pvc",
    "file",
    "https",
    "http",
    "hdfs",
    "webhdfs",
    "oci",
    "oci+native",
    "oci+fetch",
    "hf",
]
ANNOTATIONS = [
    "deploymentMode",
    "autoscalerClass",
    "stop",
    "enable-tag-routing",
    "disable-auto-update",
    "disable-localmodel",
    "nodegroup",
    "gpu-resource-types",
    "storageSecretName",
    "enable-prometheus-scraping",
    "enable-metric-aggregation",
    "gke-accelerator",
    "server-type",
    "metrics",
    "targetUtilizationPercentage",
    "secretName",
    "storage-initializer-uid",
    "localmodel",
    "inject-queue-proxy-aggregator",
    "logger-secret-name",
    "logger-secret-namespace",
    "enable-auth",
]
_AZURE = re.compile(r"https://.+?\.blob\.core\.windows\.net/.+")


def check_documents(documents: Sequence[Document], problems: Problems) -> None:
    """Check every document of a set; kinds that are neither InferenceServices nor runtimes pass unread."""
    seen: dict[tuple[str, str, str], Document] = {}
    runtimes = []
    for document in documents:
        key = (document.kind, document.namespace, document.name)
        if seen.setdefault(key, document) is not document and document.name:
            first = seen[key].place(("metadata", "name"))
            problems.error(
                document,
                ("metadata", "name"),
                f"{document.kind} {document.name} is also at {first}",
                "rename or remove one",
            )
        if document.kind == "InferenceService":
            check_inference_service(document, problems)
            _lint_inference_service(document, problems)
        elif document.kind in {"ServingRuntime", "ClusterServingRuntime"}:
            runtimes.append(document)
        elif document.api_version.startswith("serving.kserve.io/") and (
            near := nearest(document.kind, ["InferenceService", "ServingRuntime", "ClusterServingRuntime"])
        ):
            problems.error(document, ("kind",), f"{document.kind} is not a kind of KServe", f"did you mean {near}?")
    check_runtimes(runtimes, problems)
    for runtime in runtimes:
        spec = mapping(runtime.value.get("spec"))
        _lint_ports(runtime, ("spec", "containers"), listed(spec.get("containers")), problems, knative=False)


def _lint_inference_service(document: Document, problems: Problems) -> None:
    annotations = mapping(document.metadata.get("annotations"))
    _lint_annotations(document, annotations, problems)
    spec = mapping(document.value.get("spec"))
    knative = deployment_mode(annotations) != "Standard"
    predictor, transformer = mapping(spec.get("predictor")), mapping(spec.get("transformer"))
    _lint_canary(document, spec, problems, knative=knative)
    parts = [(("spec", "predictor"), predictor), (("spec", "transformer"), transformer)]
    parts += [
        (("spec", "canary", index, "predictor"), mapping(mapping(item).get("predictor")))
        for index, item in enumerate(listed(spec.get("canary")))
    ]
    for path, block in parts:
        containers = listed(block.get("containers"))
        _lint_order(document, path, block, problems)
        _lint_resources(document, path, containers, problems)
        _lint_ports(document, (*path, "containers"), containers, problems, knative=knative)
        _lint_uris(document, path, block, problems)
    _lint_transformers(document, predictor, transformer, problems)
    _lint_length(document, predictor, problems)
    if predictor.get("containers") and not any(predictor.get(name) for name in (*LEGACY_FRAMEWORKS, "model")):
        _lint_protocol(document, predictor, problems)


def _lint_annotations(document: Document, annotations: Mapping[str, Any], problems: Problems) -> None:
    for key in annotations:
        path = ("metadata", "annotations", key)
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in ANNOTATIONS:
            near = nearest(key.removeprefix(PREFIX), ANNOTATIONS)
            problems.warn(
                document,
                path,
                "KServe knows no such annotation",
                f"did you mean {PREFIX}{near}?" if near else "remove it",
            )
    mode = deployment_mode(annotations)
    if mode not in {"Standard", "Knative", "ModelMesh"}:
        near = nearest(mode, ["Standard", "Knative", "RawDeployment", "Serverless"])
        problems.warn(
            document,
            ("metadata", "annotations", DEPLOYMENT_MODE),
            f"{mode!r} is no deployment mode; KServe takes the cluster's default without a word",
            f"write {near or 'Standard or Knative'}",
        )
    scraping = PREFIX + "enable-prometheus-scraping"
    if mode == "Standard" and str(annotations.get(scraping)).lower() == "true":
        problems.warn(
            document,
            ("metadata", "annotations", scraping),
            "it announces the port of Knative's queue-proxy, which Standard mode lacks",
            "use a PodMonitor on the REST port instead",
        )


def _lint_canary(document: Document, spec: Mapping[str, Any], problems: Problems, *, knative: bool) -> None:
    has_transformer = bool(spec.get("transformer"))
    for part in ("predictor", "transformer"):
        percent = mapping(spec.get(part)).get("canaryTrafficPercent")
        if not isinstance(percent, int) or isinstance(percent, bool):
            continue
        path = ("spec", part, "canaryTrafficPercent")
        if not 0 <= percent <= 100:
            problems.error(
                document,
                path,
                f"{percent} is not a percentage; the webhook lets it pass and Knative refuses it",
                "use 0 to 100",
            )
        if not knative:
            problems.warn(
                document, path, "Standard mode ignores it (KServe issue 5335)", "use spec.canary, or Knative mode"
            )
        elif has_transformer:
            problems.warn(
                document,
                path,
                "transformer and predictor are split independently in the cluster (KServe issue 1669): a canary predictor "
                "gets requests from the stable transformer; serinus up pairs them",
                f"collocate the transformer ({TRANSFORMER_CONTAINER}), or fuse it into one image",
            )
    if has_transformer and spec.get("canary"):
        problems.warn(
            document,
            ("spec", "canary"),
            "behind a split transformer the canary gets no traffic, or bypasses the transformer, by KServe version (PR 5944)",
            f"collocate the transformer ({TRANSFORMER_CONTAINER}), or fuse it into one image",
        )


def _lint_order(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    containers = [mapping(item).get("name") for item in listed(block.get("containers"))]
    if "predictor" not in path or len(containers) < 2 or block.get("model"):
        return
    if KSERVE_CONTAINER not in containers:
        problems.error(
            document,
            (*path, "containers"),
            f"of {len(containers)} containers none is called {KSERVE_CONTAINER}; the controller crashes on it",
            f"name the model's container {KSERVE_CONTAINER}",
        )
    elif containers[0] != KSERVE_CONTAINER:
        problems.error(
            document,
            (*path, "containers", 0, "name"),
            f"{containers[0]} comes first; the controller overwrites it with {KSERVE_CONTAINER}",
            f"put {KSERVE_CONTAINER} first",
        )


def _lint_resources(document: Document, path: FieldPath, containers: Sequence[Any], problems: Problems) -> None:
    for index, item in enumerate(containers):
        resources = mapping(mapping(item).get("resources"))
        asked = {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}
        missing = [name for name in ("cpu", "memory") if name not in asked]
        if missing:
            problems.warn(
                document,
                (*path, "containers", index, "resources"),
                f"no {' and '.join(missing)}: KServe sets 1 CPU and 2Gi as request and limit, which throttles",
                "write requests and limits",
            )


def _lint_ports(
    document: Document, path: FieldPath, containers: Sequence[Any], problems: Problems, *, knative: bool
) -> None:
    total = 0
    for index, item in enumerate(containers):
        ports = [mapping(port) for port in listed(mapping(item).get("ports"))]
        total += len(ports)
        for number, port in enumerate(ports):
            at = (*path, index, "ports", number)
            name, value = str(port.get("name") or ""), port.get("containerPort")
            if isinstance(value, int) and not 1 <= value <= 65535:
                problems.error(document, (*at, "containerPort"), f"{value} is not a port", "use 1 to 65535")
            grpc = "grpc" in name or "h2c" in name
            if value in {8081, 9000} and not grpc:
                problems.warn(
                    document,
                    at,
                    f"port {value} looks like gRPC, but its name {name!r} does not say so: the Service speaks HTTP/1.1 to it",
                    "name it h2c (Knative) or grpc-... (Standard)",
                )
            if len(name) > 15:
                problems.error(document, (*at, "name"), f"{name!r} is longer than 15 characters", "shorten it")
    if knative and total > 1:
        problems.warn(
            document,
            path,
            f"{total} ports; Knative takes one per service (knative/serving 8471)",
            f"keep one, or set the annotation {DEPLOYMENT_MODE}: Standard to have REST and gRPC",
        )


def _uris(path: FieldPath, block: Mapping[str, Any]) -> Iterator[tuple[FieldPath, Any]]:
    for name in (*LEGACY_FRAMEWORKS, "model"):
        if mapping(block.get(name)).get("storageUri") is not None:
            yield (*path, name, "storageUri"), block[name]["storageUri"]
    for index, item in enumerate(listed(block.get("storageUris"))):
        yield (*path, "storageUris", index, "uri"), mapping(item).get("uri")
    for index, item in enumerate(listed(block.get("containers"))):
        for number, variable in enumerate(listed(mapping(item).get("env"))):
            if mapping(variable).get("name") == "STORAGE_URI":
                yield (*path, "containers", index, "env", number, "value"), mapping(variable).get("value")


def _lint_uris(document: Document, path: FieldPath, block: Mapping[str, Any], problems: Problems) -> None:
    for at, uri in _uris(path, block):
        if not isinstance(uri, str) or "://" not in uri:
            continue
        scheme = uri.split("://", 1)[0]
        if scheme not in STORAGE_SCHEMES and not _AZURE.match(uri):
            near = nearest(scheme, STORAGE_SCHEMES)
            problems.error(
                document,
                at,
                f"{scheme}:// is not a storage of KServe; the webhook lets it pass and the controller refuses it",
                f"did you mean {near}://?" if near else f"use one of {', '.join(STORAGE_SCHEMES)}",
            )


def flag_value(args: Sequence[Any], *names: str) -> str | None:
    """The value of `--name value` or `--name=value`; underscores and dashes are alike. None where it is not there."""
    wanted = {name.replace("_", "-") for name in names}
    for index, word in enumerate(args):
        if not isinstance(word, str) or not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        if flag.replace("_", "-") in wanted:
            if equals:
                return value
            following = args[index + 1] if index + 1 < len(args) else ""
            return str(following)
    return None


def _lint_transformers(
    document: Document, predictor: Mapping[str, Any], transformer: Mapping[str, Any], problems: Problems
) -> None:
    split = [
        (("spec", "transformer", "containers", 0), mapping(item)) for item in listed(transformer.get("containers"))[:1]
    ]
    collocated = [
        (("spec", "predictor", "containers", index), mapping(item))
        for index, item in enumerate(listed(predictor.get("containers")))
        if mapping(item).get("name") == TRANSFORMER_CONTAINER
    ]
    for path, container in (*split, *collocated):
        args = [*listed(container.get("command")), *listed(container.get("args"))]
        protocol = flag_value(args, "predictor_protocol")
        if flag_value(args, "protocol") is not None:
            problems.warn(
                document,
                (*path, "args"),
                "--protocol is parsed and never used",
                "write --predictor_protocol=v2 or grpc-v2",
            )
        if protocol is None:
            problems.warn(
                document,
                (*path, "args"),
                "without --predictor_protocol the transformer speaks V1 to its predictor",
                "add --predictor_protocol=v2 or grpc-v2",
            )
        host = flag_value(args, "predictor_host")
        if path[1] == "predictor" and host is None:
            problems.error(
                document,
                (*path, "args"),
                "a collocated transformer gets no --predictor_host from KServe",
                "add --predictor_host=localhost:8080 (REST) or localhost:8081 (gRPC)",
            )
        if path[1] == "transformer" and protocol == "grpc-v2" and (host is None or ":" not in host):
            _lint_first_port(document, predictor, problems)


def _lint_first_port(document: Document, predictor: Mapping[str, Any], problems: Problems) -> None:
    containers = listed(predictor.get("containers"))
    ports = listed(mapping(containers[0] if containers else None).get("ports"))
    if not ports:
        return
    name = str(mapping(ports[0]).get("name") or "")
    if "grpc" not in name and "h2c" not in name:
        problems.warn(
            document,
            ("spec", "predictor", "containers", 0, "ports", 0),
            "the transformer's gRPC client calls port 80, which leads to the predictor's first port, and that is not gRPC",
            "put the gRPC port first, or give the transformer --predictor_host=<service>:<port>",
        )


def _lint_length(document: Document, predictor: Mapping[str, Any], problems: Problems) -> None:
    name = document.name
    middle = f"-{predictor.get('name')}" if predictor.get("name") else ""
    host = f"latest-{name}{middle}-predictor-{document.namespace}"
    if len(host) > 63:
        problems.warn(
            document,
            ("metadata", "name"),
            f"the host {host} has {len(host)} characters, a DNS label 63 at most (KServe issue 2428)",
            f"shorten the name by {len(host) - 63}",
        )


def _lint_protocol(document: Document, predictor: Mapping[str, Any], problems: Problems) -> None:
    first = mapping(listed(predictor.get("containers"))[0])
    names = {mapping(item).get("name") for item in listed(first.get("env"))}
    if "PROTOCOL" not in names:
        problems.warn(
            document,
            ("spec", "predictor", "containers", 0, "env"),
            "no PROTOCOL: KServe takes the predictor for a V1 server in InferenceGraphs and status URLs",
            "add env PROTOCOL with value v2",
        )
