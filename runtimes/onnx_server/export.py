"""Other forms of an ONNX graph: dynamic int8 weights, fp16 and TensorRT where there is a GPU."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from serinus.artifacts import find_file
from serinus.content.model_content import Content
from serinus.settings import ModelSettings
from serinus.tuning.forms.model_forms import Form, Skipped, copy_file, write_settings

__all__ = ["export"]


def export(
    source: ModelSettings,
    samples: Mapping[str, np.ndarray],  # noqa: ARG001 # every exporter takes them
    output: Path,
) -> Iterator[Form | Skipped]:
    """Make the forms that this graph can take.

    Args:
        source: the model as it is served.
        samples: not needed: dynamic quantisation scales by each request's own values.
        output: folder for the forms.
    """
    file = find_file(source, (".onnx",), preferred=("model.onnx",), contents=(Content.ONNX,))
    has_onnx = importlib.util.find_spec("onnx") is not None
    absent = "the package onnx is not installed (pip install 'serinus[tuning]')"
    yield _int8(file, source, output) if has_onnx else Skipped("onnx-int8", absent)
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        yield Skipped("onnx-fp16", "this ONNX Runtime has no CUDA provider, and its CPU provider computes fp16 as fp32")
    elif not has_onnx:
        yield Skipped("onnx-fp16", absent)
    else:
        yield _fp16(file, source, output)
    if "TensorrtExecutionProvider" not in providers:
        yield Skipped(
            "onnx-tensorrt", f"this ONNX Runtime has no TensorRT provider (it has {', '.join(sorted(providers))})"
        )
    else:
        folder = output / "onnx-tensorrt"
        copy_file(file, folder / "model.onnx")
        extra = {**source.extra, "providers": ["tensorrt", "cuda"]}
        write_settings(
            folder, package="onnx_server", source=source, inputs=source.inputs, outputs=source.outputs, extra=extra
        )
        yield Form(name="onnx-tensorrt", path=folder, package="onnx_server", precision="fp16", note="TensorRT provider")


def _int8(file: Path, source: ModelSettings, output: Path) -> Form | Skipped:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = output / "onnx-int8"
    folder.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a pre-processing step whose effect the comparison would show
    try:
        # Weights that are Constant nodes become initializers, which alone are quantised; batch norms are folded.
        quant_pre_process(str(file), str(folder / "folded.onnx"), skip_symbolic_shape=True)
        # Unsigned: the CPU provider's ConvInteger takes no signed weights.
        quantize_dynamic(str(folder / "folded.onnx"), str(folder / "model.onnx"), weight_type=QuantType.QUInt8)
    except Exception as error:  # noqa: BLE001 # whatever the tool meets in a graph that it does not know
        return Skipped("onnx-int8", f"quantisation failed: {str(error).splitlines()[0] if str(error) else error!r}")
    finally:
        root.setLevel(level)
        (folder / "folded.onnx").unlink(missing_ok=True)
    write_settings(
        folder, package="onnx_server", source=source, inputs=source.inputs, outputs=source.outputs, extra=source.extra
    )
    return Form(
        name="onnx-int8",
        path=folder,
        package="onnx_server",
        precision="int8",
        note="weights int8, scales by request: never batched",
    )


def _fp16(file: Path, source: ModelSettings, output: Path) -> Form | Skipped:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = output / "onnx-fp16"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(convert_float_to_float16(onnx.load(str(file)), keep_io_types=True), str(folder / "model.onnx"))
    except Exception as error:  # noqa: BLE001 # as above
        return Skipped("onnx-fp16", f"conversion failed: {str(error).splitlines()[0] if str(error) else error!r}")
    extra = {**source.extra, "providers": ["cuda"]}
    write_settings(
        folder, package="onnx_server", source=source, inputs=source.inputs, outputs=source.outputs, extra=extra
    )
    return Form(name="onnx-fp16", path=folder, package="onnx_server", precision="fp16", note="inputs and outputs fp32")
