"""Other forms of a SavedModel: ONNX where tf2onnx is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from serinus.settings import ModelSettings
from serinus.tuning.forms.model_forms import Form, Skipped, write_settings

__all__ = ["export"]


def export(
    source: ModelSettings,
    samples: Mapping[str, np.ndarray],  # noqa: ARG001 # every exporter takes them
    output: Path,
) -> Iterator[Form | Skipped]:
    """Make the forms that this SavedModel can take.

    Args:
        source: the model as it is served.
        samples: not needed: a SavedModel says its own inputs.
        output: folder for the forms.
    """
    root = source.model_dir
    missing = [name for name in ("tf2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        yield Skipped(
            "onnx",
            f"the package {missing[0]} is not installed, so a SavedModel cannot become ONNX (pip install 'serinus[tuning,onnx-server]')",
        )
    elif root is not None:
        versions = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
        saved = root if (root / "saved_model.pb").is_file() else max(versions, key=lambda path: int(path.name))
        folder = output / "onnx"
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(saved)]
        words += [
            "--output",
            str(folder / "model.onnx"),
            "--signature_def",
            source.extra.get("signature", "serving_default"),
        ]
        # In a process of its own: tf2onnx wants TensorFlow in a state of its own.
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            yield Skipped("onnx", f"tf2onnx failed: {lines[-1] if lines else done.returncode}")
        else:
            write_settings(folder, package="onnx_server", source=source)
            yield Form(name="onnx", path=folder, package="onnx_server", note="tf2onnx", exports=True)
    yield Skipped("tensorflow tensorrt", "TensorFlow has carried no TensorRT since 2.18")
