"""A worker's end of the channel: what it answers its supervisor, and what it asks of it; the test is the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus import ModelSettings
from serinus.dataplane.plane import Plane
from serinus.errors import Conflict, NotFound, SerinusError
from serinus.server.workers import worker_end
from serinus.server.workers.worker_channel import Channel
from serinus.server.workers.worker_end import WorkerEnd, end_with_parent
from waiting import turns


class Supervisor:
    """The other end, as this test has it."""

    def __init__(self, channel: Channel, worker: WorkerEnd, plane: Plane) -> None:
        self.channel = channel
        self.worker = worker
        self.plane = plane
        self.stopped = 0
        self._messages = channel.messages()

    async def heard(self) -> dict[str, Any]:
        """The worker's next message."""
        return await asyncio.wait_for(anext(self._messages), 10)

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Say something, and hear what comes next."""
        self.channel.send(**message)
        return await self.heard()


@contextlib.asynccontextmanager
async def supervised(
    *models: str, named: tuple[ModelSettings, ...] = (), broken: dict[str, str] | None = None
) -> AsyncIterator[Supervisor]:
    """A worker with these models ("m" unless told), which follows its supervisor."""
    settings = [ModelSettings(name=name, warmup=False) for name in models or ("m",)]
    async with serving(Doubler, *settings) as plane:
        ours, theirs = socket.socketpair()
        channel = await Channel.open(theirs)
        own = await Channel.open(ours)
        worker = WorkerEnd(own, plane, lambda: stopped(), models=named, broken=broken or {})
        supervisor = Supervisor(channel, worker, plane)

        def stopped() -> None:
            supervisor.stopped += 1

        listening = asyncio.ensure_future(worker.listen())
        try:
            yield supervisor
        finally:
            await channel.close()
            await asyncio.wait_for(listening, 10)
            await own.close()  # which the end of the process does


LOADED = {"m": {"": {}}}


async def test_files_are_noted_from_the_start_and_the_set_is_told_when_it_is_loaded():
    async with supervised() as supervisor:
        assert supervisor.plane.registry.notes_files
        supervisor.worker.say_ready()
        assert await supervisor.heard() == {"type": "ready", "loaded": LOADED}


@pytest.mark.parametrize("present", [None, {"m": {"versions": {}, "parameters": {}, "change": 1}}])
async def test_what_to_load_is_what_the_supervisor_says(present: Any):
    async with supervised() as supervisor:
        asking = asyncio.ensure_future(supervisor.worker.present())
        await turns()
        assert not asking.done()
        supervisor.channel.send(type="begin", present=present)
        assert await asyncio.wait_for(asking, 10) == present


async def test_ports_may_be_opened_when_that_is_said_and_a_retired_worker_is_to_end():
    async with supervised() as supervisor:
        await supervisor.ask(type="ping")
        assert not supervisor.worker.go.is_set()
        supervisor.channel.send(type="go")
        await supervisor.ask(type="ping")
        assert supervisor.worker.go.is_set()
        assert supervisor.stopped == 0
        supervisor.channel.send(type="retire")
        await supervisor.ask(type="ping")
        assert supervisor.stopped == 1


async def test_a_worker_whose_supervisor_is_gone_ends():
    async with supervised() as supervisor:
        assert supervisor.stopped == 0
    assert supervisor.stopped == 1


async def test_a_sign_of_life_brings_the_counts_as_often_as_a_hundredth_of_the_time_allows(
    monkeypatch: pytest.MonkeyPatch,
):
    # When it is asked, and when the snapshot is taken: half a second, so that the next comes 50 s after this one was asked for.
    times = iter([100.0, 100.5, 100.9, 149.9, 150.0, 150.0, 150.0, 150.1])
    monkeypatch.setattr(worker_end, "time", SimpleNamespace(monotonic=lambda: next(times)))
    async with supervised() as supervisor:
        await outcome(supervisor.plane, rows_of(1))
        told = [await supervisor.ask(type="ping") for _ in range(5)]
    assert {each["type"] for each in told} == {"pong"}
    assert [each["data"] is not None for each in told] == [True, False, False, True, True]
    assert next(times, None) is None
    (model,) = told[0]["data"]["models"]
    assert (model["name"], model["statistics"]["inference_count"]) == ("m", 1)


async def test_a_snapshot_is_sent_when_it_is_asked_for_with_its_number():
    async with supervised() as supervisor:
        for number in (7, 8):
            answer = await supervisor.ask(type="collect", id=number)
            assert (answer["type"], answer["id"]) == ("snapshot", number)
            assert [model["name"] for model in answer["data"]["models"]] == ["m"]


# Changes


async def test_a_load_is_prepared_and_happens_when_it_is_committed():
    async with supervised() as supervisor:
        before = supervisor.plane.registry.find("m")
        prepared = await supervisor.ask(type="prepare", id=3, action="load", name="m", parameters={})
        assert prepared == {"type": "prepared", "id": 3, "error": None, "versions": {"": {}}}
        assert supervisor.plane.registry.find("m") is before
        assert await supervisor.ask(type="commit", id=4, change=9) == {"type": "committed", "id": 4, "error": None}
        after = supervisor.plane.registry.find("m")
        assert after is not before
        again = await supervisor.ask(type="commit", id=5, change=10)
        assert again == {"type": "committed", "id": 5, "error": None}, "of nothing"
        assert supervisor.plane.registry.find("m") is after


async def test_a_load_that_is_given_up_changes_nothing_and_the_name_is_free_again():
    async with supervised() as supervisor:
        before = supervisor.plane.registry.find("m")
        for number in (1, 2):
            prepared = await supervisor.ask(type="prepare", id=number, action="load", name="m", parameters={})
            assert prepared["error"] is None
            answer = await supervisor.ask(type="discard", id=10 + number)
            assert answer == {"type": "committed", "id": 10 + number, "error": None}
        assert (await supervisor.ask(type="discard", id=20))["error"] is None, "of nothing"
        assert (await supervisor.ask(type="commit", id=21, change=1))["error"] is None, "what was given up is gone"
        assert supervisor.plane.registry.find("m") is before


@pytest.mark.parametrize("what", [{"type": "commit", "change": 1}, {"type": "discard"}], ids=["commit", "discard"])
async def test_the_end_of_a_change_that_was_never_prepared_is_none(what: dict[str, Any]):
    async with supervised() as supervisor:
        before = supervisor.plane.registry.find("m")
        assert await supervisor.ask(id=4, **what) == {"type": "committed", "id": 4, "error": None}
        assert supervisor.plane.registry.find("m") is before


async def test_an_unload_has_no_versions_and_happens_when_it_is_committed():
    async with supervised() as supervisor:
        prepared = await supervisor.ask(type="prepare", id=1, action="unload", name="m", parameters={})
        assert (prepared["error"], prepared["versions"]) == (None, {})
        assert supervisor.plane.loaded() == LOADED
        await supervisor.ask(type="commit", id=2, change=1)
        assert supervisor.plane.loaded() == {}


async def test_why_a_change_cannot_be_is_told_by_its_kind_and_what_nobody_foresaw_without_details(
    caplog: pytest.LogCaptureFixture,
):
    async with supervised() as supervisor:
        answer = await supervisor.ask(type="prepare", id=1, action="load", name="none", parameters={})
        kind, text = answer["error"]
        assert (kind, answer["versions"]) == ("NotFound", {})
        assert "none" in text
        assert caplog.records == []
        answer = await supervisor.ask(type="prepare", id=2)
        assert answer["error"] == ["ModelFailed", "the models could not be changed; the server's log has the details"]
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[0] is KeyError


async def test_a_commit_that_fails_is_told(caplog: pytest.LogCaptureFixture):
    async def fails(staged: Any) -> None:
        raise ValueError("secret")

    async with supervised() as supervisor:
        await supervisor.ask(type="prepare", id=1, action="load", name="m", parameters={})
        commit, supervisor.plane.commit = supervisor.plane.commit, fails  # type: ignore[method-assign]
        staged = supervisor.worker._staged
        answer = await supervisor.ask(type="commit", id=2, change=1)
        assert (answer["type"], answer["error"][0]) == ("committed", "ModelFailed")
        assert "secret" not in str(answer)
        assert staged is not None
        await commit(staged[1])


# The set of the others


def present(change: int, **parameters: Any) -> dict[str, Any]:
    return {"m": {"versions": {"": {}}, "parameters": parameters, "change": change}}


async def test_a_worker_is_brought_to_the_set_of_the_others_and_tells_what_it_has():
    async with supervised("m", "extra") as supervisor:
        answer = await supervisor.ask(type="restore", id=1, present=present(0))
    assert answer == {"type": "restored", "id": 1, "loaded": LOADED, "problems": []}


async def test_a_model_that_was_changed_meanwhile_is_loaded_again_and_one_that_was_not_is_kept():
    async with supervised() as supervisor:
        first = supervisor.plane.registry.find("m")
        await supervisor.ask(type="restore", id=1, present=present(0))
        assert supervisor.plane.registry.find("m") is first
        await supervisor.ask(type="restore", id=2, present=present(1))
        second = supervisor.plane.registry.find("m")
        assert second is not first
        await supervisor.ask(type="restore", id=3, present=present(1))
        assert supervisor.plane.registry.find("m") is second
        await supervisor.ask(type="prepare", id=4, action="load", name="m", parameters={})
        await supervisor.ask(type="commit", id=5, change=2)
        third = supervisor.plane.registry.find("m")
        await supervisor.ask(type="restore", id=6, present=present(2))
        assert supervisor.plane.registry.find("m") is third, "it is of that very change"
        await supervisor.ask(type="restore", id=7, present=present(1))
        assert supervisor.plane.registry.find("m") is not third


async def test_the_parameters_of_the_last_load_are_those_of_the_set():
    async with supervised() as supervisor:
        await supervisor.ask(type="restore", id=1, present=present(1, config='{"max_batch_size": 7}'))
        assert supervisor.plane.model_config("m").max_batch_rows == 7


async def test_what_cannot_be_had_is_told_and_so_is_what_nobody_foresaw(caplog: pytest.LogCaptureFixture):
    async with supervised() as supervisor:
        lacking = {"none": {"versions": {"": {}}, "parameters": {}, "change": 1}}
        answer = await supervisor.ask(type="restore", id=1, present={**present(0), **lacking})
        (problem,) = answer["problems"]
        assert problem.startswith("model 'none': ")
        assert answer["loaded"] == LOADED
        answer = await supervisor.ask(type="restore", id=2, present={"m": {}})
        assert answer["problems"] == ["the models could not be changed; the server's log has the details"]


async def test_what_a_start_knows_of_models_counts_for_a_later_worker_too():
    known = ModelSettings(name="known", warmup=False)
    async with supervised(named=(known,), broken={"bad": "it cannot be read"}) as supervisor:
        found = {**present(0), "known": {"versions": {"": {}}, "parameters": {}, "change": 0}}
        answer = await supervisor.ask(type="restore", id=1, present=found)
        assert answer == {"type": "restored", "id": 1, "loaded": {**LOADED, "known": {"": {}}}, "problems": []}
        reasons = {entry["name"]: entry.get("reason") for entry in supervisor.plane.repository_index()}
    assert reasons["bad"] == "it cannot be read"


# What it asks


async def test_metrics_and_statistics_are_those_of_all_workers():
    async with supervised() as supervisor:
        await outcome(supervisor.plane, rows_of(1))
        snapshot = supervisor.plane.metrics.snapshot()
        asking = asyncio.ensure_future(supervisor.worker.metrics_page())
        question = await supervisor.heard()
        assert question == {"type": "metrics", "id": question["id"]}
        supervisor.channel.send(type="merged", id=question["id"], snapshots=[snapshot, snapshot])
        assert re.search(rb"nv_inference_request_success{[^}]*} 2\n", await asyncio.wait_for(asking, 10))
        asking = asyncio.ensure_future(supervisor.worker.statistics())
        question = await supervisor.heard()
        supervisor.channel.send(type="merged", id=question["id"], snapshots=[snapshot, snapshot, snapshot])
        (statistics,) = (await asyncio.wait_for(asking, 10)).values()
        assert statistics["inference_count"] == 3


async def test_a_change_is_asked_for_without_bytes_and_is_done_where_no_error_comes():
    async with supervised() as supervisor:
        asking = asyncio.ensure_future(
            supervisor.worker.apply("load", "m", {"config": "{}", "file:a": b"\xff", "n": 1})
        )
        question = await supervisor.heard()
        number = question.pop("id")
        parameters = {"config": "{}", "file:a": "", "n": 1}
        assert question == {"type": "apply", "action": "load", "name": "m", "parameters": parameters}
        supervisor.channel.send(type="done", id=number, error=None)
        assert await asyncio.wait_for(asking, 10) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [(["NotFound", "why"], NotFound), (["Conflict", "why"], Conflict), (["Other", "why"], SerinusError)],
)
async def test_why_a_change_was_not_made_is_raised_by_its_kind(error: list[str], kind: type[SerinusError]):
    async with supervised() as supervisor:
        asking = asyncio.ensure_future(supervisor.worker.apply("unload", "m", {}))
        question = await supervisor.heard()
        supervisor.channel.send(type="done", id=question["id"], error=error)
        with pytest.raises(kind, match=r"^why$") as raised:
            await asyncio.wait_for(asking, 10)
    assert type(raised.value) is kind


async def test_each_question_has_its_own_answer_and_one_that_nobody_waits_for_harms_nothing():
    async with supervised() as supervisor:
        waiting = [asyncio.ensure_future(supervisor.worker.apply("load", name, {})) for name in "abc"]
        questions = [await supervisor.heard() for _ in waiting]
        assert len({question["id"] for question in questions}) == 3
        supervisor.channel.send(type="done", id=10_000, error=None)
        waiting[2].cancel()
        await turns()
        for question, kind in zip(reversed(questions), ("Conflict", "NotFound", "NotReady"), strict=True):
            supervisor.channel.send(type="done", id=question["id"], error=[kind, question["name"]])
        supervisor.channel.send(type="done", id=questions[0]["id"], error=None)
        told = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [(type(each).__name__, str(each)) for each in told] == [
            ("NotReady", "a"),
            ("NotFound", "b"),
            ("CancelledError", ""),
        ]
        assert (await supervisor.ask(type="ping"))["type"] == "pong", "it still listens"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
def test_the_kernel_ends_a_worker_whose_parent_is_gone():
    asked, given = 1, 2  # PR_SET_PDEATHSIG, PR_GET_PDEATHSIG
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    number, before = ctypes.c_int(-1), ctypes.c_int(-1)
    assert prctl(given, ctypes.byref(before), 0, 0, 0) == 0
    try:
        end_with_parent()
        assert prctl(given, ctypes.byref(number), 0, 0, 0) == 0
    finally:
        prctl(asked, before.value, 0, 0, 0)
    assert number.value == signal.SIGTERM
