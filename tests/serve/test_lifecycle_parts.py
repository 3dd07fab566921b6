"""What a server process is made of, and in which order it ends: the wish to stop, the drain, its parts and its files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler
from lifecycle_support import HOST, launch_of
from serinus import ModelSettings
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import OPEN, RepositoryAccess
from serinus.dataplane.telemetry.events import Events
from serinus.errors import ConfigError, NotReady, SerinusError
from serinus.server import lifecycle
from serinus.server.exit_bound import ExitStatus
from serinus.server.lifecycle import Launch, _Servers, _Stop
from serinus.server.request_access import RequestAccess
from serinus.settings import ServerSettings
from waiting import turns

TOKEN = "a-token-of-a-person-0123456789"


# The wish to stop


async def test_a_wish_that_came_before_the_loop_is_not_forgotten_and_one_after_its_end_harms_nothing():
    wish = _Stop()
    wish.ask()
    assert wish.event().is_set()
    assert wish.asked
    later = _Stop()
    event = later.event()
    assert not later.asked
    await asyncio.to_thread(later.ask)
    await asyncio.wait_for(event.wait(), 10)


def test_a_wish_after_the_end_of_the_loop_harms_nothing():
    wish = _Stop()

    async def run() -> None:
        wish.event()

    asyncio.run(run())
    wish.ask()
    assert wish.asked


async def test_of_two_that_are_waited_for_the_second_is_cancelled_when_the_first_is_done():
    rival = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(asyncio.sleep(0))
    await lifecycle._first(task, rival)
    assert task.done()
    await turns(2)
    assert rival.cancelled()
    task = asyncio.get_running_loop().create_future()
    await lifecycle._first(task, asyncio.sleep(0))
    assert not task.done(), "the first is the caller's"


# The drain


class Server:
    """REST or gRPC, as it is told to end."""

    def __init__(self, name: str, done: list[Any], drain_s: float = 0.0) -> None:
        self.name, self.done, self.drain_s = name, done, drain_s

    async def take_waiting(self) -> None:
        self.done.append((self.name, "take"))

    def stop_accepting(self) -> None:
        self.done.append((self.name, "stop"))

    async def drain(self, timeout_s: float) -> None:
        self.done.append((self.name, "drain", timeout_s))
        await asyncio.sleep(self.drain_s)

    async def close(self) -> None:
        self.done.append((self.name, "close"))


class Plane:
    """What is asked of the plane then."""

    def __init__(self, done: list[Any], left: int = 0) -> None:
        self.done, self.left = done, left

    def stop_ready(self) -> None:
        self.done.append(("plane", "not ready", asyncio.get_running_loop().time()))

    def abandon(self) -> int:
        self.done.append(("plane", "abandon", asyncio.get_running_loop().time()))
        return self.left

    async def drain(self, timeout_s: float) -> None:
        self.done.append(("plane", "drain", timeout_s))


async def drained(
    left: int = 0, drain_s: float = 0.0, *, grpc: bool = True, **settings: Any
) -> tuple[int, list[Any], float]:
    done: list[Any] = []
    servers: Any = _Servers(Server("rest", done, drain_s), Server("grpc", done) if grpc else None)  # type: ignore[arg-type] # as above
    loop = asyncio.get_running_loop()
    began = loop.time()
    status = await lifecycle._drain(Plane(done, left), ServerSettings(**settings), servers)  # type: ignore[arg-type] # as above
    took_s = loop.time() - began
    await asyncio.sleep(100)
    return (
        status,
        [
            (*words[:2], round(words[2] - began, 3)) if words[0] == "plane" and words[1] != "drain" else words
            for words in done
        ],
        took_s,
    )


@pytest.mark.looptime
async def test_a_drain_takes_what_has_come_then_closes_the_ports_and_waits():
    status, done, took_s = await drained(drain_timeout_s=5.0, drain_delay_s=3.0, drain_s=1.0)
    assert status is ExitStatus.CLEAN
    assert done == [
        ("plane", "not ready", 0.0),
        ("grpc", "take"),
        ("rest", "take"),
        ("rest", "stop"),
        ("grpc", "stop"),
        ("rest", "drain", 5.3),
        ("grpc", "drain", 5.3),
        ("plane", "drain", 0.3),
        ("rest", "close"),
        ("grpc", "close"),
    ]
    assert took_s == pytest.approx(4.0)


@pytest.mark.looptime
async def test_without_grpc_and_without_a_delay_there_is_less_to_do():
    status, done, took_s = await drained(grpc=False, drain_timeout_s=5.0, drain_delay_s=0.0)
    assert status is ExitStatus.CLEAN
    assert [words[:2] for words in done] == [
        ("plane", "not ready"),
        *(("rest", word) for word in ("take", "stop", "drain")),
        ("plane", "drain"),
        ("rest", "close"),
    ]
    assert took_s == pytest.approx(0.0)


@pytest.mark.looptime
@pytest.mark.parametrize(("left", "status"), [(3, ExitStatus.CUT), (0, ExitStatus.CLEAN)])
async def test_what_is_not_answered_in_time_is_refused_and_said(
    left: int, status: int, caplog: pytest.LogCaptureFixture
):
    found, done, _ = await drained(left, drain_s=5.2, drain_timeout_s=5.0, drain_delay_s=0.0)
    assert found is status
    assert ("plane", "abandon", 5.0) in done
    assert caplog.messages == (["3 requests were not answered in 5 s, and are refused"] if left else [])


# What it is made of


async def test_the_plane_has_what_the_settings_and_the_command_line_say():
    def discover(name: str) -> Any:
        return []

    launch = launch_of(
        discover=discover,
        index=lambda: ["a"],
        access=OPEN,
        strict_readiness=True,
        revision="r-7",
        max_instances=3,
        expose_predictor=True,
        json_not_finite="null",
    )
    plane = lifecycle._make_plane(launch)
    assert plane.metrics.snapshot()["revision"] == "r-7"
    assert plane.access is OPEN
    assert plane.registry.metrics is plane.metrics
    with pytest.raises(SerinusError, match="3"):
        await plane.start([ModelSettings(name="m", instances=4)])


@pytest.mark.parametrize(
    ("set_bytes", "container", "workers", "limit"),
    [
        (None, 1000, 1, 900),
        (None, 1000, 3, 300),
        (None, None, 1, 0),
        (0, 1000, 1, 0),
        (500, 1000, 2, 250),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_memory_is_guarded_by_the_set_limit_or_the_containers_and_an_even_share_of_it(
    set_bytes: int | None, container: int | None, workers: int, limit: int, alone: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lifecycle, "container_limit", lambda: container)
    settings = ServerSettings(memory_limit_bytes=set_bytes, workers=workers, gpu_memory_limit_bytes=77)
    told: list[Any] = []
    worker: Any = SimpleNamespace(send=lambda **message: told.append(message))
    guard = lifecycle._guard_memory(settings, lambda: told.append("stop"), None if alone else worker)
    assert (guard._limit, guard._gpu_limit) == (limit, 77)
    assert guard._read().own > 1 << 20, "of this process"
    guard._on_passed("why")
    assert told == (["stop"] if alone else [{"type": "memory", "reason": "why"}])


def test_each_time_that_the_loop_was_held_is_counted_with_its_seconds():
    events = Events()
    for seconds in (2.5, 1.0):
        lifecycle._count_held(events, seconds)
    found = {family.name: [value for _, value in family.samples] for family in events.families()}
    assert (found["serinus_loop_held_total"], found["serinus_loop_held_seconds_total"]) == ([2], [3.5])


async def test_a_port_of_rest_that_cannot_be_opened_closes_grpcs(monkeypatch: pytest.MonkeyPatch):
    closed: list[str] = []

    class Grpc:
        """Open."""

        async def close(self) -> None:
            closed.append("grpc")

    async def start_grpc(plane: Any, settings: Any, **more: Any) -> Any:
        opened.append(more["port"])
        return Grpc()

    async def start_rest(*words: Any, **more: Any) -> Any:
        raise ConfigError("taken")

    opened: list[int] = []
    monkeypatch.setattr(lifecycle, "start_grpc", start_grpc)
    monkeypatch.setattr(lifecycle, "start_rest", start_rest)
    for enable_grpc, bound in ((True, None), (True, 0), (True, 4711), (False, None)):
        settings = ServerSettings(host=HOST, grpc_port=9000, enable_grpc=enable_grpc)
        launch = Launch(server=settings, models=[], factory=Doubler, grpc_port=bound)
        plane = lifecycle._make_plane(launch)
        with pytest.raises(ConfigError, match="taken"):
            await lifecycle._open(launch, plane, None, None, None)
        assert not plane.listening
    assert (opened, closed) == ([9000, 0, 4711], ["grpc"] * 3)


async def test_both_transports_share_one_account_and_one_room_and_are_told_of_later_routes(
    monkeypatch: pytest.MonkeyPatch,
):
    given: list[Any] = []
    added: list[Any] = []

    async def start(plane: Any, settings: Any, **more: Any) -> Any:
        given.append(more)
        return SimpleNamespace(add_custom=added.append)

    monkeypatch.setattr(lifecycle, "start_grpc", start)
    monkeypatch.setattr(lifecycle, "start_rest", start)
    launch = launch_of(enable_grpc=True, max_unsent_bytes=1000, send_timeout_s=7.0)
    plane = lifecycle._make_plane(launch)
    certificates, tracer = object(), object()
    await lifecycle._open(launch, plane, None, certificates, tracer)  # type: ignore[arg-type] # passed on
    grpc, rest = given
    for name in ("unsent", "room", "certificates", "tracer", "request_access", "metrics"):
        assert grpc[name] is rest[name], name
    assert (rest["unsent"]._most_bytes, rest["unsent"]._patience_s) == (1000, 7.0)
    assert (rest["certificates"], rest["tracer"], rest["metrics"]) == (certificates, tracer, plane.metrics)
    assert plane.listening
    assert b"serinus_unsent_answer_bytes 0" in plane.metrics.render()
    await plane.start([ModelSettings(name="m")])
    await plane.load("m")
    assert [list(routes) for routes in added] == [[]]
    await plane.close()


class Routed(Doubler):
    """Brings a route."""

    def extra_routes(self) -> Any:
        async def answer(request: Any) -> Any:
            return 200, {}, self

        return [("GET", "/own", answer)]


async def test_a_route_of_a_models_own_is_answered_by_the_one_that_is_loaded_then():
    launch = launch_of(factory=Routed)
    plane = lifecycle._make_plane(launch)
    await plane.start(launch.models)
    ((method, template, handler),) = lifecycle._routes(plane)
    assert (method, template) == ("GET", "/own")
    first = (await handler(None))[2]  # type: ignore[arg-type] # it asks nothing of it
    await plane.load("m")
    second = (await handler(None))[2]  # type: ignore[arg-type] # as above
    assert first is not second
    await plane.unload("m")
    with pytest.raises(NotReady, match="the model that answers GET /own is not loaded"):
        await handler(None)  # type: ignore[arg-type] # as above
    await plane.close()


def test_files_of_certificates_and_tokens_are_watched_each_set_once(tmp_path: Path):
    watched: list[Any] = []
    watch: Any = SimpleNamespace(add=lambda *words: watched.append(words))
    file, other = tmp_path / "a", tmp_path / "b"
    ours = Tokens([TOKEN], file=file, where="--token_file")
    theirs = Tokens([TOKEN], file=other, where="--control_token_file")
    certificates: Any = SimpleNamespace(files=("c", "k"), reload=object())
    without = launch_of()
    lifecycle._watch_keys(watch, None, without)
    assert watched == []
    lifecycle._watch_keys(watch, certificates, without)
    assert watched == [("TLS certificate", ("c", "k"), certificates.reload)]
    watched.clear()
    both = launch_of(access=RepositoryAccess(mode="token", tokens=theirs), request_access=RequestAccess(ours))
    lifecycle._watch_keys(watch, None, both)
    assert [(words[0], words[1]) for words in watched] == [
        ("--control_token_file", (other,)),
        ("--token_file", (file,)),
    ]
    assert [words[2] for words in watched] == [theirs.reload, ours.reload]
    watched.clear()
    same = launch_of(access=RepositoryAccess(mode="token", tokens=ours), request_access=RequestAccess(ours))
    lifecycle._watch_keys(watch, None, same)
    assert len(watched) == 1


@pytest.mark.parametrize(("client_ca", "said"), [(None, "; TLS"), (b"ca", "; TLS, for clients with certificates")])
def test_tls_is_told_of_where_it_is_on(client_ca: bytes | None, said: str):
    assert lifecycle._told_of_tls(None) == ""
    loaded: Any = SimpleNamespace(loaded=SimpleNamespace(client_ca=client_ca))
    assert lifecycle._told_of_tls(loaded) == said
