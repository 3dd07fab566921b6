"""Other forms of a PyTorch model: frozen TorchScript, bf16 and fp16 by autocast, and ONNX."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serinus.hosts import build_model
from serinus.model import Call
from serinus.protocol.datatypes import datatype_of
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings
from serinus.tuning.forms.model_forms import Form, Skipped, copy_file, write_settings

from .module_files import load_program
from .module_tensors import find_model_file, is_program

__all__ = ["export"]

_ROWS = 2
"""Rows of the example that is traced: 1 is specialised by some exporters."""


def export(source: ModelSettings, samples: Mapping[str, np.ndarray], output: Path) -> Iterator[Form | Skipped]:
    """Make the forms that this model can take.

    Args:
        source: the model as it is served.
        samples: rows of its inputs, by name.
        output: folder for the forms.
    """
    file = find_model_file(source)
    model = build_model(source)
    model.load()
    specs = tuple(model.inputs)
    names = [spec.name for spec in specs] or list(samples)
    arrays = [samples[name] for name in names] if all(name in samples for name in names) else list(samples.values())
    example = tuple(torch.from_numpy(np.ascontiguousarray(np.resize(a, (_ROWS, *a.shape[1:])))) for a in arrays)
    answers = model.predict({n: t.numpy() for n, t in zip(names, example, strict=True)}, Call())
    outputs = [name if name.isidentifier() else f"output_{index}" for index, name in enumerate(answers)]
    declared = tuple(model.outputs) or tuple(
        TensorSpec(name, "FP32", (-1, *answers[key].shape[1:])) for name, key in zip(outputs, answers, strict=True)
    )
    described = specs or tuple(
        TensorSpec(name, _datatype(array), (-1, *array.shape[1:])) for name, array in zip(names, arrays, strict=True)
    )
    kept = {key: value for key, value in source.extra.items() if key in {"device", "batch_buckets"}}
    common = {"source": source, "inputs": described, "outputs": declared}
    module = _module(file, source)
    scripted = module if isinstance(module, torch.jit.ScriptModule) else None
    if scripted is None:
        try:
            with torch.inference_mode():
                scripted = torch.jit.trace(module, example)
        except Exception as error:  # noqa: BLE001 # tracing runs the model's own code
            yield Skipped("torchscript", f"tracing failed: {_first_line(error)}")
    if scripted is not None:
        yield from _frozen(scripted, example, output, common, kept)
    yield from _half(file, source, output, common)
    yield from _onnx(scripted, example, [spec.name for spec in described], outputs, output, common)
    if not torch.cuda.is_available():
        yield Skipped("torch tensorrt", "no GPU is here")
    elif importlib.util.find_spec("torch_tensorrt") is None:
        yield Skipped("torch tensorrt", "the package torch_tensorrt is not installed")
    else:
        yield Skipped(
            "torch tensorrt", "its engines are of one GPU and one version; ONNX Runtime's TensorRT form is made"
        )


def _frozen(
    scripted: Any, example: Sequence[torch.Tensor], output: Path, common: Mapping[str, Any], kept: Mapping[str, Any]
) -> Iterator[Form | Skipped]:
    """Freeze: weights become constants, batch norms fold into convolutions; then fuse for inference where that can be saved."""
    folder = output / "torchscript-frozen"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        frozen = torch.jit.freeze(scripted.eval()) if hasattr(scripted, "training") else scripted
    except RuntimeError as error:
        if "already" not in str(error) and "training" not in str(error):
            yield Skipped("torchscript-frozen", f"freezing failed: {_first_line(error)}")
            return
        frozen = scripted
    note = "frozen, optimize_for_inference"
    try:
        fused = torch.jit.optimize_for_inference(frozen)
        fused.save(str(folder / "model.pt"))
        torch.jit.load(str(folder / "model.pt"))(*example)
    except RuntimeError:  # its mkldnn constants have no form on disk
        # optimize_for_inference changes the module that it is given, too.
        torch.jit.freeze(scripted.eval()).save(str(folder / "model.pt"))
        note = "frozen; optimize_for_inference makes constants that cannot be saved"
    write_settings(folder, package="torch_server", extra=kept, **common)
    yield Form(name="torchscript-frozen", path=folder, package="torch_server", note=note)


def _half(file: Path, source: ModelSettings, output: Path, common: Mapping[str, Any]) -> Iterator[Form | Skipped]:
    """The same file under autocast."""
    on_gpu = torch.cuda.is_available()
    for autocast in ("bf16", "fp16"):
        name = f"torch-{autocast}"
        if source.extra.get("autocast") == autocast:
            continue
        if autocast == "fp16" and not on_gpu:
            yield Skipped(name, "no GPU is here, and few CPUs compute in fp16")
            continue
        folder = output / name
        copy_file(file, folder / f"model{'.pt2' if is_program(file) else file.suffix or '.pt'}")
        write_settings(folder, package="torch_server", extra={**source.extra, "autocast": autocast}, **common)
        yield Form(name=name, path=folder, package="torch_server", precision=autocast, note="autocast")


def _onnx(
    scripted: Any,
    example: tuple[torch.Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    output: Path,
    common: Mapping[str, Any],
) -> Iterator[Form | Skipped]:
    if importlib.util.find_spec("onnx") is None:
        yield Skipped("onnx", "the package onnx is not installed (pip install 'serinus[tuning]')")
        return
    if importlib.util.find_spec("onnxruntime") is None:
        yield Skipped("onnx", "ONNX Runtime is not installed (pip install 'serinus[onnx-server]')")
        return
    if scripted is None:
        yield Skipped("onnx", "there is no TorchScript to export")
        return
    folder = output / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # The exporter of torch.export needs onnxscript and takes no TorchScript, which is what is at hand here.
        torch.onnx.export(
            scripted,
            example,
            str(folder / "model.onnx"),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
            dynamo=False,
        )
    except Exception as error:  # noqa: BLE001 # exporters fail in as many ways as there are operators
        yield Skipped("onnx", f"torch.onnx.export failed: {_first_line(error)}")
        return
    write_settings(folder, package="onnx_server", **common)
    yield Form(name="onnx", path=folder, package="onnx_server", note="torch.onnx.export", exports=True)


def _module(file: Path, source: ModelSettings) -> Any:
    if is_program(file):
        return load_program(file, file.read_bytes()).module()
    class_name = source.extra.get("class")
    if class_name:
        module_name, _, name = class_name.partition(":")
        module = getattr(importlib.import_module(module_name), name)(**source.extra.get("arguments", {}))
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return module.eval()
    return torch.jit.load(str(file), map_location="cpu").eval()


def _datatype(array: np.ndarray) -> str:
    return datatype_of(array.dtype)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
