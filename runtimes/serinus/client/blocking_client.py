"""The client for code that is not coroutines: `AsyncClient` on an event loop in a thread, which all clients of a process share."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..protocol.types import NO_PARAMETERS, ModelMetadata, RequestedOutput, ServerMetadata
from .async_client import AsyncClient
from .tensors import Answer, Frame

__all__ = ["Client"]

_T = TypeVar("_T")


class _LoopThread:
    """An event loop in a daemon thread; one a process, begun when first needed, anew in a child that was forked."""

    _lock = threading.Lock()
    _of_process: _LoopThread | None = None

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="serinus client", daemon=True).start()

    @classmethod
    def of_process(cls) -> _LoopThread:
        """The one of this process."""
        with cls._lock:
            if cls._of_process is None or cls._of_process.pid != os.getpid():
                cls._of_process = cls()
            return cls._of_process


class Client:
    """Requests to one V2 server, for threads: safe to share between them; each call waits for its answer.

        with Client("grpc://127.0.0.1:8081") as client:
            probability = client.infer("fraud", {"x": rows})["probability"]

    The arguments, methods and errors are `AsyncClient`'s. A process that forks makes its clients after the fork.
    """

    def __init__(
        self,
        url: str,
        *,
        host: str = "",
        headers: Mapping[str, str] = NO_PARAMETERS,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        binary: bool = True,
        authorities: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        self._client = AsyncClient(
            url,
            host=host,
            headers=headers,
            token=token,
            timeout_s=timeout_s,
            retries=retries,
            binary=binary,
            authorities=authorities,
            certificate=certificate,
            key=key,
        )
        self._thread: _LoopThread | None = None

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any] | Frame,
        *,
        version: str = "",
        outputs: Sequence[str | RequestedOutput] | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        headers: Mapping[str, str] = NO_PARAMETERS,
    ) -> Answer:
        """Send arrays, get arrays; see `AsyncClient.infer`."""
        return self._run(
            self._client.infer(
                model,
                inputs,
                version=version,
                outputs=outputs,
                parameters=parameters,
                request_id=request_id,
                priority=priority,
                timeout_s=timeout_s,
                headers=headers,
            )
        )

    def is_live(self) -> bool:
        """Whether the server answers that it lives."""
        return self._run(self._client.is_live())

    def is_ready(self) -> bool:
        """Whether the server is ready for requests."""
        return self._run(self._client.is_ready())

    def is_model_ready(self, model: str) -> bool:
        """Whether a model is ready for requests."""
        return self._run(self._client.is_model_ready(model))

    def wait_until_ready(self, model: str | None = None, *, timeout_s: float = 60.0) -> None:
        """Wait until the server, or one of its models, is ready; see `AsyncClient.wait_until_ready`."""
        self._run(self._client.wait_until_ready(model, timeout_s=timeout_s))

    def server_metadata(self) -> ServerMetadata:
        """What the server says of itself; see `AsyncClient.server_metadata`."""
        return self._run(self._client.server_metadata())

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """What a model says of itself; see `AsyncClient.metadata`."""
        return self._run(self._client.metadata(model, version))

    def close(self) -> None:
        """Close the connections."""
        if self._thread is not None and self._thread.pid == os.getpid():
            self._run(self._client.close())

    def __enter__(self) -> Client:  # noqa: PYI034 # typing.Self comes with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        thread = self._thread
        if thread is None:
            thread = self._thread = _LoopThread.of_process()
        if thread.pid != os.getpid():
            coroutine.close()
            raise RuntimeError("this client was used before the process forked; make another in the child")
        future = asyncio.run_coroutine_threadsafe(coroutine, thread.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
