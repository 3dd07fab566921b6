"""ServingRuntimes as frozen values, and those that our own images stand for."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import Document, load_text
from .fields import listed, mapping

__all__ = [
    "BUILT_IN",
    "BY_NAME",
    "ServingRuntime",
    "SupportedFormat",
    "app_class",
    "built_in_runtimes",
    "image_name",
    "kserve_runtimes",
    "parse_runtime",
]

BUILT_IN = {
    "xgboost_server": ("xgboost",),
    "lightgbm_server": ("lightgbm",),
    "sklearn_server": ("sklearn",),
    "catboost_server": ("catboost",),
    "mlflow_server": ("mlflow",),
    "torch_server": ("pytorch",),
    "onnx_server": ("onnx",),
    "tensorflow_server": ("tensorflow",),
}
"""Our image folders and the model formats they serve: what a machine without any ServingRuntime can still select from."""

BY_NAME = {"classic_server": ("xgboost", "lightgbm", "sklearn", "catboost", "onnx")}
"""Those that serve the formats of several others, as in manifests/base: chosen by their runtime's name, never by a format."""


KSERVE_RUNTIMES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "kserve-lgbserver": (("v1", "v2"), "lightgbm:4:1"),
    "kserve-mlserver": (
        ("v2",),
        "sklearn:0:2 sklearn:1:2 xgboost:1:2 xgboost:2:2 lightgbm:3:2 lightgbm:4:2 mlflow:1:1 mlflow:2:1",
    ),
    "kserve-openvino": (("v1", "v2", "grpc-v2"), "onnx:1:2 tensorflow:1:3"),
    "kserve-predictiveserver": (("v1", "v2"), "sklearn:1: xgboost:2: lightgbm:4:"),
    "kserve-sklearnserver": (("v1", "v2"), "sklearn:1:1"),
    "kserve-tensorflow-serving": (("v1", "grpc-v1"), "tensorflow:1:2 tensorflow:2:2"),
    "kserve-torchserve": (("v1", "v2", "grpc-v2"), "pytorch:1:2"),
    "kserve-tritonserver": (("v2", "grpc-v2"), "tensorflow:1:1 tensorflow:2:1 onnx:1:1 pytorch:1:"),
    "kserve-xgbserver": (("v1", "v2"), "xgboost:2:1"),
}
"""KServe's own ClusterServingRuntimes, as far as they serve what our images serve: protocols, and each format as `name:version:priority`;
without a priority it is not selected by itself. Source: config/runtimes of KServe, 2026-08-21."""


KSERVE_ONLY_FORMATS: Mapping[str, str] = {
    "huggingface": "kserve-huggingfaceserver",
    "paddle": "kserve-paddleserver",
    "pmml": "kserve-pmmlserver",
    "tensorrt": "kserve-tritonserver",
    "triton": "kserve-tritonserver",
}
"""Formats of KServe's ClusterServingRuntimes that no image of ours serves, each with the runtime that does there (as above)."""


def image_name(image: str) -> str:
    """The last path component without tag and digest: `registry:5000/team/xgboost_server:1.2` is `xgboost_server`."""
    return image.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]


def app_class(name: str) -> str | None:
    """The `__serinus_class__` of an importable app folder, read without importing it; None where it is no such folder."""
    if not name.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith("__init__.py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # ValueError: no UTF-8, or (before 3.12) a zero byte
        return None
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__serinus_class__" for target in targets):
            value = getattr(node, "value", None)
            return str(value.value) if isinstance(value, ast.Constant) else name
    return None


@dataclass(frozen=True, slots=True)
class SupportedFormat:
    """One entry of `supportedModelFormats`."""

    name: str
    version: str
    auto_select: bool
    priority: int | None


@dataclass(frozen=True, slots=True)
class ServingRuntime:
    """A ServingRuntime or ClusterServingRuntime."""

    name: str
    namespace: str
    """Empty: for the whole cluster."""
    formats: tuple[SupportedFormat, ...]
    protocols: tuple[str, ...]
    disabled: bool
    multi_model: bool
    has_workers: bool
    created: str
    containers: tuple[Mapping[str, Any], ...]
    document: Document


def parse_runtime(document: Document) -> ServingRuntime:
    """Read a runtime that admission has let pass."""
    spec = mapping(document.value.get("spec"))
    formats = tuple(
        SupportedFormat(
            name=str(item.get("name")),
            version=str(item.get("version") or ""),
            auto_select=bool(item.get("autoSelect")),
            priority=item.get("priority"),
        )
        for item in map(mapping, listed(spec.get("supportedModelFormats")))
    )
    return ServingRuntime(
        name=document.name,
        namespace="" if document.kind == "ClusterServingRuntime" else document.namespace,
        formats=formats,
        protocols=tuple(map(str, listed(spec.get("protocolVersions")))),
        disabled=bool(spec.get("disabled")),
        multi_model=bool(spec.get("multiModel")),
        has_workers=bool(spec.get("workerSpec")),
        created=str(document.metadata.get("creationTimestamp") or ""),
        containers=tuple(map(mapping, listed(spec.get("containers")))),
        document=document,
    )


def built_in_runtimes(apps: Sequence[str]) -> list[ServingRuntime]:
    """ClusterServingRuntimes for our own images, of those app folders that are installed; they rank after all others.

    They are called as in manifests/base, so that a service that names one runs on a machine without manifests too.
    """
    found = []
    for app in apps:
        formats = BUILT_IN.get(app) or BY_NAME.get(app, ())
        if not formats:
            continue
        chosen = "autoSelect: true, priority: 1" if app in BUILT_IN else "autoSelect: false"
        entries = "".join(f"\n    - {{name: {name}, {chosen}}}" for name in formats)
        text = (
            "apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\n"
            f"metadata:\n  name: serinus-{app.replace('_', '-')}\nspec:\n  supportedModelFormats:{entries}\n"
            "  protocolVersions: [v1, v2, grpc-v2]\n  containers:\n"
            f"    - name: kserve-container\n      image: {app}\n"
            '      args: ["--model_name={{.Name}}", "--model_dir=/mnt/models"]\n'
        )
        found += [parse_runtime(document) for document in load_text(text, f"(built-in runtime {app})")]
    return found


def kserve_runtimes(apps: Sequence[str]) -> list[ServingRuntime]:
    """KServe's own runtimes by their names, formats, protocols and priorities, each served by those of our images that are installed.

    A name that serves formats of several images comes once for each image. Arguments that a service gives KServe's server are given to ours.
    """
    served = {name: app for app in apps for name in BUILT_IN.get(app, ())}
    found = []
    for name, (protocols, formats) in KSERVE_RUNTIMES.items():
        entries: dict[str, list[str]] = {}
        for written in formats.split():
            kind, version, priority = written.split(":")
            more = f", autoSelect: true, priority: {priority}" if priority else ""
            if kind in served:
                entries.setdefault(served[kind], []).append(f'{{name: {kind}, version: "{version}"{more}}}')
        for app, lines in entries.items():
            text = (
                "apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\n"
                f"metadata:\n  name: {name}\nspec:\n  supportedModelFormats: [{', '.join(lines)}]\n"
                f"  protocolVersions: [{', '.join(protocols)}]\n  containers:\n"
                f"    - name: kserve-container\n      image: {app}\n"
                '      args: ["--model_name={{.Name}}", "--model_dir=/mnt/models"]\n'
            )
            found += [parse_runtime(document) for document in load_text(text, f"(KServe's {name} by {app})")]
    return found
