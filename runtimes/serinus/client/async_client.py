"""A client of any server of the Open Inference Protocol, for coroutines: REST and gRPC, NumPy in, NumPy out."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ..errors import ConfigError, SerinusError, TimedOut
from ..protocol.types import (
    NO_PARAMETERS,
    InferRequest,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    TensorSpec,
)
from ..settings import PredictorSettings
from .call_options import CallOptions
from .metadata_answers import model_document, model_message, model_question, server_document, server_message
from .predictor_client import PredictorClient
from .tensors import Answer, Frame, make_tensor, named_values, needs_spec
from .trust import Trust

__all__ = ["AsyncClient"]

_PROTOCOLS: Final = {"http": "v2", "https": "v2", "grpc": "grpc-v2", "grpcs": "grpc-v2"}
_BARE_IPV6: Final = re.compile(r"\w+://[^/@\[\]]*:[^/@\[\]]*:[^/@\[\]]*(/|$)")
"""More than one colon without brackets: which of them begins the port cannot be known (RFC 3986, 3.2.2)."""
_PROBE_S: Final = 5.0
"""Longest wait for one answer whether a server is ready: a connection may lead nowhere, and the next be answered."""
_POLL_S: Final = 0.1
"""Between two questions whether a server is ready."""
_WORDS_S: Final = 0.5
"""For the question why it was not, beyond the time that one waits for it."""


class AsyncClient:
    """Requests to one V2 server: ours, KServe's, MLServer, Triton or Seldon.

        async with AsyncClient("http://127.0.0.1:8080") as client:
            answer = await client.infer("fraud", {"x": np.zeros((1, 30), np.float32)})
            answer["probability"]

    Connections are pooled, and belong to the event loop that asks: one at a time; the next (`asyncio.run` once more) opens its own.
    A request is sent again only where the server cannot have begun on it: no connection was made, or it said so itself (429 or 503 with
    Retry-After; RESOURCE_EXHAUSTED or UNAVAILABLE with a push-back), and only within its deadline.

    Args:
        url: `http://host:port`, `https://`, `grpc://` or `grpcs://`; without a scheme http.
        host: `Host`, or gRPC's `:authority`, where a gateway chooses the service by it: `fraud.default.example.com`.
        headers: sent with every request.
        token: sent as `Authorization: Bearer`.
        timeout_s: for a whole call, its retries included, where the call names no other.
        retries: at most so many.
        binary: tensors travel raw over REST (Triton's binary extension); False: as JSON, for servers that know no other.
        authorities: certificates of the authorities to trust, PEM; None: the environment's (`REQUESTS_CA_BUNDLE` and kin) or the system's.
        certificate: of the client, PEM, for servers that ask for one.
        key: its private key; None: it is in the certificate's file.

    Raises:
        ConfigError: the URL is none, or a file cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        host: str = "",
        headers: Mapping[str, str] = NO_PARAMETERS,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        binary: bool = True,
        authorities: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        scheme, address = _target(url)
        if timeout_s <= 0:
            raise ConfigError(f"timeout_s {timeout_s}: expected seconds above 0")
        if retries < 0:
            raise ConfigError(f"retries {retries}: expected 0 or more")
        always = {name.lower(): value for name, value in headers.items()}
        if token is not None:
            always["authorization"] = f"Bearer {token}"
        for name, value in always.items():
            if "\r" in value or "\n" in value:
                raise ConfigError(f"header {name!r}: its value holds a line break, which no header can")
        self._client = PredictorClient(
            PredictorSettings(
                host=address,
                protocol=_PROTOCOLS[scheme],  # type: ignore[arg-type] # both are among its words
                use_ssl=scheme in ("https", "grpcs"),
                timeout_s=timeout_s,
                retries=retries,
            ),
            CallOptions(
                peer="the server",
                host_field=host,
                headers=always,
                trust=Trust(authorities=_path(authorities), certificate=_path(certificate), key=_path(key)),
                for_itself=True,
                binary=binary,
            ),
        )
        self._over_grpc = scheme.startswith("grpc")
        self._specs: dict[tuple[str, str], dict[str, TensorSpec]] = {}

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any] | Frame,
        *,
        version: str = "",
        outputs: Sequence[str | RequestedOutput] | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        headers: Mapping[str, str] = NO_PARAMETERS,
    ) -> Answer:
        """Send arrays, get arrays.

        Args:
            model: its name.
            inputs: by name, or a DataFrame of one column an input. An array travels with its own datatype (strings and objects are
                BYTES); numbers, text and lists become what the model's metadata says, which is asked for once; a `serinus.Tensor` says its
                datatype itself (BF16).
            version: of the model; empty: the server chooses.
            outputs: wanted ones; None: all.
            parameters: of the request.
            request_id: echoed by the server.
            priority: 1 is the highest, 0 the model's default (schedule policy extension).
            timeout_s: for this call; None: the client's. The server is told, and need not work for nobody.
            headers: of this request, such as `x-request-id` or `traceparent`.

        Raises:
            InvalidInput: no tensor can be made of an input, or the server refused the request.
            NotFound: the server has no such model or version.
            Overloaded, NotReady: it takes no request at present; `retry_after_s` says when it may.
            TimedOut: the time passed.
            UpstreamFailed: it could not be reached, or did not answer as a V2 server does.
            SerinusError: any other refusal; `http_status` says which.
        """
        until = (
            time.monotonic() + self._client.settings.timeout_s if timeout_s is None else time.monotonic() + timeout_s
        )
        specs: Mapping[str, TensorSpec] = {}
        given = named_values(inputs)
        if any(needs_spec(values) for values in given.values()):
            specs = await self._specs_of(model, version, until)
        if priority:
            parameters = {**parameters, "priority": priority}
        wanted = None
        if outputs is not None:
            wanted = [RequestedOutput(output) if isinstance(output, str) else output for output in outputs]
        request = InferRequest(
            model,
            [make_tensor(name, values, specs.get(name)) for name, values in given.items()],
            version,
            request_id,
            parameters,
            wanted,
            {name.lower(): value for name, value in headers.items()},
            until,
        )
        return Answer(await self._client.infer(request))

    async def is_live(self) -> bool:
        """Whether the server answers that it lives."""
        return await self._client.server_live()

    async def is_ready(self) -> bool:
        """Whether the server is ready for requests."""
        return await self._client.server_ready()

    async def is_model_ready(self, model: str) -> bool:
        """Whether a model is ready for requests."""
        return await self._client.model_ready(model)

    async def wait_until_ready(self, model: str | None = None, *, timeout_s: float = 60.0) -> None:
        """Wait until the server, or one of its models, is ready.

        Raises:
            TimedOut: it is not by `timeout_s`; with the server's own words where it has any within half a second more, as of a name
                that it does not know.
        """
        until = time.monotonic() + timeout_s
        while not await self._answers_ready(model, min(_PROBE_S, timeout_s, until - time.monotonic())):
            if time.monotonic() + _POLL_S > until:
                server = f"the server {self._client.settings.host}"
                what = server if model is None else f"model {model!r} of {server}"
                why = await self._words_of(model, min(_WORDS_S, timeout_s))
                raise TimedOut(f"{what} is not ready after {timeout_s:g} s{why}")
            await asyncio.sleep(_POLL_S)

    async def server_metadata(self) -> ServerMetadata:
        """What the server says of itself.

        Raises:
            SerinusError: as `infer`.
        """
        until = self._client.until(None)
        if self._over_grpc:
            return server_message(await self._client.grpc("ServerMetadata", b"", until=until))
        return server_document(await self._get("/v2", until), self._client.options.peer)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """What a model says of itself: inputs, outputs, versions, platform, properties.

        Raises:
            SerinusError: as `infer`.
        """
        return await self._metadata(model, version, self._client.until(None))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def __aenter__(self) -> AsyncClient:  # noqa: PYI034 # typing.Self comes with Python 3.11
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answers_ready(self, model: str | None, timeout_s: float) -> bool:
        if model is None:
            return await self._client.server_ready(timeout_s)
        return await self._client.model_ready(model, timeout_s)

    async def _words_of(self, model: str | None, timeout_s: float) -> str:
        """Why the server, or the model, does not serve, as the server says it; empty: it says nothing."""
        if model is None:
            return ""
        try:
            await self._metadata(model, "", self._client.until(time.monotonic() + timeout_s))
        except TimedOut:
            return ""
        except SerinusError as error:
            return f": {error}"
        return ""

    async def _specs_of(self, model: str, version: str, until: float) -> Mapping[str, TensorSpec]:
        specs = self._specs.get((model, version))
        if specs is None:
            metadata = await self._metadata(model, version, until)
            specs = self._specs[model, version] = {spec.name: spec for spec in metadata.inputs}
        return specs

    async def _metadata(self, model: str, version: str, until: float) -> ModelMetadata:
        if self._over_grpc:
            return model_message(await self._client.grpc("ModelMetadata", model_question(model, version), until=until))
        path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        return model_document(await self._get(path, until), self._client.options.peer)

    async def _get(self, path: str, until: float) -> bytes:
        return (await self._client.rest("GET", path, self._client.options.headers, until=until)).body


def _target(url: str) -> tuple[str, str]:
    """Split a URL into scheme and `host[:port]`.

    Raises:
        ConfigError: it is not of that form.
    """
    url_with_scheme = url if "://" in url else f"http://{url}"
    if _BARE_IPV6.match(url_with_scheme):
        raise ConfigError(f"url {url!r}: an IPv6 address goes in brackets, as in http://[::1]:8080")
    try:
        parts = urlsplit(url_with_scheme)
        _ = parts.port  # read for its refusal
    except ValueError as error:
        raise ConfigError(
            f"url {url!r}: {error}; expected host and port as in http://127.0.0.1:8080 or http://[::1]:8080"
        ) from error
    if (
        parts.scheme not in _PROTOCOLS
        or not parts.netloc
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise ConfigError(
            f"url {url!r}: expected http://, https://, grpc:// or grpcs://, host and port, and no path: http://127.0.0.1:8080"
        )
    if "@" in parts.netloc:
        raise ConfigError("a url with a user's name and password: give headers or a token instead")
    return parts.scheme, parts.netloc


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
