"""An InferenceService as a whole, and any object of KServe: what the API server and the webhook refuse; of `spec.tracing` also what turns traces off."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlsplit

from ..conventions import AUTOSCALER, NAME
from ..documents import Document
from ..fields import mapping
from ..published_schemas import published
from .rule import Findings, Rule, ServiceView

__all__ = ["OBJECT_RULES", "SERVICE_RULES", "TRACING_PITFALLS", "TRACING_RULES"]


_SAMPLERS = ("always_on", "always_off", "traceidratio")
SAMPLERS = (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))
EXPORTERS = ("console", "none", "otlp")
_DEFAULT_SAMPLER = "parentbased_traceidratio"


def api_version(document: Document) -> Findings:
    """A kind is served in the versions that KServe publishes."""
    versions = published().versions(document.kind)
    if document.api_version not in versions:
        message = f"{document.api_version!r} does not serve kind {document.kind}"
        yield ("apiVersion",), message, f"use {' or '.join(versions)}"


def no_key_twice(document: Document) -> Findings:
    """Strict decoding refuses duplicate keys."""
    for path in document.duplicates:
        yield path, "written twice", "keep one; strict decoding refuses duplicate keys"


def service_name(service: ServiceView) -> Findings:
    """The name becomes a part of hosts (1)."""
    name = service.document.metadata.get("name")
    if not isinstance(name, str) or not name:
        yield ("metadata", "name"), "missing", "add a name such as fraud"
    elif not NAME.match(name):
        yield (
            ("metadata", "name"),
            f"{name!r} is not a name for an InferenceService",
            "use lower-case letters, digits and dashes, beginning with a letter",
        )


def predictor_written(service: ServiceView) -> Findings:
    """A service has a predictor; the defaulting webhook ends in a panic without one, which the API server tells as status 500."""
    if service.document.value.get("spec") is None:
        yield ("spec",), "missing", "add spec.predictor"
    elif isinstance(service.document.value["spec"], dict) and service.spec.get("predictor") is None:
        yield ("spec", "predictor"), "missing", "add predictor"


def autoscaler_class(service: ServiceView) -> Findings:
    """There are four classes of autoscalers (2)."""
    scaler = service.annotations.get(AUTOSCALER)
    scalers = ("hpa", "external", "keda", "none")
    if scaler is not None and scaler not in scalers:
        path = ("metadata", "annotations", AUTOSCALER)
        yield path, f"{scaler!r} is not an autoscaler class", f"use one of {', '.join(scalers)}"


def _written(service: ServiceView, field: str) -> Any:
    """A field of the block; None where it is not there, or is no text, which is the schema's to say."""
    value = mapping(service.spec.get("tracing")).get(field)
    return value if isinstance(value, str) else None


def known_sampler(service: ServiceView) -> Findings:
    """A sampler is one of OpenTelemetry's six that need no server."""
    sampler = _written(service, "sampler")
    if sampler is not None and sampler not in SAMPLERS:
        yield (
            ("spec", "tracing", "sampler"),
            f"{sampler!r} is no sampler that KServe knows",
            f"use one of {', '.join(SAMPLERS)}",
        )


def absolute_endpoint(service: ServiceView) -> Findings:
    """An endpoint is a whole URL, though gRPC is what is spoken there."""
    endpoint = _written(service, "exporterEndpoint")
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        whole = parts.scheme in {"http", "https"} and bool(parts.netloc) and (parts.port or 0) >= 0
    except ValueError:
        whole = False
    if not whole or any(character.isspace() for character in endpoint):
        message = f"{endpoint!r} is no absolute HTTP or HTTPS URL with a host"
        yield ("spec", "tracing", "exporterEndpoint"), message, "write http://collector:4317"


def known_exporter(service: ServiceView) -> Findings:
    """KServe's Python servers and ours trace nothing where they do not know the exporter."""
    exporter = _written(service, "exporter")
    unknown = [name for name in (exporter or "").split(",") if name.strip().lower() not in EXPORTERS]
    if exporter is not None and unknown:
        message = f"KServe's Python servers know no exporter {unknown[0].strip()!r} and trace nothing"
        yield ("spec", "tracing", "exporter"), message, f"use {', '.join(EXPORTERS)}"


def ratio_in_range(service: ServiceView) -> Findings:
    """A ratio is a number from 0 to 1; a sampler without a ratio reads none."""
    at = ("spec", "tracing", "samplerArg")
    written = _written(service, "samplerArg")
    if written is None:
        return
    sampler = _written(service, "sampler") or _DEFAULT_SAMPLER
    if not sampler.endswith("traceidratio"):
        yield at, f"{sampler} has no argument; this is not read", "leave it out, or use parentbased_traceidratio"
        return
    try:
        ratio = float(written)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        message = f"{written!r} is no ratio; OpenTelemetry's SDKs record every request, or none, instead"
        yield at, message, "write a number from 0 to 1, such as '0.05'"


OBJECT_RULES: tuple[Rule[Document], ...] = (
    Rule("object-api-version", api_version, layer="server"),
    Rule("object-no-key-twice", no_key_twice, layer="server"),
)
SERVICE_RULES: tuple[Rule[ServiceView], ...] = (
    Rule("service-name", service_name),
    Rule("service-predictor", predictor_written),
    Rule("service-autoscaler-class", autoscaler_class),
)
TRACING_RULES: tuple[Rule[ServiceView], ...] = (
    Rule("tracing-sampler", known_sampler),
    Rule("tracing-endpoint", absolute_endpoint),
)
TRACING_PITFALLS: tuple[Rule[ServiceView], ...] = (
    Rule("tracing-exporter", known_exporter, "warning"),
    Rule("tracing-ratio", ratio_in_range, "warning"),
)
