"""The rows of a file through a model, in order, a bounded number at a time.

Theory of operation. A batch of rows is one request to the data plane that a server has: checked, batched and executed as if it had come over the
wire, so its answers are those of the wire. Some requests are under way at once, so that reading, predicting and writing overlap; answers are
taken in the order of their rows. They gather in memory until a part is full, which is then written whole: what is lost by an end at any
moment is less than a part.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from ..dataplane.access.repository_access import OPEN
from ..dataplane.plane import Plane
from ..dataplane.registry import Registry
from ..errors import ConfigError, SerinusError
from ..hosts import build_model
from ..protocol.types import InferRequest, InferResponse, Limits, RequestedOutput, no_parameters
from ..settings import ModelSettings
from ..verification_records import SUFFIX
from .column_mapping import ColumnMapping, output_columns
from .finished_parts import FinishedParts
from .table_files import TableReader, format_of, write_table

__all__ = ["BulkRun", "Written", "predict_file"]

_PART_ROWS: Final = 65536
_PART_BYTES: Final = 64 * 2**20
_PART_S: Final = 10.0
"""A part ends at the first of these: rows and bytes bound the memory, time what an interruption costs."""
_LIMITS: Final = Limits(body_bytes=1 << 31, tensor_bytes=1 << 34)
"""The file is the operator's own: its requests are bounded by `rows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRun:
    """What is asked."""

    settings: ModelSettings
    """Of the model."""
    source: Path
    output: Path
    rows: int = 256
    """Of one request."""
    in_flight: int = 4
    """Requests under way at once."""
    columns: tuple[str, ...] = ()
    """Columns that are inputs; none: found by their names."""
    keep: tuple[str, ...] = ()
    """Columns that go to the output as they are."""
    want: tuple[str, ...] = ()
    """Outputs; none: all that the model gives."""
    parameters: Mapping[str, Any] = field(default_factory=no_parameters)
    """Of every request."""
    transformer: str = ""
    """As `serinus serve --transformer`."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a run wrote."""

    rows: int
    formulas: int
    """Texts of a CSV that begin as a spreadsheet's formulas do."""


def predict_file(run: BulkRun, *, restart: bool = False, tell: Callable[[int, int | None], None]) -> Written:
    """Predict every row of a file, or go on where an interrupted run of the same kind ended.

    Args:
        run: what is asked.
        restart: drop what an earlier run left.
        tell: called with the rows done and those of the file (None: not known before its end).

    Returns:
        What the output holds.

    Raises:
        ConfigError: a file, a column or an output is not what it must be; what was done is kept.
        SerinusError: the model does not load, or refuses rows; likewise.
        KeyboardInterrupt: SIGINT or SIGTERM came; likewise.
    """
    format_of(run.output)
    reader = TableReader(run.source)
    if not run.output.parent.is_dir():
        raise ConfigError(f"{run.output}: there is no folder {run.output.parent}")
    if restart:
        FinishedParts.discard(run.output)
    parts = FinishedParts(run.output, _identity(run))
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(_Runner(run, reader, parts, tell).run())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, task.cancel)
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        if not parts.rows:
            parts.remove()  # nothing that another run could go on from
    schema = parts.schema
    if schema is None:
        raise ConfigError(f"{run.source}: the table has no rows, so there is nothing to write")
    formulas = write_table(run.output, schema, parts.batches())
    parts.remove()
    return Written(parts.rows, formulas)


def _identity(run: BulkRun) -> dict[str, Any]:
    """What makes two runs the same: the file, the model's files, and what was asked."""
    status = run.source.stat()
    model = run.settings.model_dir
    files = sorted(filter(_is_given, model.rglob("*"))) if model is not None and model.is_dir() else []
    if model is not None and model.is_file():
        files = [model]
    return {
        "source": [str(run.source.resolve()), status.st_size, status.st_mtime_ns],
        "model": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "implementation": run.settings.implementation,
        "transformer": run.transformer,
        "rows": run.rows,
        "columns": list(run.columns),
        "keep": list(run.keep),
        "want": list(run.want),
        "parameters": dict(run.parameters),
    }


def _is_given(path: Path) -> bool:
    """Whether a file is the model's own, and not one that a first load writes beside it: a verification record, compiled modules."""
    return path.is_file() and SUFFIX not in path.name and path.parent.name != "__pycache__"


class _Runner:
    """One run on its event loop."""

    def __init__(
        self, run: BulkRun, reader: TableReader, parts: FinishedParts, tell: Callable[[int, int | None], None]
    ) -> None:
        self._run, self._reader, self._parts, self._tell = run, reader, parts, tell
        self._tables: list[pa.RecordBatch] = []
        self._gathered_rows = 0
        self._gathered_bytes = 0
        self._since = 0.0

    async def run(self) -> None:
        run = self._run
        registry = Registry(lambda settings: build_model(settings, transformer=run.transformer or None))
        plane = Plane(registry, limits=_LIMITS, access=OPEN)
        # The queue holds what is under way: nobody is refused here.
        batch = dataclasses.replace(
            run.settings.batch, max_queue_rows=max(run.settings.batch.max_queue_rows or 0, run.rows * run.in_flight)
        )
        settings = dataclasses.replace(run.settings, batch=batch)
        try:
            await plane.start([settings])
            await self._through(plane, settings.name)
        finally:
            await plane.close()

    async def _through(self, plane: Plane, name: str) -> None:
        run = self._run
        metadata = plane.model_metadata(name)
        mapping = ColumnMapping.choose(self._reader.schema, metadata, columns=run.columns, keep=run.keep)
        done = self._parts.rows
        self._tell(done, self._reader.rows)
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        batches = self._reader.batches(run.rows, skip=done)
        under_way: deque[tuple[pa.RecordBatch, asyncio.Task[InferResponse]]] = deque()
        first = done
        try:
            while True:
                batch = await loop.run_in_executor(None, next, batches, None)
                if batch is not None:
                    request = self._request(mapping, batch, name, first)
                    under_way.append((batch, loop.create_task(plane.infer(request))))
                    first += batch.num_rows
                while under_way and (batch is None or len(under_way) >= run.in_flight):
                    await self._take(*under_way.popleft())
                if batch is None:
                    break
            self._flush()
        except (SerinusError, asyncio.CancelledError):
            self._flush()  # what is known is kept
            raise
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    def _request(self, mapping: ColumnMapping, batch: pa.RecordBatch, name: str, first: int) -> InferRequest:
        try:
            tensors = mapping.tensors(batch)
        except SerinusError as error:
            raise ConfigError(f"rows {first + 1} to {first + batch.num_rows}: {error}") from error
        wanted = [RequestedOutput(output) for output in self._run.want] or None
        return InferRequest(name, tensors, parameters=self._run.parameters, outputs=wanted)

    async def _take(self, batch: pa.RecordBatch, task: asyncio.Task[InferResponse]) -> None:
        at = self._parts.rows + self._gathered_rows
        try:
            response = await task
        except SerinusError as error:
            raise ConfigError(f"rows {at + 1} to {at + batch.num_rows}: {error}") from error
        columns = output_columns(response.outputs, batch.num_rows)
        kept = {name: batch.column(name) for name in self._run.keep}
        both = sorted(kept.keys() & columns.keys())
        if both:
            raise ConfigError(f"{both[0]!r} is an output and a column that is kept; rename the column, or leave it out")
        table = pa.RecordBatch.from_pydict({**kept, **columns})
        self._tables.append(table)
        self._gathered_rows += table.num_rows
        self._gathered_bytes += table.nbytes
        self._tell(self._parts.rows + self._gathered_rows, self._reader.rows)
        late = asyncio.get_running_loop().time() - self._since > _PART_S
        if late or self._gathered_rows >= _PART_ROWS or self._gathered_bytes >= _PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write what has gathered as the next part."""
        if not self._tables:
            return
        schema = self._parts.schema or self._tables[0].schema
        odd = next((table for table in self._tables if table.schema != schema), None)
        if odd is not None:
            raise ConfigError(
                f"the outputs changed within the file: {schema} before, {odd.schema} now".replace("\n", ", ")
            )
        self._parts.add(pa.Table.from_batches(self._tables))
        self._tables, self._gathered_rows, self._gathered_bytes = [], 0, 0
        self._since = asyncio.get_running_loop().time()
