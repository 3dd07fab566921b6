"""The work that every server gets: one model, its inputs, and each request's bytes.

The model is the one of the tables in the documentation: binary classifier, 30 FP32 features, 200 trees of depth 6, trained on
seeded noise with a signal. Bodies are what the servers' own clients send.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost

__all__ = ["FEATURES", "Work", "make_work", "train"]

FEATURES = 30


@dataclass(frozen=True)
class Work:
    """The model file, sample rows and the answers that the Booster gives for them."""

    model_file: Path
    rows: np.ndarray
    """float32 [64, 30]"""
    expected: np.ndarray
    """float32 [64]"""

    def json_body(self, rows: int, *, name: str = "input-0") -> bytes:
        """V2 REST JSON."""
        data = self.rows[:rows]
        tensor = {"name": name, "shape": list(data.shape), "datatype": "FP32", "data": _short(data)}
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()

    def binary_body(self, rows: int, *, name: str = "input-0") -> tuple[bytes, int]:
        """V2 REST with the binary extension: body and the length of its JSON."""
        data = self.rows[:rows]
        tensor = {
            "name": name,
            "shape": list(data.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": data.nbytes},
        }
        head = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        return head + data.tobytes(), len(head)

    def grpc_message(self, rows: int, model: str, *, name: str = "input-0") -> bytes:
        """V2 gRPC with raw contents: the ModelInferRequest."""
        data = self.rows[:rows]
        shape = b"".join(_varint(size) for size in data.shape)
        tensor = _field(1, name.encode()) + _field(2, b"FP32") + _field(3, shape)
        return _field(1, model.encode()) + _field(5, tensor) + _field(7, data.tobytes())

    def grpc_frame(self, rows: int, model: str, *, name: str = "input-0") -> bytes:
        """The same with gRPC's five-byte prefix (gRPC over HTTP/2, "Length-Prefixed-Message")."""
        message = self.grpc_message(rows, model, name=name)
        return b"\0" + struct.pack(">I", len(message)) + message


def _short(data: np.ndarray) -> list[list[float]]:
    """Rows as the shortest decimals that give the same float32: what a client that prints floats sends."""
    return [[float(str(value)) for value in row] for row in data]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def train(trees: int, folder: Path, *, depth: int = 6, features: int = FEATURES, seed: int = 7) -> Path:
    """Train once and keep the model file; a second call finds it."""
    file = folder / f"bench-{trees}x{depth}x{features}.ubj"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        rows = random.normal(size=(20_000, features)).astype(np.float32)
        signal = rows[:, 0] * rows[:, 1] + np.sin(3 * rows[:, 2]) + 0.5 * rows[:, 3] ** 2 - 0.5
        labels = (signal + random.normal(size=len(rows)) > 0).astype(np.float32)
        booster = xgboost.train(
            {"objective": "binary:logistic", "max_depth": depth, "eta": 0.1, "seed": seed, "nthread": 2},
            xgboost.DMatrix(rows, labels),
            num_boost_round=trees,
        )
        booster.save_model(file)
    return file


def make_work(folder: Path, *, trees: int = 200, rows: int = 64) -> Work:
    """Train the model and pick the sample rows."""
    file = train(trees, folder)
    booster = xgboost.Booster(model_file=str(file))
    sample = np.random.default_rng(11).normal(size=(rows, FEATURES)).astype(np.float32).round(4)
    return Work(file, sample, booster.inplace_predict(sample))
