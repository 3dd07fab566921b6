"""Inputs as people type them: `x=[[1, 2]]`, `name=text`, `x=@rows.npy`, or a whole V2 request in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..errors import ConfigError, SerinusError
from ..protocol.documents.example_values import example_shape, example_value, is_written_out
from ..protocol.rest_codec import RestCodec
from ..protocol.types import InferRequest, TensorSpec

__all__ = ["example_inputs", "fit_rows", "parse_inputs", "read_request"]


def parse_inputs(words: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE`s: JSON, `@FILE.npy` or `@FILE.json`, or else text.

    Raises:
        ConfigError: one is not of that form, is named twice, or its file cannot be read.
    """
    inputs: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--input {word!r}: expected NAME=VALUE, such as x=[[1,2]] or x=@rows.npy")
        if name in inputs:
            raise ConfigError(f"--input {name}: given twice")
        inputs[name] = _file(name, Path(value[1:])) if value.startswith("@") else _value(value)
    return inputs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _file(name: str, path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--input {name}=@{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        expected = "an array as numpy.save writes it" if path.suffix == ".npy" else "JSON, or an .npy"
        raise ConfigError(f"--input {name}=@{path}: not {expected}: {error}") from None


def fit_rows(values: Any, spec: TensorSpec | None) -> Any:
    """Take one row for a batch of one, where the model wants rows and the values lack just that dimension."""
    if (
        spec is None
        or spec.any_rank
        or not spec.shape
        or spec.shape[0] not in (-1, 1)
        or isinstance(values, np.ndarray)
    ):
        return values
    rank, probe = 0, values
    while isinstance(probe, list):
        rank, probe = rank + 1, probe[0] if probe else None
    return [values] if rank == len(spec.shape) - 1 else values


def read_request(path: Path, model: str) -> InferRequest:
    """Read a V2 request in JSON from a file, or from standard input where the path is `-`.

    Raises:
        ConfigError: it cannot be read or is none.
    """
    try:
        body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be read: {error.strerror or error}") from None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--json {path}: not JSON: {error}") from None
    if isinstance(document, dict) and "instances" in document and "inputs" not in document:
        raise ConfigError(
            f"--json {path}: a V1 request ('instances'); a V2 one has 'inputs': name, shape, datatype, data"
        )
    try:
        return RestCodec().decode_request(body, model_name=model)
    except SerinusError as error:
        raise ConfigError(f"--json {path}: not a V2 request: {error}") from None


def example_inputs(specs: Sequence[TensorSpec]) -> str:
    """Words that would ask a model of these inputs: one row, free dimensions of 1; many values come from a file."""
    words = []
    for spec in specs:
        if spec.optional:
            continue
        value, text = example_value(spec), "@rows.npy"
        if is_written_out(spec):
            for size in reversed(example_shape(spec)):
                value = [value] * size
            text = json.dumps(value, separators=(",", ":"))
        words.append(f"--input '{spec.name}={text}'")
    return " ".join(words)
