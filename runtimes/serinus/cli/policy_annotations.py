"""The annotation `serinus.dev/canary-policy` of an InferenceService, read as `serinus canary run` reads it."""

from __future__ import annotations

from collections.abc import Iterable

from ..canary.policy_annotation import POLICY_ANNOTATION, parse_annotation
from ..errors import ConfigError
from ..manifests.documents import Document
from ..manifests.fields import mapping
from ..manifests.problems import Problems, nearest

__all__ = ["check_policy_annotations"]

_RULE = "canary-policy"
_OURS = "serinus.dev/"
_KNOWN = (POLICY_ANNOTATION, "serinus.dev/affinity", "serinus.dev/local-class", "serinus.dev/local-storage-uri")
"""Annotations of an InferenceService that something of ours reads; by their words, since lint does without the local supervisor's rooms."""


def check_policy_annotations(documents: Iterable[Document], problems: Problems) -> None:
    """Warn of a policy that no canary would be judged by, and of annotations of ours that nothing reads.

    Args:
        documents: of any kinds; InferenceServices are looked at.
        problems: takes the findings. All are warnings: the service itself becomes ready.
    """
    for document in documents:
        if document.kind != "InferenceService":
            continue
        for name, value in mapping(document.metadata.get("annotations")).items():
            path = ("metadata", "annotations", str(name))
            if name == POLICY_ANNOTATION and isinstance(value, str):
                _judge(document, path, value, problems)
            elif str(name).startswith(_OURS) and name not in _KNOWN:
                near = nearest(str(name), _KNOWN)
                mend = f"did you mean {near}?" if near else "remove it"
                problems.warn(document, path, "nothing of serinus reads it", mend, rule="serinus-annotation")


def _judge(document: Document, path: tuple[str, ...], text: str, problems: Problems) -> None:
    if not text.strip():
        return  # as if there were none: the default policy
    try:
        parse_annotation(text, f"InferenceService {document.name}")
    except ConfigError as error:
        for said in error.problems or (str(error),):
            message = f"serinus canary run refuses it: {said}"
            problems.warn(document, path, message, "see serinus canary policy", rule=_RULE, layer="controller")
