"""The data plane: what a request means, whichever transport brought it.

Theory of operation. `infer_nowait` is the hot path: a transport calls it on the event loop's thread with a decoded request
and a callback. It makes no coroutine, task or future; the request is checked, queued (batching/batcher.py), and predicted with
whatever else this turn of the loop brought. `on_complete` is called on the same thread, later than `infer_nowait` returns and
once, with the response or with the error that the client reads; not at all after a cancel. `infer` is the same
for callers that await. What becomes of a request is its model's `Servable`'s business; the plane finds it, and refuses where there is none.
A transport knows the plane's verbs and nothing behind them.

Readiness, for /v2/health/ready: at least one model answers (MLServer and KServe say "ready" with none, and a rollout
that loaded nothing was promoted), every model that was asked for at start does, and the server does not stop. A repository's model that
did not load at start is waited for with `strict_readiness` alone (Triton's `--strict-readiness`): the others are served without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal

from ..errors import ClientError, InvalidInput, ModelFailed, NotReady, Overloaded, SerinusError
from ..model import Call, Cancellable, V1Answer
from ..protocol.documents.json_values import NotFinite
from ..protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits
from ..settings import ModelSettings
from .access.repository_access import RepositoryAccess
from .awaiting import wait_for_answer
from .batching.pending_request import DONE, BatchKey, Outcome, PendingRequest
from .model_changes import ModelChanges
from .registry import Registry
from .response_stream import ResponseStream
from .servables.servable import Servable
from .servables.v1_requests import V1Request
from .telemetry.metrics import Metrics
from .telemetry.request_records import error_ids

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
    "generate",
)
"""What the server metadata advertises, by Triton's names; each is served."""

_REPOSITORY: Final = frozenset({"model_repository", "model_repository(unload_dependents)"})
"""Left out where models are not loaded and unloaded by request: the extension is index, load and unload together
(extension_model_repository.md), and a client that reads its name may count on all three. The index is answered all the same."""

_NO_KEY: Final = BatchKey(None, (), Call())


class Plane(ModelChanges):
    """All models of one process behind one door.

    Args:
        registry: the models.
        metrics: the registry's, unless given.
        extensions: what the server metadata advertises.
        ready_when_empty: ready with no model, for a server that is filled by load requests.
        strict_readiness: not ready while a model that was spared at start is neither loaded nor unloaded.
        limits: of V1 bodies, which the plane decodes.
        access: who may load and unload over a transport; whoever holds the plane itself may.
        not_finite: what stands for NaN and infinities in V1 answers.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        metrics: Metrics | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        ready_when_empty: bool = False,
        strict_readiness: bool = False,
        limits: Limits = Limits(),  # noqa: B008 # frozen
        access: RepositoryAccess = RepositoryAccess(),  # noqa: B008 # frozen
        not_finite: NotFinite = "null",
    ) -> None:
        offered = [name for name in extensions if access.is_on or name not in _REPOSITORY]
        super().__init__(registry, metrics if metrics is not None else registry.metrics, offered)
        self.access = access
        """What a transport asks before it calls `load` or `unload`."""
        self._ready_when_empty = ready_when_empty
        self._strict_readiness = strict_readiness
        self._limits = limits
        self._not_finite: NotFinite = not_finite
        self._clock = registry.clock
        self._defaults: Mapping[str, Servable] = registry.defaults
        self.full: dict[str, Servable] = {}
        """Models that have refused a request lately whatever it held, by the name that it came for; a transport looks here before `refuse_unread`."""
        self.listening = True
        """False: the ports are not all open yet, so that neither the server nor any model is ready, whatever is loaded."""
        self._stopping = False
        self._refusing = False

    # The hot path

    def infer_nowait(self, request: InferRequest, on_complete: Outcome) -> PendingRequest:
        """Begin a request.

        Args:
            request: decoded; its `deadline` is `time.monotonic()`, and a `timeout` parameter (microseconds) shortens it.
            on_complete: told the outcome, on this thread, after this call has returned.

        Returns:
            What cancels it when the client goes away.
        """
        now = self._clock()
        servable = self._defaults.get(request.model_name)
        try:
            if servable is None or request.model_version:
                servable = self._find(request.model_name, request.model_version)
            return servable.infer_nowait(request, on_complete, now)
        except SerinusError as error:
            return self._refuse(request, on_complete, now, servable, error)
        except Exception:  # noqa: BLE001 # the edge of a request
            return self._refuse(request, on_complete, now, servable, _unforeseen(request.headers))

    def refuse_unread(self, name: str) -> Overloaded | None:
        """Refuse, and count, a request for the default version of one of `full`, before it is decoded; None: it is to be read."""
        servable = self.full.get(name)
        if servable is None:
            return None
        error = servable.refuse_unread() if self._defaults.get(name) is servable else None
        if error is None:
            del self.full[name]
        return error

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; cancelling the task that awaits cancels the request.

        Raises:
            SerinusError: what the client reads.
        """
        return await wait_for_answer(lambda on_complete: self.infer_nowait(request, on_complete))

    def infer_stream(
        self, request: InferRequest, further: AsyncIterator[InferRequest] | None = None
    ) -> ResponseStream[InferResponse]:
        """Answer a request with the stream of its responses; a model that has no stream gives one.

        Args:
            request: what opens the stream.
            further: requests that follow it, for a model that takes whole streams.

        Returns:
            The responses; iterating raises the `SerinusError` that the client reads. Read to the end, or close it.
        """
        now = self._clock()
        servable = None
        try:
            servable = self._find(request.model_name, request.model_version)
            return servable.infer_stream(request, further)
        except SerinusError as error:
            refusal = error
        except Exception:  # noqa: BLE001 # the edge of a request
            refusal = _unforeseen(request.headers)
        stream: ResponseStream[InferResponse] = ResponseStream()
        stream.source = self._refuse(request, stream.end_with_only, now, servable, refusal)
        return stream

    def v1_nowait(
        self,
        name: str,
        body: bytes,
        on_complete: Callable[[V1Answer | SerinusError], None],
        *,
        version: str = "",
        headers: Mapping[str, str] = NO_PARAMETERS,
        explain: bool = False,
        task: Literal["", "classify", "regress"] = "",
    ) -> Cancellable:
        """Begin a V1 `:predict` or another verb: answered by the model where it speaks V1 itself, else as a V2 request.

        Args:
            name: of the model.
            body: as it came, without content coding.
            on_complete: told the answer, whose document may come piece by piece, or the error.
            version: empty: the default one.
            headers: of the request.
            explain: it is an `:explain`.
            task: it is a `:classify` or `:regress`, whose body holds examples.
        """
        now = self._clock()
        servable = None
        try:
            servable = self._find(name, version)
            call = V1Request(
                body=body,
                headers=headers,
                version=version,
                explain=explain,
                task=task,
                limits=self._limits,
                not_finite=self._not_finite,
            )
            return servable.v1_nowait(call, on_complete)
        except SerinusError as error:
            refusal = error
        except Exception:  # noqa: BLE001 # the edge of a request
            refusal = _unforeseen(headers)
        # Refused before it was a request: no model's statistics have it, and the transport counts it.
        return self._refuse(InferRequest(name, (), version, headers=headers), on_complete, now, None, refusal)

    async def predict_v1(
        self, name: str, body: bytes, *, version: str = "", headers: Mapping[str, str] = NO_PARAMETERS
    ) -> Any:
        """Answer a V1 `:predict` body.

        Returns:
            The document: bytes, or the object that the body is made of; a `V1Answer` where there is more to say than that.

        Raises:
            SerinusError: what the client reads.
        """
        return _document(
            await wait_for_answer(lambda done: self.v1_nowait(name, body, done, version=version, headers=headers))
        )

    async def explain_v1(
        self, name: str, body: bytes, *, version: str = "", headers: Mapping[str, str] = NO_PARAMETERS
    ) -> Any:
        """Answer a V1 `:explain` body; see `predict_v1`.

        Raises:
            NotSupported: the model explains nothing.
            SerinusError: what the client reads.
        """
        return _document(
            await wait_for_answer(
                lambda done: self.v1_nowait(name, body, done, version=version, headers=headers, explain=True)
            )
        )

    # What a transport asks before it decodes, and when it cannot

    def read_loosely(
        self, error: ClientError, name: str, version: str, body: bytes, headers: Mapping[str, str]
    ) -> InferRequest:
        """Read a V2 body that the protocol refuses as the model's clients mean it, where the model is used to more.

        Args:
            error: why it was refused; raised again where nobody can read it.
            name: of the model.
            version: empty: the default one.
            body: JSON, as it came.
            headers: of the request.

        Raises:
            NotFound: no such model: said before what is wrong with the body.
            ClientError: `error`.
        """
        servable = self.registry.find(name, version)
        loose = servable.read_loosely(body, headers, version) if isinstance(error, InvalidInput) else None
        if loose is None:
            raise error
        return loose

    def has_priorities(self, name: str) -> bool:
        """Whether some requests of this model go before others; a model that is not there has none."""
        servable = self._defaults.get(name)
        return servable is not None and servable.has_priorities

    # Health and metadata

    def live(self) -> bool:
        """The process answers."""
        return True

    def ready(self) -> bool:
        """New requests are welcome; see the module's theory of operation."""
        if (
            self._stopping
            or not self.listening
            or (self._missing and (self._strict_readiness or not self.registry.defaults))
        ):
            return False
        if not self.registry.defaults:
            return self._ready_when_empty and self._started
        return all(self._answers(name, version) for name, version in self._required)

    def model_ready(self, name: str, version: str = "") -> bool:
        """This model answers requests now.

        Raises:
            NotFound: no such model or version.
        """
        servable = self.registry.current(name, version)
        return servable is not None and servable.healthy and self.listening and not self._stopping

    # Life

    async def start(
        self,
        models: Sequence[ModelSettings],
        *,
        spared: Collection[str] = (),
        broken: Mapping[str, str] = NO_PARAMETERS,
    ) -> None:
        """Load models, all at a time; ready waits for them.

        Args:
            models: in all their versions.
            spared: names whose failure is logged and told in the index, and does not end the start.
            broken: name to reason of what is there and cannot be loaded, for the index.

        Raises:
            SerinusError: the first that does not load; the others are loaded all the same.
        """
        for name, reason in broken.items():
            _log.error("model '%s' does not load: %s", name, reason)
            self.registry.add_broken(name, reason)
            self._missing.add(name)
        self._required.update((settings.name, settings.version) for settings in models)
        by_name: dict[str, list[ModelSettings]] = {}
        for settings in models:
            by_name.setdefault(settings.name, []).append(settings)
        results = await asyncio.gather(
            *(self.registry.add(*versions) for versions in by_name.values()), return_exceptions=True
        )
        self._started = True
        for name, result in zip(by_name, results, strict=True):
            if isinstance(result, Exception) and name in spared:
                _log.error("model '%s' does not load: %s", name, result)
                self._missing.add(name)
                self._required = {key for key in self._required if key[0] != name or self._answers(*key)}
            elif isinstance(result, BaseException):
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

    def abandon(self) -> int:
        """Refuse new requests, and those in flight, which nobody will answer any more.

        Returns:
            How many were in flight.
        """
        self._stopping = True
        self._refusing = True
        self._defaults = {}
        count = self.registry.unanswered
        self.registry.abandon(NotReady("the server stopped before the model answered; try another replica"))
        return count

    async def close(self) -> None:
        """Unload every model; requests still in flight are answered NotReady."""
        self._stopping = True
        self._refusing = True
        self._defaults = {}
        await self.registry.close()

    def _answers(self, name: str, version: str) -> bool:
        try:
            servable = self.registry.current(name, version)
        except SerinusError:
            return False
        return servable is not None and servable.healthy

    def _find(self, name: str, version: str) -> Servable:
        if self._refusing:
            raise NotReady("the server is stopping and takes no new requests; try another replica")
        return self.registry.find(name, version)

    def _refuse(
        self,
        request: InferRequest,
        on_complete: Outcome,
        now: float,
        servable: Servable | None,
        error: SerinusError,
    ) -> PendingRequest:
        pending = PendingRequest(request, on_complete, now, None, None, _NO_KEY, (), 0, 0)
        if servable is not None:
            servable.statistics.failed(error, pending, self._clock())
            if servable.batcher.admission.refusal is error and not request.model_version:
                self.full[request.model_name] = servable
        asyncio.get_running_loop().call_soon(_tell, pending, error)
        return pending


def _document(answer: V1Answer) -> Any:
    return answer if answer.headers or not isinstance(answer.document, bytes | dict) else answer.document


def _unforeseen(headers: Mapping[str, str]) -> ModelFailed:
    """Log the exception at hand, and give what the client reads of it."""
    ids = error_ids(headers)
    _log.exception("a request could not be begun", extra={"ids": ids})
    error = ModelFailed("the request could not be processed; the server's log has the details")
    error.request_id = ids["request_id"]
    return error


def _tell(pending: PendingRequest, error: SerinusError) -> None:
    if pending.state != DONE:
        pending.state = DONE
        pending.on_complete(error)
