"""GPU memory is told of a framework that a model has loaded, by the names that alerts read, and once."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane_support import Doubler, serving
from serinus import Family, ModelSettings
from serinus.dataplane.telemetry.cuda_memory import CudaMemory, LoadedFramework, families, largest_free_bytes

MONITORING = Path(__file__).resolve().parents[2] / "manifests" / "monitoring"
READ_BY_ALERTS = set(
    re.findall(r"serinus_cuda_memory_[a-z_]+", (MONITORING / "alerts" / "prometheusrule.yaml").read_text())
)
STATS = {
    "allocated_bytes.all.current": 70,
    "reserved_bytes.all.current": 78,
    "inactive_split_bytes.all.current": 31,
    "num_alloc_retries": 2,
    "num_ooms": 1,
}


class Cuda:
    """`torch.cuda` of two devices."""

    initialized = True

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        return 2

    def memory_stats(self, device: int) -> dict[str, int]:
        return STATS

    def memory_snapshot(self) -> list[dict[str, Any]]:
        return []

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return 2, 80


class Torch:
    def __init__(self) -> None:
        self.cuda = Cuda()


def test_a_framework_that_is_loaded_and_uses_devices_is_told_by_device_and_worker():
    torch = Torch()
    told = LoadedFramework("3", {"torch": torch}).metrics()
    assert len(READ_BY_ALERTS) > 4
    assert {family.name for family in told} >= READ_BY_ALERTS
    assert {tuple(sorted(labels.items())) for family in told for labels, _ in family.samples} == {
        (("device", "0"), ("worker", "3")),
        (("device", "1"), ("worker", "3")),
    }


def test_one_that_is_not_loaded_or_uses_none_is_not_told():
    torch = Torch()
    torch.cuda.initialized = False
    for modules in ({}, {"torch": torch}, {"torch": object()}):
        assert LoadedFramework("0", modules).metrics() == ()


MORE = {
    **STATS,
    "active_bytes.all.current": 71,
    "requested_bytes.all.current": 69,
    "allocated_bytes.all.peak": 77,
}


def test_each_number_of_the_allocator_has_its_own_metric_and_one_that_it_does_not_tell_has_none():
    told = families(MORE, (2, 80), 5, 1, "3")
    labels = {"device": "1", "worker": "3"}
    assert all(family.samples == [(labels, family.samples[0][1])] for family in told)
    assert [
        (family.name.removeprefix("serinus_cuda_memory_"), family.kind, family.samples[0][1]) for family in told
    ] == [
        ("allocated_bytes", "gauge", 70.0),
        ("reserved_bytes", "gauge", 78.0),
        ("active_bytes", "gauge", 71.0),
        ("inactive_split_bytes", "gauge", 31.0),
        ("requested_bytes", "gauge", 69.0),
        ("peak_bytes", "gauge", 77.0),
        ("largest_free_bytes", "gauge", 5.0),
        ("device_free_bytes", "gauge", 2.0),
        ("device_total_bytes", "gauge", 80.0),
        ("alloc_retries_total", "counter", 2.0),
        ("ooms_total", "counter", 1.0),
    ]
    assert len({family.help for family in told}) == len(told)
    names = {family.name for family in told} - {family.name for family in families(STATS, (2, 80), 5, 1, "3")}
    assert names == {f"serinus_cuda_memory_{name}_bytes" for name in ("active", "requested", "peak")}
    assert [family.samples[0][1] for family in families({}, (2, 80), 5, 1, "3")] == [5.0, 2.0, 80.0]


def segment(device: int, *blocks: tuple[str, int]) -> dict[str, Any]:
    return {"device": device, "blocks": [{"state": state, "size": size} for state, size in blocks]}


@pytest.mark.parametrize(
    ("segments", "largest"),
    [
        ([], 0),
        ([segment(1, ("inactive", 9))], 9),
        ([segment(1, ("inactive", 4), ("inactive", 9), ("inactive", 7)), segment(1, ("inactive", 8))], 9),
        ([segment(1, ("active_allocated", 9), ("active_pending_free", 8), ("inactive", 2))], 2),
        ([segment(1, ("unknown", 9))], 0),  # torch/cuda/memory.py names three states, and says no more of others
        ([segment(0, ("inactive", 9)), segment(2, ("inactive", 8)), segment(1, ("inactive", 1))], 1),
        ([segment(1)], 0),
    ],
)
def test_the_largest_free_block_is_of_the_device_and_of_those_that_nobody_has(segments: Any, largest: int):
    assert largest_free_bytes(segments, 1) == largest


def test_before_a_device_is_used_nothing_is_told_of_it():
    torch = Torch()
    torch.cuda.memory_stats = lambda device: {}
    assert CudaMemory(torch, 0).metrics() == ()


def test_the_walk_over_all_blocks_is_good_for_a_quarter_of_a_minute():
    now, walks = [100.0], []
    torch = Torch()

    def snapshot() -> list[dict[str, Any]]:
        walks.append(now[0])
        return [segment(0, ("inactive", len(walks)))]

    torch.cuda.memory_snapshot = snapshot
    memory = CudaMemory(torch, 0, clock=lambda: now[0])
    found = []
    for now[0] in (100.0, 114.9, 115.0, 129.9, 130.0):
        (told,) = [family for family in memory.metrics() if family.name.endswith("largest_free_bytes")]
        ((labels, value),) = told.samples
        assert labels == {"device": "0", "worker": "0"}
        found.append(value)
    assert (found, walks) == ([1, 1, 2, 2, 3], [100.0, 115.0, 130.0])


def test_the_devices_are_counted_once_and_a_framework_that_is_loaded_later_is_found(monkeypatch: pytest.MonkeyPatch):
    torch, counted = Torch(), []
    torch.cuda.device_count = lambda: counted.append(1) or 2
    told = LoadedFramework("0")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert told.metrics() == ()
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type] # as much of it as is asked for
    assert told.metrics()
    assert told.metrics()
    assert counted == [1]


class Tells(Doubler):
    def metrics(self) -> list[Family]:
        return families({**STATS, "reserved_bytes.all.current": 1000}, (2, 80), 0, 0, "0")


async def test_a_page_tells_what_the_models_tell_or_else_the_framework(monkeypatch: Any):
    async with serving(Doubler) as plane:
        monkeypatch.setattr(plane.registry, "_framework", LoadedFramework("0", {"torch": Torch()}))
        assert b'serinus_cuda_memory_reserved_bytes{device="1",worker="0"} 78' in plane.metrics.render()
    async with serving(Tells, ModelSettings(name="m")) as plane:
        monkeypatch.setattr(plane.registry, "_framework", LoadedFramework("0", {"torch": Torch()}))
        page = plane.metrics.render()
        assert b'serinus_cuda_memory_reserved_bytes{device="0",worker="0"} 1000' in page
        assert b'device="1"' not in page
