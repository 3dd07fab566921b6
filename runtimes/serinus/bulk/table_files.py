"""Tables in files: read batch by batch, and written so; CSV, JSON lines and Parquet, by the file's suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import compute, csv, json, parquet

from ..errors import ConfigError

__all__ = ["Format", "TableReader", "format_of", "write_table"]

Format = Literal["csv", "jsonl", "parquet"]

_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
_AS_FORMULA: Final = compute.MatchSubstringOptions("^[=+\\-@\t\r]")


def format_of(path: Path) -> Format:
    """Name a file's format by its suffix.

    Raises:
        ConfigError: it is none that we read and write.
    """
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(f"{path}: expected a name that ends in one of {', '.join(_SUFFIXES)}")
    return found


class TableReader:
    """A table's rows, in order, a bounded number at a time.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or is no table of its format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._format = format_of(path)
        self.rows: int | None = None
        """Of the whole file, where its format says."""
        try:
            self.schema: pa.Schema = self._open_schema()
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _unreadable(path, self._format, error) from error
        names = self.schema.names
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ConfigError(
                f"{path}: the columns {', '.join(map(repr, twice))} are there more than once; rename them"
            )

    def _open_schema(self) -> pa.Schema:
        if self._format == "parquet":
            with parquet.ParquetFile(self.path) as file:
                self.rows = file.metadata.num_rows
                return file.schema_arrow
        with self._stream() as reader:
            return reader.schema

    def batches(self, rows: int, *, skip: int = 0) -> Iterator[pa.RecordBatch]:
        """Give the rows in batches of exactly `rows`, the last of fewer.

        Args:
            rows: of a batch.
            skip: so many from the beginning are left out.

        Raises:
            ConfigError: a later part of the file is not what the first said.
        """
        waiting: list[pa.RecordBatch] = []
        count = 0
        try:
            for read in self._read(rows):
                batch = read
                if skip:
                    dropped = min(skip, batch.num_rows)
                    batch, skip = batch.slice(dropped), skip - dropped
                while batch.num_rows:
                    taken = batch.slice(0, rows - count)
                    batch = batch.slice(taken.num_rows)
                    waiting.append(taken)
                    count += taken.num_rows
                    if count == rows:
                        yield _joined(waiting)
                        waiting, count = [], 0
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _unreadable(self.path, self._format, error) from error
        if waiting:
            yield _joined(waiting)

    def _read(self, rows: int) -> Iterator[pa.RecordBatch]:
        if self._format == "parquet":
            with parquet.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=rows)
            return
        with self._stream() as reader:
            yield from reader

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        if self._format == "csv":
            reader = csv.open_csv(self.path)
        else:
            reader = json.open_json(self.path)
        with reader:
            yield reader


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).combine_chunks()
    return table.to_batches()[0]


def _unreadable(path: Path, kind: str, error: Exception) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{path}: no such file")
    if isinstance(error, OSError) and error.strerror:
        return ConfigError(f"{path}: cannot be read: {error.strerror}")
    return ConfigError(f"{path}: not a table in {kind}: {error}")


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a table whole or not at all: beside its place first, then moved there.

    CSV has a column for each element of a list (`y_0`, `y_1`), JSON lines have lists, and null for what is not finite. Texts are written as they are, in
    CSV as pandas and Arrow write them: also those that a spreadsheet would run.

    Returns:
        Texts of a CSV that begin as formulas do; 0 of another format.

    Raises:
        ConfigError: it cannot be written.
    """
    kind = format_of(path)
    partial = path.with_name(f".{path.name}.partial")
    formulas = 0
    try:
        partial.unlink(missing_ok=True)
        with partial.open(
            "xb"
        ) as file:  # new: in a folder of many, somebody's link of that name may lead to any file of ours
            if kind == "parquet":
                with parquet.ParquetWriter(file, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
            elif kind == "csv":
                flat = _flat_schema(schema)
                formulas += sum(name.startswith(_FORMULAS) for name in flat.names)
                with csv.CSVWriter(file, flat) as writer:
                    for batch in batches:
                        flattened = _flattened(batch, flat)
                        formulas += _count_formulas(flattened)
                        writer.write_batch(flattened)
            else:
                for batch in batches:
                    _write_lines(file, batch)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    return formulas


def _count_formulas(batch: pa.RecordBatch) -> int:
    """Count the texts that a spreadsheet takes for formulas (OWASP, "CSV Injection")."""
    return sum(
        compute.call_function("match_substring_regex", [column], _AS_FORMULA).true_count
        for column in batch.columns
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    )


def _write_lines(file: Any, batch: pa.RecordBatch) -> None:
    columns = [_values(batch.column(index)) for index in range(batch.num_columns)]
    names = batch.schema.names
    lines = [
        orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        for row in zip(*columns, strict=True)
    ]
    file.write(b"".join(lines))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_floating(column.type):
        # Doubles would show digits that a float has not; orjson writes NumPy's scalars as short as they are.
        return list(column.to_numpy(zero_copy_only=False))
    return column.to_pylist()


def _flat_schema(schema: pa.Schema) -> pa.Schema:
    fields = []
    for field in schema:
        if pa.types.is_fixed_size_list(field.type) and not pa.types.is_nested(field.type.value_type):
            size = field.type.list_size
            fields += [pa.field(f"{field.name}_{index}", field.type.value_type) for index in range(size)]
        elif pa.types.is_nested(field.type):
            fields.append(pa.field(field.name, pa.string()))
        else:
            fields.append(field)
    return pa.schema(fields)


def _flattened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns: list[pa.Array] = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(field.type) and not pa.types.is_nested(field.type.value_type):
            size = field.type.list_size
            flat = column.flatten()
            rows = np.arange(batch.num_rows) * size
            columns += [flat.take(pa.array(rows + index)) for index in range(size)]
        elif pa.types.is_nested(field.type):
            columns.append(pa.array([orjson.dumps(value).decode() for value in column.to_pylist()], pa.string()))
        else:
            columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)
