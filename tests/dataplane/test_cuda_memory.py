"""GPU memory is told of a framework that a model has loaded, by the names that alerts read, and once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dataplane_support import Doubler, serving
from serinus import Family, ModelSettings
from serinus.dataplane.telemetry.cuda_memory import LoadedFramework, families

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
