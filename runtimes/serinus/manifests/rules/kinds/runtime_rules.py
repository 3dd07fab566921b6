"""ServingRuntimes and ClusterServingRuntimes: what the webhook refuses, alone and against one another.

Source: `servingruntime_webhook.go` of KServe 0.21.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...conventions import KSERVE_CONTAINER, MODEL_FORMATS, RUNTIME_NAMES
from ...documents import Document, FieldPath
from ...fields import listed, mapping, whole_number
from ...problems import nearest
from ...serving_runtimes import BUILT_IN, BY_NAME
from ..rule import Finding, Findings, Rule

__all__ = ["RUNTIME_RULES", "shared_priorities", "unknown_choices", "unserved_formats"]


def runtime_name(document: Document) -> Findings:
    """A runtime has a name."""
    if not document.name:
        yield ("metadata", "name"), "missing", "add a name"


def model_container(document: Document) -> Findings:
    """The model's container has its fixed name; a runtime of ModelMesh has others, and one without is accepted and never serves."""
    spec = mapping(document.value.get("spec"))
    names = [str(mapping(item).get("name")) for item in listed(spec.get("containers"))]
    if names and KSERVE_CONTAINER not in names and not spec.get("multiModel"):
        hint = nearest(KSERVE_CONTAINER, names)
        at = ("spec", "containers", names.index(hint) if hint else 0, "name")
        yield at, f"no container is called {KSERVE_CONTAINER}", f"rename it to {KSERVE_CONTAINER}"


def _formats(document: Document) -> Iterator[tuple[FieldPath, Mapping[str, Any], int | None]]:
    """Each supported format of a runtime that is enabled: its priority's path, the entry, the priority."""
    spec = mapping(document.value.get("spec"))
    if spec.get("disabled"):
        return
    for index, item in enumerate(listed(spec.get("supportedModelFormats"))):
        path = ("spec", "supportedModelFormats", index, "priority")
        yield path, mapping(item), whole_number(mapping(item).get("priority"))


def priority_positive(document: Document) -> Findings:
    """A priority is 1 or more."""
    for at, _, priority in _formats(document):
        if priority is not None and priority < 1:
            yield at, f"{priority} is less than 1", "use 1 or more"


def one_priority_a_format(document: Document) -> Findings:
    """All versions of a format have one priority in one runtime."""
    own: dict[str, int | None] = {}
    for at, entry, priority in _formats(document):
        name = str(entry.get("name"))
        if not entry.get("autoSelect"):
            continue
        first = own.setdefault(name, priority)
        if first is not None and priority is not None and first != priority:
            message = f"{name} has two priorities in one runtime: {own[name]} and {priority}"
            yield at, message, "make them equal"


def shared_priorities(documents: Sequence[Document]) -> Iterator[tuple[Document, Finding]]:
    """Two runtimes with the same priority for the same format, version and protocol: nobody could say which is chosen."""
    taken: dict[tuple[str, str, bool, str, str, str, int], str] = {}
    for document in documents:
        scope = "cluster" if document.kind == "ClusterServingRuntime" else document.namespace
        spec = mapping(document.value.get("spec"))
        several = bool(spec.get("multiModel"))
        protocols = listed(spec.get("protocolVersions"))  # without any, no two runtimes share one
        for at, entry, priority in _formats(document):
            if not entry.get("autoSelect") or priority is None:
                continue
            name, version = str(entry.get("name")), str(entry.get("version") or "")
            folded = name.lower()  # the webhook compares names without case
            for protocol in protocols:
                key = (document.kind, scope, several, folded, version, str(protocol), priority)
                other = taken.setdefault(key, document.name)
                if other != document.name:
                    message = f"runtime {other} has priority {priority} for {name} over {protocol} as well"
                    yield document, (at, message, "use another priority")


def unknown_choices(services: Sequence[Document], runtimes: Sequence[Document]) -> Iterator[tuple[Document, Finding]]:
    """Runtimes and formats that services name and that neither these manifests nor KServe have: a slip of the pen, or the platform's own.

    Ours are known by their prefix `serinus-`, since their manifests are often applied before and elsewhere.
    """
    names = [*RUNTIME_NAMES, *(document.name for document in runtimes)]
    formats = [*MODEL_FORMATS]
    for document in runtimes:
        formats += [
            str(mapping(item).get("name"))
            for item in listed(mapping(document.value.get("spec")).get("supportedModelFormats"))
        ]
    for service in services:
        for path, model in _models(service):
            runtime, kind = model.get("runtime"), mapping(model.get("modelFormat")).get("name")
            if isinstance(runtime, str) and runtime and runtime not in names and not runtime.startswith("serinus-"):
                near = nearest(runtime, names)
                message = f"{runtime} is neither in these manifests nor one of KServe's own runtimes"
                yield (
                    service,
                    ((*path, "runtime"), message, f"did you mean {near}?" if near else "see that the cluster has it"),
                )
            if isinstance(kind, str) and kind and not runtime and kind not in formats:
                near = nearest(kind, formats) or nearest(kind.lower(), formats)
                message = f"no runtime of these manifests or of KServe's own serves {kind}"
                yield (
                    service,
                    (
                        (*path, "modelFormat", "name"),
                        message,
                        f"did you mean {near}?" if near else "see that the cluster has one",
                    ),
                )


def unserved_formats(services: Sequence[Document], runtimes: Sequence[Document]) -> Iterator[tuple[Document, Finding]]:
    """Formats that the runtime which a service names does not serve, by its manifest or, of ours, by its name.

    The controller refuses them (predictor.go 332-417 of KServe 0.21: "specified runtime ... does not support specified framework/version").
    """
    served: dict[str, list[tuple[str, str | None]]] = {
        f"serinus-{app.replace('_', '-')}": [(name, None) for name in names]  # which versions, its manifest says
        for app, names in {**BUILT_IN, **BY_NAME}.items()
    }
    written: dict[str, list[tuple[str, str | None]]] = {}
    for document in runtimes:  # of one name in several namespaces, any may be the one that is meant
        entries = map(mapping, listed(mapping(document.value.get("spec")).get("supportedModelFormats")))
        found = [(str(entry.get("name")), str(entry.get("version") or "")) for entry in entries]
        written.setdefault(document.name, []).extend(found)
    served |= written
    for service in services:
        for path, model in _models(service):
            wanted = mapping(model.get("modelFormat"))
            kind, version, runtime = wanted.get("name"), str(wanted.get("version") or ""), model.get("runtime")
            if not isinstance(kind, str) or not kind or not isinstance(runtime, str) or runtime not in served:
                continue
            formats = served[runtime]
            if not any(name == kind and (has is None or version in {"", has}) for name, has in formats):
                message = f"runtime {runtime} does not serve {kind} {version}".rstrip()
                yield service, ((*path, "runtime"), message, f"it serves {_spoken(formats)}")


def _spoken(formats: Sequence[tuple[str, str | None]]) -> str:
    return ", ".join(dict.fromkeys(f"{name} {version or ''}".strip() for name, version in formats)) or "none"


def _models(service: Document) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    spec = mapping(service.value.get("spec"))
    yield ("spec", "predictor", "model"), mapping(mapping(spec.get("predictor")).get("model"))
    for index, item in enumerate(listed(spec.get("canary"))):
        yield (
            ("spec", "canary", index, "predictor", "model"),
            mapping(mapping(mapping(item).get("predictor")).get("model")),
        )


RUNTIME_RULES: tuple[Rule[Document], ...] = (
    Rule("runtime-name", runtime_name),
    Rule("runtime-model-container", model_container, "warning", "controller"),
    Rule("runtime-priority-positive", priority_positive, layer="server"),
    Rule("runtime-one-priority-a-format", one_priority_a_format),
)
