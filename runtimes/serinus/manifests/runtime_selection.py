"""Which ServingRuntime serves a `predictor.model`, and what its container becomes.

Source: `predictor_model.go` 66-223 (selection), `predictor.go` 332-417 (explicit runtime), `utils.go` 253-337 (merge and
placeholders) of KServe 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .containers import Container, parse_container
from .conventions import KSERVE_CONTAINER, TRANSFORMER_CONTAINER
from .documents import Source
from .fields import listed, mapping
from .inference_service import InferenceService, ModelSpec
from .problems import Problems
from .serving_runtimes import KSERVE_ONLY_FORMATS, ServingRuntime

__all__ = ["merge_containers", "runtime_containers", "select_runtime"]


def _matches_format(runtime: ServingRuntime, model: ModelSpec, *, auto: bool) -> bool:
    wanted = model.format
    return any(
        entry.name == wanted.name
        and (not wanted.version or entry.version == wanted.version)
        and (entry.auto_select or not auto)
        for entry in runtime.formats
    )


def _matches_protocol(runtime: ServingRuntime, protocol: str) -> bool:
    return not protocol or not runtime.protocols or protocol in runtime.protocols


def select_runtime(
    service: InferenceService,
    model: ModelSpec,
    runtimes: Sequence[ServingRuntime],
    built_in: Sequence[ServingRuntime],
    problems: Problems,
) -> ServingRuntime | None:
    """The runtime that KServe's controller would take; None, and a problem, where it would find none.

    Args:
        service: whose namespace limits the ServingRuntimes.
        model: format, protocol and, perhaps, the runtime's name.
        runtimes: from manifests.
        built_in: tried where no manifest's runtime fits.
        problems: collects why not.
    """
    visible = [runtime for runtime in runtimes if runtime.namespace in {"", service.namespace}]
    if model.runtime:
        return _named(model, visible, built_in, problems)
    protocol = model.protocol or "v1"  # predictor_model.go 66-71: unset counts as v1
    for pool in (visible, built_in):
        fitting = [
            runtime
            for runtime in pool
            if not runtime.disabled
            and not runtime.multi_model
            and not runtime.has_workers
            and _matches_format(runtime, model, auto=True)
            and _matches_protocol(runtime, protocol)
        ]
        if fitting:
            return _best(fitting, model)
    known = sorted({entry.name for runtime in (*visible, *built_in) for entry in runtime.formats})
    elsewhere = sorted(
        {runtime.name for runtime in (*visible, *built_in) if _matches_format(runtime, model, auto=False)}
    )
    mend = (
        f"{', '.join(elsewhere)} serves the format: declare one of its protocols in protocolVersion, or name it in runtime"
        if elsewhere
        else f"{_no_image(model)}give a ServingRuntime with --runtimes PATH; formats known now: {', '.join(known) or 'none'}"
    )
    version = f" version {model.format.version}" if model.format.version else ""
    problems.error_at(
        model.source,
        ("modelFormat",),
        f"no runtime is selected for model format {model.format.name}{version} over protocol {protocol}",
        mend,
    )
    return None


def _no_image(model: ModelSpec) -> str:
    """Of a format that KServe's runtimes serve and none of our images: that it is so, and what such a ServingRuntime must say."""
    if model.format.name not in KSERVE_ONLY_FORMATS:
        return ""
    return f"KServe's {KSERVE_ONLY_FORMATS[model.format.name]} serves it, no image here does: write a command of this machine into its container and "


_PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")
"""In KServe's order (GetProtocolVersionPriority); a runtime that declares none comes last."""


def _protocol_rank(protocol: str) -> int:
    return _PROTOCOLS.index(protocol) if protocol in _PROTOCOLS else len(_PROTOCOLS)


def _best(fitting: Sequence[ServingRuntime], model: ModelSpec) -> ServingRuntime:
    """Namespace before cluster; then priority (none last), lowest protocol, newest, name (predictor_model.go 165-223)."""

    def priority(runtime: ServingRuntime) -> int:
        """That of the first entry of the format, as GetPriority; none counts as the lowest."""
        return next((entry.priority or 0 for entry in runtime.formats if entry.name == model.format.name), 0)

    ranked = sorted(fitting, key=lambda runtime: runtime.name)
    ranked.sort(key=lambda runtime: runtime.created, reverse=True)
    ranked.sort(key=lambda runtime: min(map(_protocol_rank, runtime.protocols), default=len(_PROTOCOLS)))
    ranked.sort(key=priority, reverse=True)
    ranked.sort(key=lambda runtime: runtime.namespace == "")
    return ranked[0]


def _named(
    model: ModelSpec, visible: Sequence[ServingRuntime], built_in: Sequence[ServingRuntime], problems: Problems
) -> ServingRuntime | None:
    named = [runtime for runtime in (*visible, *built_in) if runtime.name == model.runtime]
    named.sort(key=lambda runtime: runtime.namespace == "")
    if not named:
        names = ", ".join(sorted({runtime.name for runtime in (*visible, *built_in)})) or "none"
        problems.error_at(
            model.source,
            ("runtime",),
            f"no ServingRuntime is called {model.runtime}",
            f"give its manifest with --runtimes PATH, for KServe's own --runtimes kserve, or use one of {names}",
        )
        return None
    runtime = next((runtime for runtime in named if _matches_format(runtime, model, auto=False)), named[0])
    if runtime.disabled:
        problems.error_at(model.source, ("runtime",), f"runtime {runtime.name} is disabled", "enable it or use another")
    elif not _matches_format(runtime, model, auto=False):
        formats = ", ".join(f"{entry.name} {entry.version}".strip() for entry in runtime.formats)
        problems.error_at(
            model.source,
            ("runtime",),
            f"runtime {runtime.name} does not serve {model.format.name} {model.format.version}".rstrip(),
            f"it serves {formats}",
        )
    elif not _matches_protocol(runtime, model.protocol):
        problems.error_at(
            model.source,
            ("protocolVersion",),
            f"runtime {runtime.name} does not speak {model.protocol}",
            f"use one of {', '.join(runtime.protocols)}",
        )
    else:
        return runtime
    return None


_PLACEHOLDER = re.compile(r"\{\{\s*(?:\.(\w+)(?:\.([^\s}]+))?|index\s+\.(\w+)\s+\"([^\"]+)\")\s*\}\}")


_LIST_KEYS = {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"}


def merge_containers(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a container over a runtime's: strategic merge, but `args` are appended (utils.go 253-263)."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None:
            continue
        if key == "args":
            merged[key] = [*listed(old), *listed(value)]
        elif key in _LIST_KEYS and isinstance(old, list):
            by = _LIST_KEYS[key]
            items = {mapping(item).get(by): item for item in old}
            for item in listed(value):
                name = mapping(item).get(by)
                items[name] = {**mapping(items.get(name)), **mapping(item)}
            merged[key] = list(items.values())
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge_containers(old, value) if key != "resources" else _merge_resources(old, value)
        else:
            merged[key] = value
    return merged


def _merge_resources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {**old, **{key: {**mapping(old.get(key)), **mapping(value)} for key, value in new.items()}}


def _fill(value: Any, service: InferenceService, where: Source, problems: Problems) -> Any:
    """Replace `{{.Name}}`, `{{.Namespace}}`, `{{.Labels.x}}` and `{{.Annotations.x}}` in every text below."""
    if isinstance(value, dict):
        return {key: _fill(item, service, where, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, service, where, problems) for item in value]
    if not isinstance(value, str) or "{{" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        top, sub = match[1] or match[3], match[2] or match[4]
        table: Any = {
            "Name": service.name,
            "Namespace": service.namespace,
            "Labels": service.labels,
            "Annotations": service.annotations,
        }.get(top)
        found = table.get(sub) if isinstance(table, Mapping) and sub else table if not sub else None
        if not isinstance(found, str):
            problems.error_at(
                where,
                (),
                f"{match[0]} in {value!r} has no value in InferenceService {service.name}",
                f"set metadata.{top[:1].lower()}{top[1:]}{'.' + sub if sub else ''} there",
            )
            return match[0]
        return found

    return _PLACEHOLDER.sub(replace, value)


def runtime_containers(
    service: InferenceService,
    model: ModelSpec,
    runtime: ServingRuntime,
    problems: Problems,
    *,
    transformer: tuple[Mapping[str, Any], Source] | None = None,
) -> list[Container]:
    """The pod's containers of a `predictor.model`: the runtime's, with the service's block over `kserve-container`.

    The order is the controller's: `kserve-container`, `transformer-container`, the runtime's others; further containers written beside
    `model` are not here, the caller appends them (predictor.go 452-496).

    Args:
        service: its metadata fills placeholders.
        model: the service's block.
        runtime: the chosen one.
        problems: collects placeholders without a value.
        transformer: the service's `transformer-container` beside `model`, merged once over the runtime's, or alone; with its place.
    """
    model_first: list[Container] = []
    transformers: list[Container] = []
    others: list[Container] = []
    for index, value in enumerate(runtime.containers):
        path = ("spec", "containers", index)
        where = Source(((runtime.document, path),))
        name = value.get("name")
        if name == KSERVE_CONTAINER:
            merged = merge_containers(value, {**model.container, "name": KSERVE_CONTAINER})
            if model.runtime_version and "@" not in str(merged.get("image")):
                merged["image"] = f"{_untagged(str(merged.get('image')))}:{model.runtime_version}"
            where = Source((*model.source.parts, (runtime.document, path)))
            model_first.append(parse_container(_fill(merged, service, where, problems), where))
        elif name == TRANSFORMER_CONTAINER:
            merged = dict(value)
            if transformer is not None:
                merged = merge_containers(value, transformer[0])
                where = Source((*transformer[1].parts, (runtime.document, path)))
            transformers.append(parse_container(_fill(merged, service, where, problems), where))
        else:
            others.append(parse_container(dict(value), where))
    if transformer is not None and not transformers:
        value, where = transformer
        transformers.append(parse_container(_fill(dict(value), service, where, problems), where))
    return [*model_first, *transformers, *others]


def _untagged(image: str) -> str:
    head, slash, last = image.rpartition("/")
    return f"{head}{slash}{last.split(':', 1)[0]}"
