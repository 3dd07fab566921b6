"""TorchServe's archives (`.mar`): what is in one, unpacked with care.

An archive is a zip file, or a folder of the same form, with `MAR-INF/MANIFEST.json`. No entry may lead out of the folder, be a link, or make more of
itself than the bounds say, whatever its directory claims.

Source: pytorch/serve, model-archiver (`manifest_components/manifest.py`).
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ...content.zip_members import check_packing
from ...errors import ConfigError
from ...loading.model_formats import MAR_MANIFEST, is_mar
from ...small_file import read_bytes

__all__ = ["Archive", "open_archive"]

_MOST_ENTRIES: Final = 10_000
"""Files of an archive; handlers with tokenizers and configurations have some hundred."""
_MOST_BYTES: Final = 64 << 30
"""Of all files together, unpacked."""
_MOST_RATIO: Final = 200
"""Bytes that one byte may unpack to, beyond `_SPARED_BYTES`: deflate makes at most 1,032 of one, and weights hardly 2."""
_SPARED_BYTES: Final = 64 << 20
_COPIED_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """An unpacked archive."""

    folder: Path
    manifest: Mapping[str, Any]
    handler: str
    """A file's name, perhaps with `:function`; or the name of one of TorchServe's own handlers."""


def open_archive(path: Path, into: Path) -> Archive:
    """Unpack an archive.

    Args:
        path: the `.mar` file, a folder of that form, or a folder with one such file.
        into: an empty folder, which an archive's files are written to; a folder is read where it is.

    Raises:
        ConfigError: it is none, is damaged, or has an entry that is refused.
    """
    if path.is_dir() and not is_mar(path):
        found = sorted(child for child in path.iterdir() if is_mar(child))
        if len(found) != 1:
            names = ", ".join(child.name for child in found) or "none"
            raise ConfigError(f"{path}: one archive of TorchServe's (.mar) was expected; there are {names}")
        path = found[0]
    if not path.is_dir():
        try:
            _unpack(path, into)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
            raise ConfigError(f"{path}: cannot be unpacked: {error}") from None
        except zipfile.zlib.error as error:  # type: ignore[attr-defined] # what it decompresses with
            raise ConfigError(f"{path}: is damaged: {error}") from None
        folder = into
    else:
        folder = path
    return _described(folder, path)


def _unpack(path: Path, into: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_ENTRIES:
            raise ConfigError(f"{path}: has {len(entries)} entries; at most {_MOST_ENTRIES} are unpacked")
        names: set[str] = set()
        left = _MOST_BYTES
        for entry in entries:
            target = _target(entry, path)
            if entry.is_dir():
                (into / target).mkdir(parents=True, exist_ok=True)
                continue
            if str(target) in names:
                raise ConfigError(f"{path}: has the entry {entry.filename!r} twice")
            names.add(str(target))
            (into / target).parent.mkdir(parents=True, exist_ok=True)
            most = min(left, _SPARED_BYTES + _MOST_RATIO * entry.compress_size)
            with archive.open(entry) as source, (into / target).open("wb") as made:
                written = 0
                while piece := source.read(_COPIED_BYTES):
                    written += len(piece)
                    if written > most:
                        raise ConfigError(
                            f"{path}: {entry.filename!r} unpacks to more than {most} bytes, far more than it holds"
                        )
                    made.write(piece)
            left -= written


def _target(entry: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    name = entry.filename
    target = PurePosixPath(name)
    if (
        not name
        or target.is_absolute()
        or ".." in target.parts
        or "\\" in name
        or "\0" in name
        or ":" in name.partition("/")[0]
    ):
        raise ConfigError(f"{path}: the entry {name[:200]!r} leads out of the archive")
    mode = entry.external_attr >> 16
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)):
        raise ConfigError(f"{path}: the entry {name[:200]!r} is a link or a device; files were expected")
    if entry.flag_bits & 1:
        raise ConfigError(f"{path}: the entry {name[:200]!r} is encrypted")
    check_packing(entry)
    return target


def _described(folder: Path, path: Path) -> Archive:
    where = f"{path}: {MAR_MANIFEST}"
    try:
        document = json.loads(read_bytes(folder / MAR_MANIFEST))
    except FileNotFoundError:
        raise ConfigError(f"{where} is not there; an archive that torch-model-archiver made was expected") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from None
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict):
        raise ConfigError(f"{where}: has no 'model'")
    for key in ("serializedFile", "modelFile", "handler", "configFile"):
        value = model.get(key)
        if value is None and key != "handler":
            continue
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}: model.{key} is {value!r}; a name was expected")
        file = value.partition(":")[0]
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ConfigError(f"{where}: model.{key} is {value!r}, which leads out of the archive")
        if key != "handler" and not (folder / file).exists():
            raise ConfigError(f"{where}: model.{key} is {value!r}, which is not in the archive")
    return Archive(folder, document, model["handler"])


def remove(folder: Path) -> None:
    """Remove what was unpacked."""
    shutil.rmtree(folder, ignore_errors=True)
