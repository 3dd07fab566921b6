"""What stands in for a loop that is held takes, answers and hands over; connections are real ones, and so is each byte."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from serinus.server.http.stand_in import StandIn

PATH, BODY = b"/v2/health/live", b'{"live":true}'
HEAD = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\nConnection: close\r\n\r\n" + BODY
MOST = 256


class Place:
    """A listener, who stands in for it, and what was handed over."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.adopted: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self.stand_in = StandIn(self.listener, {PATH: BODY}, self.adopted.append)

    def connect(self, sent: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        self.clients.append(client)
        if sent:
            client.sendall(sent)
        return client

    def serve(self) -> None:
        self.stand_in.serve(5.0 if self.clients else 0.0)

    def unread(self) -> list[bytes]:
        """What whoever adopted a connection reads of it."""
        found = []
        for one in self.adopted:
            one.setblocking(False)
            try:
                found.append(one.recv(100_000))
            except BlockingIOError:
                found.append(b"nothing yet")
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    for one in (found.listener, *found.clients, *found.adopted, *found.stand_in._silent.values()):
        one.close()


def everything(client: socket.socket) -> bytes:
    found = b""
    while more := client.recv(4096):
        found += more
    return found


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD.replace(b"1.1", b"1.0"),
        b"GET /v2/health/live HTTP/1.1\r\n\r\n",
        HEAD.replace(b"Host: a", b"Accept: */*\r\nUser-Agent: kube-probe/1.30"),
    ],
    ids=["1.1", "1.0", "no fields", "the kubelet's"],
)
def test_a_plain_probe_is_answered_and_its_connection_closed(head: bytes, place: Place):
    client = place.connect(head)
    place.serve()
    assert everything(client) == ANSWER
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "it is closed, not reset: all was read"
    assert place.adopted == []


OTHERS = {
    "another path": HEAD.replace(b"live", b"ready"),
    "a longer path": HEAD.replace(b"live", b"live/more"),
    "a query": HEAD.replace(b"live", b"live?a"),
    "another method": HEAD.replace(b"GET", b"POST"),
    "another protocol": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0"),
    "half a line": b"GET /v2/heal",
    "half a head": HEAD[:-2],
    "two requests": HEAD + HEAD,
    "a head and more": HEAD + b"x",
    "a head and empty lines": HEAD + b"\r\n\r\n",
    "a length": HEAD.replace(b"Host: a", b"Content-Length: 0"),
    "chunks": HEAD.replace(b"Host: a", b"TRANSFER-ENCODING : chunked"),
    "an expectation": HEAD.replace(b"Host: a", b"Expect:100-continue"),
    "an upgrade": HEAD.replace(b"Host: a", b"upgrade: h2c"),
    "a handshake": b"\x16\x03\x01\x00\xa5\x01",
    "too long": HEAD.replace(b"Host: a", b"a: " + b"x" * 5000),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_everything_else_is_handed_over_unread(kind: str, place: Place):
    place.connect(OTHERS[kind])
    place.serve()
    assert place.unread() == [OTHERS[kind]]


def test_who_says_nothing_is_waited_for_and_answered_when_it_speaks(place: Place):
    client = place.connect()
    place.serve()
    assert len(place.stand_in._silent) == 1
    client.sendall(HEAD)
    place.serve()
    assert everything(client) == ANSWER
    assert place.stand_in._silent == {}


def test_who_goes_without_a_word_is_the_loops_to_close(place: Place):
    place.connect().close()
    place.serve()
    assert place.unread() == [b""]


def test_who_has_said_nothing_at_the_end_is_handed_over_once(place: Place):
    place.connect()
    place.connect()
    while len(place.stand_in._silent) < 2:
        place.serve()
    place.stand_in.end()
    place.stand_in.end()
    assert place.unread() == [b"nothing yet"] * 2
    assert place.stand_in._silent == {}


def test_all_that_wait_are_taken_in_one_go(place: Place):
    clients = [place.connect(HEAD) for _ in range(5)]
    place.serve()
    assert [everything(client) for client in clients] == [ANSWER] * 5


def test_two_hundred_and_fifty_six_are_waited_for_and_no_more(place: Place):
    for _ in range(MOST + 2):
        place.connect()
    while len(place.stand_in._silent) < MOST:
        place.serve()
    began = time.monotonic()
    place.stand_in.serve(0.05)
    assert time.monotonic() - began > 0.04, "who waits in the kernel's queue wakes nobody"
    assert len(place.stand_in._silent) == MOST
    assert place.adopted == []
    place.clients[0].sendall(HEAD)
    place.serve()
    assert everything(place.clients[0]) == ANSWER
    place.stand_in.serve(5.0)
    assert len(place.stand_in._silent) == MOST, "the next one has its place"


def test_a_listener_that_is_closed_ends_nothing(place: Place):
    client = place.connect()
    place.serve()
    place.listener.close()
    client.sendall(HEAD)
    place.serve()
    assert everything(client) == ANSWER
    place.stand_in.serve(0.0)
