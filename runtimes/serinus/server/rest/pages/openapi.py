"""The OpenAPI 3.1 document of the REST endpoints, and its operations as HTML.

Every operation says what it takes, what it answers and that errors are `{"error": string}`. The schemas are those of Open Inference
Protocol, inference_rest.md; extensions as in the documents that `serinus.server.rest.app` names.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import orjson

from .... import __version__
from ....protocol.datatypes import DATATYPES
from ...request_access import rest_kind

__all__ = ["openapi_document", "operations_html"]

_Json = dict[str, Any]


def _ref(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), *, extra: bool = False, **properties: Any) -> _Json:
    schema: _Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if not extra:
        schema["additionalProperties"] = False
    return schema


def _array(items: _Json, **more: Any) -> _Json:
    return {"type": "array", "items": items, **more}


def _or_null(schema: _Json) -> _Json:
    """Let null stand for "left out"."""
    return {"anyOf": [schema, {"type": "null"}]}


_STRING: Final[_Json] = {"type": "string"}
_NAME: Final[_Json] = {"type": "string", "minLength": 1, "maxLength": 1024}
_COUNT: Final[_Json] = {"type": "integer", "minimum": 0}
_DURATION: Final[_Json] = _object(("count", "ns"), count=_COUNT, ns=_COUNT)

_SCHEMAS: Final[_Json] = {
    "Error": _object(
        ("error",), error={"type": "string", "description": "what was wrong, and what was expected"}, extra=True
    ),
    "Parameters": {
        "type": "object",
        "description": "Parameters (inference_rest.md): strings, numbers and booleans by name",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    },
    "Datatype": {"type": "string", "enum": sorted(DATATYPES)},
    "TensorData": {
        "type": "array",
        "description": "Values in row-major order, nested by the shape or flat",
        "items": {"anyOf": [{"type": ["number", "string", "boolean", "null"]}, _ref("TensorData")]},
    },
    "RequestInput": _object(
        ("name", "shape", "datatype", "data"),
        name=_NAME,
        shape=_array({"type": "integer", "minimum": 0}, maxItems=32),
        datatype=_ref("Datatype"),
        parameters=_or_null(_ref("Parameters")),
        data=_ref("TensorData"),
        extra=True,
    ),
    "RequestOutput": _object(("name",), name=_NAME, parameters=_or_null(_ref("Parameters")), extra=True),
    "InferRequest": _object(
        ("inputs",),
        id=_or_null(_STRING),
        parameters=_or_null(_ref("Parameters")),
        inputs=_array(_ref("RequestInput"), minItems=1),
        outputs=_or_null(_array(_ref("RequestOutput"))),
        extra=True,
    ),
    "ResponseOutput": _object(
        ("name", "shape", "datatype"),
        name=_STRING,
        shape=_array(_COUNT),
        datatype=_ref("Datatype"),
        parameters=_ref("Parameters"),
        data=_ref("TensorData"),
    ),
    "InferResponse": _object(
        ("model_name", "outputs"),
        model_name=_STRING,
        model_version=_STRING,
        id=_STRING,
        parameters=_ref("Parameters"),
        outputs=_array(_ref("ResponseOutput")),
    ),
    "TensorMetadata": _object(
        ("name", "datatype", "shape"),
        name=_STRING,
        datatype=_ref("Datatype"),
        shape=_array({"type": "integer", "minimum": -1}),
    ),
    "ModelMetadata": _object(
        ("name", "platform", "inputs", "outputs"),
        name=_STRING,
        versions=_array(_STRING),
        platform=_STRING,
        inputs=_array(_ref("TensorMetadata")),
        outputs=_array(_ref("TensorMetadata")),
        properties={"type": "object", "additionalProperties": _STRING},
    ),
    "ServerMetadata": _object(
        ("name", "version", "extensions"), name=_STRING, version=_STRING, extensions=_array(_STRING)
    ),
    "Alive": _object(("status",), status={"const": "alive"}),
    "ServerLive": _object(("live",), live={"type": "boolean"}),
    "ServerReady": _object(("ready", "live"), ready={"type": "boolean"}, live={"type": "boolean"}),
    "ModelReady": _object(("name", "ready"), name=_STRING, ready={"type": "boolean"}),
    "V1Status": _object(
        ("name", "ready", "model_version_status"),
        name=_STRING,
        ready={"type": "boolean"},
        model_version_status=_array(
            _object(
                ("version", "state", "status"),
                version=_STRING,
                state={"enum": ["LOADING", "AVAILABLE", "UNLOADING", "END", "UNKNOWN"]},
                status=_object(("error_code", "error_message"), error_code=_STRING, error_message=_STRING),
            )
        ),
    ),
    "V1Metadata": _object(
        ("model_spec", "metadata"),
        model_spec=_object(
            ("name", "signature_name", "version"), name=_STRING, signature_name=_STRING, version=_STRING
        ),
        metadata=_object(("signature_def",), signature_def={"type": "object"}),
    ),
    "ModelNames": _object(("models",), models=_array(_STRING)),
    "ModelConfig": _object(
        ("name", "platform", "max_batch_size", "input", "output"),
        name=_STRING,
        platform=_STRING,
        backend=_STRING,
        max_batch_size=_COUNT,
        dynamic_batching=_object(("max_queue_delay_microseconds",), max_queue_delay_microseconds=_COUNT),
        model_transaction_policy=_object(("decoupled",), decoupled={"const": True}),
        parameters={"type": "object", "additionalProperties": _object(("string_value",), string_value=_STRING)},
        input=_array(_ref("TensorConfig")),
        output=_array(_ref("TensorConfig")),
    ),
    "TensorConfig": _object(
        ("name", "data_type", "dims"),
        name=_STRING,
        data_type=_STRING,
        dims=_array({"type": "integer", "minimum": -1}, minItems=1),
        reshape=_object(("shape",), shape=_array(_COUNT)),
        optional={"type": "boolean"},
    ),
    "ModelStatistics": _object(
        ("model_stats",),
        model_stats=_array(
            _object(
                ("name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"),
                name=_STRING,
                version=_STRING,
                last_inference=_COUNT,
                inference_count=_COUNT,
                execution_count=_COUNT,
                inference_stats={"type": "object", "additionalProperties": _DURATION},
                batch_stats=_array({"type": "object"}),
                extra=True,
            )
        ),
    ),
    "RepositoryIndexRequest": _object((), ready={"type": ["boolean", "null"]}, extra=True),
    "RepositoryIndex": _array(_object(("name", "state"), name=_STRING, version=_STRING, state=_STRING, reason=_STRING)),
    "LoadRequest": _object(
        (),
        parameters=_or_null(
            _object((), config={"type": "string", "description": "A model configuration (ModelConfig) as JSON text"})
        ),
        extra=True,
    ),
    "UnloadRequest": _object((), parameters=_or_null(_object((), unload_dependents={"type": "boolean"})), extra=True),
    "RepositoryAnswer": _object(("name",), name=_STRING, load={"type": "boolean"}, unload={"type": "boolean"}),
    "PredictRequest": {
        "description": "Row format (`instances`) or column format (`inputs`) of the V1 protocol",
        "anyOf": [
            _object(("instances",), instances=_array({}, minItems=1), signature_name=_STRING, extra=True),
            _object(
                ("inputs",),
                inputs={"type": ["object", "array", "string", "number", "boolean"]},
                signature_name=_STRING,
                extra=True,
            ),
        ],
    },
    "Flat": _object((), id=_STRING, parameters={"type": "object"}, extra=True),
    "GenerateResponse": {
        "type": "object",
        "description": "Outputs by name, `model_name`, `model_version`, and the `id` of the request",
    },
    "Examples": _object(
        ("examples",),
        examples=_array({"type": "object"}, minItems=1),
        context={"type": "object"},
        signature_name=_STRING,
        extra=True,
    ),
    "Results": _object(("results",), results=_array({})),
    "PredictResponse": {
        "type": "object",
        "description": "`predictions` for rows, `outputs` for columns, or as the model answers",
    },
}

_ERRORS: Final[dict[str, str]] = {
    "400": "The request is malformed, or does not fit the model",
    "401": "The token of the model repository is missing, or another",
    "403": "Asked for by a page of another origin, or not as this machine",
    "404": "No such model, version or path",
    "405": "The path does not take this method; the header Allow names those that it takes",
    "408": "The request took too long to arrive",
    "409": "The state of the model does not allow it now",
    "413": "The body or a tensor has more bytes, or the request more tensors, than are taken",
    "414": "The request target is too long",
    "415": "The content encoding or charset is not offered",
    "417": "The expectation cannot be met",
    "429": "The queue is full; the header Retry-After says when to come back",
    "431": "The header section is too large",
    "500": "The model failed",
    "501": "The model does not offer this",
    "502": "The predictor behind a transformer could not be reached",
    "503": "Not ready: loading, stopping or unloaded",
    "504": "The deadline of the request has passed",
}


_OF_ANY_REQUEST: Final = "400 405 408 413 414 417 431"
"""What the transport refuses, whatever is asked for."""


def _operation(
    summary: str, answer: str, *, tag: str, takes: str = "", optional_body: bool = False, errors: str = ""
) -> _Json:
    operation: _Json = {
        "summary": summary,
        "tags": [tag],
        "responses": {"200": {"description": "As asked", "content": {"application/json": {"schema": _ref(answer)}}}},
    }
    for status in sorted({*_OF_ANY_REQUEST.split(), *errors.split()}):
        operation["responses"][status] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    if takes:
        content: _Json = {"application/json": {"schema": _ref(takes)}}
        if takes == "InferRequest":
            content["application/octet-stream"] = {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "Binary tensor data extension: the JSON part, then the tensors' bytes; the header "
                    "Inference-Header-Content-Length has the JSON part's bytes",
                }
            }
        operation["requestBody"] = {"required": not optional_body, "content": content}
    return operation


_EVENT: Final = _object(
    ("data",),
    data={
        "type": "string",
        "contentMediaType": "application/json",
        "description": "An InferResponse, or an Error, as JSON text",
    },
    extra=True,
)
"""One event of a stream: before OpenAPI 3.2 has `itemSchema`, readers take a stream's `schema` for that of each event."""


def _stream_operation(summary: str, *, tag: str = "inference", takes: str = "InferRequest") -> _Json:
    operation = _operation(summary, "InferResponse", tag=tag, takes=takes, errors=_ALL)
    operation["responses"]["200"] = {
        "description": "Server-sent events: `data: ` and a response for each one; an Error as the last one where the "
        "model fails after its first response",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
    return operation


_ALL: Final = "404 409 415 429 500 501 502 503 504"


def _metrics_operation() -> _Json:
    operation = _operation("Metrics in Prometheus's text format", "Error", tag="metrics")
    operation["responses"]["200"] = {
        "description": "All metrics",
        "content": {"text/plain": {"schema": _STRING}},
    }
    return operation


def _paths(*, changes: bool) -> dict[str, _Json]:
    paths: dict[str, _Json] = {
        "/": {"get": _operation("Is the process alive (KServe)", "Alive", tag="health")},
        "/v2": {"get": _operation("Server metadata", "ServerMetadata", tag="metadata")},
        "/v2/health/live": {"get": _operation("Server live", "ServerLive", tag="health", errors="503")},
        "/v2/health/ready": {"get": _operation("Server ready", "ServerReady", tag="health", errors="503")},
        "/v2/models": {"get": _operation("Names of the models (KServe)", "ModelNames", tag="metadata")},
        "/v2/models/stats": {"get": _operation("Statistics of all models", "ModelStatistics", tag="statistics")},
        "/v2/repository/index": {
            "post": _operation(
                "Index of the model repository",
                "RepositoryIndex",
                tag="repository",
                takes="RepositoryIndexRequest",
                optional_body=True,
                errors="415",
            )
        },
        "/v1/models": {"get": _operation("Names of the models (V1)", "ModelNames", tag="v1")},
        "/metrics": {"get": _metrics_operation()},
    }
    for action in ("load", "unload") if changes else ():
        paths[f"/v2/repository/models/{{model}}/{action}"] = {
            "post": _operation(
                f"{action.capitalize()} a model",
                "RepositoryAnswer",
                tag="repository",
                takes=f"{action.capitalize()}Request",
                optional_body=True,
                errors=f"401 403 {_ALL}",
            )
        }
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths[model] = {"get": _operation("Model metadata", "ModelMetadata", tag="metadata", errors="404 503")}
        paths[model + "/ready"] = {"get": _operation("Model ready", "ModelReady", tag="health", errors="404 503")}
        paths[model + "/config"] = {
            "get": _operation("Model configuration", "ModelConfig", tag="metadata", errors="404 503")
        }
        paths[model + "/stats"] = {
            "get": _operation("Model statistics", "ModelStatistics", tag="statistics", errors="404 503")
        }
        paths[model + "/infer"] = {
            "post": _operation("Inference", "InferResponse", tag="inference", takes="InferRequest", errors=_ALL)
        }
        paths[model + "/infer_stream"] = {"post": _stream_operation("Inference, answered with events")}
        for verb, operation in (
            ("generate", _operation("Generate", "GenerateResponse", tag="generate", takes="Flat", errors=_ALL)),
            ("generate_stream", _stream_operation("Generate, answered with events", tag="generate", takes="Flat")),
        ):
            operation["description"] = (
                "Inputs by name, all else parameters; a hosted MLServer model takes an InferRequest and answers an InferResponse"
            )
            paths[f"{model}/{verb}"] = {"post": operation}
    for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"):
        paths[model] = {"get": _operation("Model ready, and status (V1)", "V1Status", tag="v1", errors="404 503")}
        if "{label}" not in model:
            paths[model + "/metadata"] = {
                "get": _operation("Signatures (V1)", "V1Metadata", tag="v1", errors="404 503")
            }
        for verb in ("predict", "explain", "classify", "regress"):
            takes, answers = (
                ("PredictRequest", "PredictResponse") if verb in ("predict", "explain") else ("Examples", "Results")
            )
            paths[f"{model}:{verb}"] = {
                "post": _operation(
                    f"{verb.capitalize()} (V1)",
                    answers,
                    tag="v1",
                    takes=takes,
                    errors=_ALL,
                )
            }
    return paths


_BEARER: Final[_Json] = {
    "type": "http",
    "scheme": "bearer",
    "description": "One of the server's tokens, as 'Authorization: Bearer TOKEN' (RFC 6750)",
}
_UNAUTHENTICATED: Final[_Json] = {
    "description": "no token came, or another (`WWW-Authenticate` says which)",
    "headers": {"WWW-Authenticate": {"schema": _STRING}},
    "content": {"application/json": {"schema": _ref("Error")}},
}


def openapi_document(
    served: Iterable[str] = (), *, changes: bool = True, need_token: Collection[str] = ()
) -> tuple[_Json, bytes]:
    """Build the document.

    Args:
        served: path templates that the server has; those not described here (custom routes) are listed without schemas.
        changes: models are loaded and unloaded by request; the routes for it are left out where they only refuse.
        need_token: kinds of routes that ask for a token (`serinus.server.request_access.KINDS`); each names the scheme `bearerAuth`.

    Returns:
        The document, and the same as JSON.
    """
    paths = _paths(changes=changes)
    for template in served:
        if not changes and template.startswith("/v2/repository/models/"):
            continue
        paths.setdefault(
            template, {"description": "A route that the hosted model brings; its requests are the model's own"}
        )
    for template, item in paths.items():
        names = [part.partition("}")[0] for part in template.split("{")[1:]]
        if names:
            item["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _NAME} for name in names]
        for method, operation in item.items():
            if method in ("get", "post"):
                words = "".join(char if char.isalnum() else " " for char in template).split()
                operation["operationId"] = "_".join([method, *words]) if words else f"{method}_root"
                if rest_kind(template) in need_token:
                    operation["security"] = [{"bearerAuth": []}]
                    operation["responses"] = {**operation["responses"], "401": _UNAUTHENTICATED}
    document: _Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "serinus",
            "version": __version__,
            "summary": "Open Inference Protocol (V2) with binary data, repository, statistics; V1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if need_token:
        document["components"] = {"schemas": _SCHEMAS, "securitySchemes": {"bearerAuth": _BEARER}}
    return document, orjson.dumps(document)


def operations_html(document: Mapping[str, Any]) -> str:
    """Write every path of the document as HTML, by its tags, and the schemas."""
    groups: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            operation = item.get(method)
            if operation is None:
                continue
            details = {key: value for key, value in operation.items() if key in ("requestBody", "responses")}
            text = orjson.dumps(details, option=orjson.OPT_INDENT_2).decode()
            groups.setdefault(operation["tags"][0], []).append(
                f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
                f"{html.escape(operation['summary'])}</summary><pre>{html.escape(text)}</pre></details>"
            )
        if not any(method in item for method in ("get", "post")):
            groups.setdefault("custom", []).append(f"<p><code>{html.escape(path)}</code></p>")
    sections = "".join(f"<h3>{html.escape(tag)}</h3>{''.join(rows)}" for tag, rows in groups.items())
    schemas = html.escape(orjson.dumps(document["components"]["schemas"], option=orjson.OPT_INDENT_2).decode())
    return f"{sections}<h3>schemas</h3><details><summary>All</summary><pre>{schemas}</pre></details>"
