"""What a pickle holds, told without unpickling it: its operations are read, and none of them is done.

A pickle is a program: loading one runs whatever its writer put in. But the class of the object that it would make stands among its first
operations, which is enough to say what the file is and how to save it as data. Plain pickles and joblib's, which are pickles with arrays
between, also compressed (joblib, `numpy_pickle_utils.py`: zlib, gzip, bz2, xz and lzma by their first bytes).
"""

from __future__ import annotations

import bz2
import lzma
import pickletools
import zlib
from pathlib import Path
from typing import Final

__all__ = ["SUFFIXES", "is_pickle", "mend_in", "mend_of", "pickled_class"]

SUFFIXES: Final = (".joblib", ".pkl", ".pickle")
"""Names of pickles, KServe's sklearnserver's; the content decides where it says something."""

_HEAD_BYTES: Final = 1 << 16
"""Enough of a file to find its first class; arrays come after it."""
_LZMA_BYTES: Final = 1 << 27
"""Of a dictionary, whose size the file's head says, up to 4 GiB; `xz -9` takes 65 MiB."""
_PROTOCOLS: Final = (b"\x02", b"\x03", b"\x04", b"\x05")
_MACHINERY: Final = ("copyreg", "copy_reg", "builtins", "__builtin__", "numpy", "joblib", "_codecs", "collections")
"""Modules whose classes hold an object's parts and are never the model."""

_MENDS: Final = {
    "xgboost": "save it with model.save_model('model.ubj'), which xgboost_server serves",
    "lightgbm": "save it with model.booster_.save_model('model.txt') (a Booster: model.save_model('model.txt')), which lightgbm_server serves",
    "catboost": "save it with model.save_model('model.cbm'), which catboost_server serves",
    "sklearn": "save it with skops.io.dump(model, 'model.skops'), which sklearn_server serves",
    "imblearn": "save it with skops.io.dump(model, 'model.skops'), which sklearn_server serves",
    "torch": "save it with torch.jit.script(model).save('model.pt') or torch.export.save, which torch_server serves",
}


def is_pickle(head: bytes) -> bool:
    """Tell a pickle of protocol 2 or later by its first bytes, compressed or not."""
    plain = _decompressed(head)
    return plain[:1] == b"\x80" and plain[1:2] in _PROTOCOLS


def pickled_class(path: Path) -> str:
    """Name the class of the object that a pickle would make: "xgboost.sklearn.XGBClassifier"; empty: it is no pickle, or says none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    return _first_class(_decompressed(head)) if is_pickle(head) else ""


def mend_of(path: Path) -> str:
    """Say of a pickle what it holds and how to save it as data, as the end of a refusal; empty: it is none, or of a framework unknown here."""
    named = pickled_class(path)
    mend = _MENDS.get(named.partition(".")[0])
    return f"{path.name} is a pickled {named.rpartition('.')[2]}: {mend}" if mend else ""


def mend_in(folder: Path) -> str:
    """Say the same of the first such pickle of a folder, behind "; "; empty: there is none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return ""
    return next((f"; {mend}" for path in files if (mend := mend_of(path))), "")


def _decompressed(head: bytes) -> bytes:
    """Undo joblib's compression as far as the head goes; itself where there is none."""
    try:
        if head[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(head, _HEAD_BYTES)
        if head[:1] == b"\x78":
            return zlib.decompressobj().decompress(head, _HEAD_BYTES)
        if head[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(head, _HEAD_BYTES)
        if head[:6] == b"\xfd7zXZ\x00" or head[:3] == b"\x5d\x00\x00":
            return lzma.LZMADecompressor(memlimit=_LZMA_BYTES).decompress(head, _HEAD_BYTES)
    except (zlib.error, OSError, EOFError, lzma.LZMAError):
        return b""
    return head


def _first_class(head: bytes) -> str:
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(head):
            named = ""
            if operation.name == "GLOBAL":
                named = str(argument).replace(" ", ".")
            elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
                named = ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
            if named and named.partition(".")[0] not in _MACHINERY:
                return named
    except Exception:  # noqa: BLE001 # a head ends anywhere, and a damaged pickle raises whatever pickletools happens to meet
        return ""
    return ""
