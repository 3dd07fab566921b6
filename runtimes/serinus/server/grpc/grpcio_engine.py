"""The grpcio engine: grpc.aio with handlers of raw bytes. It serves the streams of the native engine too.

Theory of operation. grpc.aio makes one task per call whatever is done; the task submits the request and waits for one
future. grpc-core keeps deadlines, flow control and limits: when the client leaves or the deadline passes it cancels the
task, which cancels the request. No message class is involved: generic handlers hand over bytes, and the service decodes
them into our own private messages.

grpc.aio's serving loop dies of one request whose path is not UTF-8, and takes the whole server with it (seen in grpcio
1.85.1; KServe's and MLServer's servers are open to it as well). It cannot be kept from that request, so a server
that has died is replaced at once; the calls in flight are lost. The native engine refuses such a request. grpc.aio tells of its
death when its last call has ended, and the call that killed it ends when its client likes: so the task of the loop itself is
watched, and what is left of the old server is cancelled.

A client may leave, or its deadline pass, in the very moment in which its call is answered. grpc-core then fails what is sent
(`ExecuteBatchError`), and grpc.aio, where it has not heard yet that the client has gone, logs that with a traceback: under overload
one for many a client. What we send ends as a cancellation then; what grpc.aio sends by itself we cannot catch, so its logger does not tell of it.

Draining is ours: while calls are in flight new ones are refused with UNAVAILABLE, and only then grpc-core's shutdown
begins, with GOAWAY. Begun at once, it would end every call that crosses its GOAWAY with CANCELLED, which nobody retries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

from grpc._cython import cygrpc  # grpc.aio gives no public name to ExecuteBatchError

import grpc
from grpc import aio

from ...errors import ConfigError, SerinusError
from ...protocol import _open_inference_pb2 as pb
from ...settings import ServerSettings
from ..certificates import Certificates, Loaded
from ..connections.tls_listener import HANDSHAKE_S
from ..connections.unsent_answers import UnsentAnswers
from .answers import Failure, Metadata, failure_of
from .calls_in_flight import given_up
from .reflection import REFLECTION_PATHS, Reflection
from .service import INFER, INFER_STREAM, SERVICE, Service, plain_headers
from .streams import infer_stream

__all__ = ["GrpcioEngine", "address"]

_log = logging.getLogger("serinus.grpc")
_log_of_grpc = logging.getLogger(cygrpc.__name__)

_SERVICES = (
    SERVICE,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_STREAMS_PER_CONNECTION = 4096
"""Most calls at once on one connection; grpc-core sets 2^31. It also counts calls that have ended and are not yet cleaned up, which
bounds what streams that are opened and reset can cost (CVE-2023-44487: 12 KB each), but refuses a client's honest burst near the
limit with REFUSED_STREAM: under 1 024, one in 25 of 3 000 calls failed as UNAVAILABLE."""
_METADATA_BYTES = 64 * 1024
"""Most request metadata: more than Envoy's 60 KiB, so what a gateway has let through is not refused here. The soft limit
is the same, because grpc-core refuses at random between the two."""
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
"""A silent client is asked for a sign of life after a minute, and given up 20 s later: its calls hold queue places."""
_PENDING_CALLS = 8192
"""Calls that may wait for Python to look at them: all of two connections. grpc-core takes them in whatever Python does, at some 17 KB each, and
keeps them when their clients have gone: with 65 536 a server whose loop was held took 1.1 GB of well-formed calls. By default it ends some at
random with CANCELLED from 1 000 on; the plane's queue is bounded too, and refuses in words."""
_COUNTED_BYTES = 4096
"""Answers of less are not counted as unsent: the streams of one connection hold 16 MiB of them at the most."""
_CLIENT_PING_MS = 10_000
"""Clients may ping this often; grpc-core's 5 minutes answers usual client settings with GOAWAY too_many_pings."""
_FLUSH_S = 1.0
"""For answers that are given but not yet on the wire, when the server stops; streams that stay open are cut then."""


def address(host: str, port: int) -> str:
    """Join host and port; an IPv6 address is bracketed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_gone(error: BaseException | None) -> bool:
    """Whether grpc-core has failed to send to a call that is over; what it never began to send was wrong instead (`grpc_call_error`)."""
    return isinstance(error, cygrpc.ExecuteBatchError) and "grpc_call_start_batch" not in str(error)


class _NoNews(logging.Filter):
    """Leaves out of grpc.aio's log what tells of a client that has gone."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is told."""
        return not (isinstance(record.exc_info, tuple) and _is_gone(record.exc_info[1]))


_NO_NEWS = _NoNews()


class _Pending:
    """An `Answer` that a task waits for.

    Args:
        loop: of the task.
        unsent: counts an answer that is not small from here on, before the task goes on: of several that are ready in one turn of the loop each finds the
            others counted. None: nothing is.
    """

    __slots__ = ("_unsent", "future", "reading")

    def __init__(self, loop: asyncio.AbstractEventLoop, unsent: UnsentAnswers | None = None) -> None:
        self.future: asyncio.Future[tuple[bytes, Metadata | None] | Failure] = loop.create_future()
        self._unsent = unsent
        self.reading: _Reading | None = None
        """The answer, where it is counted."""

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        if not self.future.done():
            if self._unsent is not None and len(payload) > _COUNTED_BYTES:
                self.reading = _Reading(self._unsent, len(payload))
            self.future.set_result((payload, metadata))

    def fail(self, failure: Failure) -> None:
        if not self.future.done():
            self.future.set_result(failure)


class _Reading:
    """An answer that grpc-core has and its client has not: a `Reader`. grpc-core tells nothing between its beginning and its end."""

    tells_pace = False

    def __init__(self, unsent: UnsentAnswers, size: int) -> None:
        self._unsent = unsent
        self._size = size
        self._task: asyncio.Task[Any] | None = None
        unsent.add(self, size)

    def follow(self, context: Any) -> None:
        """Count the answer until its call is over; called in the call's own task."""
        self._task = asyncio.current_task()
        context.add_done_callback(self._ended)

    def unsent(self) -> int:
        """See `Reader.unsent`."""
        return self._size

    def give_up(self) -> bool:
        """See `Reader.give_up`: the call ends with CANCELLED."""
        if self._task is not None:
            self._task.cancel()
        self._ended(None)
        return True

    def _ended(self, context: Any) -> None:  # gRPC gives it
        self._size = 0
        self._unsent.drop(self)


class _Started:
    """Awaits grpc.aio's start, and finds the task that it makes of its serving loop: it tells nobody of it."""

    def __init__(self, starting: Coroutine[Any, Any, None]) -> None:
        self._starting = starting
        self.tasks: set[asyncio.Task[Any]] = set()

    def __await__(self) -> Generator[Any, Any, None]:
        steps, before = self._starting.__await__(), asyncio.all_tasks()
        try:
            value = next(steps)  # to its first wait: nothing else runs on the loop meanwhile
            self.tasks = asyncio.all_tasks() - before
            while True:
                try:
                    sent = yield value
                except BaseException as error:  # noqa: BLE001 # a cancellation is for the one who waits there
                    value = steps.throw(error)
                else:
                    value = steps.send(sent)
        except StopIteration:
            return


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a path; None is UNIMPLEMENTED."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(handler_call_details.method)


class GrpcioEngine:
    """One grpc.aio server over a `Service`."""

    name = "grpcio"

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._server: Any = None
        self._target = ""
        self._credentials: grpc.ServerCredentials | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        """grpc.aio's serving loop."""
        self.port = 0

    async def start(self, target: str, *, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listen on `host:port` or a `unix...:` address.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._target, self._credentials = target, credentials
        await self._listen()
        if not target.startswith("unix"):
            self._target = f"{target.rpartition(':')[0]}:{self.port}"
        self._watcher = self._loop.create_task(self._watch())

    async def _listen(self) -> None:
        _log_of_grpc.addFilter(_NO_NEWS)
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.grpc_max_receive_message_length),
            ("grpc.max_send_message_length", settings.grpc_max_send_message_length),
            ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _CLIENT_PING_MS),
            ("grpc.server.max_pending_requests", _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
            ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1000)),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ]
        self._server = aio.server(options=options)
        self._server.add_generic_rpc_handlers((_Handlers(self._handlers()),))
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self._target)
            else:
                self.port = self._server.add_secure_port(self._target, self._credentials)
        except RuntimeError:
            raise ConfigError(f"cannot listen on {self._target} for gRPC; is another server running?") from None
        started = _Started(self._server.start())
        await started
        self._serving = started.tasks

    async def _watch(self) -> None:
        """Put a new server in the place of one that has crashed: see the module's theory of operation."""
        while True:
            termination = asyncio.ensure_future(self._server.wait_for_termination())
            try:
                done, _ = await asyncio.wait({termination, *self._serving}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {termination}:
                    task.result()
                await termination
            except Exception as error:  # noqa: BLE001 # whatever ended grpc.aio's loop, the port must be served again
                if self._service.draining:
                    return
                _log.error(
                    "grpc.aio has stopped serving: %s; the calls in flight are lost, and it is started again", error
                )
                await self._server.stop(None)
                await asyncio.gather(termination, return_exceptions=True)
                await self._listen()
            else:
                return
            finally:
                termination.cancel()

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        reflect = Reflection(_SERVICES, pb.POOL)

        async def reflection(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            await self._authenticate(REFLECTION_PATHS[0], context)
            async for response in _ending_well(self._in_place(reflect.stream(_received(messages)), context), context):
                yield response

        async def watch(message: bytes, context: Any) -> AsyncIterator[bytes]:
            async for response in _ending_well(self._in_place(self._service.health.watch(message), context), context):
                yield response

        async def stream(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            headers = await self._authenticate(INFER_STREAM, context)
            responses = infer_stream(self._service, _received(messages), headers, _deadline(context))
            async for response in _ending_well(responses, context):
                yield response

        handlers = {
            path: grpc.unary_unary_rpc_method_handler(self._unary(path))  # type: ignore[arg-type] # grpc.aio takes coroutines
            for path in self._service.unary
        }
        handlers[INFER] = grpc.unary_unary_rpc_method_handler(self._infer)  # type: ignore[arg-type] # as above
        handlers[INFER_STREAM] = grpc.stream_stream_rpc_method_handler(stream)  # type: ignore[arg-type] # as above
        handlers["/grpc.health.v1.Health/Watch"] = grpc.unary_stream_rpc_method_handler(watch)  # type: ignore[arg-type] # as above
        for path in REFLECTION_PATHS:
            handlers[path] = grpc.stream_stream_rpc_method_handler(reflection)  # type: ignore[arg-type] # as above
        return handlers

    async def _in_place(self, responses: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Pass a stream on that waits most of the time, if there is a place for it and for as long as it keeps that."""
        step: asyncio.Future[bytes | None] | None = None
        address = context.peer().rpartition(":")[
            0
        ]  # a client may open any number of connections; behind the native front nobody knows whose it is
        async with aclosing(responses):  # type: ignore[type-var] # as in `_ending_well`
            with self._service.idle_streams.place(address) as lost:
                try:
                    while True:
                        step = asyncio.ensure_future(anext(responses, None))
                        await asyncio.wait((step, lost), return_when=asyncio.FIRST_COMPLETED)
                        if not step.done():
                            raise given_up()
                        response = step.result()
                        if response is None:
                            return
                        yield response
                finally:
                    if step is not None and not step.done():
                        step.cancel()
                        await asyncio.wait((step,))

    async def _authenticate(self, path: str, context: Any) -> Mapping[str, str]:
        """Ask a stream for its token before anything of it is read; gives its metadata as headers."""
        headers = plain_headers(context.invocation_metadata() or ())
        try:
            self._service.authenticate(path, headers)
        except SerinusError as error:
            await _end(context, failure_of(error))
        return headers

    async def _infer(self, message: bytes, context: Any) -> bytes:
        pending = _Pending(self._loop, self._service.unsent)
        headers = plain_headers(context.invocation_metadata() or ())
        self._service.began()
        try:
            begun = self._service.infer(message, headers, _deadline(context), pending)
            try:
                outcome = await pending.future
            except asyncio.CancelledError:
                if begun is not None:
                    begun.cancel()
                if pending.reading is not None:
                    pending.reading.give_up()
                raise
        finally:
            self._service.ended()
        if pending.reading is not None:
            pending.reading.follow(context)
        return await _finish(context, outcome)

    def _unary(self, path: str) -> Any:
        async def handle(message: bytes, context: Any) -> bytes:
            pending = _Pending(self._loop)
            self._service.began()
            try:
                await self._service.call(path, message, plain_headers(context.invocation_metadata() or ()), pending)
            finally:
                self._service.ended()
            return await _finish(context, pending.future.result())

        return handle

    @property
    def listeners(self) -> tuple[()]:
        """None of the loop's: grpc-core accepts in threads of its own."""
        return ()

    def stop_accepting(self) -> None:
        """Refuse new calls with UNAVAILABLE; those in flight go on."""
        self._service.drain()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the calls in flight have ended, or the time is over; then send GOAWAY and what is still unsent."""
        self.stop_accepting()
        await self._service.wait_idle(timeout_s)
        if self._service.idle.is_set():
            await self._server.stop(_FLUSH_S)

    async def close(self) -> None:
        """End what is left."""
        self._service.drain()
        if self._server is not None:
            await self._server.stop(None)
        if self._watcher is not None:
            await self._watcher


def credentials_of(certificates: Certificates | None) -> grpc.ServerCredentials | None:
    """Make gRPC's credentials, which each handshake asks for what is loaded now; None where TLS is off."""
    if certificates is None:
        return None
    told = certificates.loaded

    def configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.chain)], loaded.client_ca)

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal told
        loaded = certificates.loaded
        if loaded is told:
            return None
        told = loaded
        return configuration(loaded)

    return grpc.dynamic_ssl_server_credentials(
        configuration(told),
        newest,  # type: ignore[arg-type] # None: as it was; grpc's own documentation says so, its types do not
        require_client_authentication=told.client_ca is not None,
    )


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


async def _finish(context: Any, outcome: tuple[bytes, Metadata | None] | Failure) -> bytes:
    if isinstance(outcome, Failure):
        await _end(context, outcome)
    payload, metadata = outcome
    if metadata:
        with _leaving():
            await context.send_initial_metadata(metadata)
    return payload


async def _end(context: Any, failure: Failure) -> NoReturn:
    with _leaving():
        await context.abort(_CODES[failure.code], failure.message, tuple(failure.trailing))
    raise AssertionError("abort always raises")


@contextmanager
def _leaving() -> Iterator[None]:
    """Send to a call whose client may have gone: that is a cancellation."""
    try:
        yield
    except cygrpc.ExecuteBatchError as error:
        if _is_gone(error):
            raise asyncio.CancelledError from None
        raise


async def _received(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Read a stream for as long as there is a call: that it is over, or the server stopped, is a cancellation."""
    try:
        async for message in messages:
            yield message
    except aio.BaseError:
        raise asyncio.CancelledError from None


async def _ending_well(responses: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Pass a stream on, turning an error of ours into its status, and closing it when the client leaves."""
    try:
        async for response in responses:
            yield response
    except Exception as error:  # noqa: BLE001 # the edge of a request; failure_of logs what is not the client's
        await _end(context, failure_of(error))
    finally:
        await responses.aclose()  # type: ignore[attr-defined] # every stream here is an async generator
