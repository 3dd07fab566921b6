"""The supervisor's side of the reaper: its list, kept in step, and a reaper anew where one was killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from .process_record import ProcessRecord

__all__ = ["Reaper"]

_HERE = Path(__file__).parent
_RESTART_PAUSE_S = 0.5


class Reaper:
    """The process that ends our process groups if we are killed.

    Args:
        record: names the same processes in a file, for the case that the reaper is killed with us; None: no file.
    """

    def __init__(self, record: ProcessRecord | None = None) -> None:
        self._record = record
        self._process: asyncio.subprocess.Process | None = None
        self._groups: set[int] = set()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The reaper's own; None before it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it in a session of its own, so that a terminal's Ctrl-C does not reach it, and keep it there."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name="reaper")

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_HERE / "reaper.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._record is not None:
            # Stopped, it would outlive us without end: whoever comes next wakes or kills it.
            self._record.began(self._process.pid, "reaper")
        for group in self._groups:
            self._write(f"+{group}\n")

    async def _keep(self) -> None:
        while self._process is not None:
            await self._process.wait()
            self._forget()
            await asyncio.sleep(_RESTART_PAUSE_S)
            with contextlib.suppress(OSError):  # no process to be had just now: tried again
                await self._spawn()

    def _forget(self) -> None:
        if self._record is not None and self._process is not None:
            self._record.ended(self._process.pid)

    def began(self, group: int, title: str = "") -> None:
        """Put a group on the list."""
        if self._process is not None:
            self._groups.add(group)
        self._write(f"+{group}\n")
        if self._record is not None:
            self._record.began(group, title)

    def ended(self, group: int) -> None:
        """Take a group off the list."""
        self._groups.discard(group)
        self._write(f"-{group}\n")
        if self._record is not None:
            self._record.ended(group)

    def _write(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line.encode())

    async def close(self) -> None:
        """End it; it ends what is still on its list first."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            await self._process.wait()
            self._forget()
