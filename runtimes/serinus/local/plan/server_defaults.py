"""What KServe's defaulting webhook adds to a `predictor.model` for MLServer, Triton and TorchServe.

Source: SetRuntimeDefaults and below, `inference_service_defaults.go` of KServe 0.21. The server's type is what the runtime's annotation
`serving.kserve.io/server-type` says, else what its exact name stands for; a name that only holds "mlserver" says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...manifests.conventions import PREFIX
from ...manifests.fields import listed, mapping
from ...manifests.inference_service import InferenceService, ModelSpec
from ...manifests.serving_runtimes import ServingRuntime

__all__ = ["with_server_defaults"]

_BY_NAME = {"kserve-mlserver": "mlserver", "kserve-tritonserver": "tritonserver", "kserve-torchserve": "torchserve"}
_MLSERVER_CLASSES = {
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
_MLSERVER_DEFAULT_CLASS = "mlserver_sklearn.SKLearnModel"


def with_server_defaults(
    service: InferenceService, model: ModelSpec, runtime: ServingRuntime, *, has_storage: bool
) -> tuple[InferenceService, ModelSpec]:
    """The service and its model with the labels, variables and arguments that the webhook writes.

    Args:
        service: whose labels placeholders of the runtime read.
        model: whose container is merged over the runtime's.
        runtime: the chosen one.
        has_storage: whether the model has a URI or a storage spec.
    """
    server = server_type(runtime)
    if server == "mlserver":
        variables = {"MLSERVER_MODEL_NAME": service.name, "MLSERVER_MODEL_URI": "/mnt/models"}
        model = _with_variables(model, variables if has_storage else {"MLSERVER_LOAD_MODELS_AT_STARTUP": "false"})
        label = {"modelClass": _MLSERVER_CLASSES.get(model.format.name, _MLSERVER_DEFAULT_CLASS)}
        return replace(service, labels={**service.labels, **label}), model
    if server == "tritonserver" and not has_storage:
        args = [*listed(model.container.get("args")), "--model-control-mode=explicit"]
        return service, replace(model, container={**model.container, "args": args})
    if server == "torchserve":
        protocol = model.protocol or "v1"
        envelope = "kservev2" if protocol in {"v2", "grpc-v2"} else "kserve"
        model = _with_variables(model, {"PROTOCOL_VERSION": protocol}, always=True)
        return replace(service, labels={**service.labels, "serviceEnvelope": envelope}), model
    return service, model


def server_type(runtime: ServingRuntime) -> str:
    """`mlserver`, `tritonserver`, `torchserve` or another word of KServe; empty where nothing says it."""
    annotations = mapping(runtime.document.metadata.get("annotations"))
    return str(annotations.get(PREFIX + "server-type") or _BY_NAME.get(runtime.name, ""))


def _with_variables(model: ModelSpec, wanted: Mapping[str, str], *, always: bool = False) -> ModelSpec:
    """Append variables, each only where it is absent, or `always`."""
    present: list[Any] = list(listed(model.container.get("env")))
    names = set() if always else {mapping(item).get("name") for item in present}
    added = [{"name": key, "value": value} for key, value in wanted.items() if key not in names]
    return replace(model, container={**model.container, "env": [*present, *added]})
