"""Canaries of one service that are brought at the same time: what becomes of the others where the gateway does not take one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from local_support import manifest
from serinus.errors import ConfigError
from serinus.local.plan.container_environment import ConfigData
from serinus.local.plan.deployment_plan import PlanOptions, ServicePlan, Track
from serinus.local.plan.planner import Planner
from serinus.local.plan.routing_table import GatewayTable
from serinus.local.run import reconciler as reconciler_module
from serinus.local.run.gateway import Gateway
from serinus.local.run.reconciler import Reconciler, RunOptions
from serinus.local.run.revision import Workshop
from serinus.local.run.running_service import RunningService
from serinus.manifests.documents import load_text
from serinus.manifests.inference_service import parse_inference_service
from serinus.manifests.problems import Problems


def planned(text: str) -> ServicePlan:
    service = parse_inference_service(load_text(text, "isvc.yaml")[0])
    plan = Planner([], [], ConfigData(), PlanOptions(), Problems()).plan(service)
    assert plan is not None
    return plan


class SlowGateway:
    """Envoy, which is silent on some changes until it is let, and then has not taken them."""

    def __init__(self) -> None:
        self.silent = asyncio.Event()
        self.silent.set()
        self.asked = 0

    async def apply(self, make: Callable[[], GatewayTable]) -> bool:
        """Take a change; not the one that is asked for while it is silent."""
        self.asked += 1
        if self.silent.is_set():
            return True
        await self.silent.wait()
        return False


class Chains(Reconciler):
    """Whose revisions are ready at once: no process is started."""

    async def _bring_up(self, track: Track) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("had_another", [False, True])
async def test_a_canary_that_the_gateway_does_not_take_leaves_the_others_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had_another: bool
):
    monkeypatch.setattr(reconciler_module, "PATIENCE_S", 0.0)
    first, second, third = (dataclasses.replace(planned(manifest(f"--tag={n}")).stable, name=f"c{n}") for n in range(3))
    gateway = SlowGateway()
    ours = Chains(RunOptions(tmp_path), cast("Workshop", None), cast("Gateway", gateway), say=lambda line: None)
    service = RunningService(planned(manifest("--tag=stable")))
    if had_another:
        service.ready_canaries["c0"] = third.entry.digest
        service.chains[third.entry.digest] = third
    before = dict(service.ready_canaries)

    gateway.silent.clear()
    bringing = asyncio.ensure_future(ours._bring_canary(service, first))
    while not gateway.asked:
        await asyncio.sleep(0)
    let, gateway.silent = gateway.silent, asyncio.Event()
    gateway.silent.set()
    await ours._bring_canary(service, second)
    let.set()
    with pytest.raises(ConfigError, match="the gateway has not taken the change"):
        await bringing
    assert service.ready_canaries == {**before, "c1": second.entry.digest}
