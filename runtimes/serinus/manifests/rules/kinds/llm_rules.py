"""LLMInferenceServices and their configs: what KServe's webhooks refuse beyond the schema.

Source: llm_inference_service_validation.go of v1alpha1 and v1alpha2 and llm_inference_service_config_validation.go, KServe of 2026-08-21; a
rule of v1alpha2 alone says so. `baseRefs` are merged by the controller after these checks, so a field that a base sets is absent here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...documents import Document, FieldPath
from ...fields import listed, mapping
from ..rule import Findings, Rule

__all__ = ["LLM_CONFIG_RULES", "LLM_RULES"]

_COST = re.compile(r"\d+(\.\d+)?")
_PERCENT = re.compile(r"\d+%")
_RESOURCE_ID = re.compile(r"kbs:///[\w.-]+/[\w.-]+/[\w.-]+")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DEVICES = "serving.kserve.io/exp-dra-"
_DEVICE_KEYS = ("device-class", "device-count", "cel-selector", "container-name")
_ROUTE: FieldPath = ("spec", "router", "route")


def _spec(document: Document) -> Mapping[str, Any]:
    return mapping(document.value.get("spec"))


def _router(document: Document) -> Mapping[str, Any]:
    return mapping(_spec(document).get("router"))


def _is_second(document: Document) -> bool:
    return document.api_version.endswith("v1alpha2")


def _workloads(document: Document) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    """The decode workload, which is the spec itself, and the prefill workload where there is one."""
    spec = _spec(document)
    yield ("spec",), spec
    if isinstance(spec.get("prefill"), dict):
        yield ("spec", "prefill"), spec["prefill"]


def _number(value: Any, absent: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else absent


def routes(document: Document) -> Findings:
    """A route is the user's own, by reference, or KServe's; a gateway of KServe's goes with KServe's route."""
    router = _router(document)
    http = mapping(mapping(router.get("route")).get("http"))
    gateway = router.get("gateway")
    at = (*_ROUTE, "http")
    if http.get("refs") and http.get("spec") is not None:
        yield at, "has refs and spec: the route is yours or KServe's", "keep one"
    if http.get("refs") and isinstance(gateway, dict) and not gateway.get("refs"):
        yield (*at, "refs"), "routes of your own do not go with a managed gateway", "write spec.router.gateway.refs"
    parents = listed(mapping(http.get("spec")).get("parentRefs"))
    gateways = listed(mapping(gateway).get("refs"))
    if parents and gateways and not (_is_second(document) and _parents(parents) == _parents(gateways)):
        yield (*at, "spec"), "its parentRefs are not spec.router.gateway.refs", "remove parentRefs: KServe writes them"


def _parents(refs: Sequence[Any]) -> list[tuple[str, ...]]:
    return sorted(
        tuple(str(ref.get(key) or "") for key in ("namespace", "name", "sectionName")) for ref in map(mapping, refs)
    )


def traffic(document: Document) -> Findings:
    """Services that share traffic have a group and a weight, and KServe's own route."""
    router = _router(document)
    route = mapping(router.get("route"))
    group, weight = route.get("group"), route.get("weight")
    if group is None and weight is None:
        return
    if router.get("ingress") is not None:
        yield (*_ROUTE, "group"), "an Ingress splits no traffic", "remove spec.router.ingress: Gateway API does it"
    elif group is None or weight is None:
        missing = "group" if group is None else "weight"
        yield (*_ROUTE, missing), "missing: group and weight go together", f"write {missing}"
    elif mapping(route.get("http")).get("refs"):
        yield (*_ROUTE, "group"), "a route of your own is not split", "remove route.http.refs"


def parallelism(document: Document) -> Findings:
    """Several nodes work data-parallel or pipeline-parallel, not both, and each degree is one at least."""
    for path, workload in _workloads(document):
        written = workload.get("parallelism")
        sizes = mapping(written)
        data = _number(sizes.get("data")) > 0 or _number(sizes.get("dataLocal")) > 0
        pipeline = _number(sizes.get("pipeline")) > 0
        if workload.get("worker") is not None and not data and not pipeline:
            mend = "write parallelism with pipeline, or with data and dataLocal"
            yield (*path, "worker"), "workers without data or pipeline parallelism", mend
            if written is None:
                continue
        if data and pipeline:
            yield (*path, "parallelism"), "has pipeline and data parallelism", "keep one"
        for name, other in (("data", "dataLocal"), ("dataLocal", "data")):
            if sizes.get(name) is not None and sizes.get(other) is None:
                yield (*path, "parallelism", other), f"missing beside {name}", f"write {other}"
        for name in ("pipeline", "data", "dataLocal"):
            if isinstance(sizes.get(name), int) and sizes[name] <= 0:
                yield (*path, "parallelism", name), f"{sizes[name]} is less than 1", "use 1 or more"


def scheduler_replicas(document: Document) -> Findings:
    """A scheduler runs."""
    replicas = mapping(_router(document).get("scheduler")).get("replicas")
    if isinstance(replicas, int) and replicas <= 0:
        yield ("spec", "router", "scheduler", "replicas"), f"{replicas} is less than 1", "use 1 or more"


def scheduler_config(document: Document) -> Findings:
    """A scheduler's configuration is written in place or taken from a ConfigMap."""
    config = mapping(_router(document).get("scheduler")).get("config")
    if not isinstance(config, dict):
        return
    at = ("spec", "router", "scheduler", "config")
    inline, ref = config.get("inline"), config.get("ref")
    if (inline is None) == (ref is None):
        yield at, "has inline and ref" if ref is not None else "is empty", "write one of inline, ref"
    if inline in ({}, [], ""):
        yield (*at, "inline"), "is empty", "write the configuration"
    if ref is not None and not mapping(ref).get("name"):
        yield (*at, "ref", "name"), "missing", "write the ConfigMap's name"


def adapters(document: Document) -> Findings:
    """Adapters have names of their own, which are served as models beside the base."""
    model = mapping(_spec(document).get("model"))
    lora = mapping(model.get("lora"))
    at = ("spec", "model", "lora")
    for name in ("maxRank", "maxAdapters", "maxCpuAdapters"):
        if isinstance(lora.get(name), int) and lora[name] < 1:
            yield (*at, name), f"{lora[name]} is less than 1", "use 1 or more"
    base = document.name if model.get("name") is None else model["name"]
    seen: list[Any] = []
    for index, item in enumerate(map(mapping, listed(lora.get("adapters")))):
        where, name = (*at, "adapters", index, "name"), item.get("name")
        if not name:
            yield where, "missing", "write it"
        elif name in (".", ".."):
            yield where, f"{name!r} leads out of the folder of adapters", "write a name"
        else:
            if name in seen:
                yield where, f"{name!r} names two adapters", "use another name"
            if name == base:
                yield where, f"{name!r} is the base model's name", "use another name"
            seen.append(name)


def scaling(document: Document) -> Findings:
    """A workload has replicas or scales, by KEDA itself or by the variant autoscaler over one of HPA and KEDA."""
    for path, workload in _workloads(document):
        written = workload.get("scaling")
        if not isinstance(written, dict):
            continue
        at = (*path, "scaling")
        if workload.get("replicas") is not None:
            yield at, "beside replicas", "keep one"
        least, most = written.get("minReplicas"), written.get("maxReplicas")
        if isinstance(least, int) and least > _number(most):
            yield (*at, "minReplicas"), f"{least} is more than maxReplicas", "lower it"
        wva, keda = written.get("wva"), written.get("keda")
        if (wva is None) == (keda is None):
            yield at, "has wva and keda" if keda is not None else "has neither wva nor keda", "write one of them"
        elif isinstance(keda, dict):
            if not keda.get("triggers"):
                yield (*at, "keda", "triggers"), "missing", "write one or more"
            yield from _keda((*at, "keda"), keda, written, by_variant=False)
        else:
            yield from _variants((*at, "wva"), mapping(wva), written)


def _variants(at: FieldPath, wva: Mapping[str, Any], written: Mapping[str, Any]) -> Findings:
    hpa, keda = wva.get("hpa"), wva.get("keda")
    if (hpa is None) == (keda is None):
        yield at, "has hpa and keda" if hpa is not None else "has neither hpa nor keda", "write one of them"
    cost = wva.get("variantCost")
    if isinstance(cost, str) and cost and not _COST.fullmatch(cost):
        yield (*at, "variantCost"), f"{cost!r} is not a number of 0 or more", "write such as '10.0'"
    yield from _keda((*at, "keda"), mapping(keda), written, by_variant=True)


def _keda(at: FieldPath, keda: Mapping[str, Any], written: Mapping[str, Any], *, by_variant: bool) -> Findings:
    advanced = mapping(keda.get("advanced"))
    if by_variant and any(mapping(advanced.get("scalingModifiers")).values()):
        yield (*at, "advanced", "scalingModifiers"), "forbidden: the variant autoscaler decides", "remove it"
    if mapping(advanced.get("horizontalPodAutoscalerConfig")).get("name"):
        where = (*at, "advanced", "horizontalPodAutoscalerConfig", "name")
        yield where, "forbidden: the controller names the HPA", "remove it"
    idle, least = keda.get("idleReplicaCount"), written.get("minReplicas")
    least = 1 if least is None else least  # the schema's default
    if isinstance(idle, int) and isinstance(least, int) and idle >= least:
        yield (*at, "idleReplicaCount"), f"{idle} is not less than minReplicas {least}", "lower it"


def scalers_alike(document: Document) -> Findings:
    """Decode and prefill are scaled by the same thing."""
    spec = _spec(document)
    decode, prefill = spec.get("scaling"), mapping(spec.get("prefill")).get("scaling")
    if not isinstance(decode, dict) or not isinstance(prefill, dict):
        return
    at = ("spec", "prefill", "scaling")
    if (decode.get("keda") is None) != (prefill.get("keda") is None):
        yield at, "not scaled by what the decode workload is: wva or keda", "use the same for both"
        return
    first, second = decode.get("wva"), prefill.get("wva")
    if (
        isinstance(first, dict)
        and isinstance(second, dict)
        and (first.get("hpa") is None) != (second.get("hpa") is None)
    ):
        yield (*at, "wva"), "not the decode workload's backend: hpa or keda", "use the same for both"


def caches(document: Document) -> Findings:
    """Lower tiers of the key-value cache lie below the one in memory, each on one kind of volume (v1alpha2)."""
    if not _is_second(document):
        return
    for path, workload in _workloads(document):
        cache = mapping(workload.get("kvCacheOffloading"))
        at = (*path, "kvCacheOffloading")
        tiers = listed(cache.get("secondary"))
        if tiers and cache.get("cpu") in (None, 0, "0", ""):
            yield (*at, "cpu"), "missing: secondary tiers lie below it", "write its size"
        for index, tier in enumerate(map(mapping, tiers)):
            where = (*at, "secondary", index, "fileSystem")
            files = tier.get("fileSystem")
            if not isinstance(files, dict):
                yield where, "missing: there are no other tiers", "write fileSystem"
                continue
            if (files.get("emptyDir") is None) == (files.get("pvc") is None):
                yield where, "is on no volume, or on two", "write one of emptyDir, pvc"
            elif isinstance(claim := files.get("pvc"), dict):
                if (claim.get("spec") is None) == (claim.get("ref") is None):
                    yield (*where, "pvc"), "is no claim, or two", "write one of spec, ref"
                elif claim.get("ref") is not None and not mapping(claim["ref"]).get("name"):
                    yield (*where, "pvc", "ref", "name"), "missing", "write it"


def rollouts(document: Document) -> Findings:
    """A rollout goes on: something may be unavailable, or something more may run."""
    for path, workload in _workloads(document):
        written = mapping(workload.get("rolloutStrategy"))
        at = (*path, "rolloutStrategy")
        wrong = [(key, said) for key in ("maxUnavailable", "maxSurge") if (said := _no_share(written.get(key)))]
        for key, said in wrong:
            yield (*at, key), said, "write a number of 0 or more, or 0% to 100%"
        if wrong:
            continue
        unavailable, surge = written.get("maxUnavailable"), written.get("maxSurge")
        # Of one replica, percentages of unavailable ones are rounded down, of surplus ones up.
        stays = unavailable is not None and unavailable != "100%" and (isinstance(unavailable, str) or unavailable == 0)
        if stays and surge in (0, "0%"):
            yield at, "nothing may be unavailable and nothing more may run", "raise one"
        elif stays and surge is None and workload.get("worker") is not None:
            yield (*at, "maxSurge"), "missing: with maxUnavailable 0 nothing is rolled out", "write 1 or more"


def _no_share(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return f"{value} is less than 0"
    if not isinstance(value, str):
        return ""
    if not _PERCENT.fullmatch(value):
        return f"{value!r} is no percentage"
    return f"{value} is more than 100%" if int(value[:-1]) > 100 else ""


def confidential(document: Document) -> Findings:
    """An encrypted model's key is named as its broker does (v1alpha2)."""
    written = mapping(mapping(_spec(document).get("model")).get("confidential"))
    key = written.get("resourceId")
    asked = _is_second(document) and written.get("enabled") is True and isinstance(key, str) and bool(key)
    if asked and not _RESOURCE_ID.fullmatch(str(key)):
        at = ("spec", "model", "confidential", "resourceId")
        yield at, f"{key!r} is no key's name", "write kbs:///REPOSITORY/TYPE/TAG"


def managed_devices(document: Document) -> Findings:
    """Devices that KServe claims for a container are of a class, so many, of a container."""
    annotations = mapping(document.metadata.get("annotations"))
    at = ("metadata", "annotations")
    given = {key: annotations[_DEVICES + key] for key in _DEVICE_KEYS if _DEVICES + key in annotations}
    if given and "device-class" not in given:
        yield (*at, f"{_DEVICES}device-class"), f"missing beside {', '.join(given)}", "write the DeviceClass's name"
    forms = {"device-class": _DOMAIN, "container-name": _LABEL}
    for key, form in forms.items():
        if key in given and not form.fullmatch(str(given[key]).strip()):
            yield (*at, _DEVICES + key), f"{given[key]!r} is not a name", "use lower-case letters, digits and dashes"
    count = given.get("device-count")
    if count is not None and not re.fullmatch(r"(\+?0*[1-9][0-9]*)?", str(count).strip()):
        yield (*at, f"{_DEVICES}device-count"), f"{count!r} is no number of 1 or more", "write such as '2'"
    if "cel-selector" in given and not str(given["cel-selector"]).strip():
        yield (*at, f"{_DEVICES}cel-selector"), "is empty", "write an expression, or remove it"


def no_bases(document: Document) -> Findings:
    """A config is a base, and has none."""
    if _spec(document).get("baseRefs"):
        yield ("spec", "baseRefs"), "forbidden in a config: bases have no bases", "name all of them in the service"


LLM_RULES: tuple[Rule[Document], ...] = (
    Rule("llm-routes", routes),
    Rule("llm-traffic", traffic),
    Rule("llm-parallelism", parallelism),
    Rule("llm-scheduler-replicas", scheduler_replicas),
    Rule("llm-scheduler-config", scheduler_config),
    Rule("llm-adapters", adapters),
    Rule("llm-scaling", scaling),
    Rule("llm-scalers-alike", scalers_alike),
    Rule("llm-caches", caches),
    Rule("llm-rollouts", rollouts),
    Rule("llm-confidential", confidential),
    Rule("llm-managed-devices", managed_devices),
)
LLM_CONFIG_RULES: tuple[Rule[Document], ...] = (
    Rule("llm-config-scheduler-replicas", scheduler_replicas),
    Rule("llm-config-no-bases", no_bases),
)
