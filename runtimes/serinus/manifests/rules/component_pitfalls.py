"""Predictors, transformers and runtimes: what the webhook lets pass, and the controller or the cluster then does otherwise.

Every finding here was met in KServe 0.21's code or in its issue list. Errors are what the controller refuses after `kubectl apply` has
said yes; warnings are what runs, but not as the manifest reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..conventions import AUTOSCALER, DEPLOYMENT_MODE, KSERVE_CONTAINER, STORAGE_SCHEMES, deployment_mode
from ..documents import FieldPath
from ..fields import LEGACY_FRAMEWORKS, listed, mapping
from ..problems import nearest
from .rule import Block, Findings, Rule

__all__ = ["COMPONENT_PITFALLS", "PORT_PITFALLS"]

_AZURE = re.compile(r"https://.+?\.blob\.core\.windows\.net/.+")


def model_container_there(block: Block) -> Findings:
    """With several containers the controller looks for the model's by its name."""
    names = _names(block)
    if len(names) > 1 and KSERVE_CONTAINER not in names:
        yield (
            (*block.path, "containers"),
            f"of {len(names)} containers none is called {KSERVE_CONTAINER}; the controller crashes on it",
            f"name the model's container {KSERVE_CONTAINER}",
        )


def model_container_first(block: Block) -> Findings:
    """It merges into the first container whatever that is called."""
    names = _names(block)
    if len(names) > 1 and KSERVE_CONTAINER in names and names[0] != KSERVE_CONTAINER:
        yield (
            (*block.path, "containers", 0, "name"),
            f"{names[0]} comes first; the controller overwrites it with {KSERVE_CONTAINER}",
            f"put {KSERVE_CONTAINER} first",
        )


def _names(block: Block) -> list[Any]:
    """Names of a custom predictor's containers; of others, none."""
    if block.part != "predictor" or block.value.get("model"):
        return []
    return [mapping(item).get("name") for item in listed(block.value.get("containers"))]


def resources_written(block: Block) -> Findings:
    """Where nothing is written KServe writes something."""
    for index, item in enumerate(listed(block.value.get("containers"))):
        resources = mapping(mapping(item).get("resources"))
        asked = {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}
        missing = [name for name in ("cpu", "memory") if name not in asked]
        if missing:
            yield (
                (*block.path, "containers", index, "resources"),
                f"no {' and '.join(missing)}: KServe sets 1 CPU and 2Gi as request and limit, which throttles",
                "write requests and limits",
            )


def _ports(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any], str]]:
    """Every port of the containers: path, port, name."""
    for index, item in enumerate(listed(block.value.get("containers"))):
        for number, port in enumerate(map(mapping, listed(mapping(item).get("ports")))):
            yield (*block.path, "containers", index, "ports", number), port, str(port.get("name") or "")


def port_number(block: Block) -> Findings:
    """A port is one of TCP's."""
    for at, port, _ in _ports(block):
        value = port.get("containerPort")
        if isinstance(value, int) and not 1 <= value <= 65535:
            yield (*at, "containerPort"), f"{value} is not a port", "use 1 to 65535"


def grpc_port_named(block: Block) -> Findings:
    """A port's name says whether it speaks HTTP/2."""
    for at, port, name in _ports(block):
        value = port.get("containerPort")
        if value in (8081, 9000) and "grpc" not in name and "h2c" not in name:
            yield (
                at,
                f"port {value} looks like gRPC, but its name {name!r} does not say so: the Service speaks HTTP/1.1 to it",
                "name it h2c (Knative) or grpc-... (Standard)",
            )


def port_name_short(block: Block) -> Findings:
    """IANA service names have 15 characters at most."""
    for at, _, name in _ports(block):
        if len(name) > 15:
            yield (*at, "name"), f"{name!r} is longer than 15 characters", "shorten it"


def one_port_in_knative(block: Block) -> Findings:
    """Knative routes to one port."""
    total = sum(1 for _ in _ports(block))
    if total > 1 and deployment_mode(block.annotations) != "Standard":
        yield (
            (*block.path, "containers"),
            f"{total} ports; Knative takes one per service (knative/serving 8471)",
            f"keep one, or set the annotation {DEPLOYMENT_MODE}: Standard to have REST and gRPC",
        )


def _uris(block: Block) -> Iterator[tuple[FieldPath, Any]]:
    path, value = block.path, block.value
    for name in (*LEGACY_FRAMEWORKS, "model"):
        if mapping(value.get(name)).get("storageUri") is not None:
            yield (*path, name, "storageUri"), value[name]["storageUri"]
    for index, item in enumerate(listed(value.get("storageUris"))):
        yield (*path, "storageUris", index, "uri"), mapping(item).get("uri")
    for index, item in enumerate(listed(value.get("containers"))):
        for number, variable in enumerate(listed(mapping(item).get("env"))):
            if mapping(variable).get("name") == "STORAGE_URI":
                yield (*path, "containers", index, "env", number, "value"), mapping(variable).get("value")


def _near_scheme(scheme: str) -> str | None:
    """The scheme that was probably meant; of a scheme of two or three letters one letter is a third of it."""
    if scheme in STORAGE_SCHEMES:
        return None
    twins = [known for known in STORAGE_SCHEMES if len(known) == len(scheme) <= 3 and known[0] == scheme[0]]
    return nearest(scheme, STORAGE_SCHEMES) or next(iter(twins), None)


def storage_scheme(block: Block) -> Findings:
    """The storage initializer knows so many schemes."""
    for at, uri in _uris(block):
        if not isinstance(uri, str) or "://" not in uri:
            continue
        scheme = uri.split("://", 1)[0]
        near = _near_scheme(scheme)
        if near and not _AZURE.match(uri):
            message = f"{scheme}:// is not a storage of KServe; the webhook lets it pass and the controller refuses it"
            yield at, message, f"did you mean {near}://?"


def storage_scheme_of_platform(block: Block) -> Findings:
    """A platform may install a ClusterStorageContainer for a scheme of its own."""
    for at, uri in _uris(block):
        scheme = uri.split("://", 1)[0] if isinstance(uri, str) and "://" in uri else "s3"
        if scheme not in STORAGE_SCHEMES and not _AZURE.match(str(uri)) and _near_scheme(scheme) is None:
            yield (
                at,
                f"{scheme}:// is not a storage of KServe itself; without a ClusterStorageContainer for it the controller refuses it",
                f"install one, or use one of {', '.join(STORAGE_SCHEMES)}",
            )


_SCHEDULING = (
    *("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName", "schedulerName"),
    *("priorityClassName", "hostAliases", "dnsPolicy", "dnsConfig", "initContainers", "securityContext"),
)


def scheduling_in_knative(block: Block) -> Findings:
    """Knative takes most fields of a pod only where a feature flag of the cluster allows it."""
    if deployment_mode(block.annotations) != "Knative" or block.part == "spec":
        return
    for key in _SCHEDULING:
        if block.value.get(key):
            yield (
                (*block.path, key),
                "Knative refuses it unless the cluster's config-features allows it",
                f"enable kubernetes.podspec-{key.lower()} there, or set the annotation {DEPLOYMENT_MODE}: Standard",
            )


def knative_fields_in_standard(block: Block) -> Findings:
    """An HPA does not go to zero, and nobody counts concurrent requests."""
    if deployment_mode(block.annotations) != "Standard" or block.part == "spec":
        return
    if block.value.get("minReplicas") == 0 and block.annotations.get(AUTOSCALER) not in ("keda", "none", "external"):
        yield (*block.path, "minReplicas"), "0 becomes 1: an HPA does not go to zero", "use 1, or autoscalerClass keda"
    if block.value.get("containerConcurrency"):
        yield (
            (*block.path, "containerConcurrency"),
            "Standard mode ignores it",
            "remove it; bound the queue in the server",
        )


def format_named(block: Block) -> Findings:
    """A runtime is chosen for a model's format, or named."""
    model = block.value.get("model")
    if not isinstance(model, dict) or model.get("runtime"):
        return
    if model.get("modelFormat") is None:
        yield (*block.path, "model", "modelFormat"), "missing: no runtime can be chosen", "add modelFormat: {name: ...}"


_PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")


def protocol_known(block: Block) -> Findings:
    """A protocol is one that runtimes declare; an unknown one matches none, and a runtime by name is not asked."""
    for name in (*LEGACY_FRAMEWORKS, "model"):
        protocol = mapping(block.value.get(name)).get("protocolVersion")
        if isinstance(protocol, str) and protocol not in _PROTOCOLS:
            near = nearest(protocol.lower(), _PROTOCOLS)
            yield (
                (*block.path, name, "protocolVersion"),
                f"{protocol!r} is no protocol: no runtime is chosen for it",
                f"did you mean {near}?" if near else f"use one of {', '.join(_PROTOCOLS)}",
            )


def batcher_speaks_v1(block: Block) -> Findings:
    """KServe's batcher joins `instances` of V1 (issue 2275)."""
    if not isinstance(block.value.get("batcher"), dict):
        return
    spoken = [mapping(block.value.get(name)).get("protocolVersion") for name in (*LEGACY_FRAMEWORKS, "model")]
    for item in listed(block.value.get("containers")):
        spoken += [
            mapping(v).get("value") for v in listed(mapping(item).get("env")) if mapping(v).get("name") == "PROTOCOL"
        ]
    if any(word in ("v2", "grpc-v2") for word in spoken):
        message = "KServe's batcher joins V1 requests only (KServe issue 2275): V2 requests fail"
        yield (*block.path, "batcher"), message, "remove it; the runtime batches by itself"


PORT_PITFALLS: tuple[Rule[Block], ...] = (
    Rule("port-number", port_number, layer="controller"),
    Rule("port-grpc-named", grpc_port_named, "warning"),
    Rule("port-name-short", port_name_short, layer="controller"),
)
"""Of a runtime as well as of a component."""

COMPONENT_PITFALLS: tuple[Rule[Block], ...] = (
    Rule("component-model-container-there", model_container_there, layer="controller"),
    Rule("component-model-container-first", model_container_first, layer="controller"),
    Rule("component-resources-written", resources_written, "warning"),
    *PORT_PITFALLS,
    Rule("port-one-in-knative", one_port_in_knative, "warning"),
    Rule("component-storage-scheme", storage_scheme, layer="controller"),
    Rule("component-storage-scheme-of-platform", storage_scheme_of_platform, "warning", "controller"),
    Rule("component-scheduling-in-knative", scheduling_in_knative, "warning", "controller"),
    Rule("component-knative-fields-in-standard", knative_fields_in_standard, "warning"),
    Rule("component-format-named", format_named, layer="controller"),
    Rule("component-protocol-known", protocol_known, "warning", "controller"),
    Rule("component-batcher-speaks-v1", batcher_speaks_v1, "warning"),
)
