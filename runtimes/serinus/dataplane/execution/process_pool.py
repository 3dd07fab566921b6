"""Predicting in worker processes, for models that hold the GIL or crash.

Theory of operation. Each worker process is `spawn`ed (a fork of a threaded process is unsound), makes and loads the
model by itself, and says what it has become: inputs, outputs, details. The parent's model object is never loaded; it
carries that description. One thread of the parent drives each worker: it sends a batch, waits, and takes the answer,
so a worker is never asked two things at a time. Arrays travel as pickle protocol 5 with their buffers out of band:
one copy into the pipe, one out of it.

A worker that dies fails the batch that it had, and is replaced before its thread takes another batch.
The batcher then tries each request of the batch alone, so only a request that kills a worker by itself is failed. One whose predict takes too long
is killed by whoever watches (`end_overdue`), which fails its batch as one that came too late.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np

from ...errors import ModelFailed, SerinusError, TimedOut
from ...model import Call, Model
from ...settings import ModelSettings

__all__ = ["ProcessPool", "RemoteError"]

_log = logging.getLogger("serinus.process")

_START_S = 600.0
"""Longest time for a worker to load its model; a large network from a slow disk takes minutes."""
_STOP_S = 5.0
_AGAIN_S = 5.0
"""After a process did not come back: until the next try without a request."""

Factory = Callable[[ModelSettings], Model]


class ProcessPool:
    """Worker processes of one model.

    Args:
        factory: importable by name in another process (not a lambda or a local function).
        settings: of the model.
        count: of processes.
    """

    def __init__(self, factory: Factory, settings: ModelSettings, count: int) -> None:
        self.on_restart: Callable[[str], None] = lambda reason: None  # noqa: ARG005 # nobody counts
        """Told of each process that is replaced, and why: "ended" or "hung"; from any thread."""
        self._workers = [_Worker(factory, settings, self._restarted) for _ in range(count)]

    @property
    def predicts(self) -> Sequence[Callable[[Mapping[str, np.ndarray], Call], Mapping[str, np.ndarray]]]:
        """One predict function for each process; each may be called from one thread at a time."""
        return [worker.predict for worker in self._workers]

    def start(self, model: Model) -> None:
        """Start every process, all at a time, and give `model` their description.

        Raises:
            SerinusError: the model does not load there.
        """
        for worker in self._workers:
            worker.spawn()
        for worker in self._workers:
            description = worker.await_ready()
            for name, value in description.items():
                setattr(model, name, value)
        sample = model.__dict__.pop("_warmup_sample", None)
        model.warmup_inputs = lambda: sample

    def join_rows(self, joined: bool) -> None:
        """Tell the model in every process, also in those that replace one; see `Model.join_rows`. Before the first batch."""
        for worker in self._workers:
            worker.join_rows(joined)

    def end_overdue(self, limit_s: float) -> int:
        """Kill the processes whose predict has taken longer than this, and start others in their place; also in that of those that failed to start.

        Returns:
            How many were killed.
        """
        return sum(worker.end_overdue(limit_s) for worker in self._workers)

    @property
    def is_at_work(self) -> bool:
        """Some process is there, and has loaded the model."""
        return any(worker.is_at_work for worker in self._workers)

    def close_soon(self) -> None:
        """Do as `close`, in a thread: a process that does not end is waited for."""
        threading.Thread(target=self.close, name="process-close", daemon=True).start()

    def close(self) -> None:
        """End every process, after the batch that it has."""
        for worker in self._workers:
            worker.close()

    def _restarted(self, reason: str) -> None:
        self.on_restart(reason)


class RemoteError(Exception):
    """What a model raised in its process; the text is the traceback from there, for the log."""


class _Worker:
    """One process, from the parent's side."""

    def __init__(self, factory: Factory, settings: ModelSettings, on_restart: Callable[[str], None]) -> None:
        self._factory = factory
        self._settings = settings
        self._process: Any = None
        self._pipe: Connection | None = None
        self._closed = False
        self._joined: bool | None = None
        """What the model was told of its batching; None: nothing."""
        self._on_restart = on_restart
        self._busy_since: float | None = None
        """When the predict began that runs."""
        self._hung = False
        """Its predict took too long, and the process was killed for that."""
        self._return: threading.Thread | None = None
        """Starts another process in the place of one that has ended."""
        self._return_failed: tuple[float, str] | None = None
        """When that last failed, and why."""
        self._lock = threading.Lock()
        """Held while a process is started or ended, so that `close` leaves none behind."""

    def spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, self._factory, self._settings),
            name=f"serinus-{self._settings.name}",
            daemon=True,
        )
        with self._lock:
            if self._closed:
                raise ModelFailed(f"model '{self._settings.name}' is being unloaded")
            try:
                process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ModelFailed(
                    f"model '{self._settings.name}' cannot run in a process, since its settings or factory do not travel: {error}"
                ) from error
            self._process, self._pipe = process, ours
        atexit.register(self.close)  # before multiprocessing's own, which asks by SIGTERM and then waits without end
        theirs.close()

    def await_ready(self) -> dict[str, Any]:
        """Wait until the process has loaded the model; returns the model's description."""
        pipe = cast("Connection", self._pipe)
        name = self._settings.name
        try:
            if not pipe.poll(_START_S):
                raise ModelFailed(f"model '{name}': its process did not load the model in {_START_S:.0f} s")
            kind, value = _receive(pipe)
        except (EOFError, OSError):
            raise ModelFailed(f"model '{name}': its process ended while it loaded the model{self._exit()}") from None
        if kind == "error":
            raise value
        return value

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict in the process.

        Raises:
            ModelFailed: the process died of it.
        """
        if self._return is not None or self._process is None or not self._process.is_alive():
            self._await_return()
        pipe = cast("Connection", self._pipe)
        try:
            self._busy_since = time.monotonic()
            _send(pipe, (dict(inputs), dict(call.parameters), call.outputs))
            kind, value = _receive(pipe)
        except (EOFError, OSError):
            raise self._ended() from None
        finally:
            self._busy_since = None
        if kind == "error":
            raise value
        return value

    def join_rows(self, joined: bool) -> None:
        self._joined = joined
        with contextlib.suppress(OSError):  # it died; the next one is told when it starts
            _send(cast("Connection", self._pipe), joined)

    def close(self) -> None:
        atexit.unregister(self.close)
        with self._lock:
            if self._closed:  # by another thread: a descriptor that is closed twice may be somebody else's by then
                return
            self._closed = True
            process, pipe = self._process, self._pipe
            self._process = None
        if pipe is not None:
            pipe.close()  # the worker reads the end of the stream and leaves
        if process is not None:
            process.join(_STOP_S)
            if process.is_alive():
                process.kill()
                process.join(_STOP_S)
            # Else the kernel still ends it, which may take long on a machine that swaps.
            if process.exitcode is not None:
                process.close()

    @property
    def is_at_work(self) -> bool:
        return self._return is None and self._process is not None and not self._hung

    def end_overdue(self, limit_s: float) -> bool:
        since = self._busy_since
        with self._lock:
            process = self._process
        if since is not None and time.monotonic() - since > limit_s and process is not None and not self._hung:
            self._hung = True
            with contextlib.suppress(ValueError):  # it is being unloaded
                process.kill()
            return True
        failed = self._return_failed
        if failed is not None and time.monotonic() - failed[0] > _AGAIN_S:
            self._bring_back()
        return False

    def _ended(self) -> SerinusError:
        """Start another process, without waiting for it: the requests of this one are answered first."""
        name = self._settings.name
        if self._closed:
            return ModelFailed(f"model '{name}' is being unloaded")
        hung, how = self._hung, self._exit()
        self._on_restart("hung" if hung else "ended")
        self._bring_back()
        if hung:
            return TimedOut(f"model '{name}' did not answer in time (hang_timeout_s); its process is restarted")
        message = f"model '{name}': its process ended while it predicted{how}"
        _log.error("%s; another one is started", message)
        return ModelFailed(message)

    def _bring_back(self) -> threading.Thread | None:
        with self._lock:
            if self._return is None and not self._closed:
                self._return_failed = None
                self._return = returning = threading.Thread(target=self._come_back, name="process-return", daemon=True)
                try:
                    returning.start()
                except RuntimeError as error:  # the system gives no more threads; the next batch tries again
                    self._return = None
                    reason = f"model '{self._settings.name}': its process cannot be brought back: {error}"
                    self._return_failed = (time.monotonic(), reason)
                    _log.error("%s", reason)
            return self._return

    def _await_return(self) -> None:
        returning = self._return or self._bring_back()
        if returning is not None:
            returning.join()
        failed = self._return_failed
        if failed is not None or self._process is None:
            reason = failed[1] if failed is not None else f"model '{self._settings.name}' is being unloaded"
            raise ModelFailed(reason)

    def _come_back(self) -> None:
        try:
            self._respawn()
        except Exception as error:  # noqa: BLE001 # whatever it is, the next try or its caller tells
            if not self._closed:
                _log.error("model '%s': its process did not come back: %s", self._settings.name, error)
            self._return_failed = (time.monotonic(), str(error))
        finally:
            self._hung = False
            self._return = None

    def _respawn(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(_STOP_S)
        self.spawn()
        self.await_ready()
        if self._joined is not None:
            self.join_rows(self._joined)

    def _exit(self) -> str:
        process = self._process
        if process is None:
            return ""
        process.join(_STOP_S)
        code = process.exitcode
        if code is None:
            return ""
        if code < 0:
            return f" (killed by {signal.Signals(-code).name})"
        return f" (exit status {code})"


def _send(pipe: Connection, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    pipe.send_bytes(pickle.dumps((body, [view.nbytes for view in views])))
    for view in views:
        if view.nbytes:
            pipe.send_bytes(view)


def _receive(pipe: Connection) -> Any:
    body, sizes = pickle.loads(pipe.recv_bytes())  # noqa: S301 # from our own child or parent, over an unnamed pipe
    buffers = []
    for size in sizes:
        buffer = bytearray(size)
        if size:
            pipe.recv_bytes_into(buffer)
        buffers.append(buffer)
    return pickle.loads(body, buffers=buffers)  # noqa: S301 # as above


def _serve(pipe: Connection, factory: Factory, settings: ModelSettings) -> None:
    """Be a worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # sent to the group or cgroup too; they are the parent's to handle, which closes the pipe
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        model = factory(settings)
        model.load()
        description = {
            "inputs": tuple(model.inputs),
            "outputs": tuple(model.outputs),
            "signatures": dict(model.signatures),
            "batchable": model.batchable,
            "batching": model.batching,
            "unbatchable_reason": model.unbatchable_reason,
            "default_signature": model.default_signature,
            "computes_in": model.computes_in,
            "provenance": model.provenance,
            "coerce": model.coerce,
            "any_input_name": model.any_input_name,
            "columns": model.columns,
            "details": model.details,
            "_warmup_sample": model.warmup_inputs(),
        }
        _send(pipe, ("ready", description))
    except BaseException as error:  # noqa: BLE001 # told to the parent, which raises it
        _send(pipe, ("error", _portable(error, settings)))
        return
    while True:
        try:
            message = _receive(pipe)
        except (EOFError, OSError):
            break
        if isinstance(message, bool):
            model.join_rows(message)
            continue
        inputs, parameters, outputs = message
        try:
            answer = ("value", dict(model.predict(inputs, Call(parameters=parameters, outputs=outputs))))
        except Exception as error:  # noqa: BLE001 # as above
            answer = ("error", _portable(error, settings))
        try:
            _send(pipe, answer)
        except (BrokenPipeError, OSError):
            break
    model.unload()


def _end_with_parent() -> None:
    """End when the parent has, however it did: one that was killed closes the pipe, which nobody reads during a long predict."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _portable(error: BaseException, settings: ModelSettings) -> BaseException:
    """Make an error that survives the way to the parent: its class may not exist there, or not unpickle."""
    if isinstance(error, SerinusError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 # our own bytes
        except Exception:  # noqa: BLE001 # an error class of the model's own; its message travels below
            return ModelFailed(f"model '{settings.name}': {error}")
        return error
    return RemoteError("".join(traceback.format_exception(type(error), error, error.__traceback__)))
