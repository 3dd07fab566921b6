"""Calls of a graph's steps: to the gateway for hosts of the cluster, to the host itself for all others.

Theory of operation. A pool of connections for each address and Host, made when it is first called (a graph names a few). A cancelled call closes its
connection, so a client that leaves is known at the service. Nothing is sent twice.
"""

from __future__ import annotations

import ssl
import urllib.parse

from ...client.http_client import HttpClient, HttpResponse
from ...errors import TimedOut, UpstreamFailed
from ...protocol.types import Limits
from ...tracing.hops import Hop
from ...tracing.tracer import current_tracer
from .graph_execution import GraphFailed, StepAnswer
from .router_settings import RouterSettings

__all__ = ["StepClient", "Target", "target_of"]

_PATH = "/%:@!$&'()*+,;=~-._"
"""What stays as it is in a path (RFC 3986, 3.3); all else is escaped, as Go does."""


class Target:
    """Where a URL leads: address, Host, path."""

    __slots__ = ("host", "host_field", "path", "port", "tls")

    def __init__(self, host: str, port: int, *, tls: bool, host_field: str, path: str) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.host_field = host_field
        self.path = path


def target_of(url: str, settings: RouterSettings, gateway: tuple[str, int]) -> Target:
    """Where a step's URL leads on this machine.

    Args:
        url: `http` or `https`.
        settings: knows which hosts are of the cluster.
        gateway: host and port that answer for those, in plain HTTP whatever the URL says.

    Raises:
        ValueError: not a URL that can be called.
    """
    parts = urllib.parse.urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(f"{url!r} is no http:// or https:// URL")
    path = urllib.parse.quote(parts.path or "/", safe=_PATH)
    if parts.query:
        path += "?" + urllib.parse.quote(parts.query, safe=_PATH + "?")
    if settings.is_inside(host):
        field = f"{host}.cluster.local" if host.endswith(".svc") else host
        return Target(*gateway, tls=False, host_field=field, path=path)
    tls = parts.scheme == "https"
    return Target(host, parts.port or (443 if tls else 80), tls=tls, host_field="", path=path)


class StepClient:
    """Calls steps.

    Args:
        settings: timeouts and hosts.
        gateway: host and port.
        most_bytes: largest answer of a step.
    """

    def __init__(
        self, settings: RouterSettings, gateway: tuple[str, int], *, most_bytes: int = Limits().body_bytes
    ) -> None:
        self._settings = settings
        self._gateway = gateway
        self._most_bytes = most_bytes
        self._clients: dict[tuple[str, int, bool, str], HttpClient] = {}
        self._tls: ssl.SSLContext | None = None

    async def call(self, url: str, body: bytes, headers: dict[str, str]) -> StepAnswer:
        """POST a body.

        Raises:
            GraphFailed: no whole answer within `routerTimeouts.serviceClient`; 500, as KServe's router.
        """
        try:
            target = target_of(url, self._settings, self._gateway)
            answer = await self._post(target, url, body, headers)
        except (UpstreamFailed, TimedOut, ValueError) as error:
            raise GraphFailed(500, f"Post {url}: {error}") from None
        return StepAnswer(answer.status, answer.body)

    async def _post(self, target: Target, url: str, body: bytes, headers: dict[str, str]) -> HttpResponse:
        client, timeout_s = self._client(target), self._settings.timeouts.service_client_s
        tracer = current_tracer()
        if tracer is None:
            return await client.request("POST", target.path, headers, (body,), len(body), timeout_s=timeout_s)
        place = {"server.address": target.host_field or target.host, "url.full": url}
        hop = Hop(tracer, "POST", headers, place)
        try:
            answer = await client.request(
                "POST", target.path, hop.headers(headers), (body,), len(body), timeout_s=timeout_s
            )
        except BaseException as error:
            hop.end_without_answer(error)
            raise
        hop.end_http("POST", answer.status, "")
        return answer

    def _client(self, target: Target) -> HttpClient:
        key = (target.host, target.port, target.tls, target.host_field)
        client = self._clients.get(key)
        if client is None:
            if target.tls and self._tls is None:
                self._tls = ssl.create_default_context()
            client = self._clients[key] = HttpClient(
                target.host,
                target.port,
                self._tls if target.tls else None,
                peer="the service",
                host_field=target.host_field,
                most_bytes=self._most_bytes,
            )
        return client

    def close(self) -> None:
        """Close idle connections."""
        for client in self._clients.values():
            client.close()
