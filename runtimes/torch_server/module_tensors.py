"""The names, files and tensors of a PyTorch module, as far as they can be told without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np

from serinus import ModelSettings, TensorSpec
from serinus.artifacts import find_file
from serinus.content.model_content import Content, content_of
from serinus.errors import InvalidInput
from serinus.model import Provenance

__all__ = [
    "KNOWN",
    "find_model_file",
    "installed_version",
    "is_batchable",
    "is_program",
    "label_outputs",
    "order_inputs",
    "provenance_of",
]

KNOWN: Final[Mapping[str, str]] = {
    "device": "auto (default: CUDA where there is one), cpu, cuda or cuda:N; a GPU that is asked for and is not there is refused",
    "autocast": "none (default), bf16 or fp16",
    "class": "package.module:Class of a state dict (.pth); it must be installed, code is never read from the model directory",
    "arguments": "keyword arguments of that class, an object",
    "batch_buckets": "batch sizes to pad to, a list (default: none on a CPU, powers of two up to 256 on a GPU)",
    "labels": "file of class names for the classification extension (default labels.txt or labels.json)",
}
"""The settings in `parameters.extra`, with a line each."""


def find_model_file(settings: ModelSettings) -> Path:
    """Find the model's file.

    Raises:
        ConfigError: there is none, or there are several.
    """
    return find_file(
        settings,
        (".pt2", ".pt", ".pth"),
        preferred=("model.pt2", "model.pt", "model.pth"),
        contents=(Content.TORCHSCRIPT, Content.TORCH_EXPORT, Content.TORCH_STATE),
    )


def is_program(file: Path) -> bool:
    """Whether a file is an exported program: by its content, or by its suffix where that says nothing."""
    found = content_of(file)
    return found is Content.TORCH_EXPORT or (found is Content.UNKNOWN and file.suffix == ".pt2")


def order_inputs(inputs: Mapping[str, np.ndarray], *choices: Sequence[str]) -> list[np.ndarray]:
    """Sort the inputs as `forward` takes them: by the first of the lists of names that has them all.

    Raises:
        InvalidInput: they are others.
    """
    for names in choices:
        if names and len(names) == len(inputs) and all(name in inputs for name in names):
            return [inputs[name] for name in names]
    if len(inputs) == 1:
        return list(inputs.values())
    expected = next(filter(None, choices), ())
    raise InvalidInput(f"inputs {', '.join(inputs)} came, {', '.join(expected)} were expected")


def is_batchable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether the first dimension of everything is the batch's; without declared shapes nothing says so."""
    return bool(inputs) and all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))


def label_outputs(specs: Sequence[TensorSpec], labels: tuple[str, ...]) -> Sequence[TensorSpec]:
    """Give outputs of fitting width the names of their classes."""
    if not labels:
        return specs
    return [
        TensorSpec(spec.name, spec.datatype, spec.shape, labels=labels)
        if spec.shape and spec.shape[-1] in {len(labels), -1}
        else spec
        for spec in specs
    ]


def provenance_of(file: Path, device: str, settings: ModelSettings) -> Provenance:
    """Say what the answers of a file on a device come from."""
    return Provenance((file,), {"torch": installed_version(), "device": device, "extra": dict(settings.extra)})


def installed_version() -> str:
    """Version of the installed PyTorch, found without importing it; empty: none is installed."""
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""
