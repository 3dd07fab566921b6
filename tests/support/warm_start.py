"""Processes of `python -m serinus.cli` that begin where the interpreter has made its imports: forked from one that has made them.

Of what a server under test takes to start, three quarters are imports, the same in each of hundreds. So each process of a run of tests keeps one
(the source) that has imported what the commands do, runs no thread and does nothing but fork. What is forked is a process as any other: pid,
session, descriptors, folder, variables, module path and words are its own, it runs `serinus.cli` as `-m` does, and the tests' process is its
parent, which waits for it and is told its status and its CPU. What it does not show is what happens before and while it imports: `fresh` starts
one for that, and so does whatever needs another interpreter, a preloaded library or another way to start.

How the tests' process becomes the parent: the source forks a process that forks the wanted one and ends; who is left an orphan is given to the
nearest ancestor that asked for orphans (prctl(2), PR_SET_CHILD_SUBREAPER), which the tests' process does for that moment.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["WarmProcess", "fresh", "obey_permissions", "run", "start"]

COMMAND = (sys.executable, "-m", "serinus.cli")
IMPORTED = (
    *("serinus.cli.main", "serinus.cli.serving.serve", "serinus.server.lifecycle", "serinus.server.workers.supervisor"),
    *("serinus.server.grpc.native_engine", "serinus.hosts", "serinus.dataplane.execution.process_pool", "uvloop"),
    *("serinus.cli.operator", "serinus.cli.commands.up", "serinus.cli.commands.down", "serinus.cli.commands.status"),
    *("typer._adapters", "rich.table", "multiprocessing.spawn", "faulthandler"),
)
"""What the commands import by themselves, and nothing of a model's or a test's; what is not installed is left to who needs it."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER (prctl(2))."""
ORPHANED = b"orphaned"
LARGEST = 1 << 20
"""Bytes of an order: words and variables."""


class WarmProcess:
    """A forked process, with the methods of `subprocess.Popen` that tests use; nothing of it is piped."""

    def __init__(self, pid: int, words: Sequence[str]) -> None:
        self.pid = pid
        self.args = [*COMMAND, *words]
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The status, None while it runs; negative where a signal ended it."""
        with self._lock:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # psutil has waited for it: as Popen, which then does not know either
                    pid, status = self.pid, 0
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        if self.poll() is None:
            ended = os.pidfd_open(self.pid)
            try:
                select.select([ended], [], [], timeout)
            finally:
                os.close(ended)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to it, where it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fresh(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: IO[Any] | None = None,
    out: IO[Any] | None = None,
    err: IO[Any] | None = None,
    session: bool = False,
    python: Sequence[str] = (sys.executable,),
) -> subprocess.Popen[Any]:
    """Start `python -m serinus.cli WORDS` by the interpreter, as a user does; see `start`."""
    return subprocess.Popen(
        [*python, *COMMAND[1:], *words],
        env=env,
        cwd=cwd,
        stdin=stdin or subprocess.DEVNULL,
        stdout=out or subprocess.DEVNULL,
        stderr=err or subprocess.STDOUT,
        start_new_session=session,
    )


def start(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: IO[Any] | None = None,
    out: IO[Any] | None = None,
    err: IO[Any] | None = None,
    session: bool = False,
    obeys: bool = False,
) -> WarmProcess | subprocess.Popen[Any]:
    """Start `python -m serinus.cli WORDS`, its imports made.

    Args:
        words: after `serinus`.
        env: all its variables.
        cwd: its folder; None: this process's.
        stdin: what it reads; nothing unless given.
        out: where standard output goes; nowhere unless given.
        err: where standard error goes; None: to `out`.
        session: whether it leads one of its own.
        obeys: whether root, too, may write only where files' permissions let it, as a user of a container.

    Returns:
        The process; a fresh one where the system has no way to fork one, or a library is to be loaded before the interpreter.
    """
    if sys.platform != "linux" or "LD_PRELOAD" in env:
        assert not obeys, "only a process that is forked here can be told to"
        return fresh(words, env=env, cwd=cwd, stdin=stdin, out=out, err=err, session=session)
    order = {"words": list(words), "env": dict(env), "cwd": str(cwd or Path.cwd()), "session": session, "obeys": obeys}
    with open(os.devnull, "r+b") as nowhere:
        out = out or nowhere
        pid = _source().fork(order, [each.fileno() for each in (stdin or nowhere, out, err or out)])
    return WarmProcess(pid, words)


def run(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdin: str = "", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run `python -m serinus.cli WORDS` to its end; see `start`.

    Raises:
        subprocess.TimeoutExpired: it ran longer, and was killed.
    """
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        told.write(stdin)
        told.seek(0)
        process = start(words, env=env, cwd=cwd, stdin=told, out=out, err=err)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([*COMMAND, *words], status, out.read(), err.read())


# The side of the tests ------------------------------------------------------------------------------------------------


class _Source:
    """The process that forks, and the connection on which it is told what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        with theirs:
            # One thread of OpenBLAS's: others would be missing in what is forked. A model's libraries are its own.
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            environment.pop("PYTHONPATH", None)
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def fork(self, order: Mapping[str, Any], streams: list[int]) -> int:
        """Have a process forked, with these descriptors as its first ones, and become its parent; returns its pid."""
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._orders, [json.dumps(order).encode()], streams)
                told = {self._orders.recv(100), self._orders.recv(100)}
            finally:
                _adopt(False)
        (pid,) = told - {ORPHANED}
        assert pid, "the process from which commands are forked has ended; its standard error says why"
        return int(pid)

    def _end(self) -> None:
        self._orders.close()
        self._process.wait(30)


@functools.cache
def _source() -> _Source:
    """The one of this process."""
    return _Source()


def _adopt(orphans: bool) -> None:
    """Be given the orphans among this process's descendants, or be no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(SUBREAPER, int(orphans), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


# The side of the source -----------------------------------------------------------------------------------------------


def _import_all() -> None:
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").startswith("serinus"):
                raise
    gc.collect()
    gc.freeze()  # or each process would copy what its garbage collector looks at
    running = os.listdir("/proc/self/task")
    assert len(running) == 1, f"an import began threads, which what is forked would lack: {running}"


def _next_process(orders: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each order; returns the order in each of them, and None here when all is over."""
    while True:
        told, files, _, _ = socket.recv_fds(orders, LARGEST, 3)
        if not told:
            return None
        if between := os.fork():
            os.waitpid(between, 0)
            orders.send(ORPHANED)
            for file in files:
                os.close(file)
            continue
        if os.fork():
            os._exit(0)
        order = json.loads(told)
        if order["session"]:
            os.setsid()
        for stream, file in enumerate(files):
            os.dup2(file, stream)
            os.close(file)
        with orders:
            orders.send(str(os.getpid()).encode())
        return order


def obey_permissions() -> None:
    """Let root write only where permissions allow it: without CAP_DAC_OVERRIDE, now and in what it executes (capabilities(7), capset(2))."""
    libc, override = ctypes.CDLL(None, use_errno=True), 1
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the lower halves, then the upper ones
    for call in (
        lambda: libc.prctl(24, override, 0, 0, 0),  # PR_CAPBSET_DROP
        lambda: libc.capget(version, sets),
        lambda: libc.capset(version, (ctypes.c_uint32 * 6)(*(each & ~(1 << override) for each in sets[:3]), *sets[3:])),
    ):
        if call() != 0:
            raise OSError(ctypes.get_errno(), "CAP_DAC_OVERRIDE cannot be given up")


def _become(order: Mapping[str, Any], path: Sequence[str]) -> None:
    """Be a process of these words, variables and folder."""
    if order["obeys"] and os.geteuid() == 0:
        obey_permissions()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:] = [order["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    importlib.invalidate_caches()
    sys.argv = ["serinus", *order["words"]]
    sys.orig_argv = [*COMMAND, *order["words"]]
    for name in ("serinus.quiet_interrupt", "serinus.native_pools"):  # for their effects, which are by the words
        importlib.reload(sys.modules[name])
    time.tzset()
    runpy.run_module("serinus.cli", run_name="__main__", alter_sys=True)


def _main() -> None:
    orders, path = socket.socket(fileno=int(sys.argv[1])), sys.path[1:]
    _import_all()
    order = _next_process(orders)
    if order is not None:
        _become(order, path)


if __name__ == "__main__":
    _main()
