"""What a file is that was taken for a model and is none, and what to save in its place.

Theory of operation. A table of beginnings that each stand for one mistake: a dump for people in the place of the model, a page or a pointer in
the place of a download, a format that no runtime reads. Kilobytes of a file are read, never all of it; what is in no row is described by how it begins.
Sources: XGBoost, Booster.dump_model and save_config; LightGBM, Booster.dump_model; CatBoost, model files ("CBM1"); Git LFS, docs/spec.md; HDF5,
file format; safetensors, README (format).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["describe_mistake"]

_HEAD_BYTES: Final = 4096

_SAVE_XGBOOST: Final = "save the model with Booster.save_model('model.ubj')"
_BEGINNINGS: Final[tuple[tuple[re.Pattern[bytes], str, str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, mend)
    for pattern, what, mend in (
        (rb'\s*\[\s*\{\s*"nodeid"', "an XGBoost dump of trees (JSON), which lacks what a prediction needs", _SAVE_XGBOOST),
        (rb"\s*booster\[0\]:", "an XGBoost dump of trees (text), which lacks what a prediction needs", _SAVE_XGBOOST),
        (rb'\s*\{\s*"learner"\s*:.*"generic_param"', "a configuration of XGBoost (save_config), without trees", _SAVE_XGBOOST),
        (rb'\s*\{\s*"name"\s*:\s*"tree"', "a LightGBM dump (JSON)", "save the model with Booster.save_model('model.txt')"),
        (rb'\s*\{.{0,4000}"(oblivious_trees|model_info)"', "a CatBoost model (JSON)", "no runtime here reads it; serve it by a class of your own"),
        (rb"CBM1", "a CatBoost model", "no runtime here reads it; serve it by a class of your own"),
        (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer in the place of the file", "fetch the file itself: git lfs pull"),
        (rb"\s*(<!doctype html|<html)", "an HTML page, such as a server's error or log-in page", "fetch the file itself again"),
        (rb"\s*<\?xml.{0,200}<Error>", "an XML error of a bucket", "look at its text, and at the credentials; fetch the file again"),
        (rb"\s*(<\?xml.{0,300})?<PMML", "a PMML document", "no runtime here reads it; save the model in its framework's own format"),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras' old .h5", "export a SavedModel: model.export('model')"),
        (rb"\x1f\x8b", "a gzip archive", "unpack it, and name the folder"),
        (rb"BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", "a compressed file", "unpack it, and name the folder or file"),
        (rb".{8}\{.{0,4000}\"(data_offsets|__metadata__)\"", "safetensors: weights without a network", "export both: torch.export or ONNX"),
        (rb"\x80[\x02-\x05]", "a pickle (pickle, joblib), which is code and is not loaded", "save the model in its framework's own format, such as save_model"),
        (rb"\s*[\{\[](?!.{0,200}learner)", "JSON that is no model", "save the model with its framework's own save_model"),
    )
)  # fmt: skip

_ENTRIES: Final = (
    ("model.weights.h5", "a Keras archive (.keras)", "export a SavedModel: model.export('model')"),
    ("schema.json", "a skops archive", "no runtime for it is installed here"),
    ("MAR-INF/MANIFEST.json", "a TorchServe archive (.mar)", "unpack it, and serve the TorchScript file in it"),
)


def describe_mistake(path: Path) -> str:
    """Say what a file is, and how to come to a model; empty where nothing can be said.

    Args:
        path: a file that no runtime takes for its own, or that its runtime could not read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    if not head:
        return "it is empty; fetch or save it again"
    if head.startswith(b"PK"):
        return _describe_archive(path)
    for pattern, what, mend in _BEGINNINGS:
        if pattern.match(head):
            return f"it is {what}; {mend}"
    # One of XGBoost's own that is damaged: its reader says where.
    return "" if b"learner" in head[:200] else f"it begins with {head[:16]!r}"


def _describe_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist()[:100_000])
    except (OSError, ValueError, zipfile.BadZipFile):
        return "it is a zip archive that was cut off or damaged; fetch it again"
    for name, what, mend in _ENTRIES:
        if name in names:
            return f"it is {what}; {mend}"
    return f"it is a zip archive of {', '.join(sorted(names)[:3]) or 'nothing'}"
