"""Small questions to servers on this machine: an HTTP GET, a TCP connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ....manifests.containers import Probe

__all__ = ["answers_tcp", "http_get", "is_alive", "is_ready"]


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


async def _ask_probe(probe: Probe, ports: Mapping[str | int, int], default: int, timeout_s: float) -> bool:
    wanted = probe.port
    if isinstance(wanted, str) and wanted.isdecimal():
        wanted = int(wanted)
    port = ports.get(wanted, wanted if isinstance(wanted, int) else default) if wanted is not None else default
    if probe.kind == "tcp":
        return await answers_tcp(port, timeout_s=timeout_s)
    status, _ = await http_get(port, probe.path, timeout_s=timeout_s)
    return 200 <= status < 400  # Kubernetes, httpGet probes


async def is_ready(port: int, model: str, probe: Probe | None, ports: Mapping[str | int, int]) -> bool:
    """Whether a server may get requests.

    The manifest's readinessProbe where there is one; else the protocol's: the server, then the model (Open Inference
    Protocol, REST, health). A server that lacks those paths (404) is ready once it answers, as KServe's default, a TCP probe, says.
    """
    if probe is not None and probe.kind != "exec":
        return await _ask_probe(probe, ports, port, max(1.0, float(probe.timeout_s)))
    for path in ("/v2/health/ready", f"/v2/models/{model}/ready"):
        status, _ = await http_get(port, path, timeout_s=5.0)
        if not (200 <= status < 300 or status in {404, 405, 501}):
            return False
    return True


async def is_alive(port: int, probe: Probe, ports: Mapping[str | int, int]) -> bool:
    """Whether the manifest's livenessProbe passes; an exec probe counts as passed, there is no container to run it in."""
    return probe.kind == "exec" or await _ask_probe(probe, ports, port, float(probe.timeout_s))
