"""The grpcio engine's own part: what it asks of grpc-core, how a call ends, and what it does when grpc.aio's server dies.

grpc.aio, which is another project's, is stood in for; nothing here listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from grpc._cython import cygrpc

import grpc
from dataplane_support import Doubler, serving
from grpc import aio
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import ConfigError, GrpcStatus, InvalidInput, Overloaded
from serinus.model import RequestModel
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.types import InferRequest, InferResponse
from serinus.server.certificates import Loaded
from serinus.server.connections.unsent_answers import UnsentAnswers
from serinus.server.grpc import grpcio_engine
from serinus.server.grpc.answers import Failure
from serinus.server.grpc.grpcio_engine import GrpcioEngine, address, credentials_of
from serinus.server.grpc.reflection import REFLECTION_PATHS
from serinus.server.grpc.service import INFER, INFER_STREAM, SERVICE, Service
from serinus.server.request_access import RequestAccess
from serinus.settings import ServerSettings
from waiting import turns, until

TOKEN = "a-token-of-a-person-0123456789"
GONE = cygrpc.ExecuteBatchError("Failed grpc_call_finish")
WRONG = cygrpc.ExecuteBatchError("Failed grpc_call_start_batch: 8 with grpc_call_error value")


class Ended(Exception):
    """What grpc.aio raises when a call is aborted."""


class Context:
    """A call, as grpc.aio shows it."""

    def __init__(self, *metadata: tuple[str, Any], left: float | None = None, sends: Exception | None = None) -> None:
        self.metadata = metadata
        self.left = left
        self.sends = sends
        self.sent: list[Any] = []
        self.callbacks: list[Any] = []

    def invocation_metadata(self) -> Any:
        return self.metadata or None

    def time_remaining(self) -> float | None:
        return self.left

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    def add_done_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    async def send_initial_metadata(self, metadata: Any) -> None:
        if self.sends is not None:
            raise self.sends
        self.sent.append(metadata)

    async def abort(self, code: grpc.StatusCode, message: str, trailing: Any) -> None:
        if self.sends is not None:
            raise self.sends
        self.sent.append((code, message, trailing))
        raise Ended


class Server:
    """grpc.aio's server, which dies when a test says so."""

    made: ClassVar[list[Server]] = []

    def __init__(self, options: Any) -> None:
        self.options = dict(options)
        assert len(self.options) == len(options)
        self.handlers: Any = None
        self.bound: list[Any] = []
        self.stopped: list[Any] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dies: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.serving: asyncio.Task[None] | None = None
        Server.made.append(self)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        (self.handlers,) = handlers

    def add_insecure_port(self, target: str) -> int:
        if target.endswith(":1"):
            raise RuntimeError("it is taken")
        self.bound.append(target)
        return 7000 + len(Server.made)

    def add_secure_port(self, target: str, credentials: Any) -> int:
        self.bound.append((target, credentials))
        return 8000

    async def _serve(self) -> None:
        await self.dies

    async def start(self) -> None:
        self.serving = asyncio.ensure_future(self._serve())
        await asyncio.sleep(0)

    async def wait_for_termination(self) -> None:
        await asyncio.shield(self.over)

    async def stop(self, grace: float | None) -> None:
        self.stopped.append(grace)
        if self.over.done():
            return
        if self.dies.done():  # it tells of its death when its last call has ended
            self.over.set_exception(self.dies.exception() or ValueError)
        else:
            self.over.set_result(None)
        await turns()


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    Server.made = []
    monkeypatch.setattr(grpcio_engine.aio, "server", lambda options: Server(options))
    return Server.made


@contextlib.asynccontextmanager
async def engine(model: Any = Doubler, **settings: Any) -> AsyncIterator[Any]:
    """An engine over a small model; `request_access` is the service's."""
    access = settings.pop("request_access", None)
    async with serving(model, metrics=Metrics()) as plane:
        chosen = ServerSettings(**settings)
        service = Service(plane, chosen, metrics=plane.metrics, request_access=access)
        yield GrpcioEngine(service, chosen)


def request(identity: str = "i", rows: int = 1) -> bytes:
    x = np.ones((rows, 2), np.float32)
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
    message = pb.ModelInferRequest(model_name="m", id=identity, inputs=[entry], raw_input_contents=[x.tobytes()])
    return message.SerializeToString()


# What is asked of grpc-core


@pytest.mark.parametrize(
    ("host", "port", "joined"), [("127.0.0.1", 9000, "127.0.0.1:9000"), ("::1", 0, "[::1]:0"), ("h", 1, "h:1")]
)
def test_an_address_has_its_host_in_brackets_where_that_has_colons(host: str, port: int, joined: str):
    assert address(host, port) == joined


@pytest.mark.parametrize(("workers", "share"), [(1, 0), (2, 1)])
async def test_the_limits_of_messages_connections_and_calls_are_grpc_cores_to_hold(workers: int, share: int):
    async with engine(workers=workers, grpc_max_receive_message_length=1234, grpc_max_send_message_length=567) as found:
        await found.start("127.0.0.1:0")
        (server,) = Server.made
        assert server.options == {
            "grpc.max_receive_message_length": 1234,
            "grpc.max_send_message_length": 567,
            "grpc.max_concurrent_streams": 4096,
            "grpc.max_metadata_size": 65536,
            "grpc.absolute_max_metadata_size": 65536,
            "grpc.keepalive_time_ms": 60_000,
            "grpc.keepalive_timeout_ms": 20_000,
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.min_recv_ping_interval_without_data_ms": 10_000,
            "grpc.server.max_pending_requests": 8192,
            "grpc.server.max_pending_requests_hard_limit": 8192,
            "grpc.server_handshake_timeout_ms": 10_000,
            "grpc.so_reuseport": share,
        }
        await found.close()


async def test_each_method_has_a_handler_of_its_kind_and_others_have_none():
    async with engine() as found:
        await found.start("127.0.0.1:0")
        handlers = Server.made[0].handlers

        def kind(path: str) -> tuple[bool, bool] | None:
            handler = handlers.service(SimpleNamespace(method=path))
            return handler and (handler.request_streaming, handler.response_streaming)

        for path in (INFER, f"/{SERVICE}/ModelReady", "/grpc.health.v1.Health/Check", *found._service.unary):
            assert kind(path) == (False, False), path
        assert kind("/grpc.health.v1.Health/Watch") == (False, True)
        assert {kind(path) for path in (INFER_STREAM, *REFLECTION_PATHS)} == {(True, True)}
        assert kind("/other") is None
        await found.close()


async def test_a_port_that_is_taken_is_said_to_be_so():
    async with engine() as found:
        with pytest.raises(ConfigError, match=r"^cannot listen on 127.0.0.1:1 for gRPC; is another server running\?$"):
            await found.start("127.0.0.1:1")


@pytest.mark.parametrize(
    ("target", "credentials", "bound", "port"),
    [
        ("127.0.0.1:0", None, "127.0.0.1:0", 7001),
        ("unix:/x/y.sock", None, "unix:/x/y.sock", 7001),
        ("[::1]:0", "tls", ("[::1]:0", "tls"), 8000),
    ],
)
async def test_it_listens_with_tls_where_it_has_credentials(target: str, credentials: Any, bound: Any, port: int):
    async with engine() as found:
        assert found.port == 0
        await found.start(target, credentials=credentials)
        assert (Server.made[0].bound, found.port) == ([bound], port)
        assert found.listeners == ()
        await found.close()


# A server that dies


@pytest.mark.parametrize("how", ["serving", "termination"])
@pytest.mark.parametrize(("target", "again"), [("127.0.0.1:0", "127.0.0.1:7001"), ("unix:/x.sock", "unix:/x.sock")])
async def test_a_server_that_dies_is_replaced_at_the_same_address(
    how: str, target: str, again: str, caplog: pytest.LogCaptureFixture
):
    async with engine() as found:
        await found.start(target)
        (first,) = Server.made
        (first.dies if how == "serving" else first.over).set_exception(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"))
        await until(lambda: len(Server.made) == 2 and Server.made[1].serving)
        assert first.stopped == [None], "what is left of it is cancelled"
        assert Server.made[1].bound == [again]
        assert "grpc.aio has stopped serving: 'utf-8' codec can't decode byte 0xff" in caplog.text
        await turns()
        assert not found._watcher.done(), "the next is watched too"
        Server.made[1].dies.set_exception(ValueError("once more"))
        await until(lambda: len(Server.made) == 3)
        await found.close()
        assert found._watcher.done()
        assert Server.made[2].stopped == [None]


async def test_one_that_dies_while_it_drains_is_not(caplog: pytest.LogCaptureFixture):
    async with engine() as found:
        await found.start("127.0.0.1:0")
        found.stop_accepting()
        assert found._service.draining
        Server.made[0].dies.set_exception(ValueError("why"))
        await asyncio.wait_for(found._watcher, 10)
        assert len(Server.made) == 1
        assert caplog.records == []


async def test_one_that_ends_as_it_was_told_to_is_not_replaced():
    async with engine() as found:
        await found.start("127.0.0.1:0")
        await Server.made[0].stop(None)
        await asyncio.wait_for(found._watcher, 10)
        assert len(Server.made) == 1


@pytest.mark.parametrize(("pending", "stopped"), [(0, [1.0]), (1, [])])
async def test_a_drain_sends_what_is_left_when_no_call_is_in_flight(pending: int, stopped: list[float]):
    async with engine() as found:
        await found.start("127.0.0.1:0")
        found._service.pending = pending
        await found.drain(0.01)
        assert found._service.draining
        assert Server.made[0].stopped == stopped
        await found.close()


async def test_one_that_never_listened_can_be_closed():
    async with engine() as found:
        await found.close()
        assert found._service.draining


class Starting:
    """The steps of a start, of which the first makes a task."""

    def __init__(self) -> None:
        self.go: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.raised: list[BaseException] = []
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.ensure_future(asyncio.sleep(0))
        for _ in range(2):
            try:
                await asyncio.shield(self.go)
            except BaseException as error:
                self.raised.append(error)
                raise


async def test_the_task_that_a_start_makes_is_found_and_others_are_not():
    steps = Starting()
    started = grpcio_engine._Started(steps.start())
    other = asyncio.ensure_future(asyncio.sleep(0))

    async def begin() -> None:
        await started

    beginning = asyncio.ensure_future(begin())
    await turns()
    assert started.tasks == {steps.task}
    later = asyncio.ensure_future(asyncio.sleep(0))
    steps.go.set_result("a")
    await beginning
    await asyncio.gather(other, later)
    assert started.tasks == {steps.task}


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_what_ends_a_start_is_raised_where_it_waits(how: str):
    steps = Starting()

    async def begin() -> None:
        await grpcio_engine._Started(steps.start())

    beginning = asyncio.ensure_future(begin())
    await turns()
    if how == "cancelled":
        beginning.cancel()
    else:
        steps.go.set_exception(ValueError("why"))
    (told,) = await asyncio.gather(beginning, return_exceptions=True)
    kind = asyncio.CancelledError if how == "cancelled" else ValueError
    assert isinstance(told, kind)
    assert [type(error) for error in steps.raised] == [kind]


async def test_a_start_that_never_waits_is_over_at_once():
    async def at_once() -> None:
        return

    started = grpcio_engine._Started(at_once())
    await started
    assert started.tasks == set()


# One call


async def test_a_call_is_answered_with_its_payload_and_its_metadata_before_it():
    async with engine(revision="r-7") as found:
        context = Context(("x-request-id", "i"), left=5.0)
        answer = pb.ModelInferResponse.FromString(await found._infer(request("9"), context))
        assert (answer.id, context.sent) == ("9", [(("x-request-id", "i"), ("x-serinus-revision", "r-7"))])
        assert found._service.pending == 0
    async with engine() as found:
        context = Context()
        await found._infer(request(), context)
        assert (context.sent, context.callbacks) == ([], [])


async def test_a_call_that_fails_ends_with_its_status_and_its_trailers():
    async with engine(revision="r-7") as found:
        for work in (found._infer, found._unary(f"/{SERVICE}/ModelReady")):
            context = Context()
            with pytest.raises(Ended):
                await work(b"\xff", context)
            ((code, _, trailing),) = context.sent
            assert (code, trailing) == (grpc.StatusCode.INVALID_ARGUMENT, (("x-serinus-revision", "r-7"),))
            assert found._service.pending == 0


async def test_another_unary_call_is_answered_and_counted_while_it_runs():
    async with engine() as found:
        counts: list[int] = []
        call = found._service.call

        async def noted(*words: Any) -> None:
            counts.append(found._service.pending)
            await call(*words)

        found._service.call = noted
        context = Context(("a", "1"))
        answer = await found._unary(f"/{SERVICE}/ServerLive")(b"", context)
        assert pb.ServerLiveResponse.FromString(answer).live
        assert (counts, found._service.pending) == ([1], 0)


@pytest.mark.parametrize("left", [None, 2.5])
async def test_the_time_that_a_call_has_left_is_its_deadline(left: float | None):
    async with engine() as found:
        deadlines: list[float | None] = []

        def infer(message: bytes, headers: Any, deadline: float | None, answer: Any) -> None:
            deadlines.append(deadline)
            answer.fail(Failure(GrpcStatus.INTERNAL, "why"))

        found._service.infer = infer
        with pytest.raises(Ended):
            await found._infer(b"", Context(left=left))
        (deadline,) = deadlines
        assert deadline is None if left is None else abs(deadline - time.monotonic() - left) < 1


class Slow(RequestModel):
    """Never answers; says when it is left."""

    left = 0

    async def infer(self, request: InferRequest) -> InferResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            Slow.left += 1
            raise
        raise AssertionError


@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_cancels_its_request(begun: bool):
    Slow.left = 0
    async with engine(Slow) as found:
        if not begun:
            found._service.infer = lambda *words: None
        calling = asyncio.ensure_future(found._infer(request(), Context()))
        await turns()
        assert found._service.pending == 1
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await turns()
        assert (Slow.left, found._service.pending) == (int(begun), 0)


async def test_what_is_told_first_is_the_answer():
    pending = grpcio_engine._Pending(asyncio.get_running_loop())
    pending.respond(b"a", None)
    pending.respond(b"b", None)
    pending.fail(Failure(GrpcStatus.INTERNAL, "late"))
    assert await pending.future == (b"a", None)
    pending = grpcio_engine._Pending(asyncio.get_running_loop())
    pending.fail(Failure(GrpcStatus.INTERNAL, "why"))
    pending.respond(b"late", None)
    assert await pending.future == Failure(GrpcStatus.INTERNAL, "why")


# Answers that wait for their clients


@pytest.mark.parametrize(("size", "counted"), [(4096, False), (4097, True)])
async def test_an_answer_of_more_than_a_few_kilobytes_waits_until_its_call_is_over(size: int, counted: bool):
    async with engine() as found:
        found._service.infer = lambda message, headers, deadline, answer: answer.respond(b"x" * size, None)
        account, context = found._service.unsent, Context()
        assert len(await found._infer(b"", context)) == size
        assert account.waiting_bytes == (size if counted else 0)
        account.look()
        assert account.waiting_bytes == (size if counted else 0), "grpc-core tells nothing of it"
        for callback in context.callbacks:
            callback(context)
        assert account.waiting_bytes == 0
        account.look()
        assert account._readers == {}


async def test_answers_that_are_ready_in_one_turn_are_each_counted_before_the_next_is_asked_about():
    async with engine() as found:
        account, answers, seen = found._service.unsent, [], []
        found._service.infer = lambda message, headers, deadline, answer: answers.append(answer)
        contexts = [Context() for _ in range(3)]
        calling = [asyncio.ensure_future(found._infer(b"", context)) for context in contexts]
        await turns(1)
        for answer in answers:
            seen.append(account.waiting_bytes)
            answer.respond(b"x" * 5000, None)
        assert seen == [0, 5000, 10000]
        await asyncio.gather(*calling)
        assert account.waiting_bytes == 15000
        for context in contexts:
            for callback in context.callbacks:
                callback(context)
        assert account.waiting_bytes == 0


async def test_an_answer_whose_call_is_cancelled_before_it_goes_on_is_not_counted_any_more():
    async with engine() as found:
        answers: list[Any] = []
        found._service.infer = lambda message, headers, deadline, answer: answers.append(answer)
        calling = asyncio.ensure_future(found._infer(b"", Context()))
        await turns(1)
        answers[0].respond(b"x" * 5000, None)
        assert found._service.unsent.waiting_bytes == 5000
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert found._service.unsent.waiting_bytes == 0


async def test_who_takes_too_long_is_given_up_and_its_call_cancelled():
    account = UnsentAnswers()
    reading = grpcio_engine._Reading(account, 5000)
    context = Context()

    async def call() -> None:
        reading.follow(context)
        await asyncio.Event().wait()

    calling = asyncio.ensure_future(call())
    await turns(1)
    assert (reading.unsent(), account.waiting_bytes, reading.tells_pace) == (5000, 5000, False)
    assert reading.give_up()
    assert (reading.unsent(), account.waiting_bytes) == (0, 0)
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert grpcio_engine._Reading(account, 5).give_up(), "before its call is known"


# Clients that have gone


@pytest.mark.parametrize(
    ("error", "is_gone"), [(GONE, True), (WRONG, False), (ValueError("Failed grpc_call_finish"), False), (None, False)]
)
def test_only_what_was_sent_to_a_call_that_is_over_tells_of_a_client_that_has_gone(error: Any, is_gone: bool):
    assert grpcio_engine._is_gone(error) is is_gone
    record = logging.LogRecord("grpc", logging.ERROR, "", 0, "m", (), (type(error), error, None) if error else None)
    assert grpcio_engine._NO_NEWS.filter(record) is not is_gone


async def test_grpc_aios_log_is_without_them(caplog: pytest.LogCaptureFixture):
    async with engine() as found:
        await found.start("127.0.0.1:0")
        log = logging.getLogger("grpc._cython.cygrpc")
        for error in (GONE, WRONG):
            log.error("told", exc_info=error)
        log.error("also told")
        assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [WRONG, None]
        await found.close()


@pytest.mark.parametrize(
    ("error", "raised"), [(GONE, asyncio.CancelledError), (WRONG, cygrpc.ExecuteBatchError), (ValueError(), ValueError)]
)
async def test_what_is_sent_to_one_that_has_gone_ends_as_a_cancellation(error: Exception, raised: type[BaseException]):
    with pytest.raises(raised):
        await grpcio_engine._finish(Context(sends=error), (b"", (("a", "1"),)))
    with pytest.raises(raised):
        await grpcio_engine._end(Context(sends=error), Failure(GrpcStatus.INTERNAL, "why"))
    assert await grpcio_engine._finish(Context(sends=error), (b"x", None)) == b"x", "nothing is sent before it"


async def stream_of(
    *messages: bytes, ends: BaseException | None = None, closed: list[str] | None = None
) -> AsyncIterator[bytes]:
    try:
        for message in messages:
            yield message
        if ends is not None:
            raise ends
    finally:
        if closed is not None:
            closed.append("closed")


async def read_into(found: list[bytes], stream: AsyncIterator[bytes]) -> None:
    async for each in stream:
        found.append(each)  # noqa: PERF401 # what came before an error is looked at


async def test_a_stream_is_read_as_long_as_there_is_a_call():
    found = []
    with pytest.raises(asyncio.CancelledError):
        await read_into(found, grpcio_engine._received(stream_of(b"a", b"b", ends=aio.UsageError("over"))))
    assert found == [b"a", b"b"]
    assert [each async for each in grpcio_engine._received(stream_of(b"a"))] == [b"a"]
    with pytest.raises(ValueError, match="why"):
        [each async for each in grpcio_engine._received(stream_of(ends=ValueError("why")))]


async def test_a_stream_of_answers_ends_with_the_status_of_its_error_and_is_closed_when_it_is_left():
    closed: list[str] = []
    context, found = Context(), []
    with pytest.raises(Ended):
        await read_into(
            found, grpcio_engine._ending_well(stream_of(b"a", ends=InvalidInput("why"), closed=closed), context)
        )
    assert (found, closed) == ([b"a"], ["closed"])
    assert [told[:2] for told in context.sent] == [(grpc.StatusCode.INVALID_ARGUMENT, "why")]
    left = grpcio_engine._ending_well(stream_of(b"a", b"b", closed=closed), Context())
    assert await anext(left) == b"a"
    await left.aclose()  # type: ignore[attr-defined] # it is a generator
    assert closed == ["closed"] * 2
    assert [each async for each in grpcio_engine._ending_well(stream_of(b"a", closed=closed), Context())] == [b"a"]
    assert closed == ["closed"] * 3


# Streams


async def test_a_stream_that_mostly_waits_keeps_a_place_and_ends_when_it_loses_it():
    async with engine() as found:
        streams = found._service.idle_streams
        places: list[Any] = []
        place = streams.place

        @contextlib.contextmanager
        def noted(client: str) -> Any:
            try:
                with place(client) as lost:
                    places.append((client, lost))
                    yield lost
            finally:
                places.append("left")

        streams.place = noted
        assert [each async for each in found._in_place(stream_of(b"a", b"b"), Context())] == [b"a", b"b"]
        assert (places[0][0], places[1:]) == ("ipv4:127.0.0.1", ["left"])
        closed: list[str] = []

        async def waits() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                await asyncio.Event().wait()
            finally:
                closed.append("closed")

        passed = found._in_place(waits(), Context())
        assert await anext(passed) == b"a"
        following = asyncio.ensure_future(anext(passed))
        await turns()
        assert not following.done()
        places[2][1].set_result(None)
        with pytest.raises(Overloaded):
            await following
        assert (closed, places[3]) == (["closed"], "left")
        passed = found._in_place(waits(), Context())
        await anext(passed)
        following = asyncio.ensure_future(anext(passed))
        await turns()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        assert (closed, places[5]) == (["closed"] * 2, "left")


async def answers(found: Any, path: str, context: Context, *messages: bytes) -> list[bytes]:
    """What a stream's handler answers."""
    handler = found._handlers()[path]
    if handler.stream_stream is not None:
        stream = handler.stream_stream(stream_of(*messages), context)
    else:
        stream = handler.unary_stream(*messages, context)
    try:
        return [await anext(stream)]
    finally:
        await stream.aclose()


async def test_each_stream_is_answered_and_those_that_need_a_token_ask_for_it_before_they_are_read():
    access = RequestAccess(Tokens([TOKEN]))
    async with engine(request_access=access) as found:
        known = Context(("authorization", f"Bearer {TOKEN}"))
        (answer,) = await answers(found, INFER_STREAM, known, request("9"))
        assert pb.ModelStreamInferResponse.FromString(answer).infer_response.id == "9"
        listed = b"\x3a\x00"  # list_services: ""
        (answer,) = await answers(found, REFLECTION_PATHS[1], known, listed)
        for name in (
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ):
            assert name.encode() in answer
        for path in (INFER_STREAM, *REFLECTION_PATHS):
            context = Context()
            with pytest.raises(Ended):
                await answers(found, path, context, b"\xff")
            assert [told[0] for told in context.sent] == [grpc.StatusCode.UNAUTHENTICATED]
        (answer,) = await answers(found, "/grpc.health.v1.Health/Watch", Context(), b"")
        assert answer == b"\x08\x01"


async def test_a_stream_has_its_metadata_and_its_deadline():
    async with engine() as found:
        seen: list[Any] = []
        infer = found._service.infer

        def noted(message: bytes, headers: Any, deadline: Any, answer: Any, **more: Any) -> Any:
            seen.append((headers, deadline))
            return infer(message, headers, deadline, answer, **more)

        found._service.infer = noted
        await answers(found, INFER_STREAM, Context(("tenant", "a"), left=50.0), request())
        ((headers, deadline),) = seen
        assert headers == {"tenant": "a"}
        assert abs(deadline - time.monotonic() - 50) < 10


# Certificates


def test_without_certificates_there_are_no_credentials():
    assert credentials_of(None) is None


@pytest.mark.parametrize("client_ca", [None, b"ca"])
def test_each_handshake_is_made_with_what_is_loaded_then(client_ca: bytes | None, monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    monkeypatch.setattr(
        grpcio_engine.grpc, "ssl_server_certificate_configuration", lambda pairs, ca: (tuple(pairs), ca)
    )
    monkeypatch.setattr(
        grpcio_engine.grpc,
        "dynamic_ssl_server_credentials",
        lambda first, newest, **more: made.append((first, newest, more)) or "credentials",
    )
    certificates: Any = SimpleNamespace(loaded=Loaded(b"chain", b"key", client_ca, 0.0, None))
    assert credentials_of(certificates) == "credentials"
    ((first, newest, more),) = made
    assert first == (((b"key", b"chain"),), client_ca)
    assert more == {"require_client_authentication": client_ca is not None}
    assert newest() is None, "it is as it was"
    certificates.loaded = Loaded(b"chain 2", b"key 2", client_ca, 0.0, None)
    assert newest() == (((b"key 2", b"chain 2"),), client_ca)
    assert newest() is None
