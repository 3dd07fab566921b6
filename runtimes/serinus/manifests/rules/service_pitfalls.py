"""InferenceServices: what the webhook lets pass, and Knative, the gateway or the controller then does otherwise.

Every finding here was met in KServe 0.21's code or in its issue list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..conventions import ANNOTATIONS, DEPLOYMENT_MODE, PREFIX, TRANSFORMER_CONTAINER
from ..documents import FieldPath
from ..fields import LEGACY_FRAMEWORKS, flag_value, listed, mapping
from ..problems import nearest
from .rule import Findings, Rule, ServiceView

__all__ = ["SERVICE_PITFALLS", "TRANSFORMER_PITFALLS"]


def known_annotations(service: ServiceView) -> Findings:
    """An annotation with KServe's prefix is one of KServe's."""
    for key in service.annotations:
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in ANNOTATIONS:
            near = nearest(key.removeprefix(PREFIX), ANNOTATIONS)
            yield (
                ("metadata", "annotations", key),
                "KServe knows no such annotation",
                f"did you mean {PREFIX}{near}?" if near else "remove it",
            )


def known_mode(service: ServiceView) -> Findings:
    """A deployment mode is one that there is."""
    mode = service.mode
    if mode not in ("Standard", "Knative", "ModelMesh"):
        near = nearest(mode, ["Standard", "Knative", "RawDeployment", "Serverless"])
        yield (
            ("metadata", "annotations", DEPLOYMENT_MODE),
            f"{mode!r} is no deployment mode; KServe takes the cluster's default without a word",
            f"write {near or 'Standard or Knative'}",
        )


def scraping_needs_knative(service: ServiceView) -> Findings:
    """Prometheus is sent to the queue-proxy."""
    scraping = PREFIX + "enable-prometheus-scraping"
    if service.mode == "Standard" and str(service.annotations.get(scraping)).lower() == "true":
        yield (
            ("metadata", "annotations", scraping),
            "it announces the port of Knative's queue-proxy, which Standard mode lacks",
            "use a PodMonitor on the REST port instead",
        )


def knative_annotations(service: ServiceView) -> Findings:
    """Nobody reads Knative's annotations in Standard mode."""
    if service.mode != "Standard":
        return
    places = [(("metadata", "annotations"), service.annotations)]
    places += [
        (("spec", part, "annotations"), mapping(mapping(service.spec.get(part)).get("annotations")))
        for part in ("predictor", "transformer")
    ]
    for path, written in places:
        for key in written:
            if str(key).startswith(
                ("autoscaling.knative.dev/", "serving.knative.dev/", "queue.sidecar.serving.knative.dev/")
            ):
                yield (
                    (*path, str(key)),
                    "Standard mode ignores it",
                    "use minReplicas, maxReplicas, scaleTarget, or Knative mode",
                )


def _percents(service: ServiceView) -> Iterator[tuple[FieldPath, int]]:
    for part in ("predictor", "transformer"):
        percent = mapping(service.spec.get(part)).get("canaryTrafficPercent")
        if isinstance(percent, int) and not isinstance(percent, bool):
            yield ("spec", part, "canaryTrafficPercent"), percent


def percent_is_one(service: ServiceView) -> Findings:
    """A share is a percentage."""
    for path, percent in _percents(service):
        if not 0 <= percent <= 100:
            message = f"{percent} is not a percentage; the webhook lets it pass and Knative refuses it"
            yield path, message, "use 0 to 100"


def percent_needs_knative(service: ServiceView) -> Findings:
    """Standard mode has `spec.canary`."""
    if service.mode == "Standard":
        for path, _ in _percents(service):
            message = "Standard mode ignores it (KServe issue 5335)"
            yield path, message, "use spec.canary, or Knative mode"


def percent_beside_transformer(service: ServiceView) -> Findings:
    """Two components are split twice."""
    if service.mode == "Standard" or not service.spec.get("transformer"):
        return
    for path, _ in _percents(service):
        message = (
            "transformer and predictor are split independently in the cluster (KServe issue 1669): a canary predictor "
            "gets requests from the stable transformer; serinus up pairs them"
        )
        yield (
            path,
            message,
            f"collocate the transformer ({TRANSFORMER_CONTAINER}), or fuse it into one image",
        )


def canary_behind_transformer(service: ServiceView) -> Findings:
    """The route of a canary leads past the transformer, or nowhere."""
    if service.spec.get("transformer") and service.spec.get("canary"):
        yield (
            ("spec", "canary"),
            "behind a split transformer the canary gets no traffic, or bypasses the transformer, by KServe version (PR 5944)",
            f"collocate the transformer ({TRANSFORMER_CONTAINER}), or fuse it into one image",
        )


def _transformers(service: ServiceView) -> Iterator[tuple[FieldPath, Mapping[str, Any], list[Any]]]:
    """Every transformer's container, split and collocated: path, container, command and args."""
    for item in listed(service.transformer.get("containers"))[:1]:
        yield ("spec", "transformer", "containers", 0), mapping(item), _words(mapping(item))
    for index, item in enumerate(listed(service.predictor.get("containers"))):
        if mapping(item).get("name") == TRANSFORMER_CONTAINER:
            yield ("spec", "predictor", "containers", index), mapping(item), _words(mapping(item))


def _words(container: Mapping[str, Any]) -> list[Any]:
    return [*listed(container.get("command")), *listed(container.get("args"))]


def dead_protocol_flag(service: ServiceView) -> Findings:
    """Of two flags KServe's ModelServer reads one."""
    for path, _, words in _transformers(service):
        if flag_value(words, "protocol") is not None:
            mend = "write --predictor_protocol=v2 or grpc-v2"
            yield (*path, "args"), "--protocol is parsed and never used", mend


def predictor_protocol(service: ServiceView) -> Findings:
    """V1 is what a transformer speaks unless told."""
    for path, _, words in _transformers(service):
        merged = path[1] == "predictor" and service.predictor.get("model") is not None
        if flag_value(words, "predictor_protocol") is None and not merged:
            yield (
                (*path, "args"),
                "without --predictor_protocol the transformer speaks V1 to its predictor",
                "add --predictor_protocol=v2 or grpc-v2",
            )


def collocated_predictor_host(service: ServiceView) -> Findings:
    """The controller injects the predictor's address into a transformer component only."""
    for path, _, words in _transformers(service):
        merged = service.predictor.get("model") is not None  # the runtime may have the container, with its arguments
        if path[1] == "predictor" and not merged and flag_value(words, "predictor_host") is None:
            yield (
                (*path, "args"),
                "a collocated transformer gets no --predictor_host from KServe",
                "add --predictor_host=localhost:8080 (REST) or localhost:8081 (gRPC)",
            )


def grpc_port_first(service: ServiceView) -> Findings:
    """A split transformer's gRPC client calls port 80, which is the predictor's first."""
    for path, _, words in _transformers(service):
        host = flag_value(words, "predictor_host")
        grpc = flag_value(words, "predictor_protocol") == "grpc-v2"
        if path[1] != "transformer" or not grpc or (host is not None and ":" in host):
            continue
        containers = listed(service.predictor.get("containers"))
        ports = listed(mapping(containers[0] if containers else None).get("ports"))
        name = str(mapping(ports[0]).get("name") or "") if ports else "grpc"
        if "grpc" not in name and "h2c" not in name:
            yield (
                ("spec", "predictor", "containers", 0, "ports", 0),
                "the transformer's gRPC client calls port 80, which leads to the predictor's first port, and that is not gRPC",
                "put the gRPC port first, or give the transformer --predictor_host=<service>:<port>",
            )


def host_fits(service: ServiceView) -> Findings:
    """A host's first label has 63 characters at most."""
    name, namespace = service.document.name, service.document.namespace
    middle = f"-{service.predictor.get('name')}" if service.predictor.get("name") else ""
    host = f"latest-{name}{middle}-predictor-{namespace}"
    if len(host) > 63:
        yield (
            ("metadata", "name"),
            f"the host {host} has {len(host)} characters, a DNS label 63 at most (KServe issue 2428)",
            f"shorten the name by {len(host) - 63}",
        )


def protocol_declared(service: ServiceView) -> Findings:
    """Nobody can see from outside what a custom predictor speaks."""
    predictor = service.predictor
    containers = listed(predictor.get("containers"))
    if not containers or any(predictor.get(name) for name in (*LEGACY_FRAMEWORKS, "model")):
        return
    if all(mapping(item).get("name") != "PROTOCOL" for item in listed(mapping(containers[0]).get("env"))):
        yield (
            ("spec", "predictor", "containers", 0, "env"),
            "no PROTOCOL: KServe takes the predictor for a V1 server in InferenceGraphs and status URLs",
            "add env PROTOCOL with value v2",
        )


SERVICE_PITFALLS: tuple[Rule[ServiceView], ...] = (
    Rule("service-known-annotations", known_annotations, "warning"),
    Rule("service-known-mode", known_mode, "warning"),
    Rule("service-scraping-needs-knative", scraping_needs_knative, "warning"),
    Rule("service-knative-annotations", knative_annotations, "warning"),
    Rule("traffic-percent-is-one", percent_is_one, layer="controller"),
    Rule("traffic-percent-needs-knative", percent_needs_knative, "warning"),
    Rule("traffic-percent-beside-transformer", percent_beside_transformer, "warning"),
    Rule("traffic-canary-behind-transformer", canary_behind_transformer, "warning"),
)
TRANSFORMER_PITFALLS: tuple[Rule[ServiceView], ...] = (
    Rule("transformer-dead-protocol-flag", dead_protocol_flag, "warning"),
    Rule("transformer-predictor-protocol", predictor_protocol, "warning"),
    Rule("transformer-collocated-predictor-host", collocated_predictor_host, layer="controller"),
    Rule("transformer-grpc-port-first", grpc_port_first, "warning"),
    Rule("service-host-fits", host_fits, "warning"),
    Rule("service-protocol-declared", protocol_declared, "warning"),
)
"""Judged after the components, so that findings of one line keep their order."""
