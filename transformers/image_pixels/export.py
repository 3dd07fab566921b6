"""A network to the model directories that the three framework servers take, each with its labels."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf
import torch

__all__ = ["INPUT", "OUTPUT", "export_onnx", "export_saved_model", "export_torchscript"]

INPUT = "images"
OUTPUT = "probabilities"


def export_saved_model(model: keras.Model, folder: Path, labels: Sequence[str]) -> None:
    """Write `folder/1/saved_model.pb`, TensorFlow Serving's layout.

    Its signature takes `images` FP32 [n, H, W, 3] and answers `probabilities` FP32 [n, classes].
    """
    shutil.rmtree(folder, ignore_errors=True)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        name="serving_default",
        fn=lambda images: {OUTPUT: model(images, training=False)},
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=INPUT)],
    )
    archive.write_out(  # type: ignore[attr-defined] # the class of other backends than TensorFlow has none
        str(folder / "1"), verbose=False
    )
    _labels(folder, labels)


def export_torchscript(module: torch.nn.Module, folder: Path, labels: Sequence[str], *, side: int = 224) -> None:
    """Write `folder/model.pt`, and a `model-settings.json` that names its tensors, which TorchScript does not."""
    _fresh(folder)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and what many serve
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), torch.zeros(2, 3, side, side)))
        traced.save(str(folder / "model.pt"))
    settings = {
        "implementation": "torch_server.TorchModel",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, 3, side, side]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(labels)]}],
        "parameters": {"uri": "./model.pt"},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _labels(folder, labels)


def export_onnx(module: torch.nn.Module, folder: Path, labels: Sequence[str], *, side: int = 224) -> None:
    """Write `folder/model.onnx`, its first dimension free."""
    _fresh(folder)
    with torch.inference_mode(), warnings.catch_warnings():
        # That this exporter is deprecated (the newer one wants onnxscript), and what it cannot fold into constants.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, side, side),),
            str(folder / "model.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "rows"}, OUTPUT: {0: "rows"}},
        )
    _labels(folder, labels)


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _labels(folder: Path, labels: Sequence[str]) -> None:
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
