"""`spec.canary`: what the webhook refuses (validateCanarySpecs, KServe 0.21; 14)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..conventions import DEPLOYMENT_MODE, KSERVE_CONTAINER, NAME, implementations
from ..documents import FieldPath
from ..fields import LEGACY_FRAMEWORKS, containers_of, listed, mapping, variables_of, whole_number
from .component_rules import logger_mode, logger_storage, replicas_in_order, replicas_not_negative
from .rule import Block, Findings, Rule, ServiceView

__all__ = ["CANARY_RULES"]

_STABLE_ONLY = ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


def _predictors(service: ServiceView) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    for index, item in enumerate(listed(service.spec.get("canary"))):
        yield ("spec", "canary", index, "predictor"), mapping(mapping(item).get("predictor"))


def standard_mode(service: ServiceView) -> Findings:
    """Knative splits its traffic otherwise."""
    if service.mode != "Standard":
        yield (
            ("spec", "canary"),
            "spec.canary needs Standard mode",
            f"set the annotation {DEPLOYMENT_MODE}: Standard, or use predictor.canaryTrafficPercent",
        )


def stable_has_storage(service: ServiceView) -> Findings:
    """The stable predictor has a model of its own."""
    stable = service.predictor
    if any(stable.get(name) is not None for name in (*LEGACY_FRAMEWORKS, "model", "storageUris")):
        return
    for where, container in containers_of((), stable):
        if container.get("name") == KSERVE_CONTAINER and any(
            variable.get("name") == "STORAGE_URI" for _, variable in variables_of(where, container)
        ):
            return
    yield (
        ("spec", "predictor"),
        "a service with spec.canary needs a storage URI or a model in its predictor",
        f"use predictor.model, or set env STORAGE_URI on {KSERVE_CONTAINER}",
    )


def percent(service: ServiceView) -> Findings:
    """Each share is a percentage."""
    for index, item in enumerate(listed(service.spec.get("canary"))):
        share = whole_number(mapping(item).get("trafficPercent"))
        if share is not None and not 0 <= share <= 100:
            yield ("spec", "canary", index, "trafficPercent"), f"{share} is not a percentage", "use 0 to 100"


def names(service: ServiceView) -> Findings:
    """Each canary has a name, and no two predictors the same."""
    seen: set[str] = set()
    for path, predictor in _predictors(service):
        name = predictor.get("name")
        at = (*path, "name")
        if not name:
            yield at, "missing", "name the canary, such as v2"
        elif name == service.predictor.get("name"):
            yield at, f"{name!r} is the stable predictor's", "use another name"
        elif str(name) in seen:
            yield at, f"{name!r} names two canaries", "use another name"
        else:
            seen.add(str(name))
            if not NAME.match(str(name)):
                yield at, f"{name!r} is not a name", "use lower-case letters, digits and dashes"


def one_implementation(service: ServiceView) -> Findings:
    """A canary says what it serves."""
    for path, predictor in _predictors(service):
        found = implementations(predictor)
        if len(found) != 1:
            yield path, f"a canary has one implementation, this one {len(found)}", "add one model:"


def extensions(service: ServiceView) -> Findings:
    """Counts and the logger of a canary are judged like the stable predictor's (GetExtensions().Validate())."""
    for path, predictor in _predictors(service):
        for check in (replicas_not_negative, replicas_in_order, logger_mode, logger_storage):
            yield from check(Block(path, predictor, service.annotations))


def scaling_is_the_stables(service: ServiceView) -> Findings:
    """Scaling is the stable predictor's."""
    for path, predictor in _predictors(service):
        for key in _STABLE_ONLY:
            if predictor.get(key) is not None and not (key == "maxReplicas" and whole_number(predictor[key]) == 0):
                yield (*path, key), "forbidden in a canary", "remove it; the stable predictor's counts"


def replicas(service: ServiceView) -> Findings:
    """A canary is no larger than the stable predictor."""
    most = whole_number(service.predictor.get("minReplicas"))
    for path, predictor in _predictors(service):
        low = whole_number(predictor.get("minReplicas"))
        if low is not None and low > (1 if most is None else most):
            mend = "lower it, or raise the stable's"
            yield (*path, "minReplicas"), f"{low} is more than the stable predictor's", mend


def total(service: ServiceView) -> Findings:
    """Together they leave something, or nothing, to the stable predictor."""
    shares = [whole_number(mapping(item).get("trafficPercent")) or 0 for item in listed(service.spec.get("canary"))]
    if sum(shares) > 100:
        yield ("spec", "canary"), f"the canaries take {sum(shares)} % together", "lower them to 100 or less"


CANARY_RULES: tuple[Rule[ServiceView], ...] = (
    Rule("canary-standard-mode", standard_mode),
    Rule("canary-stable-has-storage", stable_has_storage),
    Rule("canary-percent", percent),
    Rule("canary-names", names),
    Rule("canary-one-implementation", one_implementation),
    Rule("canary-extensions", extensions),
    Rule("canary-scaling-is-the-stables", scaling_is_the_stables),
    Rule("canary-replicas", replicas),
    Rule("canary-total", total),
)
"""For a service that has `spec.canary`."""
