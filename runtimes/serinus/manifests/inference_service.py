"""InferenceServices as frozen values, every field traceable to its file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .conventions import deployment_mode
from .documents import Document, Source
from .fields import LEGACY_FRAMEWORKS, listed, mapping, whole_number

__all__ = [
    "Canary",
    "Component",
    "InferenceService",
    "ModelFormat",
    "ModelSpec",
    "StorageUri",
    "Tracing",
    "parse_inference_service",
]


@dataclass(frozen=True, slots=True)
class StorageUri:
    """A model's files and the folder at which the container sees them."""

    uri: str
    mount_path: str
    source: Source
    settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Variables of the fetch alone: of `model.storage`, what the secret and `parameters` say. They may hold credentials."""


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """`modelFormat` of a predictor."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`predictor.model`, a legacy framework block already rewritten to it."""

    format: ModelFormat
    runtime: str
    protocol: str
    """Empty: not declared."""
    runtime_version: str
    container: Mapping[str, Any]
    """The container fields written in the block; merged over the runtime's."""
    storage: Mapping[str, Any] | None
    """`storage`: key, path, parameters; None: not written."""
    source: Source


@dataclass(frozen=True, slots=True)
class Component:
    """A predictor or transformer block."""

    kind: Literal["predictor", "transformer"]
    name: str
    """`predictor.name`, or empty."""
    model: ModelSpec | None
    containers: tuple[Mapping[str, Any], ...]
    storage: tuple[StorageUri, ...]
    timeout_s: float | None
    concurrency: int | None
    min_replicas: int
    canary_percent: int | None
    source: Source


@dataclass(frozen=True, slots=True)
class Canary:
    """One entry of `spec.canary` (Standard mode)."""

    percent: int
    predictor: Component


@dataclass(frozen=True, slots=True)
class Tracing:
    """`spec.tracing`, with the defaults that the webhook writes (tracing.go of KServe's v1beta1, TracingSpec.Default)."""

    endpoint: str = "http://otel-collector:4317"
    sampler: str = "parentbased_traceidratio"
    sampler_arg: str = "0.05"
    exporter: str = "otlp"


@dataclass(frozen=True, slots=True)
class InferenceService:
    """One InferenceService after defaulting."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    mode: str
    """`Knative` or `Standard`: which of the two canary forms counts."""
    predictor: Component
    transformer: Component | None
    canaries: tuple[Canary, ...]
    document: Document
    tracing: Tracing | None = None
    """None: not written, and nothing is traced."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def _legacy_protocol(name: str) -> str:
    # defaults.go 264-271: these formats speak V2 when nothing is declared.
    return "v2" if name in {"triton", "onnx", "huggingface"} else ""


def _model(block: Mapping[str, Any], source: Source) -> ModelSpec | None:
    for name in ("model", *LEGACY_FRAMEWORKS):
        value = mapping(block.get(name))
        if block.get(name) is None:
            continue
        if name == "model":
            written = mapping(value.get("modelFormat"))
            kind = ModelFormat(str(written.get("name") or ""), str(written.get("version") or ""))
            default = "v2" if kind.name in {"triton", "vLLM"} else ""
        else:
            kind, default = ModelFormat(name, ""), _legacy_protocol(name)
        own = {"modelFormat", "runtime", "storageUri", "storage", "protocolVersion", "runtimeVersion", "confidential"}
        return ModelSpec(
            format=kind,
            runtime=str(value.get("runtime") or ""),
            protocol=str(value.get("protocolVersion") or default),
            runtime_version=str(value.get("runtimeVersion") or ""),
            container={key: item for key, item in value.items() if key not in own},
            storage=mapping(value["storage"]) if isinstance(value.get("storage"), dict) else None,
            source=source.under(name),
        )
    return None


def _storage(block: Mapping[str, Any], source: Source) -> tuple[StorageUri, ...]:
    found = []
    for name in ("model", *LEGACY_FRAMEWORKS):
        uri = mapping(block.get(name)).get("storageUri")
        if uri:
            found.append(StorageUri(str(uri), "/mnt/models", source.under(name, "storageUri")))
    for index, item in enumerate(map(mapping, listed(block.get("storageUris")))):
        mount = str(item.get("mountPath") or "/mnt/models").rstrip("/")
        found.append(StorageUri(str(item.get("uri")), mount, source.under("storageUris", index, "uri")))
    containers: Sequence[Any] = listed(block.get("containers"))
    for index, container in enumerate(map(mapping, containers)):
        # predictor_custom.go 75-88: STORAGE_URI counts on kserve-container only.
        if container.get("name") not in {"kserve-container", None} and len(containers) > 1:
            continue
        for number, variable in enumerate(map(mapping, listed(container.get("env")))):
            if variable.get("name") == "STORAGE_URI" and variable.get("value"):
                at = source.under("containers", index, "env", number, "value")
                found.append(StorageUri(str(variable["value"]), "/mnt/models", at))
    return tuple(found)


def _component(kind: Literal["predictor", "transformer"], block: Mapping[str, Any], source: Source) -> Component:
    timeout, low = block.get("timeout"), block.get("minReplicas")
    return Component(
        kind=kind,
        name=str(block.get("name") or ""),
        model=_model(block, source) if kind == "predictor" else None,
        containers=tuple(map(mapping, listed(block.get("containers")))),
        storage=_storage(block, source),
        timeout_s=float(timeout) if timeout is not None else None,
        concurrency=block.get("containerConcurrency"),
        min_replicas=1 if low is None else int(low),
        canary_percent=block.get("canaryTrafficPercent"),
        source=source,
    )


_TRACING_FIELDS = {
    "exporterEndpoint": "endpoint",
    "sampler": "sampler",
    "samplerArg": "sampler_arg",
    "exporter": "exporter",
}


def _tracing(written: Any) -> Tracing | None:
    """Read `spec.tracing`; an empty mapping is tracing by defaults."""
    if not isinstance(written, dict):
        return None
    found = {ours: str(written[field]) for field, ours in _TRACING_FIELDS.items() if written.get(field) is not None}
    return Tracing(**found)


def parse_inference_service(document: Document) -> InferenceService:
    """Read an InferenceService that admission has let pass."""
    spec = mapping(document.value.get("spec"))
    annotations = {str(key): str(value) for key, value in mapping(document.metadata.get("annotations")).items()}
    stable = mapping(spec.get("predictor"))
    canaries = []
    for index, item in enumerate(map(mapping, listed(spec.get("canary")))):
        path = ("spec", "canary", index, "predictor")
        override = mapping(item.get("predictor"))
        # predictor.go 861-1038: a deep copy of the stable predictor, the canary's fields over it; lists are replaced whole.
        merged = _override({key: value for key, value in stable.items() if key != "canaryTrafficPercent"}, override)
        source = Source(((document, path), (document, ("spec", "predictor"))))
        percent = whole_number(item.get("trafficPercent")) or 0  # admission writes 0 where it is left out or null
        canaries.append(Canary(percent, _component("predictor", merged, source)))
    transformer = mapping(spec.get("transformer"))
    return InferenceService(
        name=document.name,
        namespace=document.namespace,
        labels={str(key): str(value) for key, value in mapping(document.metadata.get("labels")).items()},
        annotations=annotations,
        mode="Standard" if deployment_mode(annotations) == "Standard" else "Knative",
        predictor=_component("predictor", stable, Source(((document, ("spec", "predictor")),))),
        transformer=_component("transformer", transformer, Source(((document, ("spec", "transformer")),)))
        if transformer
        else None,
        canaries=tuple(canaries),
        document=document,
        tracing=_tracing(spec.get("tracing")),
    )


def _override(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _override(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
