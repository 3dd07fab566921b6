"""What is kept of a small TorchScript network that was compiled: its steps, so that a later start needs no PyTorch.

Theory of operation. `plan.compiled` holds the steps of a network against PyTorch, once per file. They are kept with the file's
SHA-256, PyTorch's version and the number of the engine, where `serinus.verification_records` keeps what it says of tree models, and hold for nothing
else. Knows no PyTorch.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from serinus import ModelSettings, TensorSpec, verification_records
from serinus.artifacts import find_file
from serinus.errors import InvalidInput
from serinus.model import Provenance
from serinus.native.dense.mlp import Kind, Step

__all__ = ["KNOWN", "Stored", "find", "in_order", "is_batchable", "keep", "labelled", "model_file", "provenance"]

KNOWN: Final = ("device", "autocast", "class", "arguments", "batch_buckets", "labels")
"""Names of the settings in `parameters.extra`."""
_ENGINE: Final = 1
"""Raised when a step of `serinus.native.dense.mlp` answers otherwise than before."""
_MOST_BYTES: Final = 64 << 20
"""No file of a network that fits the steps is larger, and a large one takes long to read."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A network as it is kept."""

    steps: tuple[Step, ...]
    feature_names: tuple[str, ...]
    arguments: tuple[str, ...]
    """Names of the arguments of the module's `forward`."""


def model_file(settings: ModelSettings) -> Path:
    """Find the model's file.

    Raises:
        ConfigError: there is none, or there are several.
    """
    return find_file(settings, (".pt2", ".pt", ".pth"), preferred=("model.pt2", "model.pt", "model.pth"))


def find(file: Path) -> Stored | None:
    """Find what was kept of a file, by the PyTorch that is installed, or by any where none is."""
    if file.stat().st_size > _MOST_BYTES:
        return None
    sha256, torch = _sha256(file), _torch_version()
    for body in verification_records.kept(verification_records.places(file, sha256)):
        if (body.get("sha256"), body.get("engine")) != (sha256, _ENGINE) or torch not in ("", body.get("torch")):
            continue
        try:
            steps = tuple(map(_read, body["steps"]))
            return Stored(steps, tuple(body["feature_names"]), tuple(body["arguments"]))
        except (KeyError, TypeError, ValueError):
            continue
    return None


def keep(file: Path, stored: Stored, torch: str) -> Path | None:
    """Keep a network in the first place that can be written, unless it is there already; None: there is none."""
    if find(file) is not None:
        return None
    sha256 = _sha256(file)
    body = {
        "sha256": sha256,
        "engine": _ENGINE,
        "torch": torch.partition("+")[0],
        "feature_names": stored.feature_names,
        "arguments": stored.arguments,
        "steps": [_written(step) for step in stored.steps],
    }
    return verification_records.keep(verification_records.places(file, sha256), body)


def provenance(file: Path, device: str, settings: ModelSettings) -> Provenance:
    """Say what the answers of a file on a device come from."""
    return Provenance((file,), {"torch": _torch_version(), "device": device, "extra": dict(settings.extra)})


def in_order(inputs: Mapping[str, np.ndarray], *choices: Sequence[str]) -> list[np.ndarray]:
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


def labelled(specs: Sequence[TensorSpec], labels: tuple[str, ...]) -> Sequence[TensorSpec]:
    """Give outputs of fitting width the names of their classes."""
    if not labels:
        return specs
    return [
        TensorSpec(spec.name, spec.datatype, spec.shape, labels=labels)
        if spec.shape and spec.shape[-1] in {len(labels), -1}
        else spec
        for spec in specs
    ]


def _torch_version() -> str:
    """Of the PyTorch that is installed; empty: none is."""
    try:
        return metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _written(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind.name,
        "source": step.source,
        "outputs": step.outputs,
        "other": step.other,
        "numbers": [float(number).hex() for number in step.numbers],
        **{name: _packed(getattr(step, name)) for name in ("first", "second") if getattr(step, name) is not None},
    }


def _packed(array: np.ndarray) -> dict[str, Any]:
    kind = "<i4" if array.dtype.kind == "i" else "<f8"
    return {"type": kind, "shape": array.shape, "data": base64.b64encode(array.astype(kind).tobytes()).decode()}


def _read(body: Mapping[str, Any]) -> Step:
    first, second = (None if body.get(name) is None else _unpacked(body[name]) for name in ("first", "second"))
    x, y, z = (float.fromhex(number) for number in body["numbers"])
    return Step(
        Kind[body["kind"]], int(body["source"]), int(body["outputs"]), first, second, int(body["other"]), (x, y, z)
    )


def _unpacked(body: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["data"]), body["type"]).reshape(body["shape"])
