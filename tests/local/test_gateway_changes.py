"""Changes of the local gateway that Envoy does not take, against a real one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serinus.local.plan.envoy_config import Host, admin_path
from serinus.local.plan.routing_table import GatewayTable
from serinus.local.run import gateway as gateway_module
from serinus.local.run.gateway import Gateway
from serinus.local.run.processes.log_files import LogFile
from serinus.local.run.processes.ports import PortBook
from serinus.local.run.processes.probe import http_get
from serinus.local.run.processes.reaper_link import Reaper


def _table(*names: str) -> GatewayTable:
    return GatewayTable(hosts=tuple(Host(name, ("one.example",), (), 60.0) for name in names))


async def _shown_version(gateway: Gateway) -> str:
    path = admin_path("/config_dump?resource=dynamic_route_configs", gateway.admin_key)
    _, body = await http_get(gateway.admin_port, path, timeout_s=5.0)
    return json.loads(body)["configs"][0]["version_info"]


def test_routes_that_were_not_taken_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy refuses two virtual hosts of one domain. What is then asked for is what there was before, which the file must say again."""

    async def change() -> None:
        log = LogFile(tmp_path / "gateway.log", "gateway")
        gateway = Gateway(
            tmp_path,
            host="127.0.0.1",
            port=0,
            ports=PortBook(),
            reaper=Reaper(),
            log=log,
            access_log=tmp_path / "access.log",
        )
        await gateway.start()
        try:
            assert await gateway.apply(lambda: _table("one"))
            before = (tmp_path / "rds.json").read_text()
            monkeypatch.setattr(gateway_module, "CONFIRM_S", 1.0)
            assert not await gateway.apply(lambda: _table("one", "other"))
            monkeypatch.undo()
            assert await gateway.apply(lambda: _table("one"))
            after = json.loads((tmp_path / "rds.json").read_text())
            assert after["resources"] == json.loads(before)["resources"]
            assert await _shown_version(gateway) == after["version_info"]
        finally:
            await gateway.stop(5.0)

    asyncio.run(change())
