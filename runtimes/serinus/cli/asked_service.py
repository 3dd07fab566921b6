"""Whom `infer` and `bench` ask: a service that runs on this machine, by its name, or a model of any V2 server, by its address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, SerinusError, UpstreamFailed
from ..local.run.control_socket import Client, NotRunning, reached_address

__all__ = ["AskedService", "Headers", "Model", "Token", "Url", "find_service", "parse_headers"]

Url = Annotated[
    str | None,
    typer.Option(
        help="A server's address, http:// or grpc://, in place of a service that runs here; NAME is then the model's.",
        show_default=False,
    ),
]
Model = Annotated[str | None, typer.Option(help="The model's name, where it is not the service's.", show_default=False)]
Headers = Annotated[
    list[str] | None, typer.Option("--header", "-H", help="'NAME: VALUE' of every request; repeatable.")
]
Token = Annotated[
    Path | None, typer.Option(help="File with a bearer token, sent as Authorization.", exists=True, dir_okay=False)
]

_SERVE = "127.0.0.1:{port}"


@dataclass(frozen=True, slots=True)
class AskedService:
    """An address, and what is asked for there."""

    url: str
    """With scheme."""
    host: str
    """`Host` or `:authority`; empty: the address."""
    model: str
    how: str
    """How it was found, for messages."""

    def told(self, error: SerinusError) -> str:
        """An error's message; where nobody answered, also how the address was found."""
        return f"{error} ({self.how})" if isinstance(error, UpstreamFailed) else str(error)


def find_service(name: str, *, url: str | None, model: str | None, state_dir: Path, over_grpc: bool) -> AskedService:
    """Find whom to ask.

    Args:
        name: of a local service, or with `url` of a model.
        url: of a server.
        model: where it is not called as the service is.
        state_dir: the local runner's.
        over_grpc: ask the local gateway over gRPC.

    Raises:
        ConfigError: no service, or several, are called so.
    """
    if url is not None:
        return AskedService(url, "", model or name, f"--url {url}")
    scheme = "grpc" if over_grpc else "http"
    try:
        status = Client(state_dir).ask("status", timeout_s=10.0)
    except NotRunning:
        address = f"{scheme}://{_SERVE.format(port=8081 if over_grpc else 8080)}"
        how = f"nothing runs in {state_dir} (serinus up PATH), so the address of serinus serve was asked; or name one with --url"
        return AskedService(address, "", model or name, how)
    services: list[dict[str, Any]] = status["services"]
    found = [one for one in services if name in {one["name"], f"{one['namespace']}/{one['name']}"}]
    if len(found) != 1:
        known = ", ".join(f"{one['namespace']}/{one['name']}" for one in services) or "none"
        raise ConfigError(f"{name}: {'several services are' if found else 'no service is'} called so; running: {known}")
    service = found[0]
    if service["kind"] == "InferenceGraph":
        raise ConfigError(
            f"{name} is an InferenceGraph, which takes any POST; ask it with curl as serinus status shows"
        )
    gateway = status["gateway"]
    return AskedService(
        f"{scheme}://{reached_address(gateway['host'], gateway['port'])}",
        service["host"],
        model or service["model"],
        f"the gateway in {state_dir}",
    )


def parse_headers(headers: list[str] | None, token: Path | None) -> dict[str, str]:
    """Read `--header` and `--token`.

    Raises:
        ConfigError: one is no header; the file is empty.
    """
    found: dict[str, str] = {}
    for header in headers or ():
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or any(letter in header for letter in "\r\n"):
            raise ConfigError(f"--header {header!r}: expected 'NAME: VALUE'")
        found[name.strip().lower()] = value.strip()
    if token is not None:
        text = token.read_text(encoding="utf-8").strip()
        if not text or len(text.split()) != 1:
            raise ConfigError(f"--token {token}: expected one token, without spaces")
        found["authorization"] = f"Bearer {text}"
    return found
