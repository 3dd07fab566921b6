"""Weights that lie beside a graph in files of their own ("external data"), and a copy of them that nobody else writes to.

Theory of operation. ONNX Runtime maps such a file and reads it for as long as the session lives. Whoever writes the next version over it would change
the answers of the one that is served, and whoever cuts it short ends the server (SIGBUS). So the session is given the bytes instead, up to
`MOST_COPIED_BYTES`; larger weights stay mapped, and their files must be replaced by a rename, not written over. What is written over or replaced while
the model is loaded, a graph and weights of two versions, is refused. An older ONNX Runtime (1.23, the last for Python 3.10) takes no bytes: its
session is made of a copy in a folder of its own, which is gone from there once the session has mapped it.

A graph names such files by path. An older ONNX Runtime opens any path, of other people's files too, and reads from the process's memory where the path
is a word of its own. So the paths are looked at here first, whatever the version.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from serinus.artifacts import held, steady
from serinus.errors import ConfigError

from .message_fields import fields

__all__ = ["MOST_COPIED_BYTES", "find_weights", "giving_weights", "unmixed"]

MOST_COPIED_BYTES: Final = 2 << 30
"""Of all files together: they are in memory twice while the session is made. It is also the largest graph that protobuf carries in one file."""

_LOCATION: Final = b"location"
"""Every tensor that lies elsewhere says so by this key (onnx.proto, TensorProto.external_data)."""
_IN_MEMORY: Final = "_ORT_MEM_ADDR_"
"""In the place of a path it makes an offset an address (ONNX Runtime, tensorprotoutils.h, kTensorProtoMemoryAddressTag)."""

_HOLDS: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""Fields of onnx.proto through which a tensor's `external_data` is reached, by the numbers of their messages."""


@contextmanager
def unmixed(file: Path) -> Iterator[Path]:
    """Give the path by which a graph is read, several times, and have all of it be of one version: its sessions, its weights, its classes.

    A graph whose tensors are all in it is held open, so that another file under its name is never read. One with weights beside it can be opened by
    its own name alone; what changes meanwhile is noticed.

    Raises:
        ConfigError: the graph or its weights were written to or replaced meanwhile, cannot be read, or lie outside the graph's folder.
    """
    with held(file) as own:
        if not _may_have_weights(own):
            yield own
            return
    with steady([file]), steady(list(find_weights(file))):
        _check_places(file)
        yield file


def _may_have_weights(graph: Path) -> bool:
    if not graph.stat().st_size:
        return False
    with graph.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        return body.find(_LOCATION) >= 0


def find_weights(file: Path) -> Iterator[Path]:
    """Find what lies beside a graph and is named in it."""
    if not _may_have_weights(file):
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        for path in sorted(file.parent.iterdir()):
            if path.is_dir():  # its name alone may be that of a node, too
                if body.find(f"{path.name}/".encode()) >= 0:
                    yield from (
                        child
                        for child in sorted(path.iterdir())
                        if body.find(f"{path.name}/{child.name}".encode()) >= 0
                    )
            elif path != file and body.find(path.name.encode()) >= 0:
                yield path


def _check_places(graph: Path) -> None:
    """Refuse a graph that names weights outside its folder.

    Raises:
        ConfigError: naming the path.
    """
    with graph.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        try:
            places = set(_places(body))
        except (IndexError, ValueError) as error:  # ONNX Runtime might read on where this does not
            raise ConfigError(f"{graph}: ONNX Runtime refuses it: it is no protobuf message ({error})") from None
    for place in sorted(places):
        path = os.fsdecode(place)
        if _IN_MEMORY in path or "\0" in path or not _is_beside(graph.parent / path, graph):
            raise ConfigError(
                f"{graph}: External data path {path!r} leads out of the model's folder; put the file beside the graph, and name it by a relative path"
            )


def _is_beside(path: Path, graph: Path) -> bool:
    """Whether a path, links followed, is in a graph's folder: that of its name or, where that is a link (Hugging Face's cache), that of the file."""
    real = os.path.realpath(path)
    folders = os.path.realpath(graph.parent), os.path.dirname(os.path.realpath(graph))
    return any(os.path.commonpath((real, folder)) == folder for folder in folders)


def _places(body: mmap.mmap) -> Iterator[bytes]:
    """Find every path that a tensor of the graph says it lies at, those of nodes' attributes and of graphs within graphs too.

    Raises:
        ValueError, IndexError: the file is damaged.
    """
    waiting = [("ModelProto", 0, len(body))]
    while waiting:
        message, start, end = waiting.pop()
        if message == "StringStringEntryProto":
            entry = {number: body[a:b] for number, a, b in fields(body, start, end)}
            if entry.get(1) == _LOCATION:
                yield entry.get(2, b"")
            continue
        for number, a, b in fields(body, start, end):
            held_message = _HOLDS[message].get(number)
            if held_message is not None and body.find(_LOCATION, a, b) >= 0:
                waiting.append((held_message, a, b))


@contextmanager
def giving_weights(options: Any, file: Path) -> Iterator[Path]:
    """Give the path by which a session reads a graph, and have it read copies of the weights that lie beside that.

    What leads out of the graph's folder is not copied, and was refused.

    Args:
        options: the session's `SessionOptions`; it is made meanwhile.
        file: the graph.

    Raises:
        ConfigError: there is no room for a copy.
    """
    paths = [path for path in find_weights(file) if path.is_file() and _is_beside(path, file)]
    if not paths or sum(path.stat().st_size for path in paths) > MOST_COPIED_BYTES:
        yield file
        return
    names = [path.relative_to(file.parent).as_posix() for path in paths]
    if hasattr(options, "add_external_initializers_from_files_in_memory"):
        held = [path.read_bytes() for path in paths]  # ONNX Runtime copies them when the session is made
        options.add_external_initializers_from_files_in_memory(names, held, list(map(len, held)))
        yield file
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="serinus-onnx-"))
            for path, name in ((file, file.name), *zip(paths, names, strict=True)):
                copy = Path(folder, name)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
        except OSError as error:
            raise ConfigError(
                f"{file}: its weights cannot be copied for this ONNX Runtime: {error.strerror}; name a folder with room in TMPDIR"
            ) from None
        yield Path(folder, file.name)
