"""What KServe adds to containers of itself: for MLServer, Triton and TorchServe by its defaulting webhook, for `spec.tracing` by its controller.

Source: SetRuntimeDefaults and below, `inference_service_defaults.go`, and InjectComponentTracing, `inferenceservice/utils/tracing.go`, of KServe
0.21. The server's type is what the runtime's annotation `serving.kserve.io/server-type` says, else what its exact name stands for; a name that
only holds "mlserver" says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from ...manifests.containers import Container, EnvVar
from ...manifests.conventions import KSERVE_CONTAINER, PREFIX, TRANSFORMER_CONTAINER
from ...manifests.fields import flag_value, listed, mapping
from ...manifests.inference_service import InferenceService, ModelSpec
from ...manifests.serving_runtimes import ServingRuntime

__all__ = ["is_cluster_host", "server_type", "with_server_defaults", "with_tracing"]

_BY_NAME = {
    "kserve-mlserver": "mlserver",
    "kserve-tritonserver": "tritonserver",
    "kserve-torchserve": "torchserve",
    "kserve-vllmserver": "vllmserver",
}
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
    names = [] if always else [mapping(item).get("name") for item in present]
    added = [{"name": key, "value": value} for key, value in wanted.items() if key not in names]
    return replace(model, container={**model.container, "env": [*present, *added]})


_POD_FIELDS = {
    "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME": "spec.nodeName",
    "OTEL_RESOURCE_ATTRIBUTES_POD_NAME": "metadata.name",
}


def with_tracing(
    service: InferenceService,
    container: Container,
    *,
    component: str,
    variant: str = "",
    server: str = "",
    collector: str = "",
) -> Container:
    """A container as the controller makes it for `spec.tracing`; as it is where that is not written.

    Args:
        service: whose spans they will be.
        container: what it sets of itself stays.
        component: `predictor` or `transformer`; empty: told by the container's name, and another's is left alone.
        variant: name of the canary that the pod belongs to; empty: the stable one.
        server: see `server_type`; vLLM, Triton and MLServer are told in their own ways too.
        collector: where spans go on this machine; empty: where the service says.
    """
    by_name = {KSERVE_CONTAINER: "predictor", TRANSFORMER_CONTAINER: "transformer"}
    component = component or by_name.get(container.name, "")
    if service.tracing is None or not component:
        return container
    endpoint = collector or service.tracing.endpoint
    name = f"{service.name}-{component}"
    attributes = (
        f"k8s.namespace.name={service.namespace},k8s.node.name=$(OTEL_RESOURCE_ATTRIBUTES_NODE_NAME),"
        f"k8s.pod.name=$(OTEL_RESOURCE_ATTRIBUTES_POD_NAME),isvc.name={service.name},isvc.component={component}"
    )
    if variant:
        attributes += f",isvc.predictor.variant={variant}"
    wanted: dict[str, str | Mapping[str, Any]] = {
        "OTEL_SERVICE_NAME": name,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_EXPORTER": service.tracing.exporter,
        "OTEL_TRACES_SAMPLER": service.tracing.sampler,
        "OTEL_TRACES_SAMPLER_ARG": service.tracing.sampler_arg,
        **{variable: {"fieldRef": {"fieldPath": field}} for variable, field in _POD_FIELDS.items()},
        "OTEL_RESOURCE_ATTRIBUTES": attributes,
    }
    if component == "predictor" and server == "mlserver":
        wanted["MLSERVER_TRACING_SERVER"] = endpoint
    args = _tracing_arguments(name, endpoint, server) if component == "predictor" else {}
    return replace(
        container,
        env=(*container.env, *_absent(container, wanted)),
        args=(
            *container.args,
            *(word for flag, words in args.items() if flag_value(container.args, flag) is None for word in words),
        ),
    )


def _absent(container: Container, wanted: Mapping[str, str | Mapping[str, Any]]) -> list[EnvVar]:
    """Those variables that a container does not set itself (AppendEnvVarIfNotExists)."""
    names = {variable.name for variable in container.env}
    return [
        EnvVar(name, value, None, container.source)
        if isinstance(value, str)
        else EnvVar(name, "", value, container.source)
        for name, value in wanted.items()
        if name not in names
    ]


def _tracing_arguments(name: str, endpoint: str, server: str) -> dict[str, tuple[str, ...]]:
    """Arguments of servers that read no variables, by the flag whose presence keeps them away."""
    if server == "vllmserver":
        return {
            "otlp-traces-endpoint": ("--otlp-traces-endpoint", endpoint),
            "collect-detailed-traces": ("--collect-detailed-traces", "all"),
        }
    if server == "tritonserver":
        values = (
            "mode=opentelemetry",
            f"opentelemetry,url={endpoint}",
            f"opentelemetry,resource=service.name={name}",
            "level=TIMESTAMPS",
        )
        return {"trace-config": tuple(word for value in values for word in ("--trace-config", value))}
    return {}


def is_cluster_host(endpoint: str) -> bool:
    """Whether a URL's host is a name that a cluster's DNS makes: a Service's, with or without its namespace."""
    host = urlsplit(endpoint).hostname or ""
    return host != "localhost" and ("." not in host or host.endswith((".svc", ".cluster.local"))) and ":" not in host
