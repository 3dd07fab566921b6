"""Memory past its limit ends a server for a clean start, and says why; memory that was there from the start does not."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serinus.server import memory_guard
from serinus.server.memory_guard import MemoryGuard, default_limit
from serinus.server.memory_readings import MemoryReading, container_limit, read_memory, reserved_on_gpus
from serve_support import serving
from waiting import wait_until

MIB = 1 << 20
LEAK = '''
import numpy as np
from serinus import Model, TensorSpec


class Leak(Model):
    """Keeps so many MiB with each predict."""

    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    execution = "thread"
    kept = []

    def predict(self, inputs, call):
        self.kept.append(np.ones(int(inputs["x"][0, 0]) << 20, np.uint8))
        return {"y": inputs["x"]}
'''


class Machine:
    """Memory and time that the test sets."""

    def __init__(self, **guard: Any) -> None:
        self.own = 100
        self.children = 0
        self.gpu = 0
        self.now = 0.0
        self.told: list[str] = []
        self.trimmed = 0
        self.after_trim: int | None = None
        limit = guard.pop("limit", 200)
        self.guard = MemoryGuard(
            limit * MIB, read=self.read, clock=lambda: self.now, on_passed=self.told.append, trim=self.trim, **guard
        )

    def read(self) -> MemoryReading:
        return MemoryReading(self.own * MIB, self.children * MIB, self.gpu * MIB)

    def trim(self) -> None:
        self.trimmed += 1
        if self.after_trim is not None:
            self.own = self.after_trim

    def look(self, times: int = 1, *, every_s: float = 2.0) -> None:
        for _ in range(times):
            self.guard.look()
            self.now += every_s

    def gauges(self) -> dict[str, float]:
        return {family.name: family.samples[0][1] for family in self.guard.families()}


def test_three_looks_past_the_limit_are_a_reason_and_two_are_a_large_batch():
    machine = Machine()
    machine.look()
    machine.own = 201
    machine.look(2)
    machine.own = 199
    machine.look()
    machine.own = 201
    machine.look(2)
    assert machine.told == []
    machine.look(5)
    assert len(machine.told) == 1, "told once"
    assert "201 MiB, past the limit of 200 MiB (memory_limit_bytes)" in machine.told[0]
    assert machine.gauges()["serinus_memory_restart_pending"] == 1


def test_pages_that_the_allocator_gives_back_spare_the_end():
    machine = Machine()
    machine.look()
    machine.own, machine.after_trim = 300, 150
    machine.look(10)
    assert machine.told == []
    assert machine.trimmed == 1


@pytest.mark.parametrize(("part", "value"), [("children", 101), ("gpu", 51)])
def test_the_processes_of_models_count_and_gpus_by_their_own_limit(part: str, value: int):
    machine = Machine(gpu_limit_bytes=50 * MIB)
    machine.look()
    setattr(machine, part, value)
    machine.look(3)
    assert len(machine.told) == 1
    assert ("gpu_memory_limit_bytes" in machine.told[0]) is (part == "gpu")


def test_a_server_that_begins_past_its_limit_is_left_alone_and_says_so(caplog: pytest.LogCaptureFixture):
    machine = Machine(limit=50)
    machine.look(10)
    assert machine.told == []
    assert "another start would not help" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    assert machine.gauges()["serinus_memory_limit_bytes"] == 0


def test_without_a_limit_memory_is_told_and_nothing_else():
    machine = Machine(limit=0)
    machine.look()
    machine.own, machine.children = 100_000, 7
    machine.look(10)
    assert machine.told == []
    assert machine.gauges()["serinus_memory_children_bytes"] == 7 * MIB


def test_growth_is_by_the_hour_over_the_last_hour():
    machine = Machine(limit=0)
    machine.look(5, every_s=60)
    assert machine.guard.growth() == 0, "too little is known"
    for _ in range(120):
        machine.own += 1
        machine.look(every_s=60)
    assert machine.guard.growth() == pytest.approx(60 * MIB)


@pytest.mark.parametrize("count", range(1, 9))
def test_growth_is_told_from_the_sixth_minute_on_and_up_to_the_newest(count: int):
    machine = Machine(limit=0)
    for own in [100] * (count - 1) + [160]:
        machine.own = own
        machine.look(every_s=60)
    assert machine.guard.growth() == pytest.approx(0 if count < 6 else 60 * MIB * 60 / (count - 1))
    assert machine.gauges()["serinus_memory_growth_bytes_per_hour"] == machine.guard.growth()


@pytest.mark.parametrize(("minutes", "grows"), [(59, True), (60, True), (61, False)])
def test_what_is_an_hour_ago_is_no_growth_any_more(minutes: int, grows: bool):
    machine = Machine(limit=0)
    machine.look(every_s=60)
    machine.own = 200
    machine.look(minutes, every_s=60)
    assert (machine.guard.growth() > 0) is grows


@pytest.mark.parametrize(("every_s", "sampled"), [(59.0, 4), (60.0, 7), (61.0, 7)])
def test_growth_is_of_looks_that_are_a_minute_apart(every_s: float, sampled: int):
    machine = Machine(limit=0)
    machine.look(7, every_s=every_s)
    assert len(machine.guard._samples) == sampled


@pytest.mark.parametrize(
    ("own", "children", "gpu", "is_past"),
    [
        (200, 0, 50, False),
        (150, 50, 50, False),
        (150, 51, 0, True),
        (201, 0, 0, True),
        (0, 0, 51, True),
        (0, 0, 50, False),
    ],
)
def test_a_limit_is_passed_above_it(own: int, children: int, gpu: int, is_past: bool):
    machine = Machine(gpu_limit_bytes=50 * MIB)
    machine.look()
    machine.own, machine.children, machine.gpu = own, children, gpu
    machine.look(3)
    assert bool(machine.told) is bool(machine.guard.reason) is is_past


def test_what_is_told_after_the_pages_are_given_back_is_what_is_left():
    machine = Machine()
    machine.look()
    machine.own, machine.children, machine.after_trim = 300, 5, 250
    machine.look(3)
    assert machine.told == [
        "memory is 255 MiB, past the limit of 200 MiB (memory_limit_bytes): the server ends for a clean start"
    ]
    assert machine.guard._last.own == 250 * MIB


@pytest.mark.looptime
async def test_memory_is_looked_at_at_once_and_every_two_seconds():
    machine = Machine()
    looks: list[float] = []
    loop = asyncio.get_running_loop()
    begun = loop.time()
    guard = MemoryGuard(
        0, read=machine.read, clock=lambda: looks.append(loop.time() - begun) or 0.0, on_passed=machine.told.append
    )
    running = asyncio.ensure_future(guard.run())
    await asyncio.sleep(7)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert looks == pytest.approx([0, 2, 4, 6])


def test_free_pages_are_given_back_where_the_allocator_can(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    class Library:
        def malloc_trim(self, pad: int) -> None:
            asked.append(pad)

    for library in (Library(), object()):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: asked.append(name) or library)
        memory_guard._trim()
    assert asked == [None, 0, None]


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", f"{(1 << 60) - 1}", (1 << 60) - 1),
        ("memory.max", f"{1 << 60}", None),
        ("memory.max", "1073741824\n", 1 << 30),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", 1 << 30),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1", None),
    ],
    ids=["v2 large", "v2 too large", "v2", "v2 none", "v1", "v1 none", "no cgroup"],
)
def test_the_limit_is_nine_tenths_of_the_containers(name: str, text: str, limit: int | None, tmp_path: Path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    assert container_limit(tmp_path) == limit
    assert default_limit(limit) == (0 if limit is None else int(limit * 0.9))


def test_the_newer_cgroup_is_asked_first(tmp_path: Path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000")
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limit(tmp_path) is None


def proc(root: Path, pid: int, status: str | None, **children: str | None) -> None:
    """Write what the kernel tells of a process; the children of each of its threads, None where they cannot be read."""
    folder = root / str(pid)
    folder.mkdir()
    if status is not None:
        (folder / "status").write_text(status)
    for thread, text in children.items():
        task = folder / "task" / thread
        task.mkdir(parents=True)
        if text is None:
            (task / "children").mkdir()
        else:
            (task / "children").write_text(text)


STATUS = "Name:\tpython\nVmRSS:\t  999 kB\nRssAnon:\t   40 kB\nRssFile:\t  900 kB\nRssShmem:\t  2 kB\n"


@pytest.mark.parametrize(
    ("status", "kib"),
    [(STATUS, 42), ("RssAnon:\t7 kB\n", 7), ("RssAnon:\n", 0), ("RssAnon:\tmuch kB\n", 0), ("", 0), (None, 0)],
    ids=["usual", "anonymous alone", "no number", "a word", "a kernel's own", "gone"],
)
def test_what_counts_is_anonymous_and_shared_and_nothing_of_one_that_is_gone(
    status: str | None, kib: int, tmp_path: Path
):
    proc(tmp_path, 1, status)
    assert read_memory(1, tmp_path) == MemoryReading(kib << 10)


def test_all_below_a_process_count_and_one_that_ends_meanwhile_hides_no_other(tmp_path: Path):
    proc(tmp_path, 1, STATUS, a="2 3 ", b=None, c="not numbers", d="4", e="")
    proc(tmp_path, 2, "RssAnon:\t1 kB\n", a="5")
    proc(tmp_path, 3, "RssAnon:\t10 kB\n", a=None)
    proc(tmp_path, 4, None)
    proc(tmp_path, 5, "RssAnon:\t100 kB\n")
    proc(tmp_path, 6, "RssAnon:\t1000 kB\n")
    assert read_memory(1, tmp_path) == MemoryReading(42 << 10, 111 << 10)


def test_memory_is_read_of_a_process_and_all_below_it():
    pid = psutil.Process().pid
    before = read_memory(pid)
    kept = np.ones(100 * MIB, np.uint8)
    code = "kept = bytearray(b'x') * (100 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        after = read_memory(pid)
        child.kill()
    assert after.own - before.own > kept.nbytes * 0.9
    assert after.own < psutil.Process().memory_info().rss
    assert after.children - before.children > 90 * MIB
    assert read_memory(1 << 30) == MemoryReading(0)


def test_pages_of_files_are_not_memory_that_is_held(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"x" * (100 * MIB))
    before = read_memory(psutil.Process().pid).own
    mapped = np.memmap(file, np.uint8, "r")
    assert int(mapped[::4096].sum())
    assert read_memory(psutil.Process().pid).own - before < 50 * MIB


class Cuda:
    """`torch.cuda` as far as it is asked."""

    def __init__(self, *, initialized: bool) -> None:
        self._initialized = initialized

    def is_initialized(self) -> bool:
        return self._initialized

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, device: int) -> int:
        return 10 + device


def test_gpu_memory_is_asked_of_a_framework_that_is_loaded_and_uses_it():
    def torch(*, initialized: bool) -> dict[str, Any]:
        return {"torch": type("torch", (), {"cuda": Cuda(initialized=initialized)})}

    assert reserved_on_gpus({}) == 0
    assert reserved_on_gpus(torch(initialized=False)) == 0
    assert reserved_on_gpus(torch(initialized=True)) == 21
    assert reserved_on_gpus({"torch": object()}) == 0


def grow(mib: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [mib]}]}


@pytest.mark.slow  # it starts a server
def test_a_model_that_leaks_ends_its_server_with_status_75_and_a_reason_and_no_request_is_lost(tmp_path: Path):
    (tmp_path / "leak_model.py").write_text(LEAK)
    message = tmp_path / "termination-log"
    message.touch()
    flags = [
        "--class",
        "leak_model:Leak",
        "--model_name",
        "m",
        "--warmup",
        "false",
        "--memory_limit_bytes",
        str(500 * MIB),
    ]
    flags += ["--termination_message_path", str(message)]
    with serving(tmp_path, *flags, environment={"PYTHONPATH": str(tmp_path)}) as served:
        page = served.ask("GET", "/metrics")[1]
        assert f"serinus_memory_limit_bytes {500 * MIB}" in page
        assert "serinus_memory_restart_pending 0" in page
        assert served.ask("POST", "/v2/models/m/infer", grow(500))[0] == 200
        assert served.process.wait(30) == 75
        for text in (served.log.read_text(), message.read_text()):
            assert "past the limit of 500 MiB" in text


@pytest.mark.slow  # it starts servers
def test_workers_that_leak_are_replaced_one_at_a_time(tmp_path: Path):
    (tmp_path / "leak_model.py").write_text(LEAK)
    flags = ["--class", "leak_model:Leak", "--model_name", "m", "--warmup", "false", "--workers", "2"]
    flags += ["--memory_limit_bytes", str(800 * MIB)]
    with serving(tmp_path, *flags, environment={"PYTHONPATH": str(tmp_path)}, timeout_s=90) as served:
        wait_until(lambda: served.log.read_text().count(" listens") == 2)
        assert served.ask("POST", "/v2/models/m/infer", grow(500))[0] == 200
        wait_until(lambda: served.log.read_text().count(" listens") == 3, limit_s=60)
        assert 'serinus_worker_restarts_total{reason="memory"} 1' in served.ask("GET", "/metrics")[1]
        assert "worker" in served.log.read_text()
        assert served.stop() == 0


def test_what_is_told_of_a_gpus_memory_names_both_in_mebibytes():
    machine = Machine(gpu_limit_bytes=50 * MIB)
    machine.look()
    machine.gpu = 51
    machine.look(3)
    assert machine.guard.reason.startswith("GPU memory is 51 MiB, past the limit of 50 MiB (gpu_memory_limit_bytes)")
