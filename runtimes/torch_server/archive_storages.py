"""Whether the tensors of a PyTorch archive lie inside the bytes that it holds for them: its readers take both on trust, and follow.

Source: torch 2.13, torch/csrc/jit/serialization/unpickler.cpp (`readInstruction`, BINPERSID: a storage gets the record's memory and the
pickle's number of elements; `rebuildTensor`: a tensor gets the pickle's offset, sizes and strides unchecked), and
torch/serialization.py for `torch.save`. A record that is shorter, or a tensor that reaches further, is memory of something else, or ends the
process.

The pickles are read here with stand-ins for every class and function, so that nothing of theirs is called.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serinus.errors import ConfigError

__all__ = ["check_storages"]

_BYTES: Final[Mapping[str, int]] = {
    "DoubleStorage": 8,
    "LongStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "FloatStorage": 4,
    "IntStorage": 4,
    "QInt32Storage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ShortStorage": 2,
}
"""Bytes of an element by the storage's class; 1 for the others (bytes, booleans, small and quantised integers)."""
_LOADED: Final = frozenset({"data.pkl", "constants.pkl"})
"""Pickles that are read when an archive is loaded; those beside them (`traced_inputs.pkl`) are not, and their tensors may be empty."""
_MOST_DIMENSIONS: Final = 64
_REBUILDERS: Final = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"})


def check_storages(file: Path) -> None:
    """Hold the tensors of an archive to their records.

    Args:
        file: of TorchScript or `torch.save`; what is no archive is left to PyTorch to refuse.

    Raises:
        ConfigError: a record is missing or shorter than its tensors, or a pickle cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
            names = [info.filename for info in archive.infolist() if info.filename.partition("/")[2] in _LOADED]
            for name in names:
                with archive.open(name) as opened:
                    _check(file, name.partition("/")[2], opened, sizes)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{file}: the archive is damaged: {error}") from None
    except (OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{file}: the archive cannot be read: {error}") from None


def _check(file: Path, name: str, opened: Any, sizes: Mapping[str, int]) -> None:
    reader = _Reader(opened, name.removesuffix(".pkl"), sizes)
    try:
        reader.load()
    except _Beyond as error:
        raise ConfigError(f"{file}: damaged: {name}: {error}") from None
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # noqa: BLE001 # damaged pickles raise whatever their opcodes meet
        raise ConfigError(f"{file}: damaged: {name} cannot be read: {' '.join(str(error).split())[:200]}") from None


class _Beyond(ValueError):
    """A tensor lies outside its bytes."""


class _Storage:
    """A storage as a pickle names it."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class _StandIn:
    """In the place of a class or function of the pickle's; takes whatever is done with it."""

    _name = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        if self._name in _REBUILDERS:
            _check_tensor(arguments)

    def __setstate__(self, state: Any) -> None:
        """Take the state of an object, and keep nothing of it."""

    def append(self, item: Any) -> None:
        """Take an item of a list."""

    def extend(self, items: Any) -> None:
        """Take items of a list."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item of a mapping."""


class _Reader(pickle.Unpickler):
    """Reads a pickle without what it names."""

    def __init__(self, opened: Any, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(opened)
        self._folder, self._sizes = folder, sizes

    def find_class(self, module: str, name: str, /) -> Any:
        return type(name, (_StandIn,), {"_name": name.rpartition(".")[2]})

    def persistent_load(self, pid: Any, /) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise _Beyond(f"{str(pid)[:60]!r} is no storage")
        kind, key, count = pid[1], str(pid[2]), pid[4]
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise _Beyond(f"storage {key[:40]!r} has {count!r} elements")
        needed = count * _BYTES.get(getattr(kind, "_name", ""), 1)
        # TorchScript's constants lie in a folder of their own; torch.save has one.
        places = (f"{self._folder}/{key}", f"data/{key}")
        held = next((self._sizes[place] for place in places if place in self._sizes), None)
        if held is None or held < needed:
            raise _Beyond(
                f"storage {key[:40]!r} needs {needed} bytes, the archive holds {held if held is not None else 'none'}"
            )
        return _Storage(count)


def _check_tensor(arguments: Sequence[Any]) -> None:
    """Hold the last element of a tensor to its storage."""
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        raise _Beyond("a tensor without a storage, offset, sizes and strides")
    storage, offset, sizes, strides = arguments[:4]
    if not isinstance(sizes, tuple) or not isinstance(strides, tuple) or len(sizes) != len(strides):
        raise _Beyond("a tensor whose sizes and strides differ in number")
    numbers = (offset, *sizes, *strides)
    if len(sizes) > _MOST_DIMENSIONS or any(type(number) is not int or number < 0 for number in numbers):
        raise _Beyond(f"a tensor of sizes {str(sizes)[:60]} and strides {str(strides)[:60]} at {str(offset)[:20]}")
    if 0 in sizes:
        return
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= storage.count:
        raise _Beyond(f"a tensor of sizes {list(sizes)} reaches element {last} of a storage of {storage.count}")
