"""How answers leave: with the request's id and content coding, from a coroutine or at once, as errors; and how bodies come in.

Every API is given a `Responder`; none knows another.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Literal, TypeVar

import orjson

from ...dataplane.response_stream import closing
from ...dataplane.telemetry.metrics import Metrics
from ...dataplane.telemetry.request_records import error_ids
from ...errors import NotReady, Overloaded, SerinusError, UnsupportedMedia
from ...protocol.raw import Buffer
from ...protocol.rest_codec import error_json
from ..http.exchange import Exchange, RawHeaders
from ..refusals import refuse
from .cloudevents import CloudEvent, CloudEventSettings, is_structured, read_event
from .content import CODINGS, choose_coding, compress, decompress, refuses_plain

__all__ = ["JSON", "Reply", "Responder", "Stream"]

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

JSON: Final = "application/json"
_INLINE_BYTES: Final = 256 * 1024
"""Bodies above it are decompressed and read in a thread: 256 KiB take about 1 ms, a probe may wait so long."""
_COMPRESS_INLINE_BYTES: Final = 16 * 1024
"""Bodies above it are compressed in a thread: compressing takes some ten times as long as undoing it."""
_RAW: Final = frozenset({"application/octet-stream", "image/png", "image/jpeg"})
"""What is not compressed unless all is: tensors, and what is compressed in its own way."""

Reply = tuple[int, str, Sequence[Buffer], RawHeaders]
"""Status, content type, body, further fields."""
Stream = tuple[int, str, AsyncIterator[bytes], RawHeaders]
"""The same with the body piece by piece."""


class Responder:
    """Answers exchanges.

    Args:
        metrics: counts the errors that no model's statistics hold.
        body_bytes: most bytes of a body after decompression.
        cloud_events: how events are answered.
        compress: which answers are compressed for a client that asks: "json", "all" or "off".
        compress_min_bytes: answers of fewer bytes are not.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        body_bytes: int,
        cloud_events: CloudEventSettings | None = None,
        compress: Literal["json", "all", "off"] = "json",
        compress_min_bytes: int = 0,
    ) -> None:
        self._compress = compress
        self._compress_min_bytes = compress_min_bytes
        self._metrics = metrics
        self._body_bytes = body_bytes
        self._cloud_events = cloud_events or CloudEventSettings()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._refused: tuple[Overloaded, int, bytes, RawHeaders] | None = None
        """What was refused last, rendered."""

    def close(self) -> None:
        """Stop what is still running; its clients are gone."""
        for task in self._tasks:
            task.cancel()

    def keep(self, task: asyncio.Future[Any]) -> None:
        """Hold a task until it has ended, or `close`."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count(self, status: int) -> None:
        """Count an error that no model's statistics hold."""
        self._metrics.observe_error("rest", status)

    def reply(
        self,
        exchange: Exchange,
        status: int,
        content_type: str,
        chunks: Sequence[Buffer],
        extra: RawHeaders = (),
    ) -> None:
        """Respond, with what the request's headers ask for: its id back, a content coding."""
        headers = exchange.headers
        if headers.plain:
            exchange.respond(status, content_type, chunks, extra)
            return
        fields = _add_request_id(exchange, extra)
        if headers.accept_encoding and status == 200 and chunks and exchange.method != b"HEAD":
            coding = choose_coding(headers.accept_encoding)
            size = sum(map(len, chunks))
            if coding is not None and (
                self._pays(content_type, size) or refuses_plain(headers.accept_encoding)  # whatever it costs
            ):
                fields += [(b"Content-Encoding", coding.encode()), (b"Vary", b"Accept-Encoding")]

                def send(body: bytes) -> None:
                    exchange.respond(status, content_type, [body], fields)

                self.offload(
                    exchange, size, lambda: compress(chunks, coding), send, inline_bytes=_COMPRESS_INLINE_BYTES
                )
                return
        exchange.respond(status, content_type, chunks, fields)

    def _pays(self, content_type: str, size: int) -> bool:
        """Whether an answer is worth compressing: raw tensors hardly shrink, and small ones save no packet."""
        if self._compress == "off" or size < self._compress_min_bytes:
            return False
        return self._compress == "all" or content_type.partition(";")[0] not in _RAW

    def reply_json(self, exchange: Exchange, document: Any, status: int = 200, extra: RawHeaders = ()) -> None:
        """Respond with a JSON document."""
        self.reply(exchange, status, JSON, [orjson.dumps(document)], extra)

    def fail(
        self,
        exchange: Exchange,
        error: BaseException,
        *,
        count: bool = True,
        page: tuple[str, bytes, RawHeaders] | None = None,
    ) -> None:
        """Respond with an error.

        Args:
            exchange: the request.
            error: what it ended with.
            count: it is in no model's statistics.
            page: content type, body and fields in the place of the usual document; None: that.
        """
        refusal = refuse(error, lambda: _name(exchange), log=_log, headers=exchange.headers)
        if count:
            self.count(refusal.http_status)
        extra: list[tuple[bytes, bytes]] = []
        if refusal.allow:
            extra.append((b"Allow", ", ".join(refusal.allow).encode()))
        if refusal.retry_after_s is not None:
            extra.append((b"Retry-After", b"%d" % refusal.retry_after_s))
        if refusal.challenge:
            extra.append((b"WWW-Authenticate", refusal.challenge.encode()))  # RFC 9110, 15.5.2
        if isinstance(error, UnsupportedMedia):
            extra.append((b"Accept-Encoding", ", ".join(CODINGS).encode()))  # RFC 9110, 12.5.3
        content_type, body, fields = page or (JSON, error_json(refusal.message, refusal.ids), ())
        self.reply(exchange, refusal.http_status, content_type, [body], [*extra, *fields])

    def refuse(self, exchange: Exchange, error: Overloaded) -> None:
        """Respond as `fail`, uncounted, to one of many requests that have the same error: it is rendered once."""
        known = self._refused
        if known is None or known[0] is not error:
            refusal = refuse(error, lambda: _name(exchange), log=_log)
            extra = [(b"Retry-After", b"%d" % refusal.retry_after_s)] if refusal.retry_after_s is not None else []
            self._refused = known = (error, refusal.http_status, error_json(refusal.message, refusal.ids), extra)
        _, status, body, fields = known
        self.reply(exchange, status, JSON, [body], fields)

    def spawn(self, exchange: Exchange, work: Coroutine[Any, Any, Reply | Stream]) -> None:
        """Answer from a coroutine; it is cancelled when the client goes."""
        begun = False

        async def run() -> None:
            nonlocal begun
            status, content_type, body, extra = await work
            if not isinstance(body, AsyncIterator):
                self.reply(exchange, status, content_type, body, extra)
                return
            async with closing(body):
                piece = await anext(body, None)  # what fails here still has a status of its own
                begun = True
                exchange.begin(status, content_type, _add_request_id(exchange, extra))
                while piece is not None:
                    if piece:
                        await exchange.send(piece)
                    piece = await anext(body, None)
                exchange.finish()

        task = asyncio.ensure_future(run())
        self._tasks.add(task)

        def done(task: asyncio.Future[None]) -> None:
            self._tasks.discard(task)
            work.close()  # where the task was cancelled before it began
            error = NotReady("the server is stopping") if task.cancelled() else task.exception()
            if error is None or exchange.gone:
                return
            if not isinstance(error, Exception):
                raise error
            if begun:
                self._break_off(exchange, error)
            else:
                self.fail(exchange, error)

        task.add_done_callback(done)
        exchange.pending = task

    def _break_off(self, exchange: Exchange, error: Exception) -> None:
        """End an answer in pieces that cannot be completed: its status has been sent, so only the log can say why."""
        what = f"{_name(exchange)} broke off"
        if isinstance(error, SerinusError):
            _log.error("%s: %s", what, error, extra={"ids": error_ids(exchange.headers)})
        else:
            _log.error("%s", what, exc_info=error, extra={"ids": error_ids(exchange.headers)})
        exchange.finish(whole=False)

    def offload(
        self,
        exchange: Exchange,
        size: int,
        work: Callable[[], _Result],
        then: Callable[[_Result], None],
        *,
        inline_bytes: int = _INLINE_BYTES,
    ) -> None:
        """Do byte work here if it is small, else in a thread; `then` is called on the loop's thread, and not at all where the client has gone.

        Args:
            exchange: answered with the error where the work or `then` fails in a thread's stead; here it is raised.
            size: bytes that are worked on.
            work: of them.
            then: given its result.
            inline_bytes: what is small.
        """
        if size <= inline_bytes:
            then(work())
            return
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._tasks.add(future)

        def done(future: asyncio.Future[_Result]) -> None:
            self._tasks.discard(future)
            if future.cancelled() or exchange.gone:
                return
            try:
                then(future.result())
            except Exception as error:  # noqa: BLE001 # the edge of a request
                self.fail(exchange, error)

        future.add_done_callback(done)

    async def aside(self, size: int, work: Callable[[], _Result]) -> _Result:
        """Do byte work here if it is small, else in a thread, for a coroutine."""
        return work() if size <= _INLINE_BYTES else await asyncio.get_running_loop().run_in_executor(None, work)

    def inflate(self, exchange: Exchange, then: Callable[[bytes], None]) -> None:
        """Undo the content coding, and go on with the body."""
        coding = exchange.headers.content_encoding
        if not coding:
            then(exchange.body)
            return
        body, limit = exchange.body, self._body_bytes
        self.offload(exchange, len(body), lambda: decompress(body, coding, limit), then)

    def unpack(self, exchange: Exchange, then: Callable[[bytes, CloudEvent | None], None]) -> None:
        """Undo content coding and CloudEvent, and go on with the body."""
        headers = exchange.headers

        def go_on(body: bytes) -> None:
            if len(body) <= _INLINE_BYTES:
                read(read_event(headers, body, self._cloud_events), body)
                return
            self.offload(
                exchange,
                len(body) if is_structured(headers) else 0,
                lambda: read_event(headers, body, self._cloud_events),
                lambda event: read(event, body),
            )

        def read(event: CloudEvent | None, body: bytes) -> None:
            then(body if event is None else event.data, event)

        _check_charset(headers.content_type)
        if not headers.content_encoding:
            go_on(exchange.body)
        else:
            self.inflate(exchange, go_on)

    def answer(self, exchange: Exchange, value: Any, render: Callable[[Any], Reply]) -> None:
        """Render what the plane says, now or when it comes."""
        if not inspect.isawaitable(value):
            self.reply(exchange, *render(value))
            return

        async def wait() -> Reply:
            return render(await value)

        self.spawn(exchange, wait())


def _name(exchange: Exchange) -> str:
    """Name a request in the log."""
    return f"{exchange.method.decode()} {exchange.target[:200].decode('latin-1')}"


def _add_request_id(exchange: Exchange, fields: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Add the id of the request, unless the model set one."""
    headers = exchange.headers
    if headers.request_id is None or any(name.lower() == b"x-request-id" for name, _ in fields):
        return list(fields)
    return [*fields, *headers.request_id_back()]


def _check_charset(content_type: bytes) -> None:
    """Refuse JSON in another charset than UTF-8 (RFC 8259, 8.1)."""
    for parameter in content_type.lower().split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip(b' "') not in (b"utf-8", b"utf8", b"us-ascii"):
            shown = value.strip(b' "')[:32].decode("latin-1")
            raise UnsupportedMedia(f"the charset {shown!r} is not offered; expected utf-8")
