"""TLS over a plain transport, byte by byte: a client's end of OpenSSL in memory, and what was asked of the transport below and told to the protocol above."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from grpc_support import loaded, tls_context
from serinus.server.connections import tls_connection
from serinus.server.connections.tls_connection import TlsConnection


class Below(asyncio.Transport):
    """A plain transport that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = bytearray()
        self.asked: list[str] = []
        self.size = 0

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def close(self) -> None:
        self.asked.append("close")

    def abort(self) -> None:
        self.asked.append("abort")

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.size


class Above(asyncio.Protocol):
    """A protocol that notes what it is told; `keeps` says whether it goes on after an end."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.told: list[Any] = []
        self.keeps = keeps

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def eof_received(self) -> bool:
        self.told.append("end")
        return self.keeps

    def pause_writing(self) -> None:
        self.told.append("full")

    def resume_writing(self) -> None:
        self.told.append("room")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(exc)


class Pair:
    """A client's end in memory, and the connection under test."""

    def __init__(self, *, keeps: bool = True, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.above, self.below = Above(keeps=keeps), Below()
        self.server = TlsConnection(loaded().context("h2"), lambda: self.above)
        self.server.connection_made(self.below)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=loaded().chain.decode())
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.maximum_version = version
        self.client = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def pump(self, piece: int = 1 << 20) -> None:
        """Take what each side has for the other, the client's in pieces of so many bytes."""
        sent = self.outgoing.read()
        for start in range(0, len(sent), piece):
            self.server.data_received(sent[start : start + piece])
        self.incoming.write(bytes(self.below.written))
        self.below.written.clear()

    def shake_hands(self, piece: int = 1 << 20) -> None:
        for _ in range(5):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.pump(piece)
            else:
                break
        self.pump(piece)

    def read(self) -> bytes:
        """What the client can read now."""
        self.incoming.write(bytes(self.below.written))
        self.below.written.clear()
        got = b""
        try:
            while piece := self.client.read(1 << 16):
                got += piece
        except ssl.SSLWantReadError:
            pass
        return got


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
async def pair(request: pytest.FixtureRequest) -> Pair:
    made = Pair(version=request.param)
    made.shake_hands()
    assert made.above.told == ["made"]
    assert made.server.handshaken.result() is None
    return made


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
async def test_a_handshake_in_pieces_of_any_size_is_one_and_data_in_it_comes_after_it(piece: int):
    pair = Pair()
    for _ in range(5):
        try:
            pair.client.do_handshake()
        except ssl.SSLWantReadError:
            pair.pump(piece)
        else:
            break
    pair.client.write(b"with the last of the handshake")
    pair.pump(piece)
    assert pair.above.told == ["made", b"with the last of the handshake"]


@pytest.mark.parametrize("size", [1, 16_384, 16_385, 300_000])
async def test_what_comes_together_is_one_piece_and_what_is_written_arrives_whole(pair: Pair, size: int):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pair.client.write(body)
    pair.pump()
    assert pair.above.told[1:] == [body]
    pair.server.write(body)
    pair.server.write(b"")
    assert pair.read() == body


async def test_a_record_in_parts_waits_for_its_rest(pair: Pair):
    pair.client.write(b"x" * 1000)
    sent = pair.outgoing.read()
    pair.server.data_received(sent[:500])
    assert pair.above.told == ["made"]
    pair.server.data_received(sent[500:])
    assert pair.above.told == ["made", b"x" * 1000]


async def test_close_says_goodbye_and_closes_without_waiting_for_one(pair: Pair):
    pair.server.write(b"the last")
    pair.server.close()
    pair.server.close()
    assert pair.below.asked == ["close"]
    assert pair.server.is_closing()
    pair.server.write(b"too late")
    assert pair.read() == b"the last"
    assert pair.client.read(10) == b"", "a goodbye"
    pair.client.write(b"unread")
    pair.pump()
    assert pair.above.told == ["made"]
    pair.server.connection_lost(None)
    assert pair.above.told == ["made", None]


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_goodbye_is_told_as_an_end_and_the_protocol_says_whether_answers_still_come(keeps: bool):
    pair = Pair(keeps=keeps)
    pair.shake_hands()
    pair.client.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.pump()
    assert pair.above.told == ["made", b"last", "end"]
    assert pair.below.asked == ([] if keeps else ["close"])
    assert pair.server.eof_received() is keeps, "and TCP's own end is no second one"
    pair.server.data_received(b"whatever comes after a goodbye")
    assert pair.above.told == ["made", b"last", "end"]


@pytest.mark.parametrize("keeps", [True, False])
async def test_an_end_without_a_goodbye_is_told_too(keeps: bool):
    pair = Pair(keeps=keeps)
    pair.shake_hands()
    assert pair.server.eof_received() is keeps
    assert pair.above.told == ["made", "end"]


async def test_a_damaged_record_ends_the_connection_after_what_came_before_it(pair: Pair):
    pair.client.write(b"good")
    good = pair.outgoing.read()
    pair.client.write(b"bad")
    bad = bytearray(pair.outgoing.read())
    bad[-1] ^= 1
    pair.server.data_received(good + bytes(bad))
    assert pair.above.told == ["made", b"good"]
    assert pair.below.asked == ["abort"]
    pair.server.write(b"nothing more")
    assert pair.server.is_closing()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(200)])
async def test_what_is_no_handshake_is_told_to_who_waits_for_one_and_to_nobody_else(sent: bytes):
    pair = Pair()
    pair.server.data_received(sent)
    assert isinstance(pair.server.handshaken.exception(), ssl.SSLError)
    assert pair.below.asked == ["close"]
    pair.server.data_received(sent)
    pair.server.connection_lost(None)
    assert pair.above.told == []


async def test_a_client_that_leaves_during_its_handshake_is_told_to_who_waits_for_it():
    pair = Pair()
    assert pair.server.eof_received() is False
    pair.server.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await pair.server.handshaken
    assert pair.above.told == []


async def test_a_handshake_that_was_given_up_begins_nothing():
    pair = Pair()
    pair.server.handshaken.cancel()
    pair.server.abort()
    pair.shake_hands()
    assert pair.above.told == []


async def test_a_handshake_that_ends_in_the_turn_in_which_it_is_given_up_begins_nothing():
    pair = Pair()
    pair.server.handshaken.cancel()
    pair.shake_hands()
    assert pair.above.told == []


async def test_flow_control_is_that_of_the_transport_below(pair: Pair):
    pair.server.resume_writing()
    pair.server.pause_writing()
    pair.server.resume_writing()
    assert pair.above.told == ["made", "full", "room"], "room is told of after there was none"
    pair.server.pause_reading()
    pair.server.resume_reading()
    assert pair.below.asked == ["pause", "resume"]
    pair.below.size = 77
    assert pair.server.get_write_buffer_size() == 77
    assert pair.server.get_extra_info("peername") == ("127.0.0.1", 1)
    assert pair.server.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"


@pytest.mark.parametrize(("over", "asked"), [(0, []), (1, ["abort"])])
async def test_a_client_that_has_too_much_waiting_unread_and_still_talks_is_closed(over: int, asked: list[str]):
    """Only what TLS itself answers can come to so much."""
    pair = Pair()
    pair.shake_hands()
    pair.below.size = tls_connection._MOST_UNSENT + over
    pair.client.write(b"x")
    pair.pump()
    assert pair.below.asked == asked


async def test_to_abort_before_there_is_a_transport_harms_nobody():
    server = TlsConnection(loaded().context("h2"), Above)
    server.abort()
    assert server.is_closing()
    assert tls_context().verify_mode == ssl.CERT_REQUIRED
