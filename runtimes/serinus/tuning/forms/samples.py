"""The rows that a model is measured on: from a file, or generated from its input specs with a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ...errors import ConfigError, SerinusError
from ...protocol.datatypes import NUMPY_DTYPES
from ...protocol.rest_codec import RestCodec
from ...protocol.types import TensorSpec

__all__ = ["generate_samples", "read_samples", "take_rows"]


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Read `.npz` (one array per input, rows first) or a V2 inference request in JSON.

    Raises:
        ConfigError: it is neither, or its arrays differ in their rows.
    """
    try:
        if path.suffix == ".npz":
            samples = _arrays(path)
        else:
            request = RestCodec().decode_request(path.read_bytes(), model_name="model")
            samples = {tensor.name: tensor.data for tensor in request.inputs}
    except OSError as error:
        raise ConfigError(f"--inputs {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, BadZipFile, SerinusError) as error:
        raise ConfigError(f"--inputs {path}: neither an .npz nor a V2 request in JSON: {error}") from None
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in samples.items()}
    if not samples or len(set(rows.values())) != 1 or not min(rows.values()):
        raise ConfigError(
            f"--inputs {path}: every array needs the same number of rows, at least 1; found {rows or 'nothing'}"
        )
    return samples


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
        samples = {name: archive[name] for name in archive.files}
    if other := [name for name, array in samples.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"its entry {other[0]!r} is no array")
    return samples


def generate_samples(specs: Sequence[TensorSpec], rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw rows from input specs: normal numbers, whole numbers from 0 to 9, false or true; a free dimension is 1.

    Raises:
        ConfigError: the model declares no inputs, or strings, which cannot be made up.
    """
    generator = np.random.default_rng(seed)
    if not specs:
        raise ConfigError(
            "the model declares no inputs: give some (--inputs rows.npz), or name them in model-settings.json"
        )
    samples: dict[str, np.ndarray] = {}
    for spec in specs:
        if spec.optional:
            continue
        if spec.datatype == "BYTES":
            raise ConfigError(
                f"input {spec.name!r} is BYTES, which cannot be made up: give some (--inputs request.json)"
            )
        shape = (rows, *(1 if size == -1 else size for size in spec.shape[1:])) if spec.shape else (rows,)
        dtype = NUMPY_DTYPES[spec.datatype]
        if dtype.kind == "f":
            samples[spec.name] = generator.standard_normal(shape, np.float32).astype(dtype)
        elif dtype.kind == "b":
            samples[spec.name] = generator.random(shape) < 0.5
        else:
            samples[spec.name] = generator.integers(0, 10, shape).astype(dtype)
    return samples


def take_rows(samples: Mapping[str, np.ndarray], rows: int, start: int = 0) -> dict[str, np.ndarray]:
    """Take `rows` rows from `start` on, beginning again at the end.

    Args:
        samples: arrays with equally many rows.
        rows: any number.
        start: first row.
    """
    count = len(next(iter(samples.values())))
    indices = (np.arange(rows) + start) % count
    return {name: np.ascontiguousarray(array[indices]) for name, array in samples.items()}
