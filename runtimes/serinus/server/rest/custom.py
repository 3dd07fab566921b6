"""Routes that a model brings of its own (MLServer's `@custom_handler`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from ..http.exchange import Exchange, header_pairs
from .responder import JSON, Reply, Responder, Stream
from .router import Handler, Router

__all__ = ["CustomAnswer", "CustomApi", "CustomRequest", "CustomRoute"]


@dataclass(frozen=True, slots=True)
class CustomRequest:
    """What a custom route's handler is given."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    parameters: tuple[str, ...]
    """The path's variables, in the template's order."""


CustomAnswer = tuple[int, Mapping[str, str], bytes | AsyncIterator[bytes]]
"""Status, headers and the body, whole or piece by piece."""
CustomRoute = tuple[str, str, Callable[[CustomRequest], Awaitable[CustomAnswer]]]
"""Method, path template, and the handler."""


class CustomApi:
    """The routes of models.

    Args:
        responder: sends.
        router: takes them.
    """

    def __init__(self, responder: Responder, router: Router) -> None:
        self._responder = responder
        self._router = router

    def add(self, routes: Iterable[CustomRoute]) -> None:
        """Offer further routes; one that is there already is replaced."""
        for method, template, function in routes:
            self._router.add(method, template, self._handler(function))

    def _handler(self, function: Callable[[CustomRequest], Awaitable[CustomAnswer]]) -> Handler:
        async def work(exchange: Exchange, parameters: tuple[str, ...]) -> Reply | Stream:
            path, _, query = exchange.target.decode("latin-1").partition("?")
            request = CustomRequest(
                exchange.method.decode(), path, dict(parse_qsl(query)), exchange.headers, exchange.body, parameters
            )
            status, headers, body = await function(request)
            content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), JSON)
            fields = header_pairs(headers)
            if isinstance(body, AsyncIterator):
                return status, content_type, body, fields
            return status, content_type, [body], fields

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
            self._responder.spawn(exchange, work(exchange, parameters))

        return handler
