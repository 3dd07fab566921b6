"""The record of a verified network: its steps themselves, so that a later start needs no framework and no file of the framework's.

A record holds for one file's SHA-256, one version of the framework and one of the steps' arithmetic. It lies where
`verification_records` says.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import verification_records
from ..native.dense.mlp_kernel import Kind, Step
from ..protocol.types import TensorSpec
from .mlp import CompiledMLP, MLPGraph
from .not_covered import NotCovered

__all__ = ["MLPRecord", "find", "save"]

_ARITHMETIC: Final = 1
"""Raised when a step of `serinus.native.dense.mlp_kernel` answers otherwise than before."""
_MOST_BYTES: Final = 64 << 20
"""No file of a network that fits the steps is larger, and a large one takes long to read."""


@dataclass(frozen=True, slots=True)
class MLPRecord:
    """A network as it is recorded."""

    compiled: CompiledMLP
    feature_names: tuple[str, ...]
    arguments: tuple[str, ...]
    """Names of the network's inputs, as its file has them."""
    inputs: tuple[TensorSpec, ...] = ()
    """What the file says of its tensors; empty: nothing."""
    outputs: tuple[TensorSpec, ...] = ()


def find(file: Path, framework: str, version: str) -> MLPRecord | None:
    """Find the record of a file.

    Args:
        file: the model's file.
        framework: name of the framework: "torch".
        version: the one that is installed; empty: none is, and a record of any will do.
    """
    if file.stat().st_size > _MOST_BYTES:
        return None
    sha256 = _sha256(file)
    for body in verification_records.load(verification_records.paths(file, sha256)):
        if (body.get("sha256"), body.get("engine")) != (sha256, _ARITHMETIC):
            continue
        if version not in ("", body.get(framework)):
            continue
        try:
            return _read(body)
        except (KeyError, TypeError, ValueError, NotCovered):
            continue
    return None


def save(file: Path, record: MLPRecord, framework: str, version: str) -> Path | None:
    """Save a record in the first place that can be written, unless it is there already; None: there is none."""
    if file.stat().st_size > _MOST_BYTES or find(file, framework, version) is not None:
        return None
    graph, sha256 = record.compiled.graph, _sha256(file)
    body = {
        "sha256": sha256,
        "engine": _ARITHMETIC,
        framework: version,
        "feature_names": record.feature_names,
        "arguments": record.arguments,
        "inputs": [_write_spec(spec) for spec in record.inputs],
        "outputs": [_write_spec(spec) for spec in record.outputs],
        "columns": graph.columns,
        "row_type": graph.row_dtype.name,
        "output_type": graph.output_dtype.name,
        "precision": graph.precision.name,
        "flat": graph.is_flat,
        "finite_only": record.compiled.finite_only,
        "steps": [_write_step(step) for step in graph.steps],
    }
    return verification_records.save(verification_records.paths(file, sha256), body)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(body: Mapping[str, Any]) -> MLPRecord:
    # Records of the first kind hold none of the optional entries: float64 networks that end in one number a row.
    graph = MLPGraph(
        steps=tuple(map(_read_step, body["steps"])),
        columns=int(body.get("columns", 0)),
        row_dtype=np.dtype(body.get("row_type", "float32")),
        output_dtype=np.dtype(body.get("output_type", "float64")),
        precision=np.dtype(body.get("precision", "float64")),
        is_flat=bool(body.get("flat", True)),
    )
    return MLPRecord(
        CompiledMLP(graph, finite_only=bool(body.get("finite_only", False))),
        tuple(map(str, body["feature_names"])),
        tuple(map(str, body["arguments"])),
        _read_specs(body.get("inputs", [])),
        _read_specs(body.get("outputs", [])),
    )


def _write_spec(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.datatype, list(spec.shape)]


def _read_specs(body: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(name), str(datatype), tuple(map(int, shape))) for name, datatype, shape in body)


def _write_step(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind.name,
        "source": step.source,
        "outputs": step.outputs,
        "other": step.other,
        "numbers": [float(number).hex() for number in step.numbers],
        **{name: _pack(getattr(step, name)) for name in ("first", "second") if getattr(step, name) is not None},
    }


def _read_step(body: Mapping[str, Any]) -> Step:
    first, second = (None if body.get(name) is None else _unpack(body[name]) for name in ("first", "second"))
    x, y, z = (float.fromhex(number) for number in body["numbers"])
    return Step(
        Kind[body["kind"]], int(body["source"]), int(body["outputs"]), first, second, int(body["other"]), (x, y, z)
    )


def _pack(array: np.ndarray) -> dict[str, Any]:
    kind = "<i4" if array.dtype.kind == "i" else "<f8"
    return {"type": kind, "shape": array.shape, "data": base64.b64encode(array.astype(kind).tobytes()).decode()}


def _unpack(body: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["data"]), body["type"]).reshape(body["shape"])
