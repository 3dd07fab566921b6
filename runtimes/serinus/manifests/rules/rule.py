"""What a rule is: an id, a severity, and a pure function from what it judges to what it found.

Theory of operation. A rule yields `(path, message, mend)` for each finding; paths are whole, from the object's root. Rules do not
know one another and do not call one another; a table at the end of each module lists them, and `judge` applies a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ..conventions import deployment_mode
from ..documents import Document, FieldPath
from ..fields import mapping
from ..problems import Layer, Problems

__all__ = ["Block", "Finding", "Findings", "Rule", "ServiceView", "judge"]

Finding = tuple[FieldPath, str, str]
"""Path, message, and how to mend it."""

Findings = Iterator[Finding]


@dataclass(frozen=True, slots=True)
class ServiceView:
    """An InferenceService as it is written, well-formed or not."""

    document: Document
    spec: Mapping[str, Any]
    annotations: Mapping[str, Any]

    @classmethod
    def of(cls, document: Document) -> ServiceView:
        """View a document."""
        annotations = mapping(document.metadata.get("annotations"))
        return cls(document, mapping(document.value.get("spec")), annotations)

    @property
    def mode(self) -> str:
        """Its deployment mode, see `deployment_mode`."""
        return deployment_mode(self.annotations)

    @property
    def predictor(self) -> Mapping[str, Any]:
        """`spec.predictor`, or an empty mapping."""
        return mapping(self.spec.get("predictor"))

    @property
    def transformer(self) -> Mapping[str, Any]:
        """`spec.transformer`, or an empty mapping."""
        return mapping(self.spec.get("transformer"))


@dataclass(frozen=True, slots=True)
class Block:
    """A predictor, transformer or explainer, or a runtime's spec, as it is written."""

    path: FieldPath
    value: Mapping[str, Any]
    annotations: Mapping[str, Any]
    """The service's; empty for a runtime."""
    restarts: tuple[str, ...] = ("Always",)
    """What `restartPolicy` may be: of a Job's pods something else than of a Deployment's."""

    @property
    def part(self) -> str:
        """`predictor`, `transformer`, `explainer`, or `spec` (a runtime)."""
        return str(self.path[-1])

    @property
    def is_template(self) -> bool:
        """Whether it is the pod template of a Deployment or Job: nothing is merged into it."""
        return "template" in self.path

    @property
    def is_canary(self) -> bool:
        """Whether it is a predictor of `spec.canary`, of which the webhook checks less."""
        return "canary" in self.path


_Judged = TypeVar("_Judged")


@dataclass(frozen=True, slots=True)
class Rule(Generic[_Judged]):
    """One rule."""

    id: str
    check: Callable[[_Judged], Findings]
    severity: Literal["error", "warning"] = "error"
    layer: Layer = "webhook"
    """Who refuses it, or `ignored`; see `serinus.manifests.problems.Layer`. A warning of layer `webhook` is one of layer `ignored`."""


def judge(
    rules: Iterable[Rule[_Judged]],
    judged: _Judged,
    document: Document,
    problems: Problems,
    *,
    layer: Layer | None = None,
) -> None:
    """Apply rules in their order and note what they find.

    Args:
        rules: a table.
        judged: what they are about.
        document: the object that it is a part of.
        problems: takes the findings.
        layer: who speaks, in the place of the rules' own; None: they say it.
    """
    for rule in rules:
        for path, message, mend in rule.check(judged):
            if rule.severity == "error":
                problems.error(document, path, message, mend, rule=rule.id, layer=layer or rule.layer)
            else:
                quiet: Layer = "ignored" if rule.layer == "webhook" else rule.layer
                problems.warn(document, path, message, mend, rule=rule.id, layer=quiet)
