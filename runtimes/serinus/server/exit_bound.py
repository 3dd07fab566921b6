"""Signals and the end of this process: in time, whatever a model does.

Theory of operation. SIGTERM and SIGINT are read by a thread, from the pipe into which the interpreter's C handler writes their numbers
(`signal.set_wakeup_fd`): a loop that a model holds learns of no signal, this thread does. It asks the loop to stop, and from then on waits for the
bound, or for another signal. Either ends the process with `os._exit`, past threads and hooks that would be waited for: a predict that hangs, a load
that is stalled, an `unload` that never returns. Processes of models are killed first, since nobody would end them then.

Below it lies one more net, `faulthandler`'s thread, which needs no GIL: where C code holds that, the process ends a second after the bound, and
the stacks of all threads are written to standard error. C code that holds it from before the signal on is beyond both: nothing of Python runs then,
and what ends the process is SIGKILL, from the supervisor of several workers or from the kubelet.

The statuses are in `ExitStatus`. Whoever has drained calls `settle`, so that a hook which hangs afterwards does not make a clean end a failed one.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from .termination_message import write_reason

__all__ = ["CLOSING_S", "ExitBound", "ExitStatus", "end_with", "leave_soon"]

_log = logging.getLogger("serinus")

CLOSING_S: Final = 1.0
"""For all that follows the drain: refusing what is left, closing connections, unloading models. With the default of `drain_timeout_s` the end comes
4 s before Kubernetes kills (terminationGracePeriodSeconds, 30)."""
_NO_GIL_S: Final = 1.0
"""How long after the bound the net below has its turn."""
_SAY_S: Final = 0.5
"""Longest that a last word to the log may take: a thread that hangs in a handler holds its lock."""
_LEAVE_S: Final = 0.5
"""For the interpreter to end by itself: it waits for threads that are no daemons."""
_WOKEN: Final = 0
_FRAMES: Final = 3


class ExitStatus(enum.IntEnum):
    """What `serinus serve` ends with, beside 128 + N where signal N came a second time, as a shell says it."""

    CLEAN = 0
    """Every request that was taken is answered, or none was."""
    FAILED = 1
    """A model did not load, or a port is taken."""
    WRONG_OPTIONS = 2
    MEMORY = 75
    """Drained for a clean start, because memory passed its limit (EX_TEMPFAIL of sysexits.h: try again)."""
    CUT = 124
    """The bound came before all requests were answered (as timeout(1) says it)."""


class ExitBound:
    """Reads signals, and ends this process once its time is over. Made on the main thread; its signals are the process's.

    Args:
        limit_s: from the first signal, or `begin`, to the end.
        on_stop: told once, in a thread, that the process is to stop.
        insistent: a second signal ends the process at once; false for one whose supervisor does that.
        message_path: where the reason of an end that is none of the operator's goes; see `termination_message`.
        leave: ends the process; tests give another.
        on_hang_up: told of each SIGHUP, in a thread; None: that signal does what it did.
    """

    def __init__(
        self,
        limit_s: float,
        on_stop: Callable[[], None],
        *,
        insistent: bool = True,
        message_path: str = "",
        leave: Callable[[int], None] = os._exit,
        on_hang_up: Callable[[], None] | None = None,
    ) -> None:
        self._on_hang_up = on_hang_up
        self._limit_s = limit_s
        self._on_stop = on_stop
        self._insistent = insistent
        self._message_path = message_path
        self._leave = leave
        self._ends: float | None = None
        self._signals = 0
        self._status: int = ExitStatus.CUT
        self._main = threading.get_ident()
        self._begun = threading.Lock()
        self._closed = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        taken = (
            (signal.SIGTERM, signal.SIGINT) if on_hang_up is None else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )
        self._before = [(number, signal.signal(number, _nothing)) for number in taken]
        self.listen()
        self._thread = threading.Thread(target=self._watch, name="exit-bound", daemon=True)
        self._thread.start()

    def listen(self) -> None:
        """Have the interpreter write signals here: again, after an event loop has had them write elsewhere."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def begin(self) -> None:
        """Have the bound run from now on, without a signal; a second call changes nothing."""
        with self._begun:
            if self._ends is not None:
                return
            self._ends = time.monotonic() + self._limit_s
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # no standard error to write to
            faulthandler.dump_traceback_later(self._limit_s + _NO_GIL_S, exit=True)
        self._wake()
        self._on_stop()

    def settle(self, status: int) -> None:
        """Say how the process ends if the bound should come yet: the drain is over."""
        self._status = status

    def close(self) -> None:
        """Leave signals as they were before."""
        self._closed = True
        faulthandler.cancel_dump_traceback_later()
        signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)
        self._wake()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, bytes((_WOKEN,)))

    def _watch(self) -> None:
        while True:
            left = None if self._ends is None else max(0.0, self._ends - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], left)
            if self._closed:
                return
            if not ready:
                self._end(self._status, self._what_hangs())
                return
            for number in os.read(self._reader, 64):
                if number in (signal.SIGTERM, signal.SIGINT) and self._signalled(number):
                    return
                if number == signal.SIGHUP and self._on_hang_up is not None:
                    self._on_hang_up()

    def _signalled(self, number: int) -> bool:
        """Take a signal; whether the process is over."""
        self._signals += 1
        if self._signals > 1 and self._insistent:
            self._end(128 + number, f"{signal.Signals(number).name} came again: the process ends at once")
            return True
        self.begin()
        return False

    def _what_hangs(self) -> str:
        frame = sys._current_frames().get(self._main)  # documented; there is no other way to another thread's frame
        places = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        at = ", called by ".join(f"{place.name} ({place.filename}:{place.lineno})" for place in reversed(places))
        what = (
            "requests are unanswered"
            if self._status == ExitStatus.CUT
            else "the drain is over, and something else hangs"
        )
        return f"the bound of {self._limit_s:.3g} s for the end has come: {what}; the process ends. Its main thread is at: {at or 'unknown'}"

    def _end(self, status: int, reason: str) -> None:
        if status != ExitStatus.CLEAN:
            write_reason(reason, self._message_path)
        end_with(status, reason, leave=self._leave)


def end_with(status: int, reason: str, *, leave: Callable[[int], None] = os._exit) -> None:
    """End this process now, past its threads and hooks, and the processes of its models with it.

    Args:
        status: see `ExitStatus`.
        reason: for the log; empty: nothing is said.
        leave: what ends it.
    """
    if reason:
        speaker = threading.Thread(target=_log.error, args=("%s", reason), daemon=True)
        speaker.start()
        speaker.join(_SAY_S)
    with contextlib.suppress(Exception):  # it looks at processes that other threads may be ending
        for child in multiprocessing.active_children():
            child.kill()
    leave(status)


def leave_soon(status: int) -> int:
    """Give the interpreter half a second to end by itself, and end it then: threads of models may be waited for by nobody.

    Returns:
        The status, for `sys.exit`.
    """

    def end() -> None:
        time.sleep(_LEAVE_S)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or nobody reads it
                stream.flush()
        end_with(status, "")

    threading.Thread(target=end, name="leave", daemon=True).start()
    return status


def _nothing(number: int, frame: object) -> None:
    """Handle a signal: the thread has it already."""
