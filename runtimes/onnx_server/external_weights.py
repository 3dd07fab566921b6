"""Weights that lie beside a graph in files of their own ("external data"), and a copy of them that nobody else writes to.

Theory of operation. ONNX Runtime maps such a file and reads it for as long as the session lives. Whoever writes the next version over it would change
the answers of the one that is served, and whoever cuts it short ends the server (SIGBUS). So the session is given the bytes instead, up to
`MOST_COPIED_BYTES`; larger weights stay mapped, and their files must be replaced by a rename, not written over. What is written over or replaced while
the model is loaded, a graph and weights of two versions, is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from serinus.artifacts import held, steady

__all__ = ["MOST_COPIED_BYTES", "find_weights", "give_weights", "unmixed"]

MOST_COPIED_BYTES: Final = 2 << 30
"""Of all files together: they are in memory twice while the session is made. It is also the largest graph that protobuf carries in one file."""


_LOCATION: Final = b"location"
"""Every tensor that lies elsewhere says so by this key (onnx.proto, TensorProto.external_data)."""


@contextmanager
def unmixed(file: Path) -> Iterator[Path]:
    """Give the path by which a graph is read, several times, and have all of it be of one version: its sessions, its weights, its classes.

    A graph whose tensors are all in it is held open, so that another file under its name is never read. One with weights beside it can be opened by
    its own name alone; what changes meanwhile is noticed.

    Raises:
        ConfigError: the graph or its weights were written to or replaced meanwhile, or cannot be read.
    """
    with held(file) as own:
        if not _may_have_weights(own):
            yield own
            return
    with steady([file]), steady(list(find_weights(file))):
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


def give_weights(options: Any, file: Path) -> list[bytes]:
    """Read the weights beside a graph for the session that is made next.

    What leads out of the graph's folder is left to ONNX Runtime, which refuses it.

    Args:
        options: its `SessionOptions`.
        file: the graph.

    Returns:
        What must live until the session is made.
    """
    folder = file.parent.resolve()
    paths = [path for path in find_weights(file) if path.is_file() and path.resolve().is_relative_to(folder)]
    if not paths or sum(path.stat().st_size for path in paths) > MOST_COPIED_BYTES:
        return []
    held = [path.read_bytes() for path in paths]
    names = [path.relative_to(file.parent).as_posix() for path in paths]
    options.add_external_initializers_from_files_in_memory(names, held, list(map(len, held)))
    return held
