"""Scaling of a component by mode and autoscaler, and several nodes: what the webhook refuses (13 and 4)."""

from __future__ import annotations

from ..conventions import AUTOSCALER, DEPLOYMENT_MODE, deployment_mode
from ..fields import listed, mapping, whole_number
from .rule import Block, Findings, Rule

__all__ = ["SCALING_RULES"]


def _scaler(block: Block) -> str:
    """`hpa`, `keda`, ... in Standard mode; `knative` in Knative mode, `hpa of knative` where its class is so."""
    if deployment_mode(block.annotations) == "Standard":
        return str(block.annotations.get(AUTOSCALER, "hpa"))
    knative_class = str(block.annotations.get("autoscaling.knative.dev/class") or "")
    return "hpa of knative" if knative_class.startswith("hpa") else "knative"


def hpa_metric(block: Block) -> Findings:
    """An HPA scales on CPU or memory."""
    metric = block.value.get("scaleMetric")
    if _scaler(block) == "hpa" and metric not in {None, "cpu", "memory"}:
        yield (*block.path, "scaleMetric"), f"{metric!r} is not scaled on by hpa", "use cpu or memory"


def hpa_target(block: Block) -> Findings:
    """An HPA's target is a percentage."""
    target = whole_number(block.value.get("scaleTarget"))
    if _scaler(block) == "hpa" and target is not None and not 1 <= target <= 100:
        yield (*block.path, "scaleTarget"), f"{target} is not a utilisation", "use 1 to 100"


def hpa_metric_types(block: Block) -> Findings:
    """An HPA takes metrics of resources."""
    if _scaler(block) != "hpa":
        return
    for index, item in enumerate(listed(mapping(block.value.get("autoScaling")).get("metrics"))):
        if mapping(item).get("type") != "Resource":
            at = (*block.path, "autoScaling", "metrics", index, "type")
            yield at, "hpa takes metrics of type Resource only", "use Resource, or class keda"


def keda_metric(block: Block) -> Findings:
    """KEDA's metrics are a list."""
    if _scaler(block) == "keda" and block.value.get("scaleMetric") is not None:
        yield (*block.path, "scaleMetric"), "forbidden with keda", "write autoScaling.metrics instead"


def keda_metric_types(block: Block) -> Findings:
    """KEDA takes three types of metrics."""
    if _scaler(block) != "keda":
        return
    for index, item in enumerate(listed(mapping(block.value.get("autoScaling")).get("metrics"))):
        kind = mapping(item).get("type")
        if kind not in {"Resource", "External", "PodMetric"}:
            at = (*block.path, "autoScaling", "metrics", index, "type")
            yield at, f"{kind!r} is not a metric of keda", "use Resource, External or PodMetric"


def strategy_of_deployments(block: Block) -> Findings:
    """Knative has no Deployment of ours to have a strategy."""
    if deployment_mode(block.annotations) != "Standard" and block.value.get("deploymentStrategy") is not None:
        yield (
            (*block.path, "deploymentStrategy"),
            "forbidden outside Standard mode",
            f"remove it, or set the annotation {DEPLOYMENT_MODE}: Standard",
        )


def knative_metric(block: Block) -> Findings:
    """Knative scales on concurrency or requests per second."""
    metric = block.value.get("scaleMetric")
    if _scaler(block) == "knative" and metric not in {None, "concurrency", "rps"}:
        at = (*block.path, "scaleMetric")
        yield at, f"{metric!r} is not scaled on in Knative mode", "use concurrency or rps"


def knative_target(block: Block) -> Findings:
    """At least one request per second."""
    target = whole_number(block.value.get("scaleTarget"))
    if _scaler(block) == "knative" and block.value.get("scaleMetric") == "rps" and target is not None and target < 1:
        yield (*block.path, "scaleTarget"), f"{target} is less than 1", "use 1 or more"


def worker_sizes(block: Block) -> Findings:
    """Degrees of parallelism are 1 or more."""
    for key in ("pipelineParallelSize", "tensorParallelSize"):
        size = whole_number(mapping(block.value.get("workerSpec")).get(key))
        if size is not None and size < 1:
            yield (*block.path, "workerSpec", key), f"{size} is less than 1", "use 1 or more"


def workers_not_scaled(block: Block) -> Findings:
    """Several nodes are not autoscaled."""
    if _has_workers(block) and block.annotations.get(AUTOSCALER) not in {None, "none"}:
        yield (*block.path, "workerSpec"), "several nodes cannot be autoscaled", f"set {AUTOSCALER}: none"


def workers_share_storage(block: Block) -> Findings:
    """Several nodes read one storage."""
    uri = str(mapping(block.value.get("model")).get("storageUri") or "")
    if _has_workers(block) and uri and not uri.startswith(("pvc://", "oci://")):
        yield (*block.path, "model", "storageUri"), "several nodes need shared storage", "use pvc:// or oci://"


def workers_one_container(block: Block) -> Findings:
    """A worker is one container."""
    if len(listed(mapping(block.value.get("workerSpec")).get("containers"))) > 1:
        yield (*block.path, "workerSpec", "containers"), "has several containers", "keep one"


def _has_workers(block: Block) -> bool:
    return isinstance(block.value.get("workerSpec"), dict)


SCALING_RULES: tuple[Rule[Block], ...] = (
    Rule("scaling-hpa-metric", hpa_metric),
    Rule("scaling-hpa-target", hpa_target),
    Rule("scaling-hpa-metric-types", hpa_metric_types),
    Rule("scaling-keda-metric", keda_metric),
    Rule("scaling-keda-metric-types", keda_metric_types),
    Rule("scaling-strategy-of-deployments", strategy_of_deployments),
    Rule("scaling-knative-metric", knative_metric),
    Rule("scaling-knative-target", knative_target),
    Rule("scaling-worker-sizes", worker_sizes),
    Rule("scaling-workers-not-scaled", workers_not_scaled),
    Rule("scaling-workers-share-storage", workers_share_storage),
    Rule("scaling-workers-one-container", workers_one_container),
)
