"""KServe's names: annotations, containers, deployment modes, storage; and what counts where one is not written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .fields import LEGACY_FRAMEWORKS, listed, mapping

__all__ = [
    "ANNOTATIONS",
    "AUTOSCALER",
    "DEPLOYMENT_MODE",
    "KSERVE_CONTAINER",
    "MODEL_FORMATS",
    "NAME",
    "PREFIX",
    "RUNTIME_NAMES",
    "STORAGE_SCHEMES",
    "TRANSFORMER_CONTAINER",
    "deployment_mode",
    "implementations",
]

PREFIX = "serving.kserve.io/"
DEPLOYMENT_MODE = PREFIX + "deploymentMode"
AUTOSCALER = PREFIX + "autoscalerClass"
NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
KSERVE_CONTAINER = "kserve-container"
TRANSFORMER_CONTAINER = "transformer-container"

RUNTIME_NAMES = tuple(
    f"kserve-{name}"
    for name in (
        *(
            "autogluonserver",
            "huggingfaceserver",
            "huggingfaceserver-multinode",
            "lgbserver",
            "mlserver",
            "openvino",
            "paddleserver",
        ),
        *(
            "pmmlserver",
            "predictiveserver",
            "sklearnserver",
            "tensorflow-serving",
            "torchserve",
            "tritonserver",
            "vllmserver",
            "xgbserver",
        ),
    )
)
"""KServe's own ClusterServingRuntimes (config/runtimes, 2026-08-21)."""

MODEL_FORMATS = (
    *("autogluon", "huggingface", "lightgbm", "mlflow", "onnx", "openvino", "paddle", "pmml", "pytorch", "sklearn"),
    *("tensorflow", "tensorrt", "triton", "vLLM", "xgboost"),
)
"""What they serve."""

STORAGE_SCHEMES = [
    "gs",
    "s3",
    "pvc",
    "file",
    "https",
    "http",
    "hdfs",
    "webhdfs",
    "oci",
    "oci+native",
    "oci+fetch",
    "hf",
    "modelscope",
]
ANNOTATIONS = [
    "deploymentMode",
    "autoscalerClass",
    "stop",
    "enable-tag-routing",
    "disable-auto-update",
    "disable-localmodel",
    "nodegroup",
    "gpu-resource-types",
    "storageSecretName",
    "enable-prometheus-scraping",
    "enable-metric-aggregation",
    "gke-accelerator",
    "server-type",
    "metrics",
    "targetUtilizationPercentage",
    "secretName",
    "storage-initializer-uid",
    "localmodel",
    "inject-queue-proxy-aggregator",
    "logger-secret-name",
    "logger-secret-namespace",
    "enable-auth",
]
"""Those of an InferenceService, without the prefix."""


def deployment_mode(annotations: Mapping[str, Any]) -> str:
    """`Standard`, `Knative`, `ModelMesh`, or whatever is written, after the webhook's renaming; Knative where none is.

    Source: constants.go 564-590 and defaults.go 166-176: the deprecated names are rewritten, unknown ones are not refused.
    """
    written = str(annotations.get(DEPLOYMENT_MODE) or "Knative")
    return {"RawDeployment": "Standard", "Serverless": "Knative"}.get(written, written)


def implementations(predictor: Mapping[str, Any]) -> list[str]:
    """Every implementation that a predictor block names: `model`, legacy frameworks, `containers` (predictor.go 168-196)."""
    found = [name for name in (*LEGACY_FRAMEWORKS, "model") if predictor.get(name) is not None]
    containers = [mapping(item).get("name") for item in listed(predictor.get("containers"))]
    if KSERVE_CONTAINER in containers or (containers and not found):
        found.append("containers")
    return found
