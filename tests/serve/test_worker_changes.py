"""What the supervisor of several workers asks of them when one asks for a change of the models, or for the metrics of all."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from dataplane_support import Doubler, outcome, rows_of, serving
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.server.workers import supervisor as module
from serinus.server.workers.supervisor import _disagreement
from waiting import turns, until
from worker_group import LOADED, Group, Worker, group

NEW = {"2": {"model.bin": "def"}}


def asks(worker: Worker, number: int, name: str = "m", action: str = "load", **parameters: Any) -> None:
    worker.say(type="apply", id=number, action=action, name=name, parameters=parameters)


async def both(workers: list[Worker], kind: str, answer: str, **fields: Any) -> list[dict[str, Any]]:
    return [await worker.answer(kind, answer, **fields) for worker in workers]


# Changes


async def test_a_change_is_prepared_by_all_and_then_made_by_all_and_whoever_asked_is_told(
    monkeypatch: pytest.MonkeyPatch,
):
    async with group(monkeypatch) as running:
        workers = await running.listening()
        asks(workers[1], 9, config="{}")
        question = {"action": "load", "name": "m", "parameters": {"config": "{}"}}
        assert await workers[0].answer("prepare", "prepared", error=None, versions=NEW) == question
        await turns()
        assert running.supervisor._present.document()["m"]["change"] == 0, "one has not prepared it"
        assert await workers[1].answer("prepare", "prepared", error=None, versions=NEW) == question
        assert await both(workers, "commit", "committed", error=None) == [{"change": 1}] * 2
        assert await workers[1].heard() == {"type": "done", "id": 9, "error": None}
        document = {"m": {"versions": NEW, "parameters": {"config": "{}"}, "change": 1}}
        assert running.supervisor._present.document() == document
        asks(workers[0], 3, action="unload")
        assert (await both(workers, "prepare", "prepared", error=None, versions={}))[0]["action"] == "unload"
        assert await both(workers, "commit", "committed", error=None) == [{"change": 2}] * 2
        assert await workers[0].heard() == {"type": "done", "id": 3, "error": None}
        assert running.supervisor._present.document() == {"m": {"versions": {}, "parameters": {}, "change": 2}}


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"error": ["NotFound", "none such"], "versions": {}}, ["NotFound", "none such"]),
        (
            {"error": None, "versions": LOADED["m"]},
            ["Conflict", "the workers found different files of model 'm': nothing was changed; try again"],
        ),
    ],
    ids=["one cannot", "other files"],
)
async def test_a_change_that_one_cannot_make_is_given_up_by_all(
    told: dict[str, Any], error: list[str], monkeypatch: pytest.MonkeyPatch
):
    async with group(monkeypatch) as running:
        workers = await running.listening()
        before = running.supervisor._present.document()
        asks(workers[0], 1)
        await workers[0].answer("prepare", "prepared", error=None, versions=NEW)
        await workers[1].answer("prepare", "prepared", **told)
        assert await both(workers, "discard", "committed", error=None) == [{}, {}]
        assert await workers[0].heard() == {"type": "done", "id": 1, "error": error}
        assert running.supervisor._present.document() == before


async def test_one_that_dies_while_it_prepares_undoes_the_change(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        asks(first, 1)
        await first.answer("prepare", "prepared", error=None, versions=NEW)
        assert (await second.heard())["type"] == "prepare"
        await second.die()
        await first.answer("discard", "committed", error=None)
        done = await first.heard()
        text = "a worker ended while it prepared model 'm': nothing was changed; try again"
        assert done == {"type": "done", "id": 1, "error": ["NotReady", text]}
        await running.next(1)
        assert running.supervisor._present.document()["m"]["change"] == 0


async def test_one_that_cannot_make_what_it_has_prepared_is_replaced_and_the_change_stands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        asks(first, 1)
        await both([first, second], "prepare", "prepared", error=None, versions=NEW)
        await first.answer("commit", "committed", error=None)
        await second.answer("commit", "committed", error=["ModelFailed", "why"])
        assert await first.heard() == {"type": "done", "id": 1, "error": None}
        await until(lambda: second.known.process.returncode is not None)
        await second.hang_up()
        later = await running.next(1)
        assert running.ends == {"models": 1}
        assert first.known.process.returncode is None
        assert later.known.admitted
    assert "worker 1 did not take over model 'm': why" in caplog.messages


async def test_one_that_dies_while_it_makes_a_change_comes_back_with_it(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        asks(first, 1)
        await both([first, second], "prepare", "prepared", error=None, versions=NEW)
        await second.die()
        await first.answer("commit", "committed", error=None)
        assert await first.heard() == {"type": "done", "id": 1, "error": None}
        later = await running.started(1)
        await later.comes_up({"m": {"versions": NEW, "parameters": {}, "change": 1}})


async def test_changes_come_one_after_the_other_and_only_to_those_that_have_the_set(monkeypatch: pytest.MonkeyPatch):
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        await second.die()
        later = await running.started(1)
        assert (await later.heard())["type"] == "begin"
        asks(first, 1, "m")
        asks(first, 2, "n")
        assert (await first.answer("prepare", "prepared", error=None, versions=NEW))["name"] == "m"
        assert (await first.answer("commit", "committed", error=None))["change"] == 1
        assert (await first.heard())["id"] == 1
        assert (await first.answer("prepare", "prepared", error=None, versions=NEW))["name"] == "n"
        later.say(type="ready", loaded=LOADED)
        await until(lambda: later.known.ready)
        await turns()
        assert (await first.answer("commit", "committed", error=None))["change"] == 2
        restore = await later.heard()
        assert restore["type"] == "restore", "it has been asked for nothing before"
        assert {name: one["change"] for name, one in restore["present"].items()} == {"m": 1, "n": 2}


PREPARED: dict[str, Any] = {"error": None, "versions": NEW}
OTHER: dict[str, Any] = {"error": None, "versions": {}}
REFUSED: dict[str, Any] = {"error": ["NotFound", "none"], "versions": {}}
ENDED = ["NotReady", "a worker ended while it prepared model 'm': nothing was changed; try again"]
DIFFERENT = ["Conflict", "the workers found different files of model 'm': nothing was changed; try again"]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([PREPARED], None),
        ([PREPARED, PREPARED, PREPARED], None),
        ([], ENDED),
        ([None], ENDED),
        ([PREPARED, None], ENDED),
        ([None, PREPARED], ENDED),
        ([PREPARED, OTHER], DIFFERENT),
        ([PREPARED, PREPARED, OTHER], DIFFERENT),
        ([OTHER, None], ENDED),
        ([REFUSED], ["NotFound", "none"]),
        ([None, PREPARED, REFUSED], ["NotFound", "none"]),
    ],
)
def test_a_change_may_be_made_where_all_have_prepared_the_same(answers: list[Any], error: list[str] | None):
    assert _disagreement("m", answers) == error


# Metrics


async def counted(requests: int) -> dict[str, Any]:
    """A worker's snapshot, after so many requests."""
    async with serving(Doubler, metrics=Metrics("m-7")) as plane:
        for _ in range(requests):
            await outcome(plane, rows_of(1))
        return plane.metrics.snapshot()


def successes(merged: dict[str, Any]) -> int:
    page = Metrics.render_merged(merged["snapshots"]).decode()
    return sum(int(count) for count in re.findall(r"^nv_inference_request_success\{.*\} (\d+)$", page, re.MULTILINE))


async def merged(running: Group, asker: Worker, *told: tuple[Worker, Any]) -> dict[str, Any]:
    """What a worker that asks for metrics is answered, where these say theirs."""
    asker.say(type="metrics", id=7)
    for worker, snapshot in told:
        await worker.answer("collect", "snapshot", data=snapshot)
    answer = await asker.heard()
    assert (answer["type"], answer["id"]) == ("merged", 7)
    return answer


async def test_metrics_are_those_of_all_that_listen_and_the_supervisors_own(monkeypatch: pytest.MonkeyPatch):
    one, two = await counted(1), await counted(2)
    async with group(monkeypatch, revision="m-7") as running:
        first, second = await running.first_round()
        await first.let_in()
        answer = await merged(running, first, (first, one))
        assert answer["snapshots"] == [one, running.supervisor._own_snapshot()]
        await second.let_in()
        answer = await merged(running, second, (first, two), (second, one))
        assert answer["snapshots"] == [two, one, running.supervisor._own_snapshot()]
        assert successes(answer) == 3
        own = running.supervisor._own_snapshot()
        assert (own["models"], own["errors"], own["process"], own["revision"]) == ([], [], {}, "m-7")
        ((name, text, kind, samples),) = own["families"]
        assert (name, kind) == ("serinus_worker_restarts_total", "counter")
        assert text.startswith("Workers that were replaced: ended by themselves, silent or stopped, for their memory")
        assert samples == [[{"reason": reason}, 0] for reason in ("ended", "silent", "memory", "models")]


async def test_of_one_that_is_busy_its_last_snapshot_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_COLLECT_TIMEOUT_S", 0.02)
    one, two = await counted(1), await counted(2)
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        assert successes(await merged(running, first, (first, one), (second, two))) == 3
        first.say(type="metrics", id=8)
        await first.answer("collect", "snapshot", data=two)
        question = await second.heard()
        answer = await first.heard()
        assert successes(answer) == 4
        second.say(type="snapshot", id=question["id"], data=one)  # too late, for nobody
        second.say(type="pong", data=one)
        await until(lambda: second.known.last_snapshot == one)
        second.say(type="pong", data=None)
        await turns()
        assert second.known.last_snapshot == one, "a sign of life without counts changes none"
        assert second.known.waiting == {}


async def test_what_those_that_ended_had_counted_stays_and_is_told_once(monkeypatch: pytest.MonkeyPatch):
    one, two, four = await counted(1), await counted(2), await counted(4)
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        for dying, snapshot in ((first, one), (second, two)):
            dying.say(type="pong", data=snapshot)
            await until(lambda dying=dying: dying.known.last_snapshot)
            await dying.die()
            later = await running.next(dying.known.index)
        answer = await merged(running, later, (running.workers[-2], four), (later, four))
        assert successes(answer) == 1 + 2 + 4 + 4
        lost = answer["snapshots"][2]
        assert all(model["gauges"] == {} for model in lost["models"]), "its gauges died with it"
        assert running.supervisor._own_snapshot()["families"][0][3][0] == [{"reason": "ended"}, 2]


async def test_one_that_ends_while_it_is_asked_is_counted_once_among_the_lost(monkeypatch: pytest.MonkeyPatch):
    one, two = await counted(1), await counted(2)
    async with group(monkeypatch) as running:
        first, second = await running.listening()
        second.say(type="pong", data=one)
        await until(lambda: second.known.last_snapshot)
        first.say(type="metrics", id=7)
        assert (await second.heard())["type"] == "collect"
        await second.die()
        await until(lambda: running.ends)
        await first.answer("collect", "snapshot", data=two)
        assert successes(await first.heard()) == 3


@pytest.mark.looptime
async def test_a_question_is_given_up_after_two_seconds_and_one_to_a_worker_that_is_gone_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
):
    loop = asyncio.get_running_loop()
    supervisor = module.Supervisor(module.ServerSettings(), ("true",))

    class Silent:
        """A worker, as far as it is asked."""

        index, waiting, channel = 3, {}, None

        def __init__(self) -> None:
            self.sent: list[Any] = []
            self.waiting: dict[int, Any] = {}
            self.channel: Any = self  # type: ignore[assignment]

        def send(self, **message: Any) -> None:
            self.sent.append(message)

    silent: Any = Silent()
    assert await supervisor._ask(silent, None, type="collect") is None
    assert silent.sent == []
    supervisor._workers[3] = silent
    began = loop.time()
    await supervisor._collect(silent)
    assert loop.time() - began == pytest.approx(2.0)
    assert [message["type"] for message in silent.sent] == ["collect"]
    assert silent.waiting == {}
