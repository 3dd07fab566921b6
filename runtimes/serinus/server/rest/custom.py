"""Routes that a model brings of its own (MLServer's `@custom_handler`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
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
    """Without content coding, of which the headers say nothing either."""
    parameters: tuple[str, ...]
    """The path's variables, in the template's order."""


CustomAnswer = tuple[int, Mapping[str, str], bytes | AsyncIterator[bytes]]
"""Status, headers and the body, whole or piece by piece."""
CustomRoute = tuple[str, str, Callable[[CustomRequest], Awaitable[CustomAnswer]]]
"""Method, path template, and the handler."""


_OF_THE_CODED_BODY: Final = frozenset({"content-encoding", "content-length"})


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
        async def work(exchange: Exchange, parameters: tuple[str, ...], body: bytes) -> Reply | Stream:
            path, _, query = exchange.target.decode("latin-1").partition("?")
            headers: Mapping[str, str] = exchange.headers
            if exchange.headers.content_encoding:
                headers = {name: value for name, value in headers.items() if name not in _OF_THE_CODED_BODY}
            request = CustomRequest(exchange.method.decode(), path, dict(parse_qsl(query)), headers, body, parameters)
            status, own, answer = await function(request)
            content_type = next((value for name, value in own.items() if name.lower() == "content-type"), JSON)
            fields = header_pairs(own)
            if isinstance(answer, AsyncIterator):
                return status, content_type, answer, fields
            return status, content_type, [answer], fields

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
            self._responder.inflate(
                exchange, lambda body: self._responder.spawn(exchange, work(exchange, parameters, body))
            )

        return handler
