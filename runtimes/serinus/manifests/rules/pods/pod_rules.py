"""Pods: what `kubectl apply` of a service or runtime takes, and the Deployment that is made of it is refused for.

Source: validation.go of Kubernetes 1.37 (ValidatePodSpec and below), as seen with a real control plane: the InferenceService is accepted,
and never becomes Ready. Of a ServingRuntime the same holds for every service that chooses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...conventions import implementations
from ...documents import Document, FieldPath
from ...fields import containers_of, listed, mapping, variables_of
from ..rule import Block, Findings, Rule

__all__ = ["METADATA_RULES", "POD_RULES"]

_LABEL_NAME = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_DOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_PORT_NAME = re.compile(r"^[a-z0-9-]*[a-z][a-z0-9-]*$")
_OF_KSERVE = ("kserve-provision-location", "kserve-pvc-source", "user-container-mounts")
"""Volumes that the pod webhook adds."""

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("httpGet", "tcpSocket", "grpc", "exec")


def _containers(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any], bool]]:
    """Every container, also of workers; whether an image must be written, which a framework's block leaves to its runtime."""
    for path, value in (
        (block.path, block.value),
        ((*block.path, "workerSpec"), mapping(block.value.get("workerSpec"))),
    ):
        for where, container in containers_of(path, value):
            yield where, container, isinstance(where[-1], int)


def image_written(block: Block) -> Findings:
    """A container has an image; one beside `model` may take a runtime's by its name."""
    if not _is_whole(block):
        return
    for path, container, whole in _containers(block):
        if whole and not container.get("image") and "workerSpec" not in path:
            yield (*path, "image"), "missing: the Deployment is refused", "write the image"


def _is_whole(block: Block) -> bool:
    """Whether the pod is as written, and nothing of a runtime is merged into it."""
    return block.part in ("transformer", "spec") or (
        block.part == "predictor" and implementations(block.value) == ["containers"]
    )


def container_names(block: Block) -> Findings:
    """Names of containers are DNS labels, each used once."""
    seen: dict[str, FieldPath] = {}
    for path, container, whole in _containers(block):
        name = container.get("name")
        if block.is_template and name == "":
            yield (*path, "name"), "missing", "write it"
        if not whole or not isinstance(name, str) or not name:
            continue
        if not _DNS_LABEL.match(name) or len(name) > 63:
            yield (
                (*path, "name"),
                f"{name!r} is not a name for a container",
                "use lower-case letters, digits and dashes, at most 63",
            )
        elif name in seen and "workerSpec" not in path:
            yield (*path, "name"), f"{name!r} names two containers", "use another name"
        seen.setdefault(name, path)


def variables(block: Block) -> Findings:
    """A variable has a name, and a value or a source of it."""
    for path, container, _ in _containers(block):
        for at, variable in variables_of(path, container):
            name = variable.get("name")
            if isinstance(name, str) and (not name or "=" in name or not name.isprintable()):
                yield (*at, "name"), f"{name!r} is not a name for a variable", "use letters, digits and underscores"
            source = variable.get("valueFrom")
            if variable.get("value") and source is not None:
                yield at, "has value and valueFrom", "keep one"
            elif isinstance(source, dict) and sum(value is not None for value in source.values()) != 1:
                yield (*at, "valueFrom"), f"{len(source)} sources", "write one, such as secretKeyRef"


def port_names(block: Block) -> Findings:
    """Names of ports have 15 characters at most, a letter among them, and are used once in a container."""
    for path, container, _ in _containers(block):
        seen: set[str] = set()
        for index, port in enumerate(map(mapping, listed(container.get("ports")))):
            name = port.get("name")
            at = (*path, "ports", index, "name")
            if not isinstance(name, str) or not name:
                continue
            if len(name) <= 15 and (
                not _PORT_NAME.match(name) or "--" in name or name.startswith("-") or name.endswith("-")
            ):
                yield at, f"{name!r} is not a name for a port", "use lower-case letters, digits and single dashes"
            elif name in seen:
                yield at, f"{name!r} names two ports", "use another name"
            seen.add(name)


def probe_handlers(block: Block) -> Findings:
    """A probe asks in one way; an empty one beside `model` leaves the runtime's as it is."""
    for path, container, whole in _containers(block):
        for key in _PROBES:
            probe = container.get(key)
            if not isinstance(probe, dict) or (not probe and not whole):
                continue
            found = [name for name in _HANDLERS if probe.get(name) is not None]
            if len(found) != 1:
                said = f"has {len(found)} handlers: {', '.join(found)}" if found else "has no handler"
                yield (*path, key), said, f"write one of {', '.join(_HANDLERS)}"
            if key != "readinessProbe" and probe.get("successThreshold") not in (None, 0, 1):
                yield (*path, key, "successThreshold"), f"{probe['successThreshold']} of a {key}", "use 1"


def mounts_have_volumes(block: Block) -> Findings:
    """A mount names a volume of the pod, and no two mounts of a container have one path."""
    if not _is_whole(block):
        return
    volumes = [mapping(item).get("name") for item in listed(block.value.get("volumes"))]
    for path, container, _ in _containers(block):
        seen: set[str] = set()
        for index, mount in enumerate(map(mapping, listed(container.get("volumeMounts")))):
            name, where = mount.get("name"), mount.get("mountPath")
            at = (*path, "volumeMounts", index)
            in_pod = block.is_template or (block.part != "spec" and "workerSpec" not in path)
            if name and name not in (*volumes, *_OF_KSERVE) and in_pod:
                known = f"use one of {', '.join(sorted(map(str, volumes)))}" if volumes else "add it to volumes"
                yield (*at, "name"), f"no volume is called {name}", known
            if isinstance(where, str) and where in seen:
                yield (*at, "mountPath"), f"{where} is mounted already", "use another path"
            seen.add(str(where))


def image_pull_policy(block: Block) -> Findings:
    """An image is pulled in one of three ways."""
    words = ("Always", "IfNotPresent", "Never")
    for path, container, _ in _containers(block):
        policy = container.get("imagePullPolicy")
        if isinstance(policy, str) and policy and policy not in words:
            yield (*path, "imagePullPolicy"), f"{policy!r} is not accepted", f"use one of {', '.join(words)}"


_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def tolerations(block: Block) -> Findings:
    """A toleration compares or only asks for a key."""
    for index, item in enumerate(map(mapping, listed(block.value.get("tolerations")))):
        at = (*block.path, "tolerations", index)
        operator, effect = item.get("operator"), item.get("effect")
        if operator not in (None, "", "Equal", "Exists", "Lt", "Gt"):
            yield (*at, "operator"), f"{operator!r} is not accepted", "use Equal or Exists"
        if effect not in (None, "", *_EFFECTS):
            yield (*at, "effect"), f"{effect!r} is not accepted", f"use one of {', '.join(_EFFECTS)}"
        if operator == "Exists" and item.get("value"):
            yield (*at, "value"), "forbidden beside Exists", "remove it, or use Equal"
        if item.get("tolerationSeconds") is not None and effect != "NoExecute":
            yield (*at, "tolerationSeconds"), "is of effect NoExecute alone", "write effect: NoExecute, or remove it"
        if isinstance(item.get("key"), str) and isinstance(item.get("value"), str | None):
            pairs = {item["key"]: item.get("value") or ""} if item["key"] else {}
            yield from ((at, message, mend) for _, message, mend in _pairs(at, pairs, "labels"))
        if not item.get("key") and operator in (None, "", "Equal"):
            yield (*at, "operator"), "without a key it must be Exists", "write key, or operator: Exists"


def labels_of(document: Document) -> Findings:
    """Labels are short words; keys of labels and annotations have a form."""
    for kind in ("labels", "annotations"):
        yield from _pairs(("metadata", kind), mapping(document.metadata.get(kind)), kind)


def object_name(document: Document) -> Findings:
    """A name is a DNS subdomain."""
    name = document.metadata.get("name")
    if isinstance(name, str) and name and (len(name) > 253 or not _DOMAIN.match(name)):
        yield ("metadata", "name"), f"{name!r} is not a name", "use lower-case letters, digits, dashes and dots"
    space = document.metadata.get("namespace")
    if isinstance(space, str) and space and (len(space) > 63 or not _DNS_LABEL.match(space)):
        yield ("metadata", "namespace"), f"{space!r} is not a namespace", "use lower-case letters, digits and dashes"


def labels_of_pods(block: Block) -> Findings:
    """What a component gives its pods is checked when these are made."""
    for kind in ("labels", "annotations"):
        yield from _pairs((*block.path, kind), mapping(block.value.get(kind)), kind)
    yield from _pairs((*block.path, "nodeSelector"), mapping(block.value.get("nodeSelector")), "labels")


def _pairs(path: FieldPath, pairs: Mapping[str, Any], kind: str) -> Findings:
    for key, value in pairs.items():
        prefix, slash, name = str(key).rpartition("/")
        if (slash and (not _DOMAIN.match(prefix) or len(prefix) > 253)) or not _LABEL_NAME.match(name):
            yield (
                (*path, str(key)),
                f"{key!r} is not a key",
                "write name or domain/name, the name of at most 63 letters, digits, - _ .",
            )
        elif kind == "labels" and isinstance(value, str) and value and not _LABEL_NAME.match(value):
            yield (*path, str(key)), f"{value!r} is not a label's value", "use at most 63 letters, digits, - _ ."


POD_RULES: tuple[Rule[Block], ...] = (
    Rule("pod-image-written", image_written, layer="controller"),
    Rule("pod-container-names", container_names, layer="controller"),
    Rule("pod-variables", variables, layer="controller"),
    Rule("pod-port-names", port_names, layer="controller"),
    Rule("pod-probe-handlers", probe_handlers, layer="controller"),
    Rule("pod-mounts-have-volumes", mounts_have_volumes, layer="controller"),
    Rule("pod-image-pull-policy", image_pull_policy, layer="controller"),
    Rule("pod-tolerations", tolerations, layer="controller"),
    Rule("pod-labels", labels_of_pods, layer="controller"),
)
METADATA_RULES: tuple[Rule[Document], ...] = (
    Rule("metadata-labels", labels_of, layer="server"),
    Rule("metadata-name", object_name, layer="server"),
)
"""Of every kind."""
