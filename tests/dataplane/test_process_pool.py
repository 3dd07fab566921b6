"""Both ends of a model in a process, over a real pipe; the process itself is a thread here, so that none is started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serinus import Call, Model, ModelSettings, TensorSpec
from serinus.dataplane.execution.process_pool import ProcessPool, RemoteError, _end_with_parent
from serinus.errors import InvalidInput, ModelFailed, TimedOut
from waiting import wait_until

X = (TensorSpec("x", "FP32", (-1, 2)),)


class Own(InvalidInput):
    """An error that cannot be made again of its message alone."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Doubles(Model):
    """y = 2 x; a first value says what else happens."""

    inputs, outputs = X, (TensorSpec("y", "FP32", (-1, 2)),)
    made: list[Doubles] = []  # noqa: RUF012 # emptied by each test
    fails_to_load: Exception | None = None
    gate = threading.Event()

    def load(self) -> None:
        self.made.append(self)
        self.joined: list[bool] = []
        self.unloaded = False
        self.details["loads"] = len(self.made)
        if self.fails_to_load is not None:
            raise self.fails_to_load

    def join_rows(self, joined: bool) -> None:
        self.joined.append(joined)

    def warmup_inputs(self) -> Any:
        return {"x": np.ones((1, 2), np.float32)}

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        first = inputs["x"][0, 0] if inputs["x"].size else 0
        if first == 13:
            raise ValueError("unlucky")
        if first == 14:
            raise InvalidInput("no such row")
        if first == 15:
            raise Own("this", "that")
        if first == 77:
            assert self.gate.wait(30)
        return {"y": inputs["x"] * 2, "empty": np.zeros((0, 3)), "told": np.array([str(dict(call.parameters))], object)}

    def unload(self) -> None:
        self.unloaded = True


class InThread:
    """A process of the operating system's, as a thread: it has its own end of the pipe, an exit status, and can be killed."""

    all: list[InThread] = []  # noqa: RUF012 # emptied by each test

    def __init__(self, target: Any, args: tuple[Any, ...], name: str, daemon: bool) -> None:
        theirs, *rest = args
        self.pipe = Connection(os.dup(theirs.fileno()))
        self.exitcode: int | None = None
        self.thread = threading.Thread(target=self._run, args=(target, rest), name=name, daemon=daemon)
        self.all.append(self)
        self.closed = False
        self.joins = 0

    def _run(self, target: Any, rest: Any) -> None:
        target(self.pipe, *rest)
        self.end(0)

    def start(self) -> None:
        self.thread.start()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def end(self, status: int) -> None:
        if self.exitcode is None:
            self.exitcode = status
            with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.end(-9)

    def join(self, timeout: float | None = None) -> None:
        self.joins += 1
        wait_until(lambda: self.exitcode is not None, limit_s=timeout or 30)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Signals that a process has told to be ignored."""
    found: list[Any] = []
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=InThread)
    module = "serinus.dataplane.execution.process_pool"
    monkeypatch.setattr(f"{module}.multiprocessing.get_context", lambda kind: context if kind == "spawn" else None)
    monkeypatch.setattr(f"{module}.signal.signal", lambda number, how: found.append((number, how)))
    monkeypatch.setattr(Doubles, "made", [])
    monkeypatch.setattr(Doubles, "gate", threading.Event())
    monkeypatch.setattr(InThread, "all", [])
    yield found
    Doubles.gate.set()
    for one in InThread.all:
        one.end(0)


def pool_of(count: int = 1) -> tuple[ProcessPool, Model, list[str]]:
    settings = ModelSettings(name="m")
    pool, model, restarts = ProcessPool(Doubles, settings, count), Doubles(settings), []
    pool.on_restart = restarts.append
    pool.start(model)
    return pool, model, restarts


def asked(pool: ProcessPool, value: float, rows: int = 1, worker: int = 0, **parameters: Any) -> Any:
    return pool.predicts[worker]({"x": np.full((rows, 2), value, np.float32)}, Call(parameters=parameters))


def test_every_process_loads_the_model_and_the_parents_says_what_it_has_become(ignored: list[Any]):
    pool, model, _ = pool_of(2)
    assert len(Doubles.made) == 2
    assert sorted(ignored) == sorted([(signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_IGN)] * 2)
    assert model.inputs == X
    assert model.details["loads"] in (1, 2)
    sample = model.warmup_inputs()
    assert sample is not None
    assert sample["x"].tolist() == [[1, 1]]
    assert pool.is_at_work
    pool.close()
    assert not pool.is_at_work


def test_arrays_and_parameters_go_there_and_back(ignored: list[Any]):
    pool, _, restarts = pool_of(2)
    for worker in (0, 1):
        found = asked(pool, 3, rows=1000, worker=worker, a=1)
        assert found["y"].tolist() == [[6, 6]] * 1000
        assert found["empty"].shape == (0, 3)
        assert found["told"].tolist() == ["{'a': 1}"]
    assert asked(pool, 3, rows=0)["y"].shape == (0, 2)
    assert restarts == []
    pool.close()
    for process, made in zip(InThread.all, Doubles.made, strict=True):
        wait_until(lambda made=made: made.unloaded)
        assert process.closed
        assert process.exitcode == 0
    pool.close()


def test_what_a_model_raises_there_is_raised_here_and_the_process_goes_on(ignored: list[Any]):
    pool, _, restarts = pool_of()
    with pytest.raises(RemoteError, match="ValueError: unlucky"):
        asked(pool, 13)
    with pytest.raises(InvalidInput, match=r"^no such row$"):
        asked(pool, 14)
    with pytest.raises(ModelFailed, match=r"^model 'm': this and that$"):
        asked(pool, 15)
    assert asked(pool, 1)["y"].tolist() == [[2, 2]]
    assert (restarts, len(Doubles.made)) == ([], 1)
    pool.close()


@pytest.mark.parametrize(("status", "how"), [(3, "exit status 3"), (-9, "killed by SIGKILL")])
def test_a_process_that_ends_fails_its_batch_and_is_replaced_by_one_that_is_told_the_same(
    status: int, how: str, ignored: list[Any]
):
    pool, _, restarts = pool_of()
    pool.join_rows(True)

    def kill() -> None:
        wait_until(lambda: Doubles.made[0].joined and pool._workers[0]._busy_since is not None)
        InThread.all[0].end(status)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ModelFailed) as failed:
        asked(pool, 77)
    killer.join()
    assert str(failed.value) == f"model 'm': its process ended while it predicted ({how})"
    assert asked(pool, 1)["y"].tolist() == [[2, 2]], "the next batch waits for the other one"
    assert restarts == ["ended"]
    assert [one.joined for one in Doubles.made] == [[True], [True]]
    pool.close()


def test_one_that_takes_too_long_is_killed_once_and_its_batch_has_timed_out(ignored: list[Any]):
    pool, _, restarts = pool_of(2)
    assert pool.end_overdue(0.0) == 0, "nothing runs"
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            asked(pool, 77)
        except TimedOut as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: pool._workers[0]._busy_since is not None)
    assert pool.end_overdue(60.0) == 0
    wait_until(lambda: pool.end_overdue(0.0) == 1)
    thread.join(30)
    assert [str(one) for one in failed] == [
        "model 'm' did not answer in time (hang_timeout_s); its process is restarted"
    ]
    assert asked(pool, 1)["y"].tolist() == [[2, 2]]
    assert restarts == ["hung"]
    wait_until(lambda: pool.is_at_work)
    assert pool.end_overdue(0.0) == 0
    pool.close()


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (InvalidInput("no such file"), InvalidInput, "no such file"),
        (ValueError("broken"), RemoteError, "ValueError: broken"),
    ],
)
def test_a_model_that_does_not_load_there_is_told_here(
    error: Exception, raised: type[Exception], text: str, ignored: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Doubles, "fails_to_load", error)
    with pytest.raises(raised, match=text):
        pool_of()


def test_one_that_does_not_come_back_fails_each_batch_with_the_reason_until_it_does(
    ignored: list[Any], monkeypatch: pytest.MonkeyPatch
):
    pool, _, _ = pool_of()
    monkeypatch.setattr(Doubles, "fails_to_load", InvalidInput("no such file"))
    InThread.all[0].end(1)
    with pytest.raises(ModelFailed, match="no such file"):
        asked(pool, 1)
    monkeypatch.setattr(Doubles, "fails_to_load", None)
    monkeypatch.setattr("serinus.dataplane.execution.process_pool._AGAIN_S", -1.0)
    assert pool.end_overdue(60.0) == 0, "a look has it tried again"
    wait_until(lambda: pool._workers[0]._return is None)
    assert asked(pool, 1)["y"].tolist() == [[2, 2]]
    pool.close()


def test_one_that_has_ended_while_nothing_ran_is_waited_for_and_replaced_before_the_next_batch(ignored: list[Any]):
    pool, _, _ = pool_of()
    InThread.all[0].end(1)
    assert asked(pool, 1)["y"].tolist() == [[2, 2]]
    assert InThread.all[0].joins == 1
    assert len(InThread.all) == 2
    pool.close()


@pytest.mark.parametrize("has_parent", [True, False])
def test_a_process_ends_with_its_parent(has_parent: bool, monkeypatch: pytest.MonkeyPatch):
    told: list[Any] = []
    parent = SimpleNamespace(join=lambda: told.append("joined")) if has_parent else None
    monkeypatch.setattr("serinus.dataplane.execution.process_pool.multiprocessing.parent_process", lambda: parent)
    monkeypatch.setattr("serinus.dataplane.execution.process_pool.os._exit", told.append)
    _end_with_parent()
    assert told == (["joined", 0] if has_parent else [])


def test_a_pool_that_is_closed_predicts_nothing(ignored: list[Any]):
    pool, _, restarts = pool_of()
    pool.close()
    with pytest.raises(ModelFailed, match="model 'm' is being unloaded"):
        asked(pool, 1)
    assert restarts == []
    assert len(InThread.all) == 1
