"""What a run has done so far: parts of the output, each whole, beside what the run was, so that the same command goes on.

A part is a Parquet file of some rows that is moved to its place when it is complete; which rows, is what the parts before it
leave. `run.json` says what was asked: a folder of another run's parts is never taken up.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..errors import ConfigError

__all__ = ["FinishedParts"]


class FinishedParts:
    """The folder of one output's parts.

    Args:
        output: the output's file.
        asked: what makes runs the same: values that JSON holds.

    Raises:
        ConfigError: the folder has parts of a run that was asked otherwise, or cannot be written.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        record = self.folder / "run.json"
        wanted = json.loads(json.dumps(asked))
        self._check_owner()
        try:
            if record.is_file():
                self._check(json.loads(record.read_bytes()), wanted)
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder}: there, and not of a run of ours; move it away")
            self.folder.mkdir(exist_ok=True)
            record.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        except json.JSONDecodeError as error:
            raise ConfigError(f"{record}: cannot be read: {error}; --restart begins anew") from error
        self._parts = self._complete()
        try:
            self.rows = sum(parquet.read_metadata(part).num_rows for part in self._parts)
            """That are done."""
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{self.folder}: a part cannot be read: {error}; --restart begins anew") from error

    def _check_owner(self) -> None:
        """Refuse a folder that somebody else has put there: its parts would be taken for answers of the model.

        Raises:
            ConfigError: it is a link, or another user's.
        """
        try:
            status = self.folder.lstat()
        except OSError:
            return
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(
                f"{self.folder}: is {'a link' if stat.S_ISLNK(status.st_mode) else 'of another user'}, so its parts may not be those of a run of yours; "
                "move it away, or name an output in a folder of your own"
            )

    def _check(self, there: Any, wanted: Mapping[str, Any]) -> None:
        if there == wanted:
            return
        names = (
            sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
            if isinstance(there, dict)
            else []
        )
        raise ConfigError(
            f"{self.folder} holds parts of another run (different: {', '.join(names) or 'all'}); the same command goes on, "
            "--restart begins anew"
        )

    def _complete(self) -> list[Path]:
        """Parts from the first on without a gap; whatever else lies there is of an interrupted write."""
        parts = []
        while (part := self.folder / f"{len(parts):06d}.parquet").is_file():
            parts.append(part)
        return parts

    def add(self, table: pa.Table) -> None:
        """Write the next rows.

        Raises:
            ConfigError: they cannot be written.
        """
        part = self.folder / f"{len(self._parts):06d}.parquet"
        partial = part.with_suffix(".partial")
        try:
            parquet.write_table(table, partial)
            partial.replace(part)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ConfigError(
                f"{part}: cannot be written: {error.strerror or error}; what was done before is kept"
            ) from error
        self._parts.append(part)
        self.rows += table.num_rows

    @property
    def schema(self) -> pa.Schema | None:
        """Of the parts; None: there is none yet."""
        return parquet.read_schema(self._parts[0]) if self._parts else None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in order."""
        for part in self._parts:
            with parquet.ParquetFile(part) as file:
                yield from file.iter_batches()

    def remove(self) -> None:
        """Drop the folder: the output is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @classmethod
    def discard(cls, output: Path) -> None:
        """Drop what an earlier run left, if it is a run's."""
        folder = output.with_name(f"{output.name}.parts")
        if (folder / "run.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
