"""What waits for slow clients is bounded over all connections: who is closed, whose answer is refused, and who notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from http_support import Probe, Raw, ask, never_reads
from serinus.errors import Overloaded
from serinus.server.connections.unsent_answers import LARGE_BYTES, UnsentAnswers
from serinus.server.http.exchange import Exchange, HttpLimits
from serinus.server.http.thin import ThinServer
from waiting import until

MB = 1_000_000


class Reads:
    """A client, as the account sees it."""

    def __init__(self, account: UnsentAnswers, *, tells_pace: bool = True) -> None:
        self.account = account
        self.tells_pace = tells_pace
        self.left = 0
        self.gone = False

    def is_given(self, size: int) -> None:
        """Have an answer wait for it, if there is room."""
        self.account.check(size)
        self.left += size
        self.account.add(self, size)

    def unsent(self) -> int:
        return self.left

    def give_up(self) -> bool:
        self.gone, self.left = True, 0
        self.account.drop(self)
        return True


class Account(UnsentAnswers):
    """With a clock that the test moves."""

    def __init__(self, most_bytes: int, *, patience_s: float = 60) -> None:
        self.now = 1000.0
        super().__init__(most_bytes, patience_s=patience_s, clock=lambda: self.now)

    def readers(self, count: int, **how: bool) -> list[Reads]:
        """So many clients."""
        return [Reads(self, **how) for _ in range(count)]


def test_the_slowest_of_those_that_would_need_too_long_is_closed_for_a_new_answer():
    account = Account(4 * MB)
    quick, slow, slower, new = account.readers(4)
    for reader in (quick, slow, slower):
        reader.is_given(MB)
    account.look()
    account.now += 10
    quick.left, slow.left, slower.left = MB // 2, 9 * MB // 10, MB - 1000  # 10 s, 90 s, 10 000 s to go
    new.is_given(3 * MB // 2)
    assert not any(reader.gone for reader in (quick, slow, slower, new)), "there is room for all"
    account.now += 0.1
    new.is_given(MB)
    assert [reader.gone for reader in (quick, slow, slower, new)] == [False, False, True, False]
    assert account.waiting_bytes == quick.left + slow.left + new.left
    assert (account.closed, account.refused) == (1, 0)


@pytest.mark.parametrize("after_s", [0.5, 10.0], ids=["nobody can be told slow yet", "nobody is slow"])
def test_where_nobody_is_slow_the_new_answer_is_refused_and_told_why(after_s: float):
    account = Account(2 * MB)
    reading, new = account.readers(2)
    reading.is_given(2 * MB)
    account.look()
    account.now += after_s
    reading.left -= MB // 2 if after_s > 1 else 0
    with pytest.raises(
        Overloaded, match=r"this one of 1000000 bytes would pass the limit of 2000000 \(max_unsent_bytes\)"
    ):
        new.is_given(MB)
    assert not reading.gone
    assert account.refused == 1
    reading.left = 0
    account.now += 1
    new.is_given(2 * MB)
    assert account.waiting_bytes == 2 * MB


def test_who_reads_just_fast_enough_keeps_the_others_out_for_seconds_and_not_for_the_whole_patience():
    account = Account(4 * MB)
    holders, (new,) = account.readers(4), account.readers(1)
    for reader in holders:
        reader.is_given(MB)
    account.look()
    began = account.now
    while not new.left:
        account.now += 0.5
        for number, reader in enumerate(holders):
            reader.left -= (10_000, 10_000, 10_000, 100_000)[number]  # 50 s, and 5 s, for a megabyte
        with contextlib.suppress(Overloaded):
            new.is_given(MB)
        assert account.now - began < 10
    assert [reader.gone for reader in holders].count(True) == 1, "no more than it takes"
    assert not holders[3].gone
    account.now += 6  # calm again: who needs 50 s may
    slow = Reads(account)
    slow.is_given(10)
    account.look()
    account.now += 1
    assert account._patience_now_s(account.now) == 60


def test_an_answer_larger_than_the_bound_goes_out_when_nothing_waits():
    account = Account(MB)
    first, second = account.readers(2)
    first.is_given(5 * MB)
    with pytest.raises(Overloaded):
        second.is_given(LARGE_BYTES + 1)
    first.left = 0
    account.now += 1
    second.is_given(LARGE_BYTES + 1)


def test_who_does_not_tell_its_pace_is_given_up_only_after_the_whole_patience():
    account = Account(MB)
    (blind,), (new,) = account.readers(1, tells_pace=False), account.readers(1)
    blind.is_given(MB)
    account.now += 59
    with pytest.raises(Overloaded):
        new.is_given(MB)
    account.now += 1
    new.is_given(MB)
    assert blind.gone


def test_who_goes_leaves_nothing_in_the_account():
    account = Account(4 * MB)
    readers = account.readers(3)
    for reader in readers:
        reader.is_given(MB)
    account.drop(readers[0])
    account.drop(readers[0])
    readers[1].left = 0
    account.look()
    assert account.waiting_bytes == MB
    values = {family.name: family.samples[0][1] for family in account.families()}
    assert values["serinus_unsent_answer_bytes"] == MB


def test_refusals_in_a_crowd_do_not_look_at_everybody_each_time():
    account = Account(100 * MB)
    looks = 0

    class Watched(Reads):
        def unsent(self) -> int:
            nonlocal looks
            looks += 1
            return self.left

    crowd = [Watched(account) for _ in range(100)]
    for reader in crowd:
        reader.is_given(MB)
    for _ in range(1000):
        with pytest.raises(Overloaded):
            crowd[0].is_given(MB)
    assert looks == 100


class Engine(Reads):
    """Holds answers of many clients, and drops those that have not moved."""

    stuck = 0

    def give_up(self) -> bool:
        dropped, self.stuck = self.stuck, 0
        self.left -= dropped
        return dropped > 0


def refused(account: UnsentAnswers) -> bool:
    """Whether a large answer is refused now."""
    try:
        account.check(account._most_bytes + MB)
    except Overloaded:
        return True
    return False


# Seconds since the first refusal, then the patience: it is halved with each second, down to four seconds.
PATIENCES = [
    (0.0, 60),
    (0.9, 60),
    (1.0, 30),
    (1.9, 30),
    (2.0, 15),
    (3.0, 7.5),
    (3.9, 7.5),
    (4.0, 4),
    (40.0, 4),
    (2000.0, 4),
]


@pytest.mark.parametrize(("after_s", "patience_s"), PATIENCES)
def test_patience_becomes_half_with_every_second_of_refusals_and_never_less_than_four(
    after_s: float, patience_s: float
):
    account = Account(MB)
    Engine(account, tells_pace=False).is_given(MB)
    began = account.now
    assert refused(account)
    while account.now < began + after_s:
        account.now = min(began + after_s, account.now + 3)
        assert refused(account)
    assert account._patience_now_s(account.now) == patience_s
    assert account._patience_now_s(account.now + 5.1) == 60
    account.now += 5.1
    assert refused(account), "the next refusals begin anew"
    assert account._patience_now_s(account.now) == 60


def test_a_patience_of_less_than_four_seconds_stays_as_it_is():
    account = Account(MB, patience_s=2)
    Engine(account, tells_pace=False).is_given(MB)
    for _ in range(3):
        assert refused(account)
        assert account._patience_now_s(account.now) == 2
        account.now += 3


# What is left of two megabytes after ten seconds, and whether who has read the rest would need more than a minute for it.
PACES = [(2 * MB, True), (2 * MB - 1000, True), (MB * 13 // 7, True), (MB * 12 // 7, False), (MB, False)]


@pytest.mark.parametrize(("left", "is_slow"), PACES)
def test_the_pace_of_a_reader_is_that_of_all_its_answers(left: int, is_slow: bool):
    account = Account(5 * MB // 2)
    reader, new = account.readers(2)
    reader.is_given(MB)
    account.look()
    reader.is_given(MB)
    account.now += 10
    reader.left = left
    with contextlib.suppress(Overloaded):
        new.is_given(3 * MB // 2)
    assert reader.gone is is_slow


@pytest.mark.parametrize(("spent_s", "is_slow"), [(0.99, False), (1.0, True)])
def test_nobody_is_called_slow_within_a_second_of_the_first_look(spent_s: float, is_slow: bool):
    account = Account(MB)
    reader, new = account.readers(2)
    reader.is_given(MB)
    account.now += 100
    account.look()  # what was taken until now went into the kernel's buffers
    account.now += spent_s
    with contextlib.suppress(Overloaded):
        new.is_given(MB)
    assert reader.gone is is_slow


@pytest.mark.parametrize(("stuck", "is_taken"), [(0, False), (MB // 2, False), (MB, True), (2 * MB, True)])
def test_an_engine_is_asked_once_what_it_has_given_up_and_stays_in_the_account(stuck: int, is_taken: bool):
    account = Account(2 * MB)
    engine, (new,) = Engine(account, tells_pace=False), account.readers(1)
    engine.is_given(2 * MB)
    account.now += 60
    engine.stuck = stuck
    with contextlib.suppress(Overloaded):
        new.is_given(MB)
    assert (new.left > 0) is is_taken
    assert account.closed == (stuck > 0)
    assert account.waiting_bytes == engine.left + new.left


def test_the_page_of_metrics_tells_what_waits_now():
    account = Account(2 * MB)
    reader, slow = account.readers(2)
    reader.is_given(MB)
    slow.is_given(MB)
    reader.left = MB // 2
    assert refused(account)
    account.look()
    account.now += 60
    reader.left = 1000
    account.check(MB)
    reader.left = 10
    values = {family.name: family.samples[0][1] for family in account.families()}
    assert values == {
        "serinus_unsent_answer_bytes": 10,
        "serinus_slow_readers_closed_total": 1,
        "serinus_unsent_answers_refused_total": 1,
    }


@pytest.mark.parametrize(("more", "is_closed"), [(0, False), (1, True)])
def test_small_answers_beyond_the_bound_close_who_is_slow_and_those_within_it_nobody(more: int, is_closed: bool):
    account = Account(MB)
    (reader,) = account.readers(1)
    account.add(reader, 0)
    reader.left = MB + more  # nobody has counted them
    account.look()
    account.now += 60
    account.tend()
    assert (reader.gone, account.closed, account.refused) == (is_closed, int(is_closed), 0)


@pytest.mark.parametrize(("look_s", "next_s"), [(0.0, 0.001), (0.00001, 0.001), (0.01, 0.2)])
def test_looks_at_everybody_take_a_twentieth_of_the_time_at_most(look_s: float, next_s: float):
    account = Account(MB)
    looks = 0

    class Costly(Reads):
        def unsent(self) -> int:
            nonlocal looks
            looks += 1
            account.now += look_s
            return self.left

    reader = Costly(account)
    reader.is_given(MB)
    began = account.now
    assert refused(account)
    account.now = began + 0.99 * next_s
    assert refused(account)
    assert looks == 1
    account.now = began + 1.01 * next_s
    assert refused(account)
    assert looks == 2


# Real sockets

LESS = LARGE_BYTES - 1000


class Answers(Probe):
    """`/huge` is 8 MB, `/less` a little less than counts one by one."""

    def __call__(self, exchange: Exchange) -> None:
        if exchange.target in (b"/huge", b"/less"):
            self.seen += 1
            exchange.respond(200, "application/octet-stream", [bytes(8 * MB if exchange.target == b"/huge" else LESS)])
        else:
            super().__call__(exchange)


HUGE = b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(
    account: UnsentAnswers, *, kernel_bytes: int = 0, **limits: float
) -> AsyncIterator[tuple[ThinServer, int, Answers]]:
    app = Answers()
    server = ThinServer(app, HttpLimits(**limits), unsent=account)  # type: ignore[arg-type]
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if kernel_bytes:  # connections have it from the listener
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_bytes)
    sock.bind(("127.0.0.1", 0))
    await server.listen(sock=sock)
    try:
        yield server, sock.getsockname()[1], app
    finally:
        await server.close()


async def test_answers_for_clients_that_never_read_stay_within_the_bound_and_others_are_served():
    account = UnsentAnswers(30 * MB)
    async with serving(account, kernel_bytes=16384) as (server, port, app):
        clients = [await never_reads(port) for _ in range(20)]
        for client in clients:
            await client.send(HUGE)
        await until(lambda: app.seen == 20)
        held = sum(connection._transport.get_write_buffer_size() for connection in server._connections)
        assert held <= 30 * MB
        assert account.refused > 0
        other = await Raw.open(port)
        await other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await other.answer()).status == 200
        await other.send(HUGE)
        refused = await other.answer()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "max_unsent_bytes" in refused.json["error"]
        assert "connection" not in refused.headers, "it lives on"
        while (again := await ask(other, HUGE)).status == 429:
            await asyncio.sleep(0.1)  # until the others can be told slow
        assert len(again.body) == 8 * MB
        assert account.closed > 0
        for client in clients:
            client.writer.transport.abort()
        await until(lambda: server.connection_count == 1)
        assert len([reader for reader in account._readers if reader.unsent()]) == 0
        await other.close()


async def test_answers_that_wait_for_one_before_them_are_counted():
    account = UnsentAnswers(20 * MB)
    async with serving(account) as (_, port, app):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n" + HUGE * 10)
        await until(lambda: app.seen == 11)
        assert account.waiting_bytes <= 20 * MB
        app.release()
        statuses = [(await client.answer()).status for _ in range(11)]
        assert statuses == [200, 200, 200, *[429] * 8]
        await until(lambda: not (account.look() or account.waiting_bytes))
        await client.close()


@pytest.mark.slow  # waits two seconds for a reader that never reads
async def test_pipelined_answers_that_are_not_large_close_who_never_reads_once_they_are_too_much_together():
    account = UnsentAnswers(5 * MB)
    async with serving(account, kernel_bytes=16384) as (server, port, _):
        clients = [await never_reads(port) for _ in range(20)]
        for client in clients:
            await client.send(b"GET /less HTTP/1.1\r\nHost: x\r\n\r\n" * 64)
        await until(lambda: account.closed > 0)
        await until(lambda: sum(connection.unsent() for connection in server._connections) <= 5 * MB)
        other = await Raw.open(port)
        assert len((await ask(other, HUGE.replace(b"huge", b"less"))).body) == LESS
        assert account.refused == 0
        for client in clients:
            client.writer.transport.abort()
        await other.close()


async def test_a_client_that_takes_nothing_for_the_send_timeout_is_closed_and_counted():
    account = UnsentAnswers(1000 * MB)
    async with serving(account, send_timeout_s=0.2) as (server, port, _):
        client, reading = await never_reads(port), await Raw.open(port)
        await client.send(HUGE)
        await reading.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reading.answer()).status == 200
        await until(lambda: server.connection_count == 1)
        assert account.closed == 1
        await reading.send(HUGE)
        assert len((await reading.answer()).body) == 8 * MB
        client.writer.transport.abort()
        await reading.close()
