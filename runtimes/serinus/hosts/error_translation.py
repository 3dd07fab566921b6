"""What a hosted class raises becomes this library's error, wherever the class is called."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..errors import SerinusError

__all__ = ["ErrorTranslation"]


class ErrorTranslation:
    """A context in which a framework's errors become ours; keeps nothing, so that one serves all calls.

    Args:
        translate: finds the error to answer with; None: a fault of the class that nothing names, which passes as it is.
    """

    def __init__(self, translate: Callable[[Exception], SerinusError | None]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, SerinusError):
            known = self._translate(error)
            if known is not None:
                raise known from error
