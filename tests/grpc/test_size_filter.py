"""The guard before the native front: nothing that is within the limit is changed, nothing that is over it passes."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serinus.errors import InvalidInput, TooLarge
from serinus.server.grpc.deflate import DEFLATED, inflate
from serinus.server.grpc.relays import relay as relay_module
from serinus.server.grpc.relays.relay import Relay
from serinus.server.grpc.relays.size_filter import INFLATED_HERE, FrameGuard

LIMIT = 100_000
NOISE = random.Random(1)
"""Bytes that do not shrink."""
MARKER = b"\xffmarker"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def message(payload: bytes, compressed: int = 0, claim: int | None = None) -> bytes:
    return struct.pack("!BI", compressed, len(payload) if claim is None else claim) + payload


def squeezed(payload: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(payload) + packer.flush()


def data_frames(stream: int, body: bytes, *, most: int = 16384, end: bool = True) -> list[bytes]:
    pieces = [body[i : i + most] for i in range(0, len(body), most)] or [b""]
    return [frame(0, int(end and i == len(pieces) - 1), stream, piece) for i, piece in enumerate(pieces)]


def guard() -> FrameGuard:
    fresh = FrameGuard(LIMIT, MARKER)
    assert fresh.feed(PREFACE + frame(4, 0, 0)) == PREFACE + frame(4, 0, 0)
    return fresh


def messages_of(data: bytes) -> dict[int, tuple[bytes, bool]]:
    """Stream to (joined DATA payloads without padding, whether it ended), as the front would see them."""
    streams: dict[int, tuple[bytes, bool]] = {}
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
        payload, data = data[9 : 9 + length], data[9 + length :]
        assert len(payload) == length, "a frame is cut short"
        assert length <= 16384, "a frame is larger than HTTP/2 allows"
        if kind == 0:
            if flags & 8:
                payload = payload[1 : len(payload) - payload[0]]
            before, ended = streams.get(stream, (b"", False))
            assert not ended, "DATA after END_STREAM"
            streams[stream] = before + payload, bool(flags & 1)
    return streams


REFUSED = (message(MARKER), True)


@pytest.mark.slow  # a second of inflating
@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=5),
    most=st.integers(1, 16384),
    cuts=st.lists(st.integers(1, 5_000), min_size=1, max_size=30),
    pack=st.booleans(),
)
def test_what_is_within_the_limit_passes_unchanged_however_it_is_cut(sizes, most, cuts, pack):
    body = b"".join(message(squeezed(NOISE.randbytes(n)), 1) if pack else message(NOISE.randbytes(n)) for n in sizes)
    sent = b"".join(data_frames(1, body, most=max(most, len(body) // 200 + 1)))
    checked, got, position, turn = guard(), [], 0, 0
    while position < len(sent):
        step = cuts[turn % len(cuts)]
        got.append(checked.feed(sent[position : position + step]))
        position, turn = position + step, turn + 1
    assert b"".join(got) == sent
    assert not checked._messages, "finished streams leave nothing behind"
    assert checked.dropped == 0


@pytest.mark.parametrize("claim", [LIMIT + 1, 2**31, 2**32 - 1])
def test_an_announced_length_over_the_limit_is_replaced_by_the_marker_at_once(claim):
    checked = guard()
    got = checked.feed(frame(1, 4, 1, b"headers") + frame(0, 0, 1, message(b"abc", claim=claim)))
    assert messages_of(got) == {1: REFUSED}
    assert checked.feed(frame(0, 0, 1, b"x" * 16384)) == b""
    assert checked.feed(frame(0, 1, 1, b"x")) == b""
    assert checked.dropped > 16384
    assert not checked._messages


def test_the_largest_message_allowed_passes():
    sent = b"".join(data_frames(1, message(bytes(LIMIT))))
    assert guard().feed(sent) == sent


@pytest.mark.slow
@pytest.mark.parametrize("size", [LIMIT + 1, 10 * LIMIT, 2000 * LIMIT])
def test_a_gzip_message_that_inflates_over_the_limit_is_replaced_by_the_marker(size):
    checked = guard()
    got = b"".join(checked.feed(piece) for piece in data_frames(1, message(squeezed(bytes(size)), 1)))
    assert messages_of(got) == {1: REFUSED}


def test_the_reserved_bit_of_a_frame_s_stream_hides_no_piece_of_a_message():
    """The front ignores it (RFC 9113, 4.1); such a frame, read as a stream of its own, may look like a whole plain message."""
    limit = 2_000_000
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bomb.compress(bytes(15_000_000)) + bomb.flush()
    looks_plain = message(piece)
    noise = NOISE.randbytes(1_200_000)  # more than is held
    blocks = [*(noise[at : at + 16000] for at in range(0, len(noise), 16000)), looks_plain[:5]]
    stored = b"".join(b"\0" + struct.pack("<HH", len(block), len(block) ^ 0xFFFF) + block for block in blocks)
    packed = squeezed(b"")[:10] + stored[:-5]
    first = message(packed, 1, claim=len(packed) + len(looks_plain))
    sent = b"".join(data_frames(1, first, end=False)) + frame(0, 1, 1 | 1 << 31, looks_plain)
    checked = FrameGuard(limit, MARKER)
    checked.feed(PREFACE)
    body, ended = messages_of(checked.feed(sent))[1]
    assert ended
    assert len(body) < 5 + int.from_bytes(body[1:5], "big"), "the front must see that the message is incomplete"


def test_a_gzip_message_too_large_to_hold_is_cut_short_where_it_passes_the_limit():
    checked = FrameGuard(5_000_000, MARKER)
    checked.feed(PREFACE)
    noise = NOISE.randbytes(3_000_000)  # more than is held, and then a bomb
    got = b"".join(checked.feed(piece) for piece in data_frames(1, message(squeezed(noise + bytes(10_000_000)), 1)))
    body, ended = messages_of(got)[1]
    assert ended
    assert len(body) < 5 + int.from_bytes(body[1:5], "big"), "the front must see that the message is incomplete"


def test_a_refused_stream_does_not_touch_its_neighbours():
    checked = guard()
    good = message(b"good")
    got = checked.feed(
        frame(0, 0, 3, good[:4])
        + frame(0, 0, 1, message(b"", claim=LIMIT + 1))
        + frame(0, 1, 3, good[4:])
        + frame(0, 1, 5, good)
        + frame(0, 1, 1, b"rest")
    )
    assert messages_of(got) == {3: (good, True), 1: REFUSED, 5: (good, True)}


def test_messages_before_a_large_one_on_the_same_stream_are_delivered():
    got = guard().feed(frame(0, 0, 1, message(b"first") + message(b"", claim=LIMIT + 1)))
    assert messages_of(got) == {1: (message(b"first") + message(MARKER), True)}


def test_padding_is_not_taken_for_a_message():
    large = message(b"x", claim=LIMIT + 1)
    assert messages_of(guard().feed(frame(0, 9, 1, bytes((7,)) + large + bytes(7)))) == {1: REFUSED}
    fits = frame(0, 9, 1, bytes((7,)) + message(b"good") + b"\xff" * 7)
    assert guard().feed(fits) == fits


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", id="HTTP/1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(PREFACE[:10] + b"x" * 50, id="broken preface"),
        pytest.param(PREFACE + b"\xff\xff\xff" + bytes(100), id="frame of 16 MiB"),
        pytest.param(PREFACE + frame(0, 8, 1, b"\xff\x00"), id="padding longer than the frame"),
    ],
)
def test_what_is_no_HTTP2_passes_so_that_the_front_refuses_it(bad):
    checked = FrameGuard(LIMIT, MARKER)
    assert checked.feed(bad) + checked.feed(b"more") == bad + b"more" or checked._tail == b"more"


def test_a_gzip_flag_on_what_is_no_gzip_passes_so_that_the_front_refuses_it():
    sent = frame(0, 1, 1, message(b"this is no gzip at all", 1))
    assert guard().feed(sent) == sent


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 4000),
    st.integers(200, 9000),
    st.integers(0, 6000),
)
def test_what_is_inflated_later_comes_out_as_what_is_inflated_at_once(messages, pack, cut, most):
    """Messages of noise or of zeros, plain or gzip, in frames of so many bytes, read in pieces, of which so many may be inflated."""
    stream = b"".join(
        message(squeezed(payload) if is_gzip else payload, int(is_gzip))
        for size, is_gzip, is_noise in messages
        for payload in [NOISE.randbytes(size) if is_noise else bytes(35 * size)]
    )
    sent = PREFACE + b"".join(
        frame(0, 0, 1, stream[at : at + pack]) for at in range(0, len(stream), pack) if len(stream) < 500 * pack
    )
    at_once, later = FrameGuard(LIMIT, MARKER), FrameGuard(LIMIT, MARKER)
    expected, got = b"", b""
    for start in range(0, len(sent), cut):
        piece = sent[start : start + cut]
        expected += at_once.feed(piece)
        got += later.feed(piece, most)
        while later.has_work:
            got += later.feed(b"")
    assert got == expected
    assert later.dropped == at_once.dropped


def test_no_read_has_more_inflated_at_once_than_a_few_milliseconds_of_it():
    bomb = squeezed(bytes(60 << 20))
    sent = b"".join(frame(0, 0, 1, (message(bomb, 1))[at : at + 16384]) for at in range(0, len(bomb) + 5, 16384))
    guard = FrameGuard(64 << 20, MARKER)
    guard.feed(PREFACE)
    assert guard.feed(sent, INFLATED_HERE) == b""
    assert guard.has_work
    assert not guard._messages, "nothing of it was looked into"
    assert guard.feed(b"") == sent
    assert not guard.has_work
    small = FrameGuard(64 << 20, MARKER)
    small.feed(PREFACE)
    honest = frame(0, 1, 1, message(squeezed(bytes(5000)), 1))
    assert small.feed(honest, INFLATED_HERE) == honest, "a small message goes its way at once"


def test_a_reset_stream_leaves_nothing_behind():
    checked = guard()
    checked.feed(frame(0, 0, 1, message(squeezed(bytes(90_000)), 1, claim=5000)[:50]) + frame(0, 0, 3, b"\x00"))
    assert set(checked._messages) == {1, 3}
    assert checked.feed(frame(3, 0, 1, bytes(4)) + frame(3, 0, 3, bytes(4))) == frame(3, 0, 1, bytes(4)) + frame(
        3, 0, 3, bytes(4)
    )
    assert not checked._messages


def test_a_message_in_frames_of_one_byte_passes_and_one_over_the_limit_is_cut_as_soon_as_it_says_so():
    checked = guard()
    for body in (message(b"good") + message(b""), message(squeezed(b"good"), 1)):
        sent = b"".join(data_frames(1, body, most=1))
        assert checked.feed(sent) == sent
    pieces = data_frames(3, message(b"x", claim=LIMIT + 1), most=1)
    assert checked.feed(b"".join(pieces[:4])) == b"".join(pieces[:4])  # the length is not whole
    assert checked.feed(pieces[4]) == frame(0, 1, 3)
    assert checked.feed(pieces[5]) == b""
    assert not checked._messages


def test_a_gzip_message_is_held_until_its_size_is_known_or_a_mebibyte_of_it_is_there():
    checked = FrameGuard(5_000_000, MARKER)
    checked.feed(PREFACE)
    short = data_frames(1, message(squeezed(NOISE.randbytes(40_000)), 1))
    assert [checked.feed(piece) for piece in short[:-1]] == [b""] * (len(short) - 1)
    assert checked.feed(short[-1]) == b"".join(short)
    long = data_frames(3, message(squeezed(NOISE.randbytes(2_000_000)), 1))
    passed = [checked.feed(piece) for piece in long]
    most = (1 << 20) // (16384 + 9)
    assert [bool(got) for got in passed[: most + 2]] == [False] * most + [True] * 2
    assert b"".join(passed) == b"".join(long)
    assert checked.dropped == 0


def test_every_byte_that_the_front_will_never_see_is_counted():
    checked = guard()
    checked.feed(frame(0, 0, 1, message(b"", claim=LIMIT + 1)))
    assert checked.dropped == 16384  # what a frame may hold at most
    checked.feed(frame(0, 0, 1, bytes(1000)) + frame(0, 1, 1, bytes(24)))
    assert checked.dropped == 16384 + 1024
    held = frame(0, 0, 3, message(squeezed(NOISE.randbytes(500)), 1)[:300])
    assert checked.feed(held) == b""
    checked.feed(frame(1, 5, 3, b"trailers"))  # the client ends before its message does
    assert checked.dropped == 16384 + 1024 + len(held)
    assert not checked._messages
    packed = message(squeezed(NOISE.randbytes(20_000) + bytes(2 * LIMIT)), 1)
    first, *rest = data_frames(5, packed)
    before = checked.dropped
    checked.feed(first)
    checked.feed(b"".join(rest))
    assert checked.dropped == before + 16384 + len(first)


# The relay: real sockets, and in the front's place a server that keeps what it gets.


@asynccontextmanager
async def relayed(
    path: Path, guard: Callable[[], FrameGuard] = lambda: FrameGuard(LIMIT, MARKER)
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, set[Relay]]]:
    """A client of a relay to a Unix socket."""
    relays: set[Relay] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Relay(str(path), guard(), relays), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer, relays
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def front(path: Path, answer: bytes) -> AsyncIterator[bytearray]:
    """Keeps what comes, and answers when the other side has ended."""
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            got.extend(data)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield got
    finally:
        server.close()
        await server.wait_closed()


class HeldGuard(FrameGuard):
    """Whose work in a thread begins when it is let."""

    def __init__(self) -> None:
        super().__init__(LIMIT, MARKER)
        self.let = threading.Event()
        self.threads: list[str] = []

    def feed(self, data: bytes, *most: int) -> bytes:
        if not most:
            self.threads.append(threading.current_thread().name)
            assert self.let.wait(60)
        return super().feed(data, *most)


async def test_while_a_large_message_is_inflated_the_loop_serves_others_and_nothing_changes_its_order(tmp_path: Path):
    held = HeldGuard()
    guards = [held]
    large = frame(0, 0, 1, message(squeezed(bytes(LIMIT)), 1) + message(squeezed(NOISE.randbytes(5000)), 1))
    conversation = [PREFACE + frame(0, 0, 3, message(b"before")), large, frame(0, 1, 5, message(b"after"))]
    async with (
        front(tmp_path / "front", b"answer") as got,
        front(tmp_path / "other", b"answer") as of_other,
        relayed(tmp_path / "front", lambda: guards.pop()) as (reader, writer, _),
        relayed(tmp_path / "other") as (_, another, _),
    ):
        for piece in conversation:
            writer.write(piece)
        writer.write_eof()
        while not held.threads:
            await asyncio.sleep(0.001)
        another.write(PREFACE + frame(0, 1, 1, message(b"meanwhile")))
        while b"meanwhile" not in of_other:
            await asyncio.sleep(0.001)
        assert b"before" in got
        assert large[20:] not in got
        held.let.set()
        assert await reader.read() == b"answer"
        assert bytes(got) == b"".join(conversation)
        assert threading.current_thread().name not in held.threads


async def test_a_client_that_leaves_while_its_message_is_inflated_is_let_go_when_that_is_done(tmp_path: Path):
    held = HeldGuard()
    async with (
        front(tmp_path / "front", b""),
        relayed(tmp_path / "front", lambda: held) as (_, writer, relays),
    ):
        writer.write(PREFACE + frame(0, 0, 1, message(squeezed(NOISE.randbytes(9000)), 1)))
        while not held.threads:
            await asyncio.sleep(0.001)
        writer.transport.abort()
        held.let.set()
        while relays:
            await asyncio.sleep(0.001)


async def test_a_client_that_has_sent_all_still_gets_its_answer(tmp_path: Path):
    async with front(tmp_path / "front", b"answer") as got, relayed(tmp_path / "front") as (reader, writer, relays):
        sent = PREFACE + frame(0, 1, 1, message(b"good"))
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b"answer"
        assert bytes(got) == sent
    assert not relays


async def test_a_connection_that_had_too_much_dropped_is_closed_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(relay_module, "DROPPED_MOST", 50_000)
    async with front(tmp_path / "front", b"") as got, relayed(tmp_path / "front") as (reader, writer, _):
        large = frame(0, 1, 1, message(b"", claim=LIMIT + 1))
        writer.write(PREFACE + 3 * large)  # 49,152 of them
        await writer.drain()
        while got.count(MARKER) < 3:
            await asyncio.sleep(0.01)  # until the front has them: the connection is open still
        writer.write(large)
        with suppress(ConnectionError):
            assert await reader.read() == b""
    assert "65536 bytes were over the size limit" in caplog.text


async def test_where_no_front_accepts_the_client_is_let_go_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with relayed(tmp_path / "nobody") as (reader, _, relays):
        with suppress(ConnectionError):
            assert await reader.read() == b""
        assert not relays
    assert "the gRPC front does not accept" in caplog.text


# Deflate


@given(
    payload=st.binary(min_size=1, max_size=60_000),
    most=st.integers(7, 16384),
    cuts=st.lists(st.integers(1, 5_000), min_size=1, max_size=30),
)
def test_a_deflate_message_arrives_under_another_name_and_of_the_same_length(payload, most, cuts):
    headers = frame(1, 4, 1, b"\x40\x0dgrpc-encoding\x07deflate\xc2")
    body = message(zlib.compress(payload), 1)
    sent = headers + b"".join(data_frames(1, body, most=max(most, len(body) // 200 + 1)))
    checked, got, position, turn = guard(), [], 0, 0
    while position < len(sent):
        step = cuts[turn % len(cuts)]
        got.append(checked.feed(sent[position : position + step]))
        position, turn = position + step, turn + 1
    passed = b"".join(got)
    assert len(passed) == len(sent)
    assert passed.startswith(headers.replace(b"grpc-encoding", b"serinus-codec"))
    seen, ended = messages_of(passed)[1]
    assert ended
    assert seen[:7] == b"\0" + body[1:5] + DEFLATED
    assert inflate(seen[5:], LIMIT) == payload
    assert not checked._messages


def test_deflate_messages_on_one_stream_are_each_renamed_and_plain_ones_between_are_not():
    body = message(zlib.compress(b"one"), 1) + message(b"two") + message(zlib.compress(b"three"), 1)
    seen, _ = messages_of(guard().feed(frame(0, 9, 1, bytes((4,)) + body + bytes(4))))[1]
    assert len(seen) == len(body)
    assert seen.count(DEFLATED) == 2
    assert message(b"two") in seen


def test_the_name_of_the_coding_within_a_message_is_left_alone():
    sent = frame(0, 1, 1, message(b"\x0dgrpc-encoding\x07deflate"))
    assert guard().feed(sent) == sent


def test_what_inflates_over_the_limit_or_is_damaged_is_refused():
    whole = DEFLATED + zlib.compress(bytes(LIMIT))[2:]
    assert inflate(whole, LIMIT) == bytes(LIMIT)
    with pytest.raises(TooLarge, match=f"more than {LIMIT - 1} bytes after deflate"):
        inflate(whole, LIMIT - 1)
    for damaged in (whole[:-1], whole[:-1] + b"?", whole + b"?", whole[:-9], DEFLATED, DEFLATED + b"\xff" * 9):
        with pytest.raises(InvalidInput, match="damaged"):
            inflate(damaged, LIMIT)
