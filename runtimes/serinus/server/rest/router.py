"""Paths to handlers: one dict lookup for a path that was asked for before.

A template is a path whose `{name}` segments match any one segment; a suffix may follow (`{model}:predict`). Literal
segments win over `{name}`, and a longer suffix over a shorter one. Segments are split before they are percent-decoded,
so `%2F` may be part of a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from ...errors import InvalidInput, NotFound, NotSupported, SerinusError
from ..http.exchange import Exchange

__all__ = ["Handler", "Match", "Router"]

Handler = Callable[[Exchange, tuple[str, ...]], None]
"""Answers an exchange; the second argument has the path's variables, in the template's order."""

_CACHED_PATHS: Final = 4096
_VARIABLE: Final = re.compile(r"\{[a-z_]+\}([^{}/]*)")


class Match:
    """What a path leads to."""

    __slots__ = ("handlers", "parameters", "template")

    def __init__(self, handlers: dict[bytes, Handler], parameters: tuple[str, ...], template: str) -> None:
        self.handlers = handlers
        """By method."""
        self.parameters = parameters
        self.template = template

    @property
    def allow(self) -> list[str]:
        """Methods for the Allow field; HEAD comes with GET, and OPTIONS always."""
        methods = {method.decode() for method in self.handlers} | {"OPTIONS"}
        if "GET" in methods:
            methods.add("HEAD")
        return sorted(methods)


class _Template:
    def __init__(self, text: str) -> None:
        self.text = text
        self.handlers: dict[bytes, Handler] = {}
        self.segments: list[str | None] = []  # None: a variable
        self.suffix = ""  # of the last segment
        for segment in text.split("/")[1:]:
            found = _VARIABLE.fullmatch(segment)
            self.segments.append(None if found else segment)
            if found and found[1]:
                self.suffix = found[1]
        # Literals first, then longer suffixes.
        self.rank = (tuple(segment is None for segment in self.segments), -len(self.suffix))

    def match(self, segments: list[str]) -> tuple[str, ...] | None:
        if len(segments) != len(self.segments):
            return None
        values: list[str] = []
        for expected, segment in zip(self.segments, segments, strict=True):
            if expected is None:
                values.append(segment)
            elif expected != segment:
                return None
        if self.suffix:
            last = values[-1]
            if not last.endswith(self.suffix):
                return None
            values[-1] = last[: -len(self.suffix)]
        return tuple(values) if all(values) else None


class Router:
    """All templates of a server."""

    def __init__(self) -> None:
        self._templates: list[_Template] = []
        self._refused: dict[bytes, str] = {}
        self._cache: dict[bytes, Match] = {}

    def refuse(self, prefix: str, why: str) -> None:
        """Answer paths that begin so and lead nowhere with the reason for it (NotSupported)."""
        self._refused[prefix.encode()] = why

    def add(self, method: str, template: str, handler: Handler) -> None:
        """Lead a method and template to a handler; a later one for the same replaces the earlier."""
        for known in self._templates:
            if known.text == template:
                break
        else:
            known = _Template(template)
            self._templates.append(known)
            self._templates.sort(key=lambda item: item.rank)
        known.handlers[method.upper().encode()] = handler
        self._cache.clear()

    def keep_only(self, *templates: str) -> None:
        """Drop every path but these."""
        self._templates = [known for known in self._templates if known.text in templates]
        self._cache.clear()

    @property
    def templates(self) -> Iterable[str]:
        """Every path there is."""
        return sorted(template.text for template in self._templates)

    def find(self, target: bytes) -> Match | None:
        """As `resolve`; None: it leads nowhere."""
        try:
            return self.resolve(target)
        except SerinusError:
            return None

    def resolve(self, target: bytes) -> Match:
        """Find what a request target leads to.

        Args:
            target: as sent: origin form, absolute form (RFC 9112, 3.2.2), with or without a query.

        Raises:
            NotFound: no such path; the message lists those that there are.
            NotSupported: an extension that is refused as a whole.
            InvalidInput: the path is not percent-encoded UTF-8.
        """
        match = self._cache.get(target)
        if match is not None:
            return match
        path = target.partition(b"?")[0]
        if not path.startswith(b"/"):
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        try:
            segments = [unquote_to_bytes(segment).decode() for segment in path.split(b"/")[1:]]
        except UnicodeDecodeError:
            raise InvalidInput("the path is not percent-encoded UTF-8") from None
        if len(segments) > 1 and not segments[-1]:
            segments.pop()  # `/v2/` is `/v2`, without a redirect that POST would not survive
        for template in self._templates:
            parameters = template.match(segments)
            if parameters is None:
                continue
            match = Match(template.handlers, parameters, template.text)
            if len(target) <= 1024:
                if len(self._cache) >= _CACHED_PATHS:
                    self._cache.clear()
                self._cache[target] = match
            return match
        shown = path[:200].decode("ascii", "backslashreplace")
        for prefix, why in self._refused.items():
            if path.startswith(prefix):
                raise NotSupported(why)
        raise NotFound(f"there is no path {shown!r}; there are: {', '.join(self.templates)}")
