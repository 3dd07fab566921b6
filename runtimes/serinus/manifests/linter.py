"""Every rule applied to every document: what the API server, the webhook, the controller and the cluster make of them.

Theory of operation. A document is judged by the rules of its kind (`rules`; a table for each kind of thing: objects, services, components,
containers, canaries, runtimes, graphs), then held against its kind's published schema (`structure`). Rules judge what is there, so a document of a
wrong shape gets all of its findings at once; where a rule and the schema speak of one field, the rule, which knows why, is heard.
Kinds that have no schema here, and kinds of Seldon, get one warning that says what was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from .documents import Document
from .fields import listed, mapping
from .problems import Problems, nearest
from .published_schemas import published
from .rules.canary_rules import CANARY_RULES
from .rules.component_pitfalls import COMPONENT_PITFALLS, PORT_PITFALLS
from .rules.component_rules import COMPONENT_RULES
from .rules.kinds.core_rules import CORE_RULES, pod_templates
from .rules.kinds.graph_rules import GRAPH_RULES, TRAINED_MODEL_RULES
from .rules.kinds.llm_rules import LLM_CONFIG_RULES, LLM_RULES
from .rules.kinds.runtime_rules import RUNTIME_RULES, shared_priorities, unknown_choices, unserved_formats
from .rules.pods.container_rules import CONTAINER_RULES
from .rules.pods.pod_rules import METADATA_RULES, POD_RULES
from .rules.pods.pod_value_rules import POD_VALUE_RULES
from .rules.pods.selector_rules import SELECTOR_RULES
from .rules.pods.volume_rules import VOLUME_RULES
from .rules.rule import Block, ServiceView, judge
from .rules.scaling_rules import SCALING_RULES
from .rules.service_pitfalls import SERVICE_PITFALLS, TRANSFORMER_PITFALLS
from .rules.service_rules import OBJECT_RULES, SERVICE_RULES, TRACING_PITFALLS, TRACING_RULES
from .rules.storage_rules import STORAGE_RULES
from .rules.worker_rules import WORKER_RULES
from .structure import check_structure, check_version

__all__ = ["check_documents", "check_inference_service", "check_runtimes"]

_KSERVE, _SELDON = "serving.kserve.io", "mlops.seldon.io"
_RUNTIMES = {"ServingRuntime", "ClusterServingRuntime"}
_SELDON_1 = "machinelearning.seldon.io"


def check_documents(
    documents: Sequence[Document], problems: Problems, *, kserve_version: tuple[int, int] | None = None
) -> None:
    """Check every document of a set.

    Args:
        documents: objects that are applied together.
        problems: takes the findings.
        kserve_version: warn of fields that KServe has from a later version on; such a cluster prunes or refuses them.
    """
    seen: dict[tuple[str, str, str, str], Document] = {}
    runtimes = []
    for document in documents:
        group = document.api_version.rpartition("/")[0]
        key = (group, document.kind, document.namespace, document.name)
        if seen.setdefault(key, document) is not document and document.name:
            first = seen[key].place(("metadata", "name"))
            message = f"{document.kind} {document.name} is also at {first}: the last one that is applied replaces it"
            problems.warn(document, ("metadata", "name"), message, "rename or remove one", rule="object-written-once")
        if kserve_version is not None and group == _KSERVE:
            check_version(document, kserve_version, published(), problems)
        if document.kind == "InferenceService" and group in {_KSERVE, ""}:
            check_inference_service(document, problems)
        elif document.kind in _RUNTIMES and group in {_KSERVE, ""}:
            runtimes.append(document)
        else:
            _check_other(document, group, problems)
    check_runtimes(runtimes, problems)
    services = [
        document
        for document in documents
        if document.kind == "InferenceService" and document.api_version.rpartition("/")[0] in {_KSERVE, ""}
    ]
    for document, (path, message, mend) in unknown_choices(services, runtimes):
        problems.warn(document, path, message, mend, rule="runtime-unknown-choice", layer="unchecked")
    for document, (path, message, mend) in unserved_formats(services, runtimes):
        problems.error(document, path, message, mend, rule="runtime-serves-format", layer="controller")


def _check_other(document: Document, group: str, problems: Problems) -> None:
    """A kind that is neither an InferenceService nor a runtime."""
    known = published()
    judge(METADATA_RULES, document, document, problems)
    schema = known.schema(document.api_version, document.kind)
    if schema is None:
        _judge_kind(document, group, problems)
        return
    judge(OBJECT_RULES, document, document, problems)
    judge(CORE_RULES, document, document, problems)
    for block in pod_templates(document):
        for rules in (CONTAINER_RULES, POD_RULES, POD_VALUE_RULES, SELECTOR_RULES, VOLUME_RULES, PORT_PITFALLS):
            judge(
                tuple(rule for rule in rules if rule.layer == "controller"), block, document, problems, layer="server"
            )
    if document.kind == "InferenceGraph":
        judge(GRAPH_RULES, document, document, problems)
    elif document.kind == "TrainedModel":
        judge(TRAINED_MODEL_RULES, document, document, problems)
    elif document.kind == "LLMInferenceService":
        judge(LLM_RULES, document, document, problems)
    elif document.kind == "LLMInferenceServiceConfig":
        judge(LLM_CONFIG_RULES, document, document, problems)
    check_structure(document, schema, problems)
    if group == _SELDON:
        _unchecked(document, problems, f"{document.kind}: structure only; the rules of its controller are not checked")


def _judge_kind(document: Document, group: str, problems: Problems) -> None:
    """A kind without a schema: a slip of the pen in a known group, or nothing that is known here."""
    known = published()
    versions = known.versions(document.kind)
    kinds = known.kinds_of(group) if group in {_KSERVE, _SELDON} else ()
    near = nearest(document.kind, kinds)
    at = ("apiVersion",)
    if document.kind in kinds:
        served = ", ".join(version for version in versions if version.startswith(group + "/"))
        message = f"{document.api_version!r} does not serve kind {document.kind}"
        problems.error(document, at, message, f"use {served}", rule="object-api-version", layer="server")
    elif group == _KSERVE:
        message = f"{document.kind} is not a kind of KServe"
        mend = f"did you mean {near}?" if near else f"use one of {', '.join(sorted(kinds))}"
        problems.error(document, ("kind",), message, mend, rule="object-kind", layer="server")
    elif group.endswith((".kserve.io", "serving.kubeflow.org")) or (versions and _looks_like(group, versions)):
        message = f"{document.api_version!r} does not serve kind {document.kind}"
        problems.error(document, at, message, f"use {', '.join(versions)}", rule="object-api-version", layer="server")
    else:
        whose = "Seldon Core 1's" if group == _SELDON_1 else "nothing is known of it here"
        _unchecked(document, problems, f"{document.kind} of {document.api_version}: not checked ({whose})")


def _looks_like(group: str, versions: Sequence[str]) -> bool:
    """Whether a group is one of Kubernetes' own, written with another version or a slip of the pen."""
    groups = [version.rpartition("/")[0] for version in versions]
    return group in groups or nearest(group, groups) is not None


def _unchecked(document: Document, problems: Problems, message: str) -> None:
    problems.warn(document, ("kind",), message, "check it elsewhere", rule="object-unchecked", layer="unchecked")


def check_inference_service(document: Document, problems: Problems) -> None:
    """Everything that would make `kubectl apply` of this InferenceService fail, and what would not do as it says."""
    service = ServiceView.of(document)
    judge(OBJECT_RULES, document, document, problems)
    judge((*SERVICE_RULES, *TRACING_RULES), service, document, problems)
    judge(METADATA_RULES, document, document, problems)
    for part in ("predictor", "transformer", "explainer"):
        if isinstance(service.spec.get(part), dict):
            block = Block(("spec", part), service.spec[part], service.annotations)
            for rules in (
                *(CONTAINER_RULES, COMPONENT_RULES, STORAGE_RULES, SCALING_RULES, WORKER_RULES),
                *(POD_RULES, POD_VALUE_RULES, SELECTOR_RULES, VOLUME_RULES),
            ):
                judge(rules, block, document, problems)
    canaries = [
        Block(("spec", "canary", index, "predictor"), mapping(mapping(item).get("predictor")), service.annotations)
        for index, item in enumerate(listed(service.spec.get("canary")))
    ]
    if service.spec.get("canary"):
        judge(CANARY_RULES, service, document, problems)
    for block in canaries:
        judge(CONTAINER_RULES, block, document, problems)
        judge(POD_RULES, block, document, problems)
        judge(POD_VALUE_RULES, block, document, problems)
        judge(SELECTOR_RULES, block, document, problems)
        judge(VOLUME_RULES, block, document, problems)
    judge((*SERVICE_PITFALLS, *TRACING_PITFALLS), service, document, problems)
    for block in (
        Block(("spec", "predictor"), service.predictor, service.annotations),
        Block(("spec", "transformer"), service.transformer, service.annotations),
        *canaries,
    ):
        judge(COMPONENT_PITFALLS, block, document, problems)
    judge(TRANSFORMER_PITFALLS, service, document, problems)
    _check_structure(document, problems)


def check_runtimes(documents: Sequence[Document], problems: Problems) -> None:
    """What the webhook refuses in ServingRuntimes and ClusterServingRuntimes, alone and against one another.

    A disabled runtime is taken as it is, as long as its structure is right.
    """
    for document in documents:
        block = Block(("spec",), mapping(document.value.get("spec")), {})
        judge(OBJECT_RULES, document, document, problems)
        judge(METADATA_RULES, document, document, problems)
        if block.value.get("disabled") is not True:
            judge(CONTAINER_RULES, block, document, problems)
            judge(WORKER_RULES, block, document, problems)
        judge(RUNTIME_RULES, document, document, problems)
        judge(POD_RULES, block, document, problems)
        judge(POD_VALUE_RULES, block, document, problems)
        judge(SELECTOR_RULES, block, document, problems)
        judge(VOLUME_RULES, block, document, problems)
        judge(PORT_PITFALLS, block, document, problems)
        _check_structure(document, problems)
    for document, (path, message, mend) in shared_priorities(documents):
        problems.error(document, path, message, mend, rule="runtime-shared-priority")


def _check_structure(document: Document, problems: Problems) -> None:
    known = published()
    versions = known.versions(document.kind)
    schema = known.schema(document.api_version, document.kind) or known.schema(versions[-1], document.kind)
    if schema is not None:
        check_structure(document, schema, problems)
