"""An event loop of its own for a hosted class, and which classes of KServe's want one.

KServe calls every method of a class on its event loop, synchronous ones too, so these may ask for the running loop: to start a task,
or, as KServe's own explainers do with `nest_asyncio`, to run the predictor's coroutine to its end from within. In a thread of the
host's (`method_executor`) there is no running loop, and the server's own may be uvloop, which `nest_asyncio` cannot patch. Such a class
gets a loop of its own, asyncio's, in a thread of its own, and all its methods are called there: it may block that one.

Whether a class is such a one is read from its code: names that synchronous functions of its module use.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from types import CodeType, FunctionType
from typing import Any, Final, TypeVar

from .cross_loop_queue import iterate_on

__all__ = ["LoopThread", "asks_for_loop"]

_T = TypeVar("_T")

_ASKING: Final = frozenset({"get_running_loop", "get_event_loop", "create_task", "ensure_future", "current_task"})
"""What only works where a loop runs; coroutines have one wherever they are called."""
_NESTING: Final = frozenset({"run_until_complete"})
"""What works where a loop runs only if `nest_asyncio` has patched that one."""
_STAGES: Final = ("preprocess", "predict", "explain", "postprocess")
_ONCE: Final = frozenset({"__init__", "load", "start", "start_engine", "stop", "stop_engine"})
"""Methods that no request calls."""
_JOIN_S = 5.0
"""Longest wait for the thread of a loop that is blocked; it is a daemon."""
_FOREIGN: Final = ("kserve.", "serinus.")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run_within(self, timeout_s: float, begin: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Begin a coroutine there, once whatever blocks the loop lets it, and wait for it; False: it has not ended in time."""
        ended, given_up = threading.Event(), threading.Event()
        tasks: list[asyncio.Task[None]] = []

        def started() -> None:
            if not given_up.is_set():
                tasks.append(self._loop.create_task(begin()))
                tasks[0].add_done_callback(lambda _: ended.set())

        self._loop.call_soon_threadsafe(started)
        if not ended.wait(timeout_s):
            given_up.set()
            return False
        tasks[0].result()
        return True

    async def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and await it; cancelling the awaiting task cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def each(self, pieces: AsyncIterator[_T]) -> AsyncGenerator[_T, None]:
        """Iterate there, and give here what comes out; see `cross_loop_queue.iterate_on`."""
        return iterate_on(self._loop, pieces)

    def close(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self._loop.close()


def asks_for_loop(kind: type) -> bool:
    """Tell whether synchronous code of a `kserve.Model` class asks for the running event loop, by what its code names."""
    stages = [_plain(getattr(kind, name, None)) for name in _STAGES]
    own = [stage for stage in stages if stage is not None and not _is_foreign(stage.__module__)]
    asking = _NESTING if all(map(inspect.iscoroutinefunction, own)) else _NESTING | _ASKING
    classes = [cls for cls in kind.__mro__[:-1] if not _is_foreign(cls.__module__)]
    return any(_names(function.__code__, asking) for cls in classes for function in _functions(cls))


def _is_foreign(module: str) -> bool:
    return f"{module}.".startswith(_FOREIGN)


def _functions(cls: type) -> Iterator[FunctionType]:
    """Give the methods of a class that requests may call, and the functions of its module."""
    modules: list[dict[str, Any]] = []
    for name, member in vars(cls).items():
        function = _plain(member)
        if function is not None and name not in _ONCE:
            yield function
        if function is not None and all(function.__globals__ is not module for module in modules):
            modules.append(function.__globals__)
    for module in modules:  # not looked up by its name, which for a script is nobody's
        for member in list(module.values()):
            function = _plain(member)
            if function is not None and function.__globals__ is module:
                yield function


def _plain(member: Any) -> FunctionType | None:
    """Find the function in a function, a method or a property."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    function = inspect.unwrap(member) if isinstance(member, FunctionType) else None
    return function if isinstance(function, FunctionType) else None


def _names(code: CodeType, asking: frozenset[str]) -> bool:
    if code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return not _NESTING.isdisjoint(code.co_names)
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return not asking.isdisjoint(code.co_names) or any(_names(code, asking) for code in inner)
