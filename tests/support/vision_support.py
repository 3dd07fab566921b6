"""Tiny real models and pictures for the tests of the framework servers and of the vision service."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serinus import ModelSettings
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.hosts import build_model

COLOURS = ("red", "green", "blue")


def picture(
    size: tuple[int, int] = (300, 200), colour: tuple[int, int, int] = (255, 0, 0), format: str = "PNG"
) -> bytes:
    """A picture of one colour."""
    return saved(Image.new("RGB", size, colour), format)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose every pixel differs: red to the right, green downwards, blue noise."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    noise = np.random.default_rng(0).integers(0, 256, (height, width))
    return Image.fromarray(np.stack([x, y, noise], -1).astype(np.uint8))


def colour_model(folder: Path, *, layout: str = "NHWC", side: int = 8) -> Path:
    """Write an ONNX model that answers the softmax of the mean of each channel, with labels beside it."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True, exist_ok=True)
    shape, axes = (["n", side, side, 3], [1, 2]) if layout == "NHWC" else (["n", 3, side, side], [2, 3])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], axes=axes, keepdims=0),
            helper.make_node("Softmax", ["mean"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    return folder


@contextlib.asynccontextmanager
async def plane_of(*models: ModelSettings, transformer: str | None = None) -> AsyncIterator[Plane]:
    """A data plane that serves these models."""
    plane = Plane(Registry(functools.partial(build_model, transformer=transformer)))
    try:
        await plane.start(models)
        yield plane
    finally:
        await plane.close()


def bytes_array(elements: Sequence[bytes]) -> np.ndarray:
    """An object array [n] of bytes."""
    array = np.empty(len(elements), object)
    array[:] = list(elements)
    return array


def small_recipe(monkeypatch: Any, **fields: Any) -> None:
    """Set IMAGE_PIXELS_* for `colour_model`: values of 0 to 1 in squares of 8 pixels."""
    values: Mapping[str, Any] = {
        "preset": "torchvision",
        "resize": 10,
        "crop": 8,
        "layout": "NHWC",
        "mean": "0,0,0",
        "scale": "0.02,0.02,0.02",
        "top_k": 2,
        **fields,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"IMAGE_PIXELS_{name.upper()}", str(value))
