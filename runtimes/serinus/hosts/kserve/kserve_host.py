"""`KServeHost`: any `kserve.Model` subclass, unchanged, as a model of this library.

Theory of operation. For each request the host does what `kserve.Model.__call__` does: `preprocess`, `validate`,
`predict` (or `explain`), `postprocess`, with the request's headers, and with a dict for response headers where the
class asked for one (`return_response_headers`). What a class did not override is not called. Each synchronous method
runs where its `MethodExecutor` says.

A class that does not override `predict`, or calls `super().predict()`, is a transformer: KServe's own `Model.predict` then calls
`_http_predict` or `_grpc_predict`. The host puts its own client in the place of these two on the instance, so both ways reach the
predictor over one pooled client, or, in the fused form, the model in the same process (`pipeline.Pipeline`). A class that
uses KServe's clients itself finds its `predictor_config` as under KServe.

`__call__` itself is only called where a class overrides it.

A class whose synchronous methods ask for the running event loop, or one that has an engine (`start_engine`), is given a loop of its
own, see `loop_thread`; what it asks of a predictor in this process goes back to the server's.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

try:
    import kserve
except ImportError as error:
    raise ImportError("hosting a kserve.Model needs kserve: pip install 'serinus[kserve]'") from error

import kserve.context as kserve_context
from kserve import InferRequest as KServeRequest
from kserve import InferResponse as KServeResponse
from kserve.model import BaseKServeModel, InferenceVerb
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from kserve.utils.utils import is_structured_cloudevent
from prometheus_client import REGISTRY

from ...client.predictor_client import PredictorClient
from ...dataplane.response_stream import closing
from ...errors import InvalidInput, ModelFailed, NotReady, NotSupported
from ...model import Family, RequestModel, V1Answer
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits, TensorSpec
from ...settings import ModelSettings, PredictorSettings
from ..earlier_kserve import own_predictor
from ..error_translation import ErrorTranslation
from ..implementations import Implementation
from ..loop_thread import LoopThread, asks_for_loop
from ..method_executor import MethodExecutor
from ..prometheus_families import read_families
from ..transport import is_grpc
from .kserve_arrays import KServeArrays
from .kserve_errors import translate
from .kserve_instances import awaited, config_of, is_of_a_class, load_kserve, make_kserve, specs_of
from .kserve_types import (
    from_kserve_request,
    from_kserve_response,
    response_from_dict,
    response_to_dict,
    to_kserve_request,
    to_kserve_response,
)
from .loose_requests import loose_request

__all__ = ["KServeHost", "build_kserve"]

_log = logging.getLogger("serinus.hosts")
_T = TypeVar("_T")
_translated = ErrorTranslation(translate)

_FRAMING = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "date", "inference-header-content-length"}
    | {"keep-alive", "server", "trailer", "transfer-encoding", "upgrade"}
)
"""Response headers of a predictor that describe its own message and must not describe ours."""

_in_flight: contextvars.ContextVar[tuple[Mapping[str, str], float | None] | None] = contextvars.ContextVar(
    "serinus_in_flight", default=None
)
"""Headers and deadline of the request at hand, for the calls to a predictor that it leads to."""

_ENGINE_LOOK_S, _ENGINE_LOOKS = 0.05, 100
"""How often, and how many times, a load looks whether the engine is ready: KServe does not wait for it at all."""

_STOP_S = 5.0
"""Longest that an unload waits for a loop that a class blocks; the process can end without it."""

_NO_FLIGHT: tuple[Mapping[str, str], float | None] = (NO_PARAMETERS, None)


def _own(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Leave out what a predictor's response headers say of its own message."""
    return {name: value for name, value in headers.items() if name.lower() not in _FRAMING}


async def _pieces(result: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Read what a class streams, as bytes; its errors become those that a client reads."""
    with _translated:
        async with closing(result):
            async for piece in result:
                yield piece if isinstance(piece, bytes) else str(piece).encode()


class KServeHost(RequestModel):
    """A `kserve.Model` that answers whole requests.

    Args:
        settings: name, directory, execution (`thread` or `inline` fix where synchronous methods run).
        model: the instance.
        predictor: how to reach the predictor; None: there is none, or it is in this process.
    """

    platform = "kserve_model"
    forwards_classification = True
    takes_bytes = True
    checks_requests = False
    """KServe never checks requests against `get_input_types`, so a class may say little or nothing there."""

    def __init__(self, settings: ModelSettings, model: Any, predictor: PredictorSettings | None = None) -> None:
        super().__init__(settings)
        self.hosted = model
        predictor = own_predictor(model, predictor)
        self.predictor = predictor if predictor is not None and predictor.host else None
        self.client = PredictorClient(self.predictor) if self.predictor is not None else None
        self._config = config_of(predictor)
        self._loop_thread: LoopThread | None = None
        self._engine: asyncio.Task[Any] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"kserve-{settings.name}")
        base = kserve.Model
        kind = type(model)
        self._calls_model = not isinstance(model, base) or kind.__call__ is not base.__call__
        self._validates = isinstance(model, base) and kind.validate is not base.validate
        self._health = model.healthy if kind.healthy is not BaseKServeModel.healthy else None
        """What KServe's server asks before each request, where the class says more than `ready`."""
        self._headers_back = bool(getattr(model, "required_response_headers", False))
        self._preprocess = self._predict = self._postprocess = self._explain = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Where KServe's Model.predict goes next.
        asks = ("_http_predict", "_grpc_predict") if isinstance(model, base) else ()
        for name in asks:
            if getattr(kind, name) is getattr(base, name):
                setattr(model, name, self._predict_remotely)
        self._asks_itself = any(getattr(kind, name) is not getattr(base, name) for name in asks)
        self.details["host"] = "kserve"

    def _executor_of(self, name: str) -> MethodExecutor | None:
        """Wrap one method; None where the class leaves KServe's own."""
        own = getattr(type(self.hosted), name, None)
        if own is None or (own is getattr(kserve.Model, name) and name not in vars(self.hosted)):
            return None
        execution = self.settings.execution if self._loop_thread is None else "inline"
        return MethodExecutor(getattr(self.hosted, name), self._threads, execution=execution)

    async def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await a coroutine of the class's on the loop that it lives on."""
        return await (work if self._loop_thread is None else self._loop_thread.call(work))

    def load(self) -> None:
        """Load the model, unless its constructor did; then read what it says of its tensors."""
        if asks_for_loop(type(self.hosted)):
            self._loop_thread = LoopThread(f"kserve-{self.name}")
        try:
            load_kserve(
                self.hosted, self.settings.name, asyncio.run if self._loop_thread is None else self._loop_thread.run
            )
            if getattr(self.hosted, "engine", False):
                self._loop_thread = self._loop_thread or LoopThread(f"kserve-{self.name}")
                self._loop_thread.run(self._start_engine())
        except BaseException:
            self._close()
            raise
        self._preprocess = self._executor_of("preprocess")
        self._predict = self._executor_of("predict")
        self._postprocess = self._executor_of("postprocess")
        self._explain = self._executor_of("explain")
        self.inputs = self.settings.inputs or self._listed(self.hosted.get_input_types)
        self.outputs = self.settings.outputs or self._listed(self.hosted.get_output_types)

    async def _start_engine(self) -> None:
        """Start the engine, which may never return, and wait until it has, or until the class calls itself ready again."""
        self.hosted.ready = False
        self._engine = asyncio.create_task(self.hosted.start_engine())
        for _ in range(_ENGINE_LOOKS):
            done, _ = await asyncio.wait({self._engine}, timeout=_ENGINE_LOOK_S)
            if done:
                self._engine.result()
            if done or self.hosted.ready:
                break
        self.hosted.ready = True
        self._engine.add_done_callback(self._engine_ended)

    def _engine_ended(self, engine: asyncio.Task[Any]) -> None:
        if not engine.cancelled() and engine.exception() is not None:
            self.hosted.ready = False
            _log.error("the engine of model '%s' failed", self.name, exc_info=engine.exception())

    @staticmethod
    def _listed(method: Any) -> tuple[TensorSpec, ...]:
        listed = method()
        return specs_of(asyncio.run(awaited(listed)) if inspect.isawaitable(listed) else listed)

    def unload(self) -> None:
        """Stop the model, as KServe's server does at its end."""
        self.hosted.stop()
        if self._loop_thread is not None:
            if not self._loop_thread.run_within(_STOP_S, self._stop_on_loop_thread):
                _log.warning("model '%s' still works at something after %.0f s, and is left at it", self.name, _STOP_S)
        elif self.client is not None and self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.client.close(), self._loop)
        self._close()

    async def _stop_on_loop_thread(self) -> None:
        if self.client is not None:
            await self.client.close()
        if getattr(self.hosted, "engine", False):
            self.hosted.stop_engine()
        if self._engine is not None:
            self._engine.cancel()
            await asyncio.wait({self._engine})

    def _close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._loop_thread is not None:
            self._loop_thread.close()

    def metrics(self) -> Sequence[Family]:
        """Tell what the class counts with `prometheus_client`, which KServe's server shows beside its own."""
        return read_families(REGISTRY.collect(), is_of_a_class)

    async def start(self) -> None:
        """Remember the loop, on which the connections to the predictor will have to be closed."""
        self._loop = asyncio.get_running_loop()

    async def is_ready(self) -> bool:
        """Whether the model says that it is healthy, and with `--enable_predictor_health_check` its predictor too."""
        return await self._run(self._is_ready())

    async def _is_ready(self) -> bool:
        if not await self.hosted.healthy():
            return False
        if self.client is not None and self.predictor is not None and self.predictor.health_check:
            return await self.client.model_ready(self.hosted.name)
        return True

    def loose_request(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
        """Take BYTES that are no strings, as KServe does."""
        limits = Limits(tensor_bytes=self.bounds.tensor_bytes, rank=self.bounds.rank)
        return loose_request(body, self.name, version, headers, limits)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one V2 request."""
        headers = dict(request.headers)
        back: dict[str, str] = {}
        result = await self._run(self._answer(to_kserve_request(request, headers), headers, back, request.deadline))
        if isinstance(result, ModelInferResponse):
            result = KServeResponse.from_grpc(result)
        if isinstance(result, KServeResponse):
            response = from_kserve_response(result, request, self.settings.version)
        elif isinstance(result, dict):
            response = response_from_dict(result, request, self.settings.version)
        elif inspect.isasyncgen(result) or hasattr(result, "__aiter__"):
            raise NotSupported(f"model {self.name!r} answers in a stream, which an inference request cannot carry")
        else:
            raise ModelFailed(f"model {self.name!r} answered a {type(result).__name__}; an InferResponse was expected")
        if back:
            response.headers = _own(back)
        return response

    async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any] | V1Answer:
        """Answer a V1 `:predict` body with whatever the class makes of it."""
        return await self._v1(payload, headers)

    async def explain_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any] | V1Answer | None:
        """Answer a V1 `:explain` body; None where the class explains nothing."""
        return await self._v1(payload, headers, explain=True) if self._explain is not None else None

    async def _v1(self, payload: Any, headers: Mapping[str, str], explain: bool = False) -> dict[str, Any] | V1Answer:
        """Answer as KServe's `V1Endpoints` does: text and bytes as they are, a stream piece by piece, all else as JSON."""
        back: dict[str, str] = {}
        if isinstance(payload, dict) and is_structured_cloudevent(payload):
            payload = payload["data"]  # KServe knows an event by its attributes, whatever the content type says
        result = await self._run(self._answer(payload, dict(headers), back, None, explain=explain))
        if isinstance(result, ModelInferResponse):
            result = KServeResponse.from_grpc(result)
        if isinstance(result, KServeResponse):
            result = response_to_dict(result)
        if isinstance(result, dict) and not back:
            return result
        kind = "application/json"
        if isinstance(result, (str, bytes, AsyncIterator)):
            default = "text/plain; charset=utf-8" if isinstance(result, str) else "application/octet-stream"
            kind = next((value for name, value in back.items() if name.lower() == "content-type"), default)
        if isinstance(result, AsyncIterator):
            pieces = _pieces(result)
            return V1Answer(pieces if self._loop_thread is None else self._loop_thread.each(pieces), _own(back), kind)
        return V1Answer(result.encode() if isinstance(result, str) else result, _own(back), kind)

    async def _answer(
        self, payload: Any, headers: dict[str, str], back: dict[str, str], deadline: float | None, explain: bool = False
    ) -> Any:
        """Do as `kserve.Model.__call__` does."""
        model = self.hosted
        if not (model.ready and (self._health is None or await self._health())):
            raise NotReady(f"model {self.name!r} says that it is not ready")
        _in_flight.set((headers, deadline))
        kserve_context.set_predictor_config(self._config)
        with _translated:
            if self._calls_model:
                verb = InferenceVerb.EXPLAIN if explain else InferenceVerb.PREDICT
                result = await model(payload, headers=headers, verb=verb)
                if isinstance(result, tuple):
                    result, more = result
                    back.update(more)
                return result
            started = time.perf_counter()
            if self._preprocess is not None:
                payload = await self._preprocess(payload, headers)
                started = self._stage("preprocess", started)
            if self._validates or isinstance(payload, dict):
                payload = self._validated(payload)
            arguments = (payload, headers, back) if self._headers_back and not explain else (payload, headers)
            if explain and self._explain is not None:
                result = await self._explain(*arguments)
                started = self._stage("explain", started)
            elif self._predict is not None:
                result = await self._predict(*arguments)
            elif self._asks_itself:
                result = await model.predict(*arguments)
            else:
                result = await self._predict_remotely(payload, headers, back if self._headers_back else None)
            if not explain:
                started = self._stage("predict", started)
            if self._postprocess is not None:
                arguments = (result, headers, back) if self._headers_back else (result, headers)
                result = await self._postprocess(*arguments)
                self._stage("postprocess", started)
            return result

    def _stage(self, stage: str, started: float) -> float:
        now = time.perf_counter()
        if self._loop_thread is None:
            self.observe_stage(stage, now - started)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self.observe_stage, stage, now - started)
        return now

    def _validated(self, payload: Any) -> Any:
        """Check a V1 body as `kserve.Model.validate` does, or as the class does in its place."""
        if self._validates:
            return self.hosted.validate(payload)
        protocol = self.predictor.protocol if self.predictor is not None else "v1"
        key = {"v1": "instances", "v2": "inputs"}.get(protocol, "")
        if key in payload and not isinstance(payload[key], list):
            raise InvalidInput(f'Expected "{key}" to be a list')
        return payload

    async def _predict_remotely(
        self, payload: Any, headers: Mapping[str, str] | None = None, back: dict[str, str] | None = None
    ) -> Any:
        """Stand in for KServe's `_http_predict` and `_grpc_predict`."""
        in_flight, deadline = _in_flight.get() or _NO_FLIGHT
        headers = headers or in_flight
        if isinstance(payload, ModelInferRequest):
            payload = KServeRequest.from_grpc(payload)
        if isinstance(payload, KServeRequest):
            request = from_kserve_request(payload, model_name=self.hosted.name, headers=headers, deadline=deadline)
            response = await self._predictor(self._ask(request))
            if back is not None:
                back.update(response.headers)
            return to_kserve_response(response, is_grpc(in_flight))
        if isinstance(payload, dict):
            return await self._predictor(self._ask_v1(payload, headers, deadline, back))
        if self._preprocess is None:
            raise InvalidInput(f"the request body is of type {type(payload).__name__}, a JSON object was expected")
        raise ModelFailed(
            f"preprocess of model {self.name!r} made a {type(payload).__name__}; an InferRequest or a dict was expected"
        )

    async def _predictor(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Await what the predictor answers, on the loop where it is asked."""
        return await question

    async def _ask(self, request: InferRequest) -> InferResponse:
        """Ask the predictor."""
        return await self._client_or_refuse().infer(request)

    async def _ask_v1(
        self, payload: dict[str, Any], headers: Mapping[str, str], deadline: float | None, back: dict[str, str] | None
    ) -> dict[str, Any]:
        """Ask the predictor with a V1 body; `back` is for the headers of its answer."""
        client = self._client_or_refuse()
        return await client.predict_v1(self.hosted.name, payload, headers, deadline=deadline, response_headers=back)

    def _client_or_refuse(self) -> PredictorClient:
        if self.client is None:
            raise NotSupported(
                f"model {self.name!r} has no predict of its own and no predictor was named (--predictor_host)"
            )
        return self.client


def build_kserve(
    implementation: Implementation, settings: ModelSettings, predictor: PredictorSettings | None
) -> KServeArrays | KServeHost:
    """Make the host that fits the class.

    Raises:
        ConfigError: it cannot be constructed from these settings.
    """
    started = time.perf_counter()
    model = make_kserve(implementation, settings, predictor)
    _log.debug("%s constructed in %.2f s", implementation.name, time.perf_counter() - started)
    kind = type(model)
    plain = all(getattr(kind, name, None) is getattr(kserve.Model, name) for name in ("preprocess", "postprocess"))
    if getattr(model, "serinus_batchable", False) and callable(getattr(model, "predict_arrays", None)) and plain:
        return KServeArrays(settings, model)
    return KServeHost(settings, model, predictor)
