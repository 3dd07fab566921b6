"""`TorchModel`: TorchScript (.pt), exported programs (.pt2), or a state dict with an importable class.

A TorchScript file says neither its inputs' names in the protocol's sense nor their shapes: name them in `model-settings.json`
(`inputs`, `outputs`), or let them be called as the arguments of `forward` are, unchecked. An exported program says both.

Theory of operation. PyTorch takes seconds to import and 200 MB. A small network that was compiled into steps and verified before
(`serinus.engines.mlp`) is answered with those alone; PyTorch is loaded when a request comes that they cannot answer. For anything else it
is loaded at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from serinus import Call, Family, Model, ModelSettings
from serinus.artifacts import Extra, override_specs, read_labels
from serinus.content.model_content import Content, content_of
from serinus.engines import mlp_records
from serinus.engines.mlp_records import MLPRecord
from serinus.errors import ConfigError
from serinus.protocol.datatypes import datatype_of

from .module_tensors import (
    KNOWN,
    find_model_file,
    installed_version,
    is_batchable,
    label_outputs,
    order_inputs,
    provenance_of,
)

__all__ = ["TorchModel"]

_GPU = Path("/dev/nvidiactl")
"""There is one, as its driver says."""


class TorchModel(Model):
    """One PyTorch module in inference mode; `extra_settings` are its settings.

    Batches are padded to `batch_buckets` so that the shapes that a GPU sees are few: no recompilation, and no fragmentation of its memory.
    """

    extra_settings: ClassVar[Mapping[str, str]] = KNOWN

    platform: ClassVar[str] = "pytorch_torchscript"
    batching = "earned"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.module: Any = None
        """The `TorchModule`; None while the steps do without it."""
        self._record: MLPRecord | None = None
        self._loading = threading.Lock()

    def load(self) -> None:
        """Load the steps that are on record for the module, or the module.

        Raises:
            ConfigError: no file, a file that PyTorch refuses, a device that is not there, or no PyTorch.
        """
        if self._load_record():
            return
        module = self._load_module()
        self.inputs, self.outputs, self.batchable = module.inputs, module.outputs, module.batchable
        self.computes_in, self.checks_apart = module.computes_in, module.checks_apart
        self.provenance = module.provenance
        self.details |= module.details
        # Nothing is between the caller and the module from here on.
        self.predict = module.predict  # type: ignore[method-assign]
        self.metrics = module.metrics  # type: ignore[method-assign]

    def _load_record(self) -> bool:
        extra = Extra(self.settings.extra, known=tuple(KNOWN))
        device, labels_file = extra.text("device", "auto"), extra.text("labels")
        plain = set(self.settings.extra) <= {"device", "labels"} and (
            device == "cpu" or (device == "auto" and not _GPU.exists())
        )
        try:
            file = find_model_file(self.settings)
            usable = plain and content_of(file) in (Content.TORCHSCRIPT, Content.TORCH_EXPORT)
            record = mlp_records.find(file, "torch", installed_version()) if usable else None
        except (ConfigError, OSError):  # which PyTorch's way tells better
            return False
        if record is None:
            return False
        graph = record.compiled.graph
        self.inputs = override_specs(record.inputs, self.settings.inputs, "inputs")
        labels = read_labels(self.settings, labels_file)
        self.outputs = tuple(label_outputs(override_specs(record.outputs, self.settings.outputs, "outputs"), labels))
        if self.outputs and self.outputs[0].datatype != datatype_of(graph.output_dtype):
            return False
        self.batchable = is_batchable(self.inputs, self.outputs)
        self.provenance = provenance_of(file, "cpu", self.settings)
        self._record = record
        self._expected = tuple(spec.name for spec in self.inputs)
        self._output = self.outputs[0].name if self.outputs else "output-0"
        self.details |= {
            "file": file.name,
            "device": "cpu",
            "threads": self.settings.native_threads,
            "batch_buckets": "",
            "compiled_rows": "all",
        }
        if record.feature_names:
            self.details["feature_names"] = list(record.feature_names)
        return True

    def _load_module(self) -> Any:
        """Load the module with PyTorch, once."""
        try:
            from .module import TorchModule
        except ImportError as error:
            raise ConfigError(str(error)) from error
        with self._loading:
            if self.module is None:
                module = TorchModule(self.settings)
                module.load()
                if self._record is not None:  # it stands in for the steps, as they were told
                    module.join_rows(self.batchable)
                self.module = module
        return self.module

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Run the steps, or the module where they do not fit.

        Args:
            inputs: one array per argument of `forward`, by name, or in the order of the declared inputs.
            call: `outputs` limits what is returned.

        Raises:
            InvalidInput: an input is missing, is BYTES, or has a shape that the module refuses.
        """
        record = self._record
        if record is None:
            return self._load_module().predict(inputs, call)
        arrays = order_inputs(inputs, self._expected, record.arguments)
        if len(arrays) != 1 or not record.compiled.takes(arrays[0]):
            return self._load_module().predict(inputs, call)
        if call.outputs is not None and self._output not in call.outputs:
            return {}
        return {self._output: record.compiled.predict(arrays[0])}

    def join_rows(self, joined: bool) -> None:
        """Tell the module, which pads rows only where they are independent."""
        super().join_rows(joined)
        if self.module is not None:
            self.module.join_rows(joined)

    def metrics(self) -> Iterable[Family]:
        """Tell the memory of the GPU; nothing on a CPU."""
        return ()

    def unload(self) -> None:
        """Give the device's memory back."""
        if self.module is not None:
            self.module.unload()
