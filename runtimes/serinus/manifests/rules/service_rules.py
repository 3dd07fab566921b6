"""An InferenceService as a whole, and any object of KServe: what the API server and the webhook refuse."""

from __future__ import annotations

from ..conventions import AUTOSCALER, NAME
from ..documents import Document
from ..published_schemas import published
from .rule import Findings, Rule, ServiceView

__all__ = ["OBJECT_RULES", "SERVICE_RULES"]


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


OBJECT_RULES: tuple[Rule[Document], ...] = (
    Rule("object-api-version", api_version, layer="server"),
    Rule("object-no-key-twice", no_key_twice, layer="server"),
)
SERVICE_RULES: tuple[Rule[ServiceView], ...] = (
    Rule("service-name", service_name),
    Rule("service-predictor", predictor_written),
    Rule("service-autoscaler-class", autoscaler_class),
)
