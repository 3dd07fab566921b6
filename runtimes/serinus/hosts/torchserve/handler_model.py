"""The handler itself, as the model behind a `TorchServeHost`: items of several requests are one list, of at most TorchServe's batch size.

It is called in a thread of its own, one batch at a time, as in a worker of TorchServe's; the plane's batcher joins what waits meanwhile. A batch whose call
fails is asked again one request at a time, so that one bad item fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ...artifacts import Extra
from ...content.untrusted_yaml import load_untrusted
from ...errors import Cancelled, ConfigError, InvalidInput, ModelFailed, SerinusError
from ...model import Cancellable, RequestModel
from ...protocol.types import InferRequest, InferResponse
from ...settings import ModelSettings
from ...small_file import read_bytes
from . import mar_archive
from .handler_context import Context
from .handler_loading import Entry, entry_of_archive, entry_of_class
from .mar_archive import Archive, open_archive

__all__ = ["Answered", "HandlerModel", "HandlerRequest", "HandlerResponse"]

_log = logging.getLogger("serinus.hosts")

_SETTINGS: Final = ("batch_size", "max_batch_delay_ms", "serialized_file", "model_file")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a handler answered to one item."""

    value: Any
    status: int
    headers: Mapping[str, str]


class HandlerRequest(InferRequest):
    """A request whose content are items for a handler; it has no tensors."""

    __slots__ = ("items",)

    def __init__(self, name: str, items: Sequence[Any], headers: Mapping[str, str], id: str | None) -> None:
        super().__init__(name, (), "", id, headers=headers)
        self.items = items


class HandlerResponse(InferResponse):
    """The answers to a request's items, in their order."""

    __slots__ = ("items",)

    def __init__(self, request: InferRequest, version: str, items: Sequence[Answered]) -> None:
        super().__init__(request.model_name, (), version, request.id)
        self.items = items


class HandlerModel(RequestModel):
    """A handler, loaded from an archive or made of a class.

    Args:
        settings: `model_dir` is the archive; the settings of its own are `batch_size`, `max_batch_delay_ms`, `serialized_file`, `model_file`.
        handler: a class or instance; None: the archive's.
    """

    platform = "pytorch_torchserve"
    checks_requests = False

    def __init__(self, settings: ModelSettings, handler: Any = None) -> None:
        super().__init__(settings)
        self._handler = handler
        self._entry: Entry | None = None
        self._context: Context | None = None
        self._unpacked: Path | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"torchserve-{settings.name}")
        self._tasks: set[asyncio.Future[Any]] = set()
        self.max_rows = 1
        self.max_delay_s = 0.0

    def load(self) -> None:
        """Unpack the archive, load the handler and initialise it, in the thread that will call it.

        Raises:
            ConfigError: the archive is damaged or has no handler, or that cannot be initialised.
        """
        extra = Extra(self.settings.extra, known=_SETTINGS)
        told = {name: extra.text(name, "") for name in ("serialized_file", "model_file")}
        sizes = {name: extra.parse(name, _whole, None) for name in ("batch_size", "max_batch_delay_ms")}
        extra.close()
        self._unpacked = Path(tempfile.mkdtemp(prefix="serinus-mar-"))
        try:
            archive = self._archive(self._unpacked, told)
            config = _config(archive)
            size = (
                sizes["batch_size"] or config.get("batchSize") or 1
            )  # TorchServe's default (docs/batch_inference_with_ts.md)
            delay_ms = sizes["max_batch_delay_ms"]
            delay_ms = config.get("maxBatchDelay", 0) if delay_ms is None else delay_ms
            _check_sizes(archive, size, delay_ms)
            self.max_rows, self.max_delay_s = size, delay_ms / 1e3
            self._context = context = Context(self.name, archive.folder, archive.manifest, size, config)
            self._entry = self._threads.submit(self._load_entry, archive, context).result()
        except BaseException:
            self.unload()
            raise
        self.request_batching = self
        self.details |= {"host": "torchserve", "handler": archive.handler, "batch_size": size}

    def _archive(self, into: Path, told: Mapping[str, str]) -> Archive:
        where = self.settings.model_dir
        if self._handler is None:
            if where is None:
                raise ConfigError(f"model {self.name!r}: name the archive (--model_dir model.mar)")
            return open_archive(where, into)
        named = {
            key: told[own]
            for key, own in (("serializedFile", "serialized_file"), ("modelFile", "model_file"))
            if told[own]
        }
        kind = self._handler if isinstance(self._handler, type) else type(self._handler)
        manifest = {"model": {"modelName": self.name, "handler": kind.__name__, **named}}
        return Archive((where or Path.cwd()).resolve(), manifest, kind.__name__)

    def _load_entry(self, archive: Archive, context: Context) -> Entry:
        try:
            if self._handler is not None:
                return entry_of_class(self._handler, context)
            return entry_of_archive(archive, context)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 # an author's code raises whatever it likes
            _log.exception("model '%s': the handler %s cannot be initialised", self.name, archive.handler)
            raise ConfigError(
                f"{archive.folder}: the handler {archive.handler} cannot be initialised: {error}"
            ) from None

    def unload(self) -> None:
        """End the thread, and remove what was unpacked."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._unpacked is not None:
            mar_archive.remove(self._unpacked)

    # What the batcher asks (`model.RequestBatching`)

    def key(self, request: InferRequest) -> tuple[str, int] | None:
        """Join all requests; one of more items than a batch is answered alone, in parts."""
        items = getattr(request, "items", ())
        return ("", len(items)) if 0 < len(items) <= self.max_rows else None

    def is_of_a_member(self, error: BaseException) -> bool:
        """Whose fault it is, each of them alone will tell."""
        return True

    def infer_batch(
        self, requests: Sequence[InferRequest], on_complete: Callable[[Sequence[InferResponse] | BaseException], None]
    ) -> Cancellable:
        """Answer the items of several requests as one list."""
        task = asyncio.get_running_loop().create_task(self._answers(requests))
        self._tasks.add(task)

        def ended(task: asyncio.Task[list[InferResponse]]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                on_complete(Cancelled("the client went away"))
            else:
                on_complete(task.exception() or task.result())

        task.add_done_callback(ended)
        return task

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request, of any number of items."""
        if not isinstance(request, HandlerRequest):
            raise InvalidInput("a handler is asked by the model that stands before it")
        answered: list[Answered] = []
        for start in range(0, len(request.items), self.max_rows):
            part = HandlerRequest(
                request.model_name, request.items[start : start + self.max_rows], request.headers, request.id
            )
            (response,) = await self._answers([part])
            answered += getattr(response, "items", ())
        return HandlerResponse(request, self.settings.version, answered)

    async def _answers(self, requests: Sequence[InferRequest]) -> list[InferResponse]:
        asked: list[HandlerRequest] = list(requests)  # type: ignore[arg-type] # `key` joins no others
        answered = await asyncio.get_running_loop().run_in_executor(self._threads, self._call, asked)
        responses: list[InferResponse] = []
        start = 0
        for request in asked:
            stop = start + len(request.items)
            responses.append(HandlerResponse(request, self.settings.version, answered[start:stop]))
            start = stop
        return responses

    def _call(self, requests: Sequence[HandlerRequest]) -> list[Answered]:
        context, entry = self._context, self._entry
        assert context is not None  # noqa: S101 # loaded before
        assert entry is not None  # noqa: S101 # loaded before
        items = [item for request in requests for item in request.items]
        headers = [request.headers for request in requests for _ in request.items]
        context.begin(headers, [request.id or "" for request in requests for _ in request.items])
        try:
            values = entry(items, context)
        except Exception as error:
            raise _refusal(error, self.name) from error
        if not isinstance(values, list | tuple) or len(values) != len(items):
            came = f"{len(values)} answers" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            raise ModelFailed(
                f"the handler of model '{self.name}' gave {came} to a batch of {len(items)}; a list of {len(items)} was expected"
            )
        return [
            Answered(value, context.statuses.get(index, 200), context.response_headers.get(index, {}))
            for index, value in enumerate(values)
        ]


def _refusal(error: Exception, name: str) -> SerinusError:
    """Tell a `PredictionException`, which has a status, from a failure, which the log alone tells."""
    code = getattr(error, "error_code", None)
    if type(error).__name__ == "PredictionException" and type(code) is int and 400 <= code < 600:
        kind = InvalidInput if code < 500 else ModelFailed
        return kind(str(getattr(error, "message", error))).with_status(code)
    return ModelFailed(f"the handler of model '{name}' failed; the server's log has the details")


def _whole(value: Any) -> int:
    made = int(value)
    if made < 0 or str(made) != str(value).strip():
        raise ValueError("a whole number was expected")
    return made


def _check_sizes(archive: Archive, size: object, delay_ms: object) -> None:
    """Refuse a batch size or delay that is no whole number.

    Raises:
        ConfigError: with both.
    """
    if type(size) is not int or size < 1 or type(delay_ms) is not int or delay_ms < 0:
        raise ConfigError(
            f"{archive.folder}: batchSize is {size!r} and maxBatchDelay {delay_ms!r}; whole numbers were expected"
        )


def _config(archive: Archive) -> dict[str, Any]:
    """Read the archive's `configFile`."""
    name = archive.manifest["model"].get("configFile")
    if not name:
        return {}
    try:
        config = load_untrusted(read_bytes(archive.folder / name, most_bytes=1 << 20))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{archive.folder / name}: cannot be read: {str(error)[:300]}") from None
    if config is not None and not isinstance(config, dict):
        raise ConfigError(f"{archive.folder / name}: a mapping was expected")
    return config or {}
