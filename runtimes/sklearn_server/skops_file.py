"""A `.skops` file as an `Estimator`, without skops and without scikit-learn: nothing of it is constructed, imported or run.

Source: skops 0.16, `skops/io/_persist.py`, `_general.py`, `_numpy.py`, `_sklearn.py`: a zip archive with `schema.json`, a tree of nodes that say
their class, their kind (`__loader__`) and their content, and an `.npy` file for each array of numbers. A node whose `__id__` came before is
the one that came first, as skops takes it.

What entries unpack to is bounded over all reads of them: an archive of some kilobytes may claim terabytes, or name one entry a million times.
"""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from serinus.content.zip_members import read_member
from serinus.errors import ConfigError

from .estimator import TREE, Estimator

__all__ = ["read", "types_of"]

_SPARED_BYTES: Final = 64 << 20
_MOST_RATIO: Final = 200
"""All entries together may unpack to so many bytes for each of the file, beyond `_SPARED_BYTES`; as of TorchServe's archives. skops does not
compress unless it is told to."""
_DAMAGE: Final = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, EOFError),
    *(
        RecursionError,
        NotImplementedError,
        SyntaxError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        tokenize.TokenError,
    ),
)
"""What a damaged archive, schema or array raises in zipfile, orjson and NumPy."""


def read(path: Path) -> Estimator:
    """Read a model.

    Raises:
        ConfigError: it is no skops file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Reader(archive, _SPARED_BYTES + _MOST_RATIO * path.stat().st_size)
            found = reader.value(orjson.loads(reader.entry("schema.json")))
    except _DAMAGE as error:
        raise ConfigError(f"{path}: no skops file that can be read: {type(error).__name__}: {error}") from None
    if not isinstance(found, Estimator):
        raise ConfigError(f"{path}: holds no scikit-learn model, but {type(found).__name__}")
    return found


def types_of(model: Estimator) -> list[str]:
    """Name the classes of all objects within a model."""
    return sorted({part.kind for part in model.parts()})


def _numbers(content: bytes) -> Any:
    """Read an `.npy` file, whose head must not claim more than follows it: NumPy makes the array first (NEP 1).

    Raises:
        ValueError: it claims more, or holds objects.
    """
    opened = io.BytesIO(content)
    if np.lib.format.read_magic(opened) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(opened)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > len(content):
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    opened.seek(0)
    return np.load(opened, allow_pickle=False)


class _Reader:
    """Reads nodes; each `__id__` once.

    Args:
        archive: whose entries are read.
        most_bytes: that all reads of entries together may unpack to.
    """

    def __init__(self, archive: zipfile.ZipFile, most_bytes: int) -> None:
        self._archive = archive
        self._left = most_bytes
        self._known: dict[Any, Any] = {}
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "ObjectNode": self._object,
            "DictNode": self._dict,
            "ListNode": lambda node: [self.value(one) for one in node["content"]],
            "TupleNode": lambda node: tuple(self.value(one) for one in node["content"]),
            "JsonNode": lambda node: json.loads(node["content"]),
            "NdArrayNode": self._array,
            "TreeNode": self._tree,
            "LossNode": self._object,
        }

    def entry(self, name: str) -> bytes:
        """Read an entry, no more of it than the directory says.

        Raises:
            ValueError: with what was read before it would be too much, or it is packed in a way that is not read.
        """
        member = self._archive.getinfo(name)
        self._left -= member.file_size
        if self._left < 0:
            raise ValueError(f"its entries unpack to far more than the file holds, {name[:80]!r} among them")
        return read_member(self._archive, member)

    def value(self, node: Any) -> Any:
        identity = node.get("__id__")
        if identity in self._known:
            return self._known[identity]
        kind = f"{node['__module__']}.{node['__class__']}"
        read = self._kinds.get(node["__loader__"])
        if node["__loader__"] in ("ObjectNode", "TreeNode", "LossNode") or read is None:
            made: Any = Estimator(kind, {})
            if identity is not None:
                self._known[identity] = made  # before what is in it, which may name it again
            if read is not None:
                made.state = read(node)
            return made
        made = read(node)
        if identity is not None:
            self._known[identity] = made
        return made

    def _object(self, node: dict[str, Any]) -> dict[str, Any]:
        content = self.value(node["content"]) if node.get("content") is not None else {}
        return content if isinstance(content, dict) else {}

    def _dict(self, node: dict[str, Any]) -> dict[Any, Any]:
        kinds = [one["__class__"] for one in node["key_types"]["content"]]
        made = {}
        for kind, (key, value) in zip(kinds, node["content"].items(), strict=True):
            made[int(key) if kind.startswith(("int", "uint")) else key] = self.value(value)
        return made

    def _array(self, node: dict[str, Any]) -> Any:
        if node["type"] == "numpy":
            array = _numbers(self.entry(node["file"]))
            if not isinstance(array, np.ndarray):
                raise TypeError("an array's file holds something else")
            return array if node["__class__"] == "ndarray" or array.ndim else array.item()
        items = [self.value(one) for one in node["content"]]
        shape = self.value(node["shape"])
        if len(shape) == 1:
            made = np.empty(len(items), object)
            made[:] = items
        else:  # rows in lists, of each level
            made = np.array(items, object)
        if made.shape != tuple(shape):  # an array is not made of what the file says, but of what it has
            raise ValueError(f"an array of shape {tuple(shape)} has values of shape {made.shape}")
        return made

    def _tree(self, node: dict[str, Any]) -> dict[str, Any]:
        state = self._object(node)
        features, _, outputs = self.value(node["__reduce__"]["args"])
        if f"{node['__module__']}.{node['__class__']}" == TREE:
            state = {**state, "n_features": features, "n_outputs": outputs}
        return state
