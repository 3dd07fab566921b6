"""The model repository over REST: index, load, unload.

Source: Triton, extension_model_repository.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ...dataplane.plane import Plane
from ...errors import InvalidInput
from ...protocol.json_codec import decode_parameters, describe, load_object
from ...protocol.rest_codec import index_json
from ...protocol.types import Limits
from ..http.exchange import Exchange
from .cloudevents import CloudEvent
from .origin_checks import check_change
from .responder import JSON, Reply, Responder
from .router import Router

__all__ = ["RepositoryApi"]


class RepositoryApi:
    """The endpoints of the model repository.

    Args:
        plane: is told.
        responder: sends.
        limits: of the bodies.
        apply: loads and unloads (`action`, model, parameters) instead of the plane, on all worker processes.
    """

    def __init__(
        self,
        plane: Plane,
        responder: Responder,
        limits: Limits,
        apply: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None,
    ) -> None:
        self._plane = plane
        self._responder = responder
        self._limits = limits
        self._apply = apply

    def add_to(self, router: Router) -> None:
        """Offer the endpoints."""
        router.add("POST", "/v2/repository/index", self._repository_index)
        router.add("POST", "/v2/repository/models/{model}/load", self._load)
        router.add("POST", "/v2/repository/models/{model}/unload", self._unload)

    def _repository_index(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        def answer(body: bytes, event: CloudEvent | None) -> None:  # noqa: ARG001
            self._responder.offload(exchange, len(body), lambda: self._object(body), index)

        def index(document: dict[str, Any]) -> None:
            ready = document.get("ready")
            if ready is not None and type(ready) is not bool:
                raise InvalidInput(f"'ready' is {describe(ready)}; true or false was expected")
            self._responder.reply(
                exchange, 200, JSON, [index_json(self._plane.repository_index(ready_only=ready is True))]
            )

        self._responder.unpack(exchange, answer)

    def _load(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        check_change(exchange.headers, self._plane.access)
        self._read_change(exchange, "load", parameters[0])

    def _unload(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        check_change(exchange.headers, self._plane.access)
        self._read_change(exchange, "unload", parameters[0])

    def _object(self, body: bytes) -> dict[str, Any]:
        """Read an optional JSON object of the repository extension."""
        return load_object(body, "the request body", self._limits) if body.strip() else {}

    def _read_change(self, exchange: Exchange, action: str, name: str) -> None:
        def read(body: bytes, event: CloudEvent | None) -> None:  # noqa: ARG001
            self._responder.offload(
                exchange,
                len(body),
                lambda: self._object(body),
                lambda document: self._change(exchange, action, name, document),
            )

        self._responder.unpack(exchange, read)

    def _change(self, exchange: Exchange, action: str, name: str, document: dict[str, Any]) -> None:
        options = dict(decode_parameters(document.get("parameters"), f"{action} request", self._limits))

        async def work() -> Reply:
            if self._apply is not None:
                await self._apply(action, name, options)
            elif action == "load":
                await self._plane.load(name, options)
            else:
                await self._plane.unload(name, options)
            return 200, JSON, [orjson.dumps({"name": name, action: True})], ()

        # A client that stops waiting does not stop the change half-way: shielded from the exchange's cancel.
        change = asyncio.ensure_future(work())
        self._responder.keep(change)

        async def wait() -> Reply:
            return await asyncio.shield(change)

        self._responder.spawn(exchange, wait())
