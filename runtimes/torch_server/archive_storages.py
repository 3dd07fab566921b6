"""Whether the tensors of a PyTorch archive lie inside the bytes that it holds for them: its readers take both on trust, and follow.

Source: torch 2.13, torch/csrc/jit/serialization/unpickler.cpp (`readInstruction`, BINPERSID: a storage gets the record's memory and the
pickle's number of elements; `rebuildTensor`: a tensor gets the pickle's offset, sizes and strides unchecked), and
torch/serialization.py for `torch.save`. A record that is shorter, or a tensor that reaches further, is memory of something else, or ends the
process.

The pickles are read here with stand-ins for every class and function, so that nothing of theirs is called; and by the reader in Python: the one in C, and
PyTorch's own, make a memo of as many places as the largest index that a pickle names, so that 127 bytes take 64 GiB. The entries are bounded by the
archive's bytes, since PyTorch makes room for what the directory says.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from serinus.content.zip_members import read_member
from serinus.errors import ConfigError

__all__ = ["check_sizes", "check_storages"]

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
_MOST_PICKLE_BYTES: Final = 64 << 20
"""Of one that is read on loading; that of a state dict of 10,000 tensors has 2 MiB."""
_SPARED_BYTES: Final = 64 << 20
_MOST_RATIO: Final = 4
"""All entries together may unpack to so many bytes for each of the file, beyond `_SPARED_BYTES`. PyTorch packs the code alone."""
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
            check_sizes(archive, file.stat().st_size)
            for info in archive.infolist():
                name = info.filename.partition("/")[2]
                if name not in _LOADED:
                    continue
                _check(file, name, _pickled(archive, info), sizes)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{file}: the archive is damaged: {error}") from None
    except (OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{file}: the archive cannot be read: {error}") from None


def check_sizes(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Hold what an archive's directory says of its entries to the archive's own bytes.

    Raises:
        ValueError: they would unpack to far more.
    """
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > _SPARED_BYTES + _MOST_RATIO * file_bytes:
        raise ValueError(f"its entries unpack to {unpacked} bytes, far more than the {file_bytes} of the file")


def _pickled(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MOST_PICKLE_BYTES:
        raise ValueError(f"{info.filename} has {info.file_size} bytes; at most {_MOST_PICKLE_BYTES} are read")
    return read_member(archive, info)


def _check(file: Path, name: str, content: bytes, sizes: Mapping[str, int]) -> None:
    reader = _Reader(content, name.removesuffix(".pkl"), sizes)
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


_KINDS: Final = {name: type(name, (_StandIn,), {"_name": name}) for name in (*_REBUILDERS, *_BYTES)}
"""Stand-ins that are told apart; a class for each name of a pickle's would be a kilobyte for five bytes."""


class _Reader(pickle._Unpickler):  # the reader in Python, which has no other name
    """Reads a pickle without what it names."""

    read: Callable[[int], bytes]
    memo: dict[int, Any]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)  # as above

    def __init__(self, content: bytes, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._length = len(content)
        self._folder, self._sizes = folder, sizes

    def find_class(self, module: str, name: str) -> Any:  # as the base class has it
        return _KINDS.get(name.rpartition(".")[2], _StandIn)

    def load_long_binput(self) -> None:
        """Put what is on top into the memo."""
        (place,) = struct.unpack("<I", self.read(4))
        if place > self._length:  # both number them as they come
            raise _Beyond(f"place {place} of its memo, of a pickle of {self._length} bytes")
        self.memo[place] = self.stack[-1]

    dispatch[pickle.LONG_BINPUT[0]] = load_long_binput

    def persistent_load(self, pid: Any) -> Any:
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
