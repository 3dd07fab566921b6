"""The way from a transformer to its predictor: V2 over REST or gRPC, and V1, with KServe's `--predictor_*` settings.

What KServe's own client leaves out and this one has: the request's deadline goes along (`timeout`, or gRPC's own), trace and
request-id headers go along, channels belong to their target (KServe's factory keeps one gRPC channel per process and sends every
model's requests to the first predictor it ever saw), and a request is never sent twice unless the predictor cannot have begun
on the first: no connection was made, or it said itself that it had not (429 or 503 with Retry-After; RESOURCE_EXHAUSTED or UNAVAILABLE
with `grpc-retry-pushback-ms`, or `retry-after` as our own servers send it).
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc.aio
import numpy as np
import orjson

import grpc

from ..errors import ConfigError, InvalidInput, SerinusError, TimedOut, UpstreamFailed
from ..protocol import _open_inference_pb2 as pb  # type: ignore[attr-defined] # generated
from ..protocol import proto_codec
from ..protocol.datatypes import BYTES
from ..protocol.rest_codec import RestCodec
from ..protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits, Tensor
from ..settings import PredictorSettings
from .http_client import HttpClient, HttpResponse, Unreachable
from .predictor_errors import error_of_credentials, error_of_grpc, error_of_status

__all__ = ["FORWARDED_HEADERS", "PredictorClient", "forwarded", "split_host"]

FORWARDED_HEADERS: Final = frozenset(
    {
        "authorization",
        "b3",
        "baggage",
        "traceparent",
        "tracestate",
        "x-b3-flags",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-spanid",
        "x-b3-traceid",
        "x-cloud-trace-context",
        "x-ot-span-context",
        "x-request-id",
    }
)
"""W3C Trace Context and Baggage, B3 in both forms, Envoy's request id, and the three that KServe forwards (kserve/model.py)."""

_SERVICE: Final = "/inference.GRPCInferenceService/"
_RETRY_MOST_S: Final = 3600.0
"""Longest wait that a predictor's Retry-After is taken for: nobody waits longer, and 10^400 is no number of seconds."""
_DIGITS: Final = 18
"""Of a number in a header: what has more is beyond 64 bits."""
_LIMITS: Final = Limits(body_bytes=1 << 31, tensor_bytes=1 << 34)
"""The predictor is ours: its answers are bounded by what gRPC can carry."""
_METADATA: Final = re.compile(r"[ -~]*")
"""What gRPC's metadata can carry (gRPC over HTTP/2, "ASCII-Value"); HTTP allows more, which is left behind."""
_PAUSE_S: Final = 0.1
"""Before the first retry; KServe's first back-off. It doubles up to 1 s, as there."""


def split_host(host: str, use_ssl: bool) -> tuple[str, int]:
    """Split `--predictor_host`: host, host:port or [v6]:port; without a port 80, or 443 with TLS (KServe's rule).

    Raises:
        ConfigError: it is neither.
    """
    default = 443 if use_ssl else 80
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
    elif host.count(":") > 1:
        name, port = host, ""
    else:
        name, _, port = host.partition(":")
    if "/" in host or not name or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise ConfigError(f"--predictor_host {host!r}: expected host or host:port, without a scheme or path")
    return name, int(port) if port else default


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Pick the headers that go along to the predictor; names in lower case."""
    if not headers:
        return {}
    return {name: value for name, value in headers.items() if name in FORWARDED_HEADERS}


class PredictorClient:
    """Requests to one predictor. Make it anywhere; its connections belong to the event loop that first uses it.

    Args:
        settings: host, protocol, TLS, time-out, retries.

    Raises:
        ConfigError: no host, or one that cannot be.
    """

    def __init__(self, settings: PredictorSettings) -> None:
        if not settings.host:
            raise ConfigError("a predictor needs --predictor_host")
        self.settings = settings
        self._host, self._port = split_host(settings.host, settings.use_ssl)
        self._codec = RestCodec(_LIMITS)
        self._http: HttpClient | None = None
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Callable[..., Any]] = {}

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask the predictor; over REST the answer has the headers of the predictor's.

        Args:
            request: its deadline, if any, bounds the call beside `timeout_s`; of its headers the `FORWARDED_HEADERS` go along.

        Raises:
            SerinusError: InvalidInput and the like where the predictor blames the request, UpstreamFailed, TimedOut, Overloaded or
                NotReady where it could not answer.
        """
        protocol = self.settings.protocol
        until = self._until(request.deadline)
        if protocol == "grpc-v2":
            return await self._infer_grpc(request, until)
        if protocol == "v2":
            return await self._infer_rest(request, until)
        back: dict[str, str] = {}
        document = await self.predict_v1(
            request.model_name, _v1_document(request), request.headers, deadline=request.deadline, response_headers=back
        )
        answer = _v1_response(document, request)
        answer.headers = back
        return answer

    async def predict_v1(
        self,
        model_name: str,
        payload: Mapping[str, Any],
        headers: Mapping[str, str] = NO_PARAMETERS,
        *,
        deadline: float | None = None,
        verb: str = "predict",
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Ask over V1, `:predict` or `:explain`, or a V2 REST predictor with a V2 object in place of a tensor request.

        Args:
            model_name: in the URL.
            payload: the JSON object.
            headers: of the request at hand; see `FORWARDED_HEADERS`.
            deadline: `time.monotonic()` at which nobody waits any more.
            verb: `predict` or `explain`.
            response_headers: to be filled with those of the predictor's answer.

        Raises:
            SerinusError: as `infer`; InvalidInput where the predictor is asked over gRPC, which has no V1.
        """
        if self.settings.protocol == "grpc-v2":
            raise InvalidInput(
                "the predictor is asked over gRPC (--predictor_protocol grpc-v2), which has no V1; ask in V2"
            )
        body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
        fields = {"content-type": "application/json", **forwarded(headers)}
        name = quote(model_name, safe="")
        path = f"/v2/models/{name}/infer" if self.settings.protocol == "v2" else f"/v1/models/{name}:{verb}"
        response = await self._rest(path, fields, [body], len(body), self._until(deadline))
        if response_headers is not None:
            response_headers.update(response.headers)
        try:
            document = orjson.loads(response.body)
        except orjson.JSONDecodeError as error:
            raise UpstreamFailed(f"the predictor's answer is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise UpstreamFailed("the predictor's answer is no JSON object")
        return document

    async def server_ready(self) -> bool:
        """Whether the predictor's server is ready; V1 has no readiness, so there it is liveness, as in KServe."""
        if self.settings.protocol == "grpc-v2":
            return await self._grpc_ready("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
        return await self._rest_ready("/v2/health/ready" if self.settings.protocol == "v2" else "/")

    async def model_ready(self, model_name: str) -> bool:
        """Whether the predictor has this model ready."""
        if self.settings.protocol == "grpc-v2":
            return await self._grpc_ready("ModelReady", pb.ModelReadyRequest(name=model_name), pb.ModelReadyResponse)
        name = quote(model_name, safe="")
        return await self._rest_ready(
            f"/v2/models/{name}/ready" if self.settings.protocol == "v2" else f"/v1/models/{name}"
        )

    async def close(self) -> None:
        """Close connections and channel."""
        if self._http is not None:
            self._http.close()
        if self._channel is not None:
            await self._channel.close()

    def _until(self, deadline: float | None) -> float:
        limit = time.monotonic() + self.settings.timeout_s
        return limit if deadline is None or deadline > limit else deadline

    # REST

    async def _infer_rest(self, request: InferRequest, until: float) -> InferResponse:
        parameters = dict(request.parameters)
        if request.deadline is not None:
            # The schedule policy extension's time-out: a predictor that knows it stops working when nobody waits.
            parameters["timeout"] = max(1, int((until - time.monotonic()) * 1e6))
        sent = InferRequest(
            request.model_name,
            request.inputs,
            request.model_version,
            request.id,
            parameters,
            request.outputs,
            binary=True,
        )
        body = self._codec.encode_request(sent, binary=True)
        fields = {"content-type": body.content_type, **forwarded(request.headers)}
        if body.json_length is not None:
            fields["inference-header-content-length"] = str(body.json_length)
        name = quote(request.model_name, safe="")
        version = f"/versions/{quote(request.model_version, safe='')}" if request.model_version else ""
        response = await self._rest(f"/v2/models/{name}{version}/infer", fields, body.chunks, body.length, until)
        length = response.headers.get("inference-header-content-length")
        answer = self._codec.decode_response(
            response.body, int(length) if length and length.isdigit() and len(length) <= _DIGITS else None
        )
        answer.headers = response.headers
        return answer

    async def _rest(
        self, path: str, fields: Mapping[str, str], chunks: list[Any], length: int, until: float
    ) -> HttpResponse:
        client = self._http_client()

        async def attempt() -> HttpResponse:
            response = await client.request("POST", path, fields, chunks, length, timeout_s=until - time.monotonic())
            if 200 <= response.status < 300:
                return response
            raise _Refused(_status_error(response), _retry_after(response))

        return await self._with_retries(attempt, until)

    def _http_client(self) -> HttpClient:
        if self._http is None:
            tls = _tls_context() if self.settings.use_ssl else None
            self._http = HttpClient(self._host, self._port, tls)
        return self._http

    async def _rest_ready(self, path: str) -> bool:
        try:
            response = await self._http_client().request("GET", path, {}, timeout_s=min(5.0, self.settings.timeout_s))
        except SerinusError:
            return False
        return response.status == 200

    # gRPC

    async def _infer_grpc(self, request: InferRequest, until: float) -> InferResponse:
        message = proto_codec.encode_request(request)
        metadata = tuple(
            (name, value) for name, value in forwarded(request.headers).items() if _METADATA.fullmatch(value)
        )
        call = self._call("ModelInfer")

        async def attempt() -> bytes:
            left = until - time.monotonic()
            if left <= 0:
                raise TimedOut("the deadline passed before the predictor was asked")
            try:
                return await call(message, timeout=left, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise _grpc_refusal(error) from error

        return proto_codec.decode_response(await self._with_retries(attempt, until), limits=_LIMITS)

    def _call(self, method: str) -> Callable[..., Any]:
        call = self._calls.get(method)
        if call is None:
            if self._channel is None:
                self._channel = self._open_channel()
            # No serializers: the codec reads and writes the messages' bytes itself.
            call = self._calls[method] = self._channel.unary_unary(_SERVICE + method)
        return call

    def _open_channel(self) -> grpc.aio.Channel:
        name = f"[{self._host}]" if ":" in self._host else self._host
        options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # a channel of its own, also to a target that another client has
            ("grpc.keepalive_time_ms", 60_000),
            # gRPC's own pauses grow to two minutes, in which a predictor that is back again gets no request.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        )
        if self.settings.use_ssl:
            return grpc.aio.secure_channel(f"{name}:{self._port}", _grpc_credentials(), options)
        return grpc.aio.insecure_channel(f"{name}:{self._port}", options)

    async def _grpc_ready(self, method: str, request: Any, answer: Any) -> bool:
        try:
            data = await self._call(method)(request.SerializeToString(), timeout=min(5.0, self.settings.timeout_s))
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.FromString(data).ready)

    async def _with_retries(self, attempt: Callable[[], Any], until: float) -> Any:
        """Try once, and again only where the predictor cannot have begun, `retries` times and within the deadline."""
        pause_s = _PAUSE_S
        for left in range(self.settings.retries, -1, -1):
            try:
                return await attempt()
            except Unreachable as error:
                wait_s, problem = pause_s, error
            except _Refused as refused:
                if refused.retry_after_s is None:
                    raise refused.error from refused.__cause__
                wait_s, problem = max(pause_s, refused.retry_after_s), refused.error
            if not left or time.monotonic() + wait_s >= until:
                raise problem
            await asyncio.sleep(wait_s)
            pause_s = min(1.0, pause_s * 2)
        raise AssertionError("unreachable: the last attempt raises")


def _bundle() -> tuple[str, str]:
    """Find the authorities to trust and the variable that names them, as `kserve.Model` does: KServe's controller sets the first."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return name, os.environ[name]
    return "", ""


def _tls_context() -> ssl.SSLContext:
    name, bundle = _bundle()
    if not bundle or name == "SSL_CERT_FILE":  # which ssl reads itself, beside the system's folder
        return ssl.create_default_context()
    try:
        is_folder = Path(bundle).is_dir()
        return ssl.create_default_context(capath=bundle if is_folder else None, cafile=None if is_folder else bundle)
    except OSError as error:
        raise ConfigError(f"{name} {bundle!r} cannot be read: {error}") from error


def _grpc_credentials() -> grpc.ChannelCredentials:
    """Trust what REST trusts; gRPC alone knows only its own variable and bundle."""
    name, bundle = _bundle()
    if not bundle or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or Path(bundle).is_dir():
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(Path(bundle).read_bytes())
    except OSError as error:
        raise ConfigError(f"{name} {bundle!r} cannot be read: {error.strerror}") from error


class _Refused(Exception):
    """The predictor answered an error; `retry_after_s` is set only where it had not begun and said when to come back."""

    def __init__(self, error: SerinusError, retry_after_s: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


def _retry_after(response: HttpResponse) -> float | None:
    if response.status not in (429, 503):
        return None
    return _seconds(response.headers.get("retry-after", ""))


def _seconds(text: str, unit_s: float = 1.0) -> float | None:
    """Read a whole number of units, at most `_RETRY_MOST_S`; None where it is none."""
    if not (text.isascii() and text.isdecimal()):
        return None
    return min(float(text[:_DIGITS]) * unit_s, _RETRY_MOST_S) if len(text) <= _DIGITS else _RETRY_MOST_S


def _status_error(response: HttpResponse) -> SerinusError:
    text = ""
    try:
        document = orjson.loads(response.body)
        if isinstance(document, dict):
            text = str(document.get("error") or document.get("detail") or "")
    except orjson.JSONDecodeError:
        text = response.body[:200].decode("utf-8", "replace").strip()
    message = (
        f"the predictor answered {response.status}: {text}" if text else f"the predictor answered {response.status}"
    )
    if response.status in (401, 403):
        return error_of_credentials(response.status, message)
    return error_of_status(
        response.status, text if text and response.status == 400 else message, _retry_after(response)
    )


def _grpc_refusal(error: grpc.aio.AioRpcError) -> Exception:
    code = error.code()
    details = error.details() or code.name
    if code == grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
        return Unreachable(f"no connection to the predictor: {details}")
    trailing = dict(error.trailing_metadata() or ())
    pushback_s = _seconds(str(trailing.get("grpc-retry-pushback-ms", "")), 0.001)
    after_s = pushback_s if pushback_s is not None else _seconds(str(trailing.get("retry-after", "")))
    number = int(code.value[0])
    message = details if code == grpc.StatusCode.INVALID_ARGUMENT else f"the predictor answered {code.name}: {details}"
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _Refused(error_of_credentials(401 if code == grpc.StatusCode.UNAUTHENTICATED else 403, message), None)
    retry = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return _Refused(error_of_grpc(number, message, after_s), after_s if retry else None)


def _v1_document(request: InferRequest) -> dict[str, Any]:
    """Write a tensor request as V1 rows: values where there is one input, objects of named values where there are more."""
    columns = {tensor.name: _v1_values(tensor) for tensor in request.inputs}
    if len(columns) == 1:
        return {"instances": next(iter(columns.values()))}
    rows = {len(values) for values in columns.values()}
    if len(rows) != 1:
        raise InvalidInput(
            "the inputs differ in rows, and the predictor speaks V1, which sends rows; use --predictor_protocol v2"
        )
    return {"instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _v1_values(tensor: Tensor) -> list[Any]:
    array = tensor.data
    if array.ndim == 0:
        array = array.reshape(1)
    if tensor.datatype != BYTES:
        if array.dtype.kind == "f" and np.isinf(array).any():  # null would be read as NaN
            raise InvalidInput(
                f"input {tensor.name!r} holds an infinity, which V1's JSON cannot carry to the predictor; use --predictor_protocol v2"
            )
        return array.tolist()
    text = np.empty(array.size, dtype=object)
    text[:] = [element.decode("utf-8", "replace") for element in array.reshape(-1).tolist()]
    return text.reshape(array.shape).tolist()


def _v1_response(document: Mapping[str, Any], request: InferRequest) -> InferResponse:
    """Read V1 predictions as tensors: objects of named values become one output each.

    Raises:
        UpstreamFailed: they are no tensors.
    """
    predictions = document.get("predictions")
    if not isinstance(predictions, list):
        raise UpstreamFailed("the predictor's V1 answer has no 'predictions'")
    if predictions and all(isinstance(row, dict) for row in predictions):
        columns = {name: [row.get(name) for row in predictions] for name in predictions[0]}
    else:
        columns = {"output-0": predictions}
    outputs = []
    for name, values in columns.items():
        try:
            array = np.array(values)
            if array.dtype == object and {type(value) for value in array.reshape(-1)} <= {float, int, type(None)}:
                array = array.astype(np.float64)  # null stands for NaN
        except ValueError as error:
            raise UpstreamFailed(f"the predictor's V1 predictions {name!r} are no tensor: {error}") from error
        if array.dtype.kind in "US":
            text = np.empty(array.size, dtype=object)
            text[:] = [str(element).encode() for element in array.reshape(-1).tolist()]
            array = text.reshape(array.shape)
        elif array.dtype.kind not in "biuf":
            raise UpstreamFailed(f"the predictor's V1 predictions {name!r} are no tensor of numbers or strings")
        outputs.append(Tensor.of(name, array))
    return InferResponse(request.model_name, outputs, "", request.id)
