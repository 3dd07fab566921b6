"""What a model file is by its bytes, whatever it is called: a volume may mount the one file under any name (`/mnt/models` itself).

Sources: XGBoost, doc/model.schema (the document's member "learner") and src/learner.cc of 2.1 (the old binary format); LightGBM,
src/boosting/gbdt_model_text.cpp (the first line "tree"); ONNX, onnx.proto (ModelProto); TensorFlow, saved_model.proto; PyTorch,
caffe2/serialize and torch/export/pt2_archive/constants.py (names of a zip archive's entries); skops, skops/io/_persist.py (an archive with
`schema.json`); CatBoost, catboost/libs/model/model.cpp ("CBM1") and json_model_helpers.cpp.

Heads of a few kilobytes and the directory of an archive are read, never a whole file. A file that is damaged may be recognised all the
same: its runtime then says what is wrong with it.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final

from .pickles import is_pickle

__all__ = ["Content", "content_of"]

_HEAD_BYTES: Final = 4096
"""Enough of a file to tell its format; XGBoost's JSON names its learner within the first bytes."""
_MOST_FIELDS: Final = 4096
"""Fields of a protocol buffer that are looked at; a model has a few dozen at its top."""
_MOST_ENTRIES: Final = 100_000
"""Entries of an archive that are looked at; the largest networks have some ten thousand tensors."""
_ONNX_FIELDS: Final[dict[int, int]] = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""ModelProto's fields and their wire types (0 a number, 2 of a length); 7 is the graph, 8 the versions of the operators."""
_LEARNER: Final = re.compile(rb'"learner"\s*:')
_CATBOOST: Final = re.compile(rb'^\{\s*"(features_info|oblivious_trees|trees|ctr_data|model_info|scale_and_bias)"\s*:')
"""CatBoost's JSON begins with one of its members, in the order of the alphabet."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Content(Enum):
    """A kind of model file; the value says it in words."""

    XGBOOST_JSON = "an XGBoost model (JSON)"
    XGBOOST_UBJSON = "an XGBoost model (UBJSON)"
    XGBOOST_BINARY = "an XGBoost model (the old binary format)"
    LIGHTGBM_TEXT = "a LightGBM model (text)"
    SKOPS = "a scikit-learn model (skops)"
    CATBOOST_CBM = "a CatBoost model (.cbm)"
    CATBOOST_JSON = "a CatBoost model (JSON)"
    ONNX = "an ONNX model"
    TORCHSCRIPT = "a TorchScript archive"
    TORCH_EXPORT = "an exported PyTorch program (.pt2)"
    TORCH_STATE = "a PyTorch file of torch.save (a state dict or a pickled module)"
    SAVED_MODEL = "the graph of a TensorFlow SavedModel"
    PICKLE = "a pickle, which is code"
    UNKNOWN = "of no format that is known here"

    @property
    def package(self) -> str:
        """Name of the runtime that serves it; empty: none does."""
        return _PACKAGES.get(self, "")


_PACKAGES: Final = {
    Content.XGBOOST_JSON: "xgboost_server",
    Content.XGBOOST_UBJSON: "xgboost_server",
    Content.XGBOOST_BINARY: "xgboost_server",
    Content.LIGHTGBM_TEXT: "lightgbm_server",
    Content.SKOPS: "sklearn_server",
    Content.CATBOOST_CBM: "catboost_server",
    Content.CATBOOST_JSON: "catboost_server",
    Content.ONNX: "onnx_server",
    Content.TORCHSCRIPT: "torch_server",
    Content.TORCH_EXPORT: "torch_server",
    Content.TORCH_STATE: "torch_server",
    Content.SAVED_MODEL: "tensorflow_server",
}


def content_of(path: Path) -> Content:
    """Say what a file is; UNKNOWN also where it is a folder, or cannot be read."""
    try:
        if not path.is_file():
            return Content.UNKNOWN
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(b"PK"):
            return _archive(path)
        if head.startswith(b"CBM1"):
            return Content.CATBOOST_CBM
        return _text(head) or _xgboost_binary(head) or _message(path) or _pickled(head)
    except (OSError, ValueError):
        return Content.UNKNOWN


def _text(head: bytes) -> Content | None:
    plain = head.removeprefix(_BYTE_ORDER_MARK)  # what Windows editors put first; LightGBM's reader mends that and CRLF
    if plain.startswith((b"tree\n", b"tree\r")):
        return Content.LIGHTGBM_TEXT
    if not head.startswith(b"{"):
        return None
    if head[1:].lstrip()[:1] == b'"':  # UBJSON puts a length before a member's name
        if _CATBOOST.match(head):
            return Content.CATBOOST_JSON
        return Content.XGBOOST_JSON if _LEARNER.search(head) else None
    return Content.XGBOOST_UBJSON if b"learner" in head else None


def _xgboost_binary(head: bytes) -> Content | None:
    """The old format: 136 bytes of numbers, then the objective's name and the booster's, each behind its length."""
    at = (4 if head[:4] == b"binf" else 0) + 136
    for _ in range(2):
        size = int.from_bytes(head[at : at + 8], "little")
        name = head[at + 8 : at + 8 + size]
        if not 0 < size <= 64 or not name.replace(b":", b"").replace(b"_", b"").isalnum():
            return None
        at += 8 + size
    return Content.XGBOOST_BINARY


def _message(path: Path) -> Content | None:
    """A protocol buffer, told by the fields at its top."""
    fields: dict[int, int] = {}
    whole = False
    for number, kind in _fields(path):
        if number < 0:
            whole = True
        elif _ONNX_FIELDS.get(number) != kind:
            return None
        else:
            fields[number] = kind
    if whole and set(fields) == {1, 2}:
        return Content.SAVED_MODEL
    # Where the file was cut off the graph is still announced.
    return Content.ONNX if 7 in fields and (1 in fields or 8 in fields) else None


def _fields(path: Path) -> Iterator[tuple[int, int]]:
    """Give number and wire type of each field; (-1, 0) where the last one ends with the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_MOST_FIELDS):
            if file.tell() == size:
                yield -1, 0
                return
            tag = _number(file.read(10), file)
            if tag is None or not tag >> 3:
                yield 0, -1
                return
            yield tag >> 3, tag & 7
            if tag & 7 not in (0, 2):
                return
            value = _number(file.read(10), file)
            if value is None:
                return
            if tag & 7 == 2:
                if value > size - file.tell():
                    return
                file.seek(value, os.SEEK_CUR)


def _number(read: bytes, file: object) -> int | None:
    """Decode a varint and leave the file behind it; None: there is none."""
    value = 0
    for index, byte in enumerate(read):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            file.seek(index + 1 - len(read), os.SEEK_CUR)  # type: ignore[attr-defined] # a binary file
            return value
    return None


def _archive(path: Path) -> Content:
    """A zip archive, told by its entries; PyTorch puts all of them into one folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [info.filename for info in archive.infolist()[:_MOST_ENTRIES]]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return Content.UNKNOWN
    names = {name.partition("/")[2] for name in listed} | set(listed)
    if names & {"archive_format", "serialized_exported_program.json"}:
        return Content.TORCH_EXPORT
    if "constants.pkl" in names:
        return Content.TORCHSCRIPT
    if "schema.json" in listed:
        return Content.SKOPS
    return Content.TORCH_STATE if "data.pkl" in names else Content.UNKNOWN


def _pickled(head: bytes) -> Content:
    return Content.PICKLE if is_pickle(head) else Content.UNKNOWN
