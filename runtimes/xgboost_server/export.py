"""Other forms of an XGBoost model: the compiled forest, the Booster, and ONNX where onnxmltools is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from serinus import verification_records
from serinus.settings import ModelSettings
from serinus.tuning.forms.model_forms import Form, Skipped, copy_file, write_settings

from . import modelfile

__all__ = ["export"]


def export(
    source: ModelSettings,
    samples: Mapping[str, np.ndarray],  # noqa: ARG001 # every exporter takes them
    output: Path,
) -> Iterator[Form | Skipped]:
    """Make the forms that this model can take.

    Args:
        source: the model as it is served.
        samples: not needed: the file says how many features there are.
        output: folder for the forms.
    """
    if source.model_dir is None:
        return
    file = modelfile.find(source.model_dir)
    for engine in ("forest", "booster"):
        name = f"xgboost-{engine}"
        if engine == "booster" and importlib.util.find_spec("xgboost") is None:
            yield Skipped(name, "xgboost is not installed (pip install 'serinus[xgboost-server]')")
            continue
        folder = output / name
        copy_file(file, folder / file.name)
        record = file.with_name(file.name + verification_records.SUFFIX)
        if record.is_file():
            copy_file(record, folder / record.name)
        write_settings(
            folder,
            package="xgboost_server",
            source=source,
            inputs=source.inputs,
            outputs=source.outputs,
            extra={**source.extra, "engine": engine},
        )
        note = "compiled trees" if engine == "forest" else "xgboost.Booster"
        yield Form(name=name, path=folder, package="xgboost_server", note=note)
    if importlib.util.find_spec("onnxmltools") is None:
        yield Skipped(
            "onnx", "the package onnxmltools is not installed, so trees cannot become ONNX (pip install onnxmltools)"
        )
    else:
        yield _onnx(file, source, output)


def _onnx(file: Path, source: ModelSettings, output: Path) -> Form | Skipped:
    import onnxmltools  # type: ignore[import-not-found] # optional; no extra carries it
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType  # type: ignore[import-not-found] # as above

    folder = output / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    booster = xgboost.Booster()
    booster.load_model(file)
    try:
        features = FloatTensorType([None, booster.num_features()])
        graph = onnxmltools.convert_xgboost(booster, initial_types=[("input", features)])
    except Exception as error:  # noqa: BLE001 # converters refuse objectives and versions in many ways
        return Skipped("onnx", f"onnxmltools failed: {error}")
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    write_settings(folder, package="onnx_server", source=source)
    return Form(name="onnx", path=folder, package="onnx_server", note="onnxmltools")
