"""Scaling of a component by mode and autoscaler: what the webhook refuses (13), and what it does not look at.

Source: validateAutoScalingCompExtension of KServe 0.21. Without the annotation `autoscalerClass` the webhook looks at nothing in Standard
mode, and the HPA that is made takes what it can: seen on a real control plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..conventions import AUTOSCALER, DEPLOYMENT_MODE, deployment_mode
from ..documents import FieldPath
from ..fields import listed, mapping, whole_number
from ..quantities import parse_quantity
from .rule import Block, Findings, Rule

__all__ = ["SCALING_RULES"]

_MEBIBYTE = 2**20
_KNATIVE_HPA = "hpa.autoscaling.knative.dev"


def _scaler(block: Block) -> str:
    """`hpa`, `keda`, ... as declared in Standard mode, `unsaid` without a declaration; `knative`, or `hpa` where Knative's class is so."""
    if deployment_mode(block.annotations) == "Standard":
        return str(block.annotations.get(AUTOSCALER, "unsaid"))
    return "hpa" if block.annotations.get("autoscaling.knative.dev/class") == _KNATIVE_HPA else "knative"


def hpa_metric(block: Block) -> Findings:
    """An HPA scales on CPU or memory."""
    metric = block.value.get("scaleMetric")
    if _scaler(block) == "hpa" and metric not in (None, "cpu", "memory"):
        yield (*block.path, "scaleMetric"), f"{metric!r} is not scaled on by hpa", "use cpu or memory"


def hpa_target(block: Block) -> Findings:
    """An HPA's target is a percentage."""
    target = whole_number(block.value.get("scaleTarget"))
    if _scaler(block) == "hpa" and target is not None and not 1 <= target <= 100:
        yield (*block.path, "scaleTarget"), f"{target} is not a utilisation", "use 1 to 100"


def unsaid_metric(block: Block) -> Findings:
    """Without a class the HPA that is made scales on CPU whatever is written."""
    metric = block.value.get("scaleMetric")
    if _scaler(block) == "unsaid" and metric not in (None, "cpu", "memory"):
        message = f"{metric!r} becomes cpu at 80 %: without {AUTOSCALER} nobody checks it"
        yield (*block.path, "scaleMetric"), message, "use cpu or memory"


def unsaid_target(block: Block) -> Findings:
    """Without a class a target that is no percentage reaches the HPA."""
    target = whole_number(block.value.get("scaleTarget"))
    if _scaler(block) == "unsaid" and target is not None and not 1 <= target <= 100:
        yield (
            (*block.path, "scaleTarget"),
            f"{target} is not a utilisation: the HPA takes it as {target} %",
            "use 1 to 100",
        )


def _metrics(block: Block) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    for index, item in enumerate(listed(mapping(block.value.get("autoScaling")).get("metrics"))):
        yield (*block.path, "autoScaling", "metrics", index), mapping(item)


def hpa_metric_types(block: Block) -> Findings:
    """An HPA takes metrics of resources."""
    if _scaler(block) != "hpa":
        return
    for at, metric in _metrics(block):
        if metric.get("type") != "Resource":
            yield (*at, "type"), "hpa takes metrics of type Resource only", "use Resource, or class keda"
        elif not isinstance(metric.get("resource"), dict):
            yield (*at, "resource"), "missing", "add resource: {name: cpu, target: ...}"


def keda_metric(block: Block) -> Findings:
    """KEDA's metrics are a list."""
    if _scaler(block) == "keda" and block.value.get("scaleMetric") is not None:
        yield (*block.path, "scaleMetric"), "forbidden with keda", "write autoScaling.metrics instead"


def keda_metric_types(block: Block) -> Findings:
    """KEDA takes three types of metrics, each with its block."""
    if _scaler(block) != "keda":
        return
    for at, metric in _metrics(block):
        kind = metric.get("type")
        below = {"Resource": "resource", "External": "external", "PodMetric": "podmetric"}.get(str(kind))
        if below is None:
            yield (*at, "type"), f"{kind!r} is not a metric of keda", "use Resource, External or PodMetric"
        elif not isinstance(metric.get(below), dict):
            yield (*at, below), f"missing: a metric of type {kind} is described in (below,)", f"add {below}"


def keda_resources(block: Block) -> Findings:
    """CPU is scaled on by utilisation, memory by utilisation or by an amount of 1 MiB or more."""
    for at, metric in _metrics(block) if _scaler(block) == "keda" else ():
        resource = metric.get("resource")
        if metric.get("type") != "Resource" or not isinstance(resource, dict):
            continue
        name, target = resource.get("name"), mapping(resource.get("target"))
        path, kind = (*at, "resource"), target.get("type")
        if name not in ("cpu", "memory"):
            yield (*path, "name"), f"{name!r} is not a resource to scale on", "use cpu or memory"
        elif name == "cpu" and kind != "Utilization":
            yield (*path, "target", "type"), f"{kind!r} of cpu", "use Utilization"
        elif name == "memory" and kind not in ("Utilization", "AverageValue"):
            yield (*path, "target", "type"), f"{kind!r} of memory", "use Utilization or AverageValue"
        else:
            amount = parse_quantity(target.get("averageValue"))
            if kind == "AverageValue" and name == "memory" and amount is not None and amount < _MEBIBYTE:
                yield (
                    (*path, "target", "averageValue"),
                    f"{target.get('averageValue')!r} of memory is less than 1Mi",
                    "use 1Mi or more",
                )
            yield from _target((*path, "target"), target)


def keda_queries(block: Block) -> Findings:
    """An external or pod metric has a query and a threshold."""
    for at, metric in _metrics(block) if _scaler(block) == "keda" else ():
        below = {"External": "external", "PodMetric": "podmetric"}.get(str(metric.get("type")))
        source = metric.get(below) if below else None
        if below is None or not isinstance(source, dict):
            continue
        if not mapping(source.get("metric")).get("query"):
            yield (*at, below, "metric", "query"), "missing", "add the query whose result is scaled on"
        if mapping(source.get("target")).get("value") is None:
            yield (*at, below, "target", "value"), "missing", "add the threshold"
        else:
            yield from _target((*at, below, "target"), mapping(source.get("target")))


_TARGETS = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}


def _target(path: FieldPath, target: Mapping[str, Any]) -> Findings:
    """A target has the field of its type (validateScaleTarget)."""
    kind = target.get("type")
    wanted = _TARGETS.get(str(kind))
    if wanted is not None and target.get(wanted) is None:
        yield (*path, wanted), f"missing: a target of type {kind} has it", f"add {wanted}"
    used = whole_number(target.get("averageUtilization"))
    if kind == "Utilization" and used is not None and not 1 <= used <= 100:
        yield (*path, "averageUtilization"), f"{used} is not a utilisation", "use 1 to 100"


def strategy_of_deployments(block: Block) -> Findings:
    """Knative has no Deployment of ours to have a strategy."""
    if _scaler(block) == "knative" and block.value.get("deploymentStrategy") is not None:
        yield (
            (*block.path, "deploymentStrategy"),
            "forbidden outside Standard mode",
            f"remove it, or set the annotation {DEPLOYMENT_MODE}: Standard",
        )


def knative_metric(block: Block) -> Findings:
    """Knative scales on concurrency or requests per second."""
    metric = block.value.get("scaleMetric")
    if _scaler(block) == "knative" and metric not in (None, "concurrency", "rps"):
        at = (*block.path, "scaleMetric")
        yield at, f"{metric!r} is not scaled on in Knative mode", "use concurrency or rps"


def knative_target(block: Block) -> Findings:
    """At least one request per second."""
    target = whole_number(block.value.get("scaleTarget"))
    if _scaler(block) == "knative" and block.value.get("scaleMetric") == "rps" and target is not None and target < 1:
        yield (*block.path, "scaleTarget"), f"{target} is less than 1", "use 1 or more"


SCALING_RULES: tuple[Rule[Block], ...] = (
    Rule("scaling-hpa-metric", hpa_metric),
    Rule("scaling-hpa-target", hpa_target),
    Rule("scaling-unsaid-metric", unsaid_metric, "warning"),
    Rule("scaling-unsaid-target", unsaid_target, "warning"),
    Rule("scaling-hpa-metric-types", hpa_metric_types),
    Rule("scaling-keda-metric", keda_metric),
    Rule("scaling-keda-metric-types", keda_metric_types),
    Rule("scaling-keda-resources", keda_resources),
    Rule("scaling-keda-queries", keda_queries),
    Rule("scaling-strategy-of-deployments", strategy_of_deployments),
    Rule("scaling-knative-metric", knative_metric),
    Rule("scaling-knative-target", knative_target),
)
