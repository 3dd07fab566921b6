"""The scan outside the interpreter's lock and the guard in Python judge alike: what one lets pass and the other goes on with is what the guard alone gives."""

from __future__ import annotations

import contextlib
import ctypes
import random
import select
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from depth import draws
from http2_conversations import LIMIT, conversation, cut
from native_support import compile_program
from serinus.native.frames.frame_relay import FrameRelay, Outcome, Reported
from serinus.native.kernel_library import library
from serinus.server.grpc.relays.size_filter import FrameGuard

MARKER = b"\xffmarker"


class Scan(ctypes.Structure):
    """frame_scan of frame_scan.h."""

    _fields_ = (
        ("limit", ctypes.c_int64),
        ("messages", ctypes.POINTER(ctypes.c_uint32)),
        ("count", ctypes.c_int32),
        ("has_begun", ctypes.c_uint8),
        ("has_data", ctypes.c_uint8),
        ("is_declined", ctypes.c_uint8),
    )


@pytest.fixture(scope="module")
def scan_pass(tmp_path_factory: pytest.TempPathFactory):
    """`frame_scan_pass`, compiled for itself."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("scan")
    (folder / "scan.c").write_text(
        '#define _GNU_SOURCE\n#include "frames/frame_scan.h"\n'
        "size_t scan_pass(frame_scan *s, const uint8_t *d, size_t n);\n"
        "size_t scan_pass(frame_scan *s, const uint8_t *d, size_t n) { return frame_scan_pass(s, d, n); }\n"
    )
    made = ctypes.CDLL(
        str(compile_program(["gcc"], folder / "scan.so", folder / "scan.c", flags=("-O1",), shared=True))
    )
    passing = made.scan_pass
    passing.argtypes, passing.restype = (ctypes.POINTER(Scan), ctypes.c_char_p, ctypes.c_size_t), ctypes.c_size_t
    return passing


def test_what_is_scanned_and_then_guarded_is_what_the_guard_alone_lets_pass(scan_pass):
    seed = random.SystemRandom().randrange(2**32)
    declined = 0
    for turn in range(draws(4000, 500)):
        rnd = random.Random(f"{seed} {turn}")
        data = conversation(rnd)
        scan, held, got = Scan(limit=LIMIT), b"", b""
        pieces = cut(rnd, data)
        while pieces and not scan.is_declined:
            held += pieces.pop(0)
            passed = scan_pass(scan, held, len(held))
            got, held = got + held[:passed], held[passed:]
        guard = FrameGuard(LIMIT, MARKER)
        if scan.has_begun:
            words = scan.messages[: 2 * scan.count]
            guard.go_on(zip(words[::2], words[1::2], strict=True), has_data=bool(scan.has_data))
        for piece in (held, *pieces):
            got += guard.feed(piece)
        whole = FrameGuard(LIMIT, MARKER)
        expected = b"".join(whole.feed(piece) for piece in cut(rnd, data))
        assert got == expected, f"random.Random('{seed} {turn}')"
        assert guard.has_data == whole.has_data
        declined += scan.is_declined
    assert 0 < declined < draws(4000, 500)


class Moved:
    """A relay with its thread, and what it reports."""

    def __init__(self) -> None:
        kernels = library()
        assert kernels is not None
        self.frames = FrameRelay(kernels, LIMIT, 60)
        self.thread = threading.Thread(target=self.frames.run)
        self.thread.start()

    def next(self) -> Reported:
        """What is reported next, alone."""
        assert select.select([self.frames.told], [], [], 20)[0]
        (reported,) = self.frames.take()
        return reported

    def close(self) -> None:
        self.frames.stop()
        self.thread.join(30)
        self.frames.close()


@pytest.fixture
def moved() -> Iterator[Moved]:
    if library() is None:
        pytest.skip("no compiled kernels")
    running = Moved()
    try:
        yield running
    finally:
        running.close()


def all_of(sock: socket.socket) -> bytes:
    sock.settimeout(20)
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def say(sock: socket.socket, pieces: list[bytes]) -> None:
    for piece in pieces:
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def go_on_by_hand(declined: Reported) -> None:
    """Do what is left of a declined connection, whose client and front send no more than they have begun to send."""
    guard = FrameGuard(LIMIT, MARKER)
    if declined.has_begun:
        guard.go_on(declined.messages, has_data=declined.has_data)
    with socket.socket(fileno=declined.client) as client, socket.socket(fileno=declined.front) as front:
        client.settimeout(20)
        front.settimeout(20)
        client.sendall(declined.to_client)
        back = threading.Thread(target=lambda: client.sendall(all_of(front)))
        back.start()
        front.sendall(declined.to_front + guard.feed(declined.tail + all_of(client)))
        front.shutdown(socket.SHUT_WR)
        back.join(20)


def test_no_byte_is_lost_doubled_or_moved_between_the_relay_and_who_goes_on(moved: Moved):
    """The client ends when it has said all, the front when it has answered and the client has ended."""
    seed = random.SystemRandom().randrange(2**32)
    outcomes = set()
    for number in range(draws(1500, 150)):
        rnd = random.Random(f"{seed} {number}")
        data, answer = conversation(rnd), rnd.randbytes(rnd.choice((0, 10, 300_000)))
        pieces = cut(rnd, data)
        (client, ours), (to_front, front) = socket.socketpair(), socket.socketpair()
        ours.setblocking(False)
        to_front.setblocking(False)
        address = moved.frames.add(number, ours.detach(), to_front.detach())
        with client, front, ThreadPoolExecutor(4) as pool:
            pool.submit(say, client, pieces)
            heard, got = pool.submit(all_of, client), pool.submit(all_of, front)
            answered = pool.submit(front.sendall, answer)
            got.add_done_callback(lambda _, front=front, ok=answered: ok.result(20) or front.shutdown(socket.SHUT_WR))
            reported = moved.next()
            assert reported.number == number
            if reported.outcome is Outcome.DECLINED:
                go_on_by_hand(reported)
            moved.frames.release(address)
            assert got.result(20) == FrameGuard(LIMIT, MARKER).feed(data), f"random.Random('{seed} {number}')"
            assert heard.result(20) == answer
        outcomes.add(reported.outcome)
    assert outcomes == {Outcome.OVER, Outcome.DECLINED}
