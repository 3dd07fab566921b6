"""`BaseHandler`, for handlers whose base class it is, where TorchServe is not installed.

This is a class of our own, with the attributes and methods that handlers override and call: `initialize`, `preprocess`, `inference`, `postprocess`,
`handle`. It stands under TorchServe's names only in a process that hosts a handler (`stand_in`). It loads TorchScript, a state dict with its model
file, and ONNX; it compiles nothing, profiles nothing and explains nothing, and weights are read as data (`weights_only`).

Source of the interface: pytorch/serve, ts/torch_handler/base_handler.py.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

__all__ = ["BaseHandler", "PredictionException", "list_classes_from_module", "load_label_mapping", "map_class_to_label"]


class PredictionException(Exception):
    """What a handler raises to answer with a status of its own."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


class BaseHandler:
    """A handler that loads a model and calls it."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: Any = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0

    def initialize(self, context: Any) -> None:
        """Load the archive's model.

        Raises:
            RuntimeError: it has none that is known here.
        """
        torch = importlib.import_module("torch")
        self.model_yaml_config = context.model_yaml_config
        folder = Path(context.system_properties["model_dir"])
        self.map_location = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(self.map_location)
        self.manifest = context.manifest
        described = self.manifest["model"]
        serialized, model_file = described.get("serializedFile"), described.get("modelFile")
        path = folder / serialized if serialized else None
        self.model_pt_path = str(path) if path is not None else None
        if model_file:
            self.model = self._load_eager(folder / model_file, path, torch).to(self.device).eval()
        elif path is not None and path.suffix == ".pt":
            self.model = torch.jit.load(str(path), map_location=self.device).eval()
        elif path is not None and path.suffix == ".onnx":
            self.model = importlib.import_module("onnxruntime").InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        else:
            raise RuntimeError(
                f"the archive has no model that can be loaded: serializedFile {serialized!r}, modelFile {model_file!r}"
            )
        self.mapping = load_label_mapping(str(folder / "index_to_name.json"))
        self.initialized = True

    def _load_eager(self, model_file: Path, path: Path | None, torch: Any) -> Any:
        classes = list_classes_from_module(importlib.import_module(model_file.stem))
        if len(classes) != 1:
            raise RuntimeError(f"{model_file.name} has {len(classes)} classes; one was expected, the model's")
        model = classes[0]()
        if path is not None:
            model.load_state_dict(torch.load(str(path), map_location=self.device, weights_only=True))
        return model

    def preprocess(self, data: Any) -> Any:
        """Make the model's input of a batch's items."""
        return importlib.import_module("torch").as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        torch = importlib.import_module("torch")
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """Make the answers, one an item, of what the model returned."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch."""
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))


def list_classes_from_module(module: Any, parent_class: type | None = None) -> list[type]:
    """List the classes that a module defines itself."""
    found = [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]
    return [one for one in found if parent_class is None or issubclass(one, parent_class)]


def load_label_mapping(mapping_file_path: str, mapping_type: str = "") -> Any:  # noqa: ARG001 # TorchServe's signature
    """Read `index_to_name.json`; None where there is none.

    Raises:
        ValueError: it is no object.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(mapping, dict) and "object_type_names" in mapping:
        mapping = mapping["object_type_names"]
    if not isinstance(mapping, dict):
        raise ValueError(f"{path.name}: an object of names by index was expected")  # noqa: TRY004 # of a file's content
    return {key: str(value[-1] if isinstance(value, list) else value) for key, value in mapping.items()}


def map_class_to_label(probs: Any, mapping: Any = None, lbl_classes: Any = None) -> list[dict[str, Any]]:
    """Name the probabilities of each row by their labels."""
    rows = (
        probs
        if lbl_classes is None
        else [dict(zip(classes, row, strict=True)) for classes, row in zip(lbl_classes, probs, strict=True)]
    )
    named = [row if isinstance(row, dict) else dict(enumerate(row)) for row in rows]
    return [{(mapping or {}).get(str(index), str(index)): value for index, value in row.items()} for row in named]
