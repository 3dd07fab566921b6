"""Kubernetes' own kinds beside services: pod templates by the rules of pods, and what no schema says of Secrets and claims.

Source: validation.go of Kubernetes 1.37, asked of a kube-apiserver with one change at a time.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from ...documents import Document
from ...fields import listed, mapping
from ...quantities import parse_quantity
from ..rule import Block, Findings, Rule

__all__ = ["CORE_RULES", "pod_templates"]

_TEMPLATES = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"), (("spec", "template"), ("Always",))),
    "Job": (("spec", "template"), ("OnFailure", "Never")),
    "CronJob": (("spec", "jobTemplate", "spec", "template"), ("OnFailure", "Never")),
}
_ACCESS = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")


def pod_templates(document: Document) -> Iterator[Block]:
    """The pod template of a workload."""
    if document.kind not in _TEMPLATES or document.api_version.partition("/")[0] not in {"apps", "batch"}:
        return
    path, restarts = _TEMPLATES[document.kind]
    pod = document.get((*path, "spec"))
    if isinstance(pod, dict):
        yield Block((*path, "spec"), pod, {}, restarts)


def secret_data(document: Document) -> Findings:
    """A Secret's data are base64; plain text is `stringData`."""
    if document.kind != "Secret" or document.api_version != "v1":
        return
    for key, value in mapping(document.value.get("data")).items():
        if isinstance(value, str):
            try:
                base64.b64decode("".join(value.split("\n")), validate=True)
            except (binascii.Error, ValueError):
                yield ("data", str(key)), "is not base64", "write it under stringData as it is"


def claims(document: Document) -> Findings:
    """A claim says who may mount it, and how much it asks for."""
    if document.kind != "PersistentVolumeClaim" or document.api_version != "v1":
        return
    spec = mapping(document.value.get("spec"))
    modes = listed(spec.get("accessModes"))
    if not modes:
        yield ("spec", "accessModes"), "missing", f"write one of {', '.join(_ACCESS)}"
    for index, mode in enumerate(modes):
        if isinstance(mode, str | None) and mode not in _ACCESS:
            yield ("spec", "accessModes", index), f"{mode!r} is not accepted", f"use one of {', '.join(_ACCESS)}"
    asked = mapping(mapping(spec.get("resources")).get("requests")).get("storage")
    amount = None if asked is None else parse_quantity(asked)
    if asked is None or (amount is not None and amount <= 0):
        said = "missing" if asked is None else f"{asked!r} is nothing"
        yield ("spec", "resources", "requests", "storage"), said, "write such as 10Gi"
    if spec.get("volumeMode") not in (None, "Filesystem", "Block"):
        yield ("spec", "volumeMode"), f"{spec['volumeMode']!r} is not accepted", "use Filesystem or Block"


def selectors_match(document: Document) -> Findings:
    """A workload finds its own pods by their labels."""
    if document.kind not in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}:
        return
    selector = mapping(document.get(("spec", "selector")))
    wanted = mapping(selector.get("matchLabels"))
    labels = mapping(document.get(("spec", "template", "metadata", "labels")))
    if not wanted and not selector.get("matchExpressions"):
        yield ("spec", "selector"), "is empty", "write matchLabels of the template's labels"
    for key, value in wanted.items():
        if (labels.get(key) or "") != (value or ""):
            at = ("spec", "template", "metadata", "labels", str(key))
            yield at, f"is not {value!r}, which spec.selector asks for", "write the same in both"


CORE_RULES: tuple[Rule[Document], ...] = (
    Rule("core-secret-data", secret_data, layer="server"),
    Rule("core-claims", claims, layer="server"),
    Rule("core-selectors-match", selectors_match, layer="server"),
)
