"""A container's environment as the kubelet would make it, from what the manifests hold."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...manifests.containers import Container, EnvVar
from ...manifests.documents import Document
from ...manifests.fields import mapping
from ...manifests.inference_service import InferenceService
from ...manifests.problems import Problems
from ...manifests.quantities import parse_quantity

__all__ = ["ConfigData", "config_data", "expand", "resolve_environment"]


@dataclass(frozen=True, slots=True)
class ConfigData:
    """Texts of the manifests' ConfigMaps and Secrets, by (kind, namespace, name)."""

    entries: Mapping[tuple[str, str, str], Mapping[str, str]] = field(default_factory=dict)


def config_data(documents: Sequence[Document]) -> ConfigData:
    """Collect ConfigMaps and Secrets; undecodable base64 is left out."""
    entries = {}
    for document in documents:
        if document.kind not in {"ConfigMap", "Secret"}:
            continue
        data = {str(key): str(value) for key, value in mapping(document.value.get("data")).items()}
        if document.kind == "Secret":
            decoded = {}
            for key, value in data.items():
                try:
                    # Line breaks are all that Go's decoder, and so the API server, passes over.
                    decoded[key] = base64.b64decode(re.sub(r"[\r\n]", "", value), validate=True).decode()
                except (binascii.Error, UnicodeDecodeError):
                    continue
            strings = mapping(document.value.get("stringData"))
            data = {**decoded, **{str(key): str(value) for key, value in strings.items()}}
        entries[(document.kind, document.namespace, document.name)] = data
    return ConfigData(entries)


_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(VAR)`; an unknown one stays, `$$` is a dollar (Kubernetes, core/v1 Container.args)."""
    return _REFERENCE.sub(lambda match: "$" if match[0] == "$$" else env.get(match[1], match[0]), text)


def resolve_environment(
    service: InferenceService, container: Container, data: ConfigData, problems: Problems
) -> dict[str, str]:
    """Every variable of a container; a reference that leads nowhere is a problem, unless it is optional."""
    env: dict[str, str] = {}
    for index, item in enumerate(container.env_from):
        prefix = str(item.get("prefix") or "")
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            reference = mapping(item.get(key))
            if not reference:
                continue
            found = data.entries.get((kind, service.namespace, str(reference.get("name"))))
            if found is not None:
                env.update({prefix + name: value for name, value in found.items()})
            elif not reference.get("optional"):
                problems.error_at(
                    container.source,
                    ("envFrom", index),
                    f"{kind} {reference.get('name')} is in no manifest",
                    "add its manifest to the folder",
                )
    for variable in container.env:
        if variable.reference:
            value = _reference(service, container, variable, data, problems)
            if value is not None:
                env[variable.name] = value
        else:
            env[variable.name] = expand(variable.value, env)
    return env


def _reference(
    service: InferenceService, container: Container, variable: EnvVar, data: ConfigData, problems: Problems
) -> str | None:
    reference = mapping(variable.reference)
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        wanted = mapping(reference.get(key))
        if not wanted:
            continue
        found = data.entries.get((kind, service.namespace, str(wanted.get("name"))), {}).get(str(wanted.get("key")))
        if found is None and not wanted.get("optional"):
            problems.error_at(
                variable.source,
                ("valueFrom", key),
                f"key {wanted.get('key')} of {kind} {wanted.get('name')} is in no manifest",
                "add its manifest to the folder, or set optional: true",
            )
        return found
    path = str(mapping(reference.get("fieldRef")).get("fieldPath") or "")
    if path:
        known = {
            "metadata.name": service.name,
            "metadata.namespace": service.namespace,
            "metadata.uid": service.key,
            "spec.nodeName": "localhost",
            "spec.serviceAccountName": "default",
            "status.hostIP": "127.0.0.1",
            "status.podIP": "127.0.0.1",
        }
        match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
        if match:
            return (service.labels if match[1] == "labels" else service.annotations).get(match[2], "")
        if path in known:
            return known[path]
        problems.error_at(
            variable.source,
            ("valueFrom", "fieldRef", "fieldPath"),
            f"{path} is not known here",
            f"use one of {', '.join(known)}",
        )
        return None
    wanted = mapping(reference.get("resourceFieldRef"))
    name = str(wanted.get("resource") or "")
    section, _, resource = name.partition(".")
    amount = None
    for document, at in container.source.parts:
        amount = document.get((*at, "resources", section, resource))
        if amount is not None:
            break
    number, divisor = parse_quantity(amount), parse_quantity(wanted.get("divisor") or "1")
    if number is None or divisor is None:
        problems.error_at(
            variable.source,
            ("valueFrom",),
            f"resource {name or '(none)'} has no value in this container"
            if wanted
            else "this reference is not known here",
            "set it under resources" if wanted else "use configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef",
        )
        return None
    return str(
        math.ceil(number / (divisor or 1))
    )  # 0 is 1 (Kubernetes, resource/helpers.go, ExtractContainerResourceValue)
