"""The data plane: what a request means, whichever transport brought it.

Theory of operation. `submit` is the hot path: a transport calls it on the event loop's thread with a decoded request
and a callback. It makes no coroutine, task or future; the request is checked, queued (batcher.py), and predicted with
whatever else this turn of the loop brought. `done` is called on the same thread, later than `submit` returns and
once, with the response or with the error that the client reads; not at all after `Ticket.cancel`. `infer` is the same
for callers that await.

Readiness, for /v2/health/ready: at least one model answers (MLServer and KServe say "ready" with none, and a rollout
that loaded nothing was promoted), every model that was asked for at start does, and the server does not stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from .. import __version__
from ..errors import ConfigError, InvalidInput, ModelFailed, NotReady, NotSupported, SerinusError
from ..model import Call, RequestModel, V1Answer
from ..protocol import v1_codec
from ..protocol.json_codec import load_object, load_value
from ..protocol.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    ServerMetadata,
)
from ..settings import ModelSettings
from .batching.pending_request import DONE, Done, Form, StreamCall, Ticket, V1Call
from .registry import Registry
from .repository_access import RepositoryAccess
from .response_stream import Pipe
from .served import ServedModel
from .telemetry.metrics import Metrics

__all__ = ["EXTENSIONS", "Plane"]

_log = logging.getLogger("serinus.plane")

EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
    "schedule_policy",
    "parameters",
    "classification",
)
"""What the server metadata advertises, by Triton's names; each is served."""

_REPOSITORY: Final = frozenset({"model_repository", "model_repository(unload_dependents)"})
"""Left out where models are not loaded and unloaded by request: the extension is index, load and unload together
(extension_model_repository.md), and a client that reads its name may count on all three. The index is answered all the same."""

_JSON_TYPES: Final = frozenset({"application/json", "application/cloudevents+json", "application/ld+json"})
"""KServe's dataplane has the same three."""

_NO_FORM: Final = Form(None, (), Call())


class Plane:
    """All models of one process behind one door.

    Args:
        registry: the models.
        metrics: the registry's, unless given.
        extensions: what the server metadata advertises.
        ready_when_empty: ready with no model, for a server that is filled by load requests.
        limits: of V1 bodies, which the plane decodes.
        access: who may load and unload over a transport; whoever holds the plane itself may.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        metrics: Metrics | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        ready_when_empty: bool = False,
        limits: Limits = Limits(),  # noqa: B008 # frozen
        access: RepositoryAccess = RepositoryAccess(),  # noqa: B008 # frozen
    ) -> None:
        self.registry = registry
        self.metrics = metrics if metrics is not None else registry.metrics
        self.access = access
        """What a transport asks before it calls `load` or `unload`."""
        self._extensions = tuple(name for name in extensions if access.is_on or name not in _REPOSITORY)
        self._ready_when_empty = ready_when_empty
        self._limits = limits
        self._clock = registry.clock
        self._defaults: Mapping[str, ServedModel] = registry.defaults
        self._required: set[tuple[str, str]] = set()
        """Models asked for at start and not unloaded since."""
        self.on_load: Callable[[], None] = lambda: None
        """Called when a load request has brought a model, whose own routes may be new."""
        self.workers_statistics: Callable[[], Awaitable[Mapping[tuple[str, str], dict[str, Any]]]] | None = None
        """Gives the statistics of all workers by name and version, where there are several."""
        self._started = False
        self._stopping = False
        self._refusing = False

    # The hot path

    def submit(self, request: InferRequest, done: Done) -> Ticket:
        """Begin a request.

        Args:
            request: decoded; its `deadline` is `time.monotonic()`, and a `timeout` parameter (microseconds) shortens it.
            done: told the outcome, on this thread, after this call has returned.

        Returns:
            The ticket to cancel when the client goes away.
        """
        now = self._clock()
        served = self._defaults.get(request.model_name)
        try:
            if served is None or request.model_version:
                served = self._find(request.model_name, request.model_version)
            return served.submit(request, done, now)
        except SerinusError as error:
            return self._refuse(request, done, now, served, error)
        except Exception:  # noqa: BLE001 # the edge of a request
            _log.exception("a request could not be submitted")
            error = ModelFailed("the request could not be processed; the server's log has the details")
            return self._refuse(request, done, now, served, error)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; cancelling the task that awaits cancels the request.

        Raises:
            SerinusError: what the client reads.
        """
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

        def done(answer: InferResponse | SerinusError) -> None:
            if future.done():
                return
            if isinstance(answer, InferResponse):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        ticket = self.submit(request, done)
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def streams(self, name: str, version: str = "") -> RequestModel | None:
        """Give the model if it answers in streams; None also where there is no such model."""
        try:
            model = self.registry.served(name, version).model
        except SerinusError:
            return None
        return model if isinstance(model, RequestModel) and model.streams else None

    def is_decoupled(self, name: str, version: str = "") -> bool:
        """Whether each request on a stream has any number of responses; see `Model.decoupled`.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        return self.registry.served(name, version).model.decoupled

    def infer_stream(
        self, request: InferRequest, further: AsyncIterator[InferRequest] | None = None
    ) -> Pipe[InferResponse]:
        """Answer a request with the stream of its responses; a model that has no stream gives one.

        Args:
            request: what opens the stream.
            further: requests that follow it, for a model that takes whole streams.

        Returns:
            The responses; iterating raises the `SerinusError` that the client reads. Read to the end, or close it.
        """
        pipe: Pipe[InferResponse] = Pipe()
        if self.streams(request.model_name, request.model_version) is None:
            pipe.ticket = self.submit(request, pipe.only)
            return pipe
        served = self.registry.served(request.model_name, request.model_version)

        async def checked(requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferRequest]:
            async for one in requests:
                served.check(one)
                yield one

        call = StreamCall(request, checked(further) if further is not None else None, pipe, served.complete)
        pipe.ticket = self.submit(call, pipe.ended)
        return pipe

    # Health and metadata

    def live(self) -> bool:
        """The process answers."""
        return True

    def ready(self) -> bool:
        """New requests are welcome; see the module's theory of operation."""
        if self._stopping:
            return False
        if not self.registry.defaults:
            return self._ready_when_empty and self._started
        return all(self._answers(name, version) for name, version in self._required)

    def model_ready(self, name: str, version: str = "") -> bool:
        """This model answers requests now.

        Raises:
            NotFound: no such model or version.
        """
        served = self.registry.entry(name, version).served
        return served is not None and served.healthy and not self._stopping

    def server_metadata(self) -> ServerMetadata:
        """Describe the server."""
        return ServerMetadata("serinus", __version__, self._extensions)

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Describe a model.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded, so there is nothing to say of it.
        """
        model = self.registry.served(name, version).model
        details = dict(model.details)
        outputs = tuple(spec for spec in model.outputs if not spec.optional)
        if outputs and len(outputs) < len(model.outputs):
            # "outputs" are those of a request that names none (inference_rest.md, "Inference Request JSON Object").
            details["optional_outputs"] = [
                {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
                for spec in model.outputs
                if spec.optional
            ]
        return ModelMetadata(
            name,
            self.registry.versions(name),
            model.settings.platform or model.platform,
            tuple(model.inputs),
            outputs or tuple(model.outputs),
            details,
            model.signatures,
        )

    def batching(self, name: str, version: str = "") -> tuple[int, float]:
        """Say how a model is batched: most rows in one predict, 0 where each request is predicted alone; longest wait, s.

        Raises:
            NotFound: no such model or version.
            NotReady: it is not loaded.
        """
        served = self.registry.served(name, version)
        batch = served.model.settings.batch
        return (batch.max_batch_rows, batch.max_delay_s) if served.batchable else (0, 0.0)

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Give a `$model_stat` object (extension_statistics.md) for each version that matches; empty arguments match all.

        Raises:
            NotFound: no such model or version.
        """
        if name:
            self.registry.entry(name, version)
        return [
            self.metrics.statistics(known, one).describe()
            for known in ([name] if name else self.registry.names())
            for one in self.registry.known_versions(known)
            if not version or one == version
        ]

    async def statistics_of_all(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """As `statistics`, for all workers that share the ports together."""
        own = self.statistics(name, version)
        if self.workers_statistics is None:
            return own
        told = await self.workers_statistics()
        return [told.get((entry["name"], entry["version"]), entry) for entry in own]

    # The model repository

    async def load(self, name: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> None:
        """Load or reload a model; see `Registry.load`.

        Raises:
            InvalidInput: also where the model's settings or files are wrong: who asks for the load put them there.
        """
        try:
            await self.registry.load(name, parameters)
        except ConfigError as error:
            raise InvalidInput(f"model '{name}' cannot be loaded: {'; '.join(error.problems)}") from error
        self.on_load()
        # A version that has left the disk was unloaded: readiness no longer waits for it.
        self._required = {key for key in self._required if key[0] != name or not self.registry.is_unloaded(*key)}

    async def unload(self, name: str, parameters: Mapping[str, Any] = NO_PARAMETERS) -> None:
        """Unload a model; readiness no longer waits for it. See `Registry.unload`."""
        await self.registry.unload(name, parameters)
        self._required = {key for key in self._required if key[0] != name}

    def repository_index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """List name, version, state and reason of every model."""
        return self.registry.index(ready_only=ready_only)

    # V1

    async def predict_v1(
        self, name: str, body: bytes, *, version: str = "", headers: Mapping[str, str] = NO_PARAMETERS
    ) -> bytes | dict[str, Any] | V1Answer:
        """Answer a V1 `:predict` body: by the model where it speaks V1 itself, else as a V2 request.

        Returns:
            The body to answer with, or the object that it is made of.

        Raises:
            SerinusError: what the client reads.
        """
        model = self._find(name, version).model
        if isinstance(model, RequestModel):
            document = self._v1_document(model, body, headers)
            answer = await self._v1(name, version, headers, partial(model.predict_v1, document, headers))
            if answer is not None:
                return answer
        payload = v1_codec.decode(body, self._limits)
        request = v1_codec.to_request(
            payload, self.model_metadata(name, version), model_version=version, limits=self._limits
        )
        request.headers = headers
        return v1_codec.encode(await self.infer(request), payload)

    async def explain_v1(
        self, name: str, body: bytes, *, version: str = "", headers: Mapping[str, str] = NO_PARAMETERS
    ) -> dict[str, Any] | V1Answer:
        """Answer a V1 `:explain` body.

        Raises:
            NotSupported: the model explains nothing.
            SerinusError: what the client reads.
        """
        model = self._find(name, version).model
        if isinstance(model, RequestModel):
            document = self._v1_document(model, body, headers)
            answer = await self._v1(name, version, headers, partial(model.explain_v1, document, headers))
            if answer is not None:
                return answer
        raise NotSupported(f"model '{name}' does not explain its predictions")

    def extra_routes(self) -> list[Any]:
        """HTTP routes of the models' own."""
        return [route for served in self.registry.all_served() for route in served.model.extra_routes()]

    # Life

    async def start(self, models: Sequence[ModelSettings]) -> None:
        """Load models, all at a time; ready waits for them.

        Raises:
            SerinusError: the first that does not load; the others are loaded all the same.
        """
        self._required.update((settings.name, settings.version) for settings in models)
        by_name: dict[str, list[ModelSettings]] = {}
        for settings in models:
            by_name.setdefault(settings.name, []).append(settings)
        results = await asyncio.gather(
            *(self.registry.add(*versions) for versions in by_name.values()), return_exceptions=True
        )
        self._started = True
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def stop_ready(self) -> None:
        """Say "not ready" from now on, and answer on."""
        self._stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, and wait until those in flight are answered, or `timeout_s` is over."""
        self._stopping = True
        self._refusing = True
        self._defaults = {}
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.registry.drain(), timeout_s)

    async def close(self) -> None:
        """Unload every model; requests still in flight are answered NotReady."""
        self._stopping = True
        self._refusing = True
        self._defaults = {}
        await self.registry.close()

    def _answers(self, name: str, version: str) -> bool:
        try:
            served = self.registry.entry(name, version).served
        except SerinusError:
            return False
        return served is not None and served.healthy

    def _find(self, name: str, version: str) -> ServedModel:
        if self._refusing:
            raise NotReady("the server is stopping and takes no new requests; try another replica")
        return self.registry.served(name, version)

    def _refuse(
        self, request: InferRequest, done: Done, now: float, served: ServedModel | None, error: SerinusError
    ) -> Ticket:
        ticket = Ticket(request, done, now, None, None, _NO_FORM, (), 0, 0)
        if served is not None:
            served.statistics.failed(error, ticket, self._clock())
        asyncio.get_running_loop().call_soon(_tell, ticket, error)
        return ticket

    def _v1_document(self, model: RequestModel, body: bytes, headers: Mapping[str, str]) -> Any:
        """Parse a V1 body; as KServe does, give a model that can take it one that is no object, or neither is JSON nor claims to be."""
        try:
            load = load_value if model.takes_bytes else load_object
            return load(body, "the request body", self._limits)
        except InvalidInput:
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if not (model.takes_bytes and body and kind) or kind in _JSON_TYPES:
                raise
            return body

    async def _v1(
        self, name: str, version: str, headers: Mapping[str, str], call: Callable[[], Awaitable[Any]]
    ) -> dict[str, Any] | V1Answer | None:
        """Run a V1 call of a model in its queue, like any request: bounded, counted, cancelled with its client.

        An answer in pieces is there when its first piece may be read; the call goes on until the last one has been.
        """
        begun: asyncio.Future[V1Answer] = asyncio.get_running_loop().create_future()
        pipe: Pipe[bytes] = Pipe()

        async def run() -> Any:
            answer = await call()
            if isinstance(answer, V1Answer) and isinstance(answer.document, AsyncIterator):
                if not begun.done():
                    begun.set_result(replace(answer, document=pipe))
                await pipe.fill(answer.document)
            return answer

        def done(result: InferResponse | SerinusError) -> None:
            if begun.done():
                pipe.ended(result)
            elif isinstance(result, SerinusError):
                begun.set_exception(result)
            else:
                begun.set_result(result.parameters["v1"])

        pipe.ticket = ticket = self.submit(V1Call(name, (), version, headers=headers, call=run), done)
        try:
            return await begun
        except asyncio.CancelledError:
            ticket.cancel()
            raise


def _tell(ticket: Ticket, error: SerinusError) -> None:
    if ticket.state != DONE:
        ticket.state = DONE
        ticket.done(error)
