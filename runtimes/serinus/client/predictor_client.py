"""The way from a transformer to its predictor: V2 over REST or gRPC, and V1, with KServe's `--predictor_*` settings.

What KServe's own client leaves out and this one has: the request's deadline goes along (`timeout`, or gRPC's own), trace and
request-id headers go along, channels belong to their target (KServe's factory keeps one gRPC channel per process and sends every
model's requests to the first predictor it ever saw), and a request is never sent twice unless the predictor cannot have begun
on the first: no connection was made, or it said itself that it had not (429 or 503 with Retry-After; RESOURCE_EXHAUSTED or UNAVAILABLE
with `grpc-retry-pushback-ms`, or `retry-after` as our own servers send it).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from ..errors import ConfigError, InvalidInput, NotFound, SerinusError, UpstreamFailed
from ..protocol import proto_codec
from ..protocol.rest_codec import RestCodec
from ..protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits
from ..settings import PredictorSettings
from ..tracing.hops import Hop
from ..tracing.tracer import current_tracer
from .call_options import CallOptions
from .http_client import HttpClient, HttpResponse, Unreachable
from .predictor_errors import Refused, error_of_credentials, error_of_status, retry_seconds
from .v1_rows import v1_document, v1_response

if TYPE_CHECKING:
    from .grpc_calls import GrpcCalls

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

_DIGITS: Final = 18
"""Of a length in a header: what has more is beyond 64 bits."""
_LIMITS: Final = Limits(body_bytes=1 << 31, tensor_bytes=1 << 34)
"""The predictor is ours: its answers are bounded by what gRPC can carry."""
_METADATA: Final = re.compile(r"[ -~]*")
"""What gRPC's metadata can carry (gRPC over HTTP/2, "ASCII-Value"); HTTP allows more, which is left behind."""
_MODEL_IN_PATH: Final = re.compile(r"(/models/)[^/:]+")
_SERVICE: Final = "inference.GRPCInferenceService"
_PAUSE_S: Final = 0.1
"""Before the first retry; KServe's first back-off. It doubles up to 1 s, as there."""

_PROBE_S: Final = 5.0
"""Longest wait for the answer whether something lives or is ready."""


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
    """Requests to one predictor. Make it anywhere; its connections belong to the event loop that uses it: one at a time.

    A loop that no longer runs (`asyncio.run` twice) leaves it to the next, which opens connections of its own.

    Args:
        settings: host, protocol, TLS, time-out, retries.
        options: where the caller is no transformer.

    Raises:
        ConfigError: no host, or one that cannot be.
    """

    def __init__(self, settings: PredictorSettings, options: CallOptions = CallOptions()) -> None:  # noqa: B008 # frozen
        if not settings.host:
            raise ConfigError("a predictor needs --predictor_host")
        self.settings = settings
        self.options = options
        self._host, self._port = split_host(settings.host, settings.use_ssl)
        self._scheme = "https" if settings.use_ssl else "http"
        self._codec = RestCodec(_LIMITS)
        self._http: HttpClient | None = None
        self._grpc_calls: GrpcCalls | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask the predictor; over REST the answer has the headers of the predictor's.

        Args:
            request: its deadline, if any, bounds the call beside `timeout_s`; of its headers the `FORWARDED_HEADERS` go along.

        Raises:
            SerinusError: InvalidInput and the like where the predictor blames the request, UpstreamFailed, TimedOut, Overloaded or
                NotReady where it could not answer.
        """
        protocol = self.settings.protocol
        until = self.until(request.deadline)
        if protocol == "grpc-v2":
            return await self._infer_grpc(request, until)
        if protocol == "v2":
            return await self._infer_rest(request, until)
        back: dict[str, str] = {}
        document = await self.predict_v1(
            request.model_name, v1_document(request), request.headers, deadline=request.deadline, response_headers=back
        )
        answer = v1_response(document, request)
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
        fields = {"content-type": "application/json", **self._headers(headers)}
        name = quote(model_name, safe="")
        path = f"/v2/models/{name}/infer" if self.settings.protocol == "v2" else f"/v1/models/{name}:{verb}"
        response = await self.rest("POST", path, fields, [body], len(body), until=self.until(deadline))
        if response_headers is not None:
            response_headers.update(response.headers)
        try:
            document = orjson.loads(response.body)
        except orjson.JSONDecodeError as error:
            raise UpstreamFailed(f"{self.options.peer}'s answer is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise UpstreamFailed(f"{self.options.peer}'s answer is no JSON object")
        return document

    async def server_ready(self, timeout_s: float | None = None) -> bool:
        """Whether the predictor's server is ready; V1 has no readiness, so there it is liveness, as in KServe.

        Args:
            timeout_s: no answer by then is no; None: that of a probe.
        """
        if self.settings.protocol == "grpc-v2":
            return await self._calls().is_ready(self._metadata({}), self._probe_s(timeout_s))
        return await self._rest_ready("/v2/health/ready" if self.settings.protocol == "v2" else "/", timeout_s)

    async def server_live(self) -> bool:
        """Whether the predictor's server answers that it lives."""
        if self.settings.protocol == "grpc-v2":
            return await self._calls().is_live(self._metadata({}), self._probe_s())
        return await self._rest_ready("/v2/health/live" if self.settings.protocol == "v2" else "/")

    async def model_ready(self, model_name: str, timeout_s: float | None = None) -> bool:
        """Whether the predictor has this model ready; `timeout_s` as in `server_ready`."""
        if self.settings.protocol == "grpc-v2":
            return await self._calls().is_model_ready(model_name, self._metadata({}), self._probe_s(timeout_s))
        name = quote(model_name, safe="")
        return await self._rest_ready(
            f"/v2/models/{name}/ready" if self.settings.protocol == "v2" else f"/v1/models/{name}", timeout_s
        )

    async def close(self) -> None:
        """Close connections and channel; those of another loop are left to it."""
        if self._loop is not asyncio.get_running_loop():
            self._leave()
            return
        if self._http is not None:
            self._http.close()
        if self._grpc_calls is not None:
            await self._grpc_calls.close()

    def until(self, deadline: float | None) -> float:
        """When a call that begins now ends: at its deadline, or after `timeout_s`, whichever is sooner; `time.monotonic()`."""
        limit = time.monotonic() + self.settings.timeout_s
        return limit if deadline is None or deadline > limit else deadline

    def _come_to_this_loop(self) -> None:
        """Give up the connections of an earlier loop.

        Raises:
            RuntimeError: it still runs: connections cannot be shared.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError(
                "this client is in use on another event loop that still runs; make one for each loop, or use serinus.client.Client, "
                "which threads share"
            )
        self._leave()
        self._loop = loop

    def _leave(self) -> None:
        http, before = self._http, self._loop
        self._http = self._grpc_calls = self._loop = None  # a channel closes itself when it is let go
        if http is None or before is None:
            return
        if before.is_closed():
            http.leave()
        else:
            before.call_soon_threadsafe(http.close)  # it may run in another thread, or again

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Those that go along, and those of every call."""
        along = dict(headers) if self.options.for_itself else forwarded(headers)
        return {**self.options.headers, **along}

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
            binary=self.options.binary,
        )
        body = self._codec.encode_request(sent, binary=self.options.binary)
        fields = {"content-type": body.content_type, **self._headers(request.headers)}
        if body.json_length is not None:
            fields["inference-header-content-length"] = str(body.json_length)
        name = quote(request.model_name, safe="")
        version = f"/versions/{quote(request.model_version, safe='')}" if request.model_version else ""
        path = f"/v2/models/{name}{version}/infer"
        response = await self.rest("POST", path, fields, body.chunks, body.length, until=until)
        length = response.headers.get("inference-header-content-length")
        answer = self._codec.decode_response(
            response.body, int(length) if length and length.isdigit() and len(length) <= _DIGITS else None
        )
        answer.headers = response.headers
        return answer

    async def rest(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str],
        chunks: Sequence[Any] = (),
        length: int = 0,
        *,
        until: float,
    ) -> HttpResponse:
        """Send an HTTP request, again where it is safe to, and give its answer of 2xx.

        Args:
            method: `GET` or `POST`.
            path: escaped.
            fields: header fields, without those of every call unless they are among them.
            chunks: the body.
            length: its bytes.
            until: `time.monotonic()` at which nobody waits any more.

        Raises:
            SerinusError: as `infer`.
        """
        client = self._http_client()
        tracer = current_tracer()

        async def send() -> HttpResponse:
            if tracer is None:
                return await client.request(method, path, fields, chunks, length, timeout_s=until - time.monotonic())
            template = _MODEL_IN_PATH.sub(r"\1{model}", path)
            place = {
                "server.address": self._host,
                "server.port": self._port,
                "url.full": f"{self._scheme}://{self.settings.host}{path}",
            }
            hop = Hop(tracer, f"{method} {template}", fields, place)
            try:
                response = await client.request(
                    method, path, hop.headers(fields), chunks, length, timeout_s=until - time.monotonic()
                )
            except BaseException as error:
                hop.end_without_answer(error)
                raise
            hop.end_http(method, response.status, template)
            return response

        async def attempt() -> HttpResponse:
            response = await send()
            if 200 <= response.status < 300:
                return response
            raise Refused(_status_error(response, self.options), _retry_after(response))

        return await self._with_retries(attempt, until)

    def _http_client(self) -> HttpClient:
        self._come_to_this_loop()
        if self._http is None:
            tls = self.options.trust.tls_context() if self.settings.use_ssl else None
            self._http = HttpClient(
                self._host, self._port, tls, peer=self.options.peer, host_field=self.options.host_field
            )
        return self._http

    def _probe_s(self, timeout_s: float | None = None) -> float:
        return min(_PROBE_S, self.settings.timeout_s) if timeout_s is None else timeout_s

    async def _rest_ready(self, path: str, timeout_s: float | None = None) -> bool:
        try:
            response = await self._http_client().request(
                "GET", path, self._headers({}), timeout_s=self._probe_s(timeout_s)
            )
        except SerinusError:
            return False
        return response.status == 200

    # gRPC

    async def _infer_grpc(self, request: InferRequest, until: float) -> InferResponse:
        message = proto_codec.encode_request(request)
        answer = await self.grpc("ModelInfer", message, request.headers, until=until)
        return proto_codec.decode_response(answer, limits=_LIMITS)

    async def grpc(
        self, method: str, message: bytes, headers: Mapping[str, str] = NO_PARAMETERS, *, until: float
    ) -> bytes:
        """Call a method of the inference service, again where it is safe to.

        Args:
            method: `ModelInfer`, `ModelMetadata`, ...
            message: serialized.
            headers: of the request at hand.
            until: `time.monotonic()` at which nobody waits any more.

        Returns:
            The serialized answer.

        Raises:
            SerinusError: as `infer`.
        """
        metadata = self._metadata(headers)
        calls = self._calls()
        tracer = current_tracer()

        async def attempt() -> bytes:
            if tracer is None:
                return await calls.call(method, message, metadata, until - time.monotonic())
            path = f"{_SERVICE}/{method}"
            hop = Hop(tracer, path, headers, {"server.address": self._host, "server.port": self._port})
            traced = tuple(hop.headers(dict(metadata)).items())
            try:
                answer = await calls.call(method, message, traced, until - time.monotonic())
            except Refused as refused:
                hop.end_rpc(path, refused.grpc_code)
                raise
            except BaseException as error:
                hop.end_without_answer(error)
                raise
            hop.end_rpc(path, 0)
            return answer

        return await self._with_retries(attempt, until)

    def _calls(self) -> GrpcCalls:
        self._come_to_this_loop()
        if self._grpc_calls is None:
            from .grpc_calls import GrpcCalls

            self._grpc_calls = GrpcCalls(self._host, self._port, self.settings.use_ssl, self.options)
        return self._grpc_calls

    def _metadata(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(item for item in self._headers(headers).items() if _METADATA.fullmatch(item[1]))

    async def _with_retries(self, attempt: Callable[[], Any], until: float) -> Any:
        """Try once, and again only where the predictor cannot have begun, `retries` times and within the deadline."""
        pause_s = _PAUSE_S
        for left in range(self.settings.retries, -1, -1):
            try:
                return await attempt()
            except Unreachable as error:
                wait_s, problem = pause_s, error
            except Refused as refused:
                if refused.retry_after_s is None:
                    raise refused.error from refused.__cause__
                wait_s, problem = max(pause_s, refused.retry_after_s), refused.error
            if not left or time.monotonic() + wait_s >= until:
                raise problem
            await asyncio.sleep(wait_s)
            pause_s = min(1.0, pause_s * 2)
        raise AssertionError("unreachable: the last attempt raises")


def _retry_after(response: HttpResponse) -> float | None:
    if response.status not in (429, 503):
        return None
    return retry_seconds(response.headers.get("retry-after", ""))


def _status_error(response: HttpResponse, options: CallOptions) -> SerinusError:
    text = ""
    try:
        document = orjson.loads(response.body)
        if isinstance(document, dict):
            text = str(document.get("error") or document.get("detail") or "")
    except orjson.JSONDecodeError:
        text = response.body[:200].decode("utf-8", "replace").strip()
    message = f"{options.peer} answered {response.status}" + (f": {text}" if text else "")
    if response.status in (401, 403):
        return error_of_credentials(response.status, message)
    if response.status == 404 and options.for_itself:
        return NotFound(text or message)
    return error_of_status(
        response.status, text if text and response.status == 400 else message, _retry_after(response)
    )
