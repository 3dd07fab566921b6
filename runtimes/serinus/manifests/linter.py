"""Every rule applied to every document: what the API server, the webhook, the controller and the cluster make of them.

Theory of operation. A document is first held against the shape of its kind (`schema`), then against the rules (`rules`), a table
for each kind of thing: objects, services, components, containers, canaries, runtimes. Rules judge what is there, so a document
of a wrong shape gets all of its findings at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from .documents import Document
from .fields import listed, mapping
from .problems import Problems, nearest
from .rules.canary_rules import CANARY_RULES
from .rules.component_pitfalls import COMPONENT_PITFALLS, PORT_PITFALLS
from .rules.component_rules import COMPONENT_RULES
from .rules.container_rules import CONTAINER_RULES
from .rules.rule import Block, ServiceView, judge
from .rules.runtime_rules import RUNTIME_RULES, shared_priorities
from .rules.scaling_rules import SCALING_RULES
from .rules.service_pitfalls import SERVICE_PITFALLS, TRANSFORMER_PITFALLS
from .rules.service_rules import OBJECT_RULES, SERVICE_RULES
from .rules.storage_rules import STORAGE_RULES
from .schema import INFERENCE_SERVICE, SERVING_RUNTIME
from .shapes import check_shape

__all__ = ["check_documents", "check_inference_service", "check_runtimes"]


def check_documents(documents: Sequence[Document], problems: Problems) -> None:
    """Check every document of a set; kinds that are neither InferenceServices nor runtimes pass unread."""
    seen: dict[tuple[str, str, str], Document] = {}
    runtimes = []
    for document in documents:
        key = (document.kind, document.namespace, document.name)
        if seen.setdefault(key, document) is not document and document.name:
            first = seen[key].place(("metadata", "name"))
            problems.error(
                document,
                ("metadata", "name"),
                f"{document.kind} {document.name} is also at {first}",
                "rename or remove one",
            )
        if document.kind == "InferenceService":
            check_inference_service(document, problems)
        elif document.kind in {"ServingRuntime", "ClusterServingRuntime"}:
            runtimes.append(document)
        elif document.api_version.startswith("serving.kserve.io/") and (
            near := nearest(document.kind, ["InferenceService", "ServingRuntime", "ClusterServingRuntime"])
        ):
            problems.error(document, ("kind",), f"{document.kind} is not a kind of KServe", f"did you mean {near}?")
    check_runtimes(runtimes, problems)


def check_inference_service(document: Document, problems: Problems) -> None:
    """Everything that would make `kubectl apply` of this InferenceService fail, and what would not do as it says."""
    service = ServiceView.of(document)
    judge(OBJECT_RULES, document, document, problems)
    check_shape(document, (), document.value, INFERENCE_SERVICE, problems)
    judge(SERVICE_RULES, service, document, problems)
    for part in ("predictor", "transformer", "explainer"):
        if isinstance(service.spec.get(part), dict):
            block = Block(("spec", part), service.spec[part], service.annotations)
            for rules in (CONTAINER_RULES, COMPONENT_RULES, STORAGE_RULES, SCALING_RULES):
                judge(rules, block, document, problems)
    canaries = [
        Block(("spec", "canary", index, "predictor"), mapping(mapping(item).get("predictor")), service.annotations)
        for index, item in enumerate(listed(service.spec.get("canary")))
    ]
    if service.spec.get("canary"):
        judge(CANARY_RULES, service, document, problems)
    for block in canaries:
        judge(CONTAINER_RULES, block, document, problems)
    judge(SERVICE_PITFALLS, service, document, problems)
    for block in (
        Block(("spec", "predictor"), service.predictor, service.annotations),
        Block(("spec", "transformer"), service.transformer, service.annotations),
        *canaries,
    ):
        judge(COMPONENT_PITFALLS, block, document, problems)
    judge(TRANSFORMER_PITFALLS, service, document, problems)


def check_runtimes(documents: Sequence[Document], problems: Problems) -> None:
    """What the webhook refuses in ServingRuntimes and ClusterServingRuntimes, alone and against one another."""
    for document in documents:
        block = Block(("spec",), mapping(document.value.get("spec")), {})
        judge(OBJECT_RULES, document, document, problems)
        check_shape(document, (), document.value, SERVING_RUNTIME, problems)
        judge(CONTAINER_RULES, block, document, problems)
        judge(RUNTIME_RULES, document, document, problems)
        judge(PORT_PITFALLS, block, document, problems)
    for document, (path, message, mend) in shared_priorities(documents):
        problems.error(document, path, message, mend)
