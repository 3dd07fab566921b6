"""TorchServe's archives, as its own archiver lays them out, for the tests of hosts/torchserve."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serinus.settings import ModelSettings

WORDS = '''
import json
import os

from words import count


class WordHandler:
    """As a custom handler without a base class in TorchServe's documents."""

    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
        with open(os.path.join(self.folder, "weights.json")) as file:
            self.scale = json.load(file)["scale"]
        self.batches = []

    def handle(self, data, context):
        self.batches.append(len(data))
        answers = []
        for index, row in enumerate(data):
            text = row.get("data") or row.get("body") if isinstance(row, dict) else row
            if isinstance(text, list):
                text = text[0]
            if isinstance(text, (bytes, bytearray)):
                text = text.decode()
            if text == "bad":
                raise ValueError("a secret of the handler's")
            if text == "refused":
                context.set_response_status(422, "no", index)
            answers.append({"words": count(text) * self.scale, "batch": len(data), "agent": context.get_request_header(index, "user-agent")})
        return answers
'''
FUNCTION = """
state = {}


def handle(data, context):
    if data is None:
        state["name"] = context.manifest["model"]["modelName"]
        return None
    return [f"{state['name']}: {row.get('body')}" for row in data]
"""
NETWORK = '''
import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class RowHandler(BaseHandler):
    """Rows of numbers through an eager model, as TorchServe's examples of custom handlers."""

    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") if isinstance(row, dict) else row for row in data]
        if any(len(row) != 4 for row in rows):
            raise PredictionException("four numbers were expected", 400)
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def postprocess(self, inference_output):
        return [{"label": self.mapping[str(int(row.argmax()))], "scores": row.tolist()} for row in inference_output]
'''
NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, rows):
        return self.layer(rows)
"""


def archive(path: Path, handler: str, files: Mapping[str, str | bytes], **model: Any) -> Path:
    """Write a `.mar` of these files; `model` is what the manifest says beside name and handler."""
    described = {"modelName": path.stem, "modelVersion": "1.0", "handler": handler, **model}
    manifest = {
        "createdOn": "01/01/2025 00:00:00",
        "runtime": "python",
        "model": described,
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
        made.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return path


def words(folder: Path, **model: Any) -> Path:
    """A custom handler with a neighbour and an extra file."""
    neighbour = "def count(text):\n    return len(text.split())\n"
    config = "batchSize: 4\nmaxBatchDelay: 50\n"
    files = {
        "words_handler.py": WORDS,
        "words.py": neighbour,
        "weights.json": '{"scale": 2}',
        "model-config.yaml": config,
    }
    return archive(folder / "words.mar", "words_handler.py", files, configFile="model-config.yaml", **model)


def settings_of(path: Path, **named: Any) -> ModelSettings:
    """Settings that allow the archive's code."""
    return ModelSettings(name="m", model_dir=path, **{"allow_implementation": ("torchserve",), **named})
