"""`TorchModel`: TorchScript (.pt), exported programs (.pt2), or a state dict with an importable class.

A TorchScript file says neither its inputs' names in the protocol's sense nor their shapes: name them in `model-settings.json`
(`inputs`, `outputs`), or let them be called as the arguments of `forward` are, unchecked. An exported program says both.

Theory of operation. PyTorch takes seconds to import and 200 MB. A small network that was compiled into steps before (`stored`)
is answered with those alone; PyTorch is loaded when a request comes that they cannot answer. For anything else it is loaded at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from serinus import Call, Family, Model, ModelSettings
from serinus.artifacts import Extra, override_specs, read_labels
from serinus.errors import ConfigError
from serinus.native.dense.mlp import Network
from serinus.native.trees.walker import KernelsMissing

from .stored import KNOWN, find, in_order, is_batchable, labelled, model_file, provenance

__all__ = ["TorchModel"]

_GPU = Path("/dev/nvidiactl")
"""There is one, as its driver says."""


class TorchModel(Model):
    """One PyTorch module in inference mode.

    Settings (`parameters.extra`, `--extra`):
        device: "auto" (default: CUDA where there is one), "cpu", "cuda" or "cuda:N". A GPU that is asked for and is not
            there is refused.
        autocast: "none" (default), "bf16" or "fp16".
        class: `package.module:Class` of a state dict (.pth); it must be installed, code is never read from the model directory.
        arguments: keyword arguments of that class.
        batch_buckets: batch sizes to pad to, so that the shapes that a GPU sees are few: no recompilation, and
            no fragmentation of its memory. Default: none on a CPU, powers of two up to 256 on a GPU.
        labels: file of class names for the classification extension; default labels.txt or labels.json.
    """

    platform: ClassVar[str] = "pytorch_torchscript"
    batching = "earned"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.module: Any = None
        """The `TorchModule`; None while the steps do without it."""
        self._network: Network | None = None
        self._loading = threading.Lock()

    def load(self) -> None:
        """Load the steps that were kept of the module, or the module.

        Raises:
            ConfigError: no file, a file that PyTorch refuses, a device that is not there, or no PyTorch.
        """
        if self._load_stored():
            return
        module = self._loaded()
        self.inputs, self.outputs, self.batchable = module.inputs, module.outputs, module.batchable
        self.computes_in, self.checks_apart = module.computes_in, module.checks_apart
        self.provenance = module.provenance
        self.details |= module.details
        # Nothing is between the caller and the module from here on.
        self.predict = module.predict  # type: ignore[method-assign]
        self.metrics = module.metrics  # type: ignore[method-assign]

    def _load_stored(self) -> bool:
        extra = Extra(self.settings.extra, known=KNOWN)
        device, labels_file = extra.text("device", "auto"), extra.text("labels")
        plain = set(self.settings.extra) <= {"device", "labels"} and (
            device == "cpu" or (device == "auto" and not _GPU.exists())
        )
        try:
            file = model_file(self.settings)
            stored = find(file) if plain and file.suffix == ".pt" else None
            network = Network(stored.steps) if stored is not None else None
        except (ConfigError, OSError, KernelsMissing, ValueError):  # which PyTorch's way tells better, or does without
            return False
        if stored is None or network is None:
            return False
        self.inputs = override_specs((), self.settings.inputs, "inputs")
        labels = read_labels(self.settings, labels_file)
        self.outputs = tuple(labelled(override_specs((), self.settings.outputs, "outputs"), labels))
        if self.outputs and self.outputs[0].datatype != "FP64":
            return False
        self.batchable = is_batchable(self.inputs, self.outputs)
        self.provenance = provenance(file, "cpu", self.settings)
        self._network, self._stored = network, stored
        self._expected = tuple(spec.name for spec in self.inputs)
        self._output = self.outputs[0].name if self.outputs else "output-0"
        self.details |= {
            "file": file.name,
            "device": "cpu",
            "threads": self.settings.native_threads,
            "batch_buckets": "",
            "feature_names": list(stored.feature_names),
            "compiled_rows": "all",
        }
        return True

    def _loaded(self) -> Any:
        """Load the module with PyTorch, once."""
        try:
            from .module import TorchModule
        except ImportError as error:
            raise ConfigError(str(error)) from error
        with self._loading:
            if self.module is None:
                module = TorchModule(self.settings)
                module.load()
                if self._network is not None:  # it stands in for the steps, as they were told
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
        network = self._network
        if network is None:
            return self._loaded().predict(inputs, call)
        arrays = in_order(inputs, self._expected, self._stored.arguments)
        array = arrays[0] if len(arrays) == 1 else None
        if array is None or array.dtype != np.float32 or array.ndim != 2 or not 0 < network.columns <= array.shape[1]:
            return self._loaded().predict(inputs, call)
        if call.outputs is not None and self._output not in call.outputs:
            return {}
        return {self._output: network.predict(np.ascontiguousarray(array))}

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
