"""Small questions to servers on this machine: an HTTP GET, a TCP connection, a probe or hook of a manifest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Literal

from ....manifests.containers import Hook, Probe
from ...plan.port_binding import ProcessPlan

__all__ = ["Answer", "answers_tcp", "ask_probe", "ask_ready", "http_get", "run_hook"]

Answer = Literal["yes", "no", "silence"]
"""What a probe found; `silence`: nothing answered in time."""


async def http_get(port: int, path: str, *, timeout_s: float, method: str = "GET") -> tuple[int, bytes]:
    """Ask 127.0.0.1 once; the connection is closed afterwards.

    Returns:
        Status and body; status 0 where nothing answered HTTP in time.
    """
    try:
        return await asyncio.wait_for(_ask(port, path, method), timeout_s)
    except (OSError, asyncio.TimeoutError, ValueError, asyncio.IncompleteReadError):
        return 0, b""


async def _ask(port: int, path: str, method: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            return 0, b""
        if b"transfer-encoding: chunked" in head.lower():
            body = _unchunk(body)
        return int(words[1]), body
    finally:
        writer.close()


def _unchunk(body: bytes) -> bytes:
    whole = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size.split(b";")[0] or b"0", 16)
        if count == 0:
            break
        whole += rest[:count]
        body = rest[count + 2 :]
    return bytes(whole)


async def answers_tcp(port: int, *, timeout_s: float) -> bool:
    """Whether something accepts a connection there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), timeout_s)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def _port(wanted: int | str | None, ports: Mapping[str | int, int], default: int) -> int:
    if isinstance(wanted, str) and wanted.isdecimal():
        wanted = int(wanted)
    return ports.get(wanted, wanted if isinstance(wanted, int) else default) if wanted is not None else default


async def ask_probe(probe: Probe, ports: Mapping[str | int, int], default: int, *, least_s: float = 0.0) -> Answer:
    """Ask one httpGet, tcpSocket or grpc probe of a manifest.

    Args:
        probe: it.
        ports: where its port, a number or a name, is on this machine.
        default: the port where none is named.
        least_s: shortest wait for an answer, seconds, whatever the probe says.
    """
    port, timeout_s = _port(probe.port, ports, default), max(least_s, float(probe.timeout_s))
    if probe.kind == "tcp":
        return "yes" if await answers_tcp(port, timeout_s=timeout_s) else "silence"
    status, _ = await http_get(port, probe.path, timeout_s=timeout_s)
    return "silence" if status == 0 else "yes" if 200 <= status < 400 else "no"  # Kubernetes, httpGet probes


async def ask_ready(plan: ProcessPlan) -> Answer:
    """Ask whether a server may get requests.

    The manifest's readinessProbe where there is one; else the protocol's: the server, then the model (Open Inference
    Protocol, REST, health). A server that lacks those paths (404) is ready once it answers, as KServe's default, a TCP probe, says.
    """
    probe, port = plan.readiness, plan.ports.http
    if probe is not None and probe.kind != "exec":
        return await ask_probe(probe, plan.probe_ports, port, least_s=1.0)
    for path in ("/v2/health/ready", f"/v2/models/{plan.model_name}/ready"):
        status, _ = await http_get(port, path, timeout_s=5.0)
        if not (200 <= status < 300 or status in {404, 405, 501}):
            return "silence" if status == 0 else "no"
    return "yes"


async def run_hook(hook: Hook, plan: ProcessPlan) -> str:
    """Do what `lifecycle.preStop` says, in the process's folder and environment; cancelled when the grace is over.

    Returns:
        What went wrong, in words; empty where nothing did. The kubelet goes on to SIGTERM in either case.
    """
    if hook.kind == "sleep":
        await asyncio.sleep(hook.seconds)
        return ""
    if hook.kind == "http":
        port = _port(hook.port, plan.probe_ports, plan.ports.http)
        status, _ = await http_get(port, hook.path, timeout_s=plan.grace_s)
        return "" if 200 <= status < 400 else f"GET {hook.path} was answered {status or 'by nobody'}"
    if not hook.command:
        return "exec has no command"
    try:
        process = await asyncio.create_subprocess_exec(
            *hook.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=plan.cwd,
            env=dict(plan.env),
            start_new_session=True,
        )
    except OSError as error:
        return f"{hook.command[0]} cannot be started: {error.strerror}"
    try:
        _, told = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    last = told.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"exit code {process.returncode}{': ' + last[0] if last else ''}" if process.returncode else ""
