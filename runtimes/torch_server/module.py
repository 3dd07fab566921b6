"""`TorchModule`: TorchScript (.pt), exported programs (.pt2), or a state dict with an importable class, run by PyTorch.

A TorchScript file says neither its inputs' names in the protocol's sense nor their shapes: name them in `model-settings.json`
(`inputs`, `outputs`), or let them be called as the arguments of `forward` are, unchecked. An exported program says both.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from serinus import Call, Family, Model, TensorSpec
from serinus.artifacts import Extra, override_specs, read_labels
from serinus.errors import ConfigError, InvalidInput

# How often a thread of GNU OpenMP looks for more work before it sleeps. Left at its default (300,000) on CPUs that anything else
# uses, threads that wait keep those that work from their CPU: ResNet-50 on 2 CPUs beside one busy process took 323 ms a row, with
# this 135 ms; on idle CPUs 41 ms either way. It is read when PyTorch loads the library.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
try:
    import torch
except ImportError as error:  # pragma: no cover # the image has it
    raise ImportError("torch_server needs PyTorch: pip install serinus[torch_server]") from error

from . import archive
from .memory import CudaMemory
from .plan import MOST_ROWS, compiled
from .stored import KNOWN, Stored, in_order, is_batchable, keep, labelled, model_file, provenance

__all__ = ["TorchModule"]

_DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
_FLOATS = {"FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float16, "BF16": torch.float32}
_AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# PyTorch shares the memory of arrays, and warns of the first read-only one of a process; a predict never writes to its inputs.
_READ_ONLY = np.zeros(1, np.float32)
_READ_ONLY.flags.writeable = False
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.from_numpy(_READ_ONLY)


class TorchModule(Model):
    """One PyTorch module in inference mode; the settings are `TorchModel`'s."""

    platform: ClassVar[str] = "pytorch_torchscript"

    def load(self) -> None:
        """Load the module onto its device.

        Raises:
            ConfigError: no file, a file that PyTorch refuses, or a device that is not there.
        """
        extra = Extra(self.settings.extra, known=KNOWN)
        self._device = _device(extra.text("device", "auto"))
        self._autocast = _AUTOCAST[extra.choice("autocast", tuple(_AUTOCAST))]
        on_gpu = self._device.type == "cuda"
        self._buckets = extra.numbers("batch_buckets", [2**n for n in range(9)] if on_gpu else [])
        class_name, arguments = extra.text("class"), extra.mapping("arguments")
        labels_file = extra.text("labels")
        extra.close()
        self._memory = None
        if on_gpu:
            index = self._device.index if self._device.index is not None else torch.cuda.current_device()
            self._memory = CudaMemory(index, os.environ.get("SERINUS_WORKER", "0"))
        torch.set_num_threads(self.settings.native_threads)
        file = model_file(self.settings)
        own_inputs: tuple[TensorSpec, ...] = ()
        own_outputs: tuple[TensorSpec, ...] = ()
        self._keywords: tuple[str, ...] = ()
        if file.suffix == ".pt2":
            self._module, own_inputs, own_outputs, self._keywords = _load_exported(
                file, self._device, self.settings.allows
            )
        elif class_name:
            if not self.settings.allows(class_name):
                raise ConfigError(
                    f"extra setting 'class' is {class_name!r}, and code is not loaded because a model directory says so; to trust it, "
                    f"start with --allow_implementation {class_name.replace(':', '.')!r}, or give --extra class={class_name} yourself"
                )
            self._module = _load_state(file, class_name, arguments, self._device)
        else:
            archive.check_script(file, self.settings.allows)
            self._module = _load_script(file, self._device)
        self._names = [spec.name for spec in own_inputs] or _arguments_of(self._module)
        self.inputs = override_specs(own_inputs, self.settings.inputs, "inputs")
        labels = read_labels(self.settings, labels_file)
        self.outputs = tuple(labelled(override_specs(own_outputs, self.settings.outputs, "outputs"), labels))
        self._expected = tuple(spec.name for spec in self.inputs)
        self._half = frozenset(index for index, spec in enumerate(self.inputs) if spec.datatype == "BF16")
        self._floats = {spec.name: dtype for spec in self.outputs if (dtype := _FLOATS.get(spec.datatype)) is not None}
        self.batchable = is_batchable(self.inputs, self.outputs)
        self.checks_apart = on_gpu
        self.computes_in = "FP16" if on_gpu or self._autocast or _is_half(self._module) else ""
        # A class's code is no file of the model's, and may change: then nothing is kept.
        self.provenance = None if class_name else provenance(file, str(self._device), self.settings)
        self.details |= {
            "file": file.name,
            "device": str(self._device),
            "threads": self.settings.native_threads,
            "batch_buckets": ",".join(map(str, self._buckets)),
        }
        names = getattr(self._module, "feature_names", None)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            self.details["feature_names"] = names
        self._output = self.outputs[0].name if self.outputs else "output-0"
        self._network = None
        if not on_gpu and self._autocast is None and self._floats.get(self._output) in (None, torch.float64):
            found = compiled(self._module, len(self.details.get("feature_names", ())))
            if found is not None:
                self._network, steps = found
                self.details["compiled_rows"] = MOST_ROWS
                if not class_name:
                    names = tuple(self.details["feature_names"])
                    keep(file, Stored(tuple(steps), names, tuple(self._names)), torch.__version__)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Run the module.

        Args:
            inputs: one array per argument of `forward`, by name, or in the order of the declared inputs.
            call: `outputs` limits what is returned.

        Raises:
            InvalidInput: an input is missing, is BYTES, or has a shape that the module refuses.
        """
        arrays = in_order(inputs, self._expected, self._names)
        rows = arrays[0].shape[0] if arrays and arrays[0].ndim else 0
        if self._network is not None and 0 < rows <= MOST_ROWS:
            (array,) = arrays
            if array.dtype == np.float32 and array.ndim == 2 and array.shape[1] >= self._network.columns:
                if call.outputs is not None and self._output not in call.outputs:
                    return {}
                return {self._output: self._network.predict(np.ascontiguousarray(array))}
        padded = self._padded(rows)
        tensors = [self._tensor(array, rows, padded) for array in arrays]
        if self._half:  # NumPy has no such type: BF16 arrives as float32
            tensors = [
                tensor.to(torch.bfloat16) if index in self._half else tensor for index, tensor in enumerate(tensors)
            ]
        try:
            with torch.inference_mode():
                if self._autocast is None:
                    result = self._called(tensors)
                else:
                    with torch.autocast(self._device.type, dtype=self._autocast):
                        result = self._called(tensors)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise InvalidInput(f"the module refuses inputs of shape {shapes}: {str(error).splitlines()[-1]}") from error
        return {
            name: self._array(name, value, rows, padded)
            for name, value in self._named(result)
            if call.outputs is None or name in call.outputs
        }

    def metrics(self) -> Iterable[Family]:
        """Tell the memory of the GPU; nothing on a CPU."""
        return self._memory.metrics() if self._memory is not None else ()

    def unload(self) -> None:
        """Give the device's memory back."""
        del self._module
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _called(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Call the module; a program that was exported with keyword arguments takes those by keyword."""
        if not self._keywords:
            return self._module(*tensors)
        first = len(tensors) - len(self._keywords)
        return self._module(*tensors[:first], **dict(zip(self._keywords, tensors[first:], strict=True)))

    def _padded(self, rows: int) -> int:
        if not self.batchable or not rows:
            return rows
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)

    def _tensor(self, array: np.ndarray, rows: int, padded: int) -> torch.Tensor:
        if array.dtype == object:
            raise InvalidInput("PyTorch has no tensors of BYTES; send numbers")
        if padded != rows:
            array = np.concatenate([array, np.zeros((padded - rows, *array.shape[1:]), array.dtype)])
        tensor = torch.from_numpy(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)

    def _named(self, result: Any) -> list[tuple[str, torch.Tensor]]:
        """Name what the module returned: by its own keys, by the declared outputs, or output-0, output-1 ..."""
        if isinstance(result, torch.Tensor) and len(self.outputs) < 2:
            return [(self.outputs[0].name if self.outputs else "output-0", result)]
        if isinstance(result, Mapping):
            # Names of the settings rename by place; a program says its own, which these are.
            names = list(map(str, result))
            declared = [spec.name for spec in self.outputs]
            if len(declared) == len(names) and not set(declared) & set(names):
                names = declared
            values: Sequence[Any] = list(result.values())
        else:
            values = result if isinstance(result, (list, tuple)) else [result]
            names = [spec.name for spec in self.outputs] or [f"output-{index}" for index in range(len(values))]
        if len(names) != len(values):
            raise RuntimeError(f"the module returned {len(values)} tensors, the settings name {len(names)} outputs")
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, torch.Tensor):
                raise RuntimeError(  # noqa: TRY004 # the module's fault, not a caller's
                    f"output {name!r} of the module is a {type(value).__name__}; a tensor, a flat tuple of tensors or a dict of "
                    "them was expected"
                )
        return list(zip(names, values, strict=True))

    def _array(self, name: str, value: torch.Tensor, rows: int, padded: int) -> np.ndarray:
        if padded != rows:
            value = value[:rows]
        declared = self._floats.get(name)
        if declared is not None and value.is_floating_point() and value.dtype != declared:
            value = value.to(declared)  # autocast answers in half precision what the metadata promises as FP32
        elif value.dtype == torch.bfloat16:
            value = value.float()
        return value.numpy() if self._device.type == "cpu" else value.cpu().numpy()


def _is_half(module: Any) -> bool:
    """Whether any of its weights have half precision. On a GPU all has: cuDNN computes FP32 in TF32, which is as exact as FP16."""
    try:
        return any(weight.dtype in (torch.float16, torch.bfloat16) for weight in module.parameters())
    except (AttributeError, RuntimeError):  # a frozen script has none
        return False


def _device(wanted: str) -> torch.device:
    """Choose the device.

    Raises:
        ConfigError: a GPU was asked for and is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"extra setting 'device' is {wanted!r}: {error}") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"extra setting 'device' is {wanted!r}; accepted are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"extra setting 'device' is {wanted!r}, but this machine shows {torch.cuda.device_count()} GPUs to PyTorch "
            f"{torch.__version__}; use the -gpu image on a node with one, or device cpu"
        )
    return device


def _load_script(file: Path, device: torch.device) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and what many have
            return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        why = "a pickle" if _is_pickle(file) else str(error).splitlines()[0]
        raise ConfigError(
            f"{file}: not TorchScript: {why}. A state dict needs its class: --extra class=package:Class; of a whole module that was "
            "pickled, which is code, save the state dict: torch.save(module.state_dict(), ...)"
        ) from error


def _is_pickle(file: Path) -> bool:
    """Whether `torch.save` wrote it, and not `torch.jit.save`, whose archive has constants beside its data."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return "data.pkl" in names and "constants.pkl" not in names


def _load_exported(
    file: Path, device: torch.device, allows: Callable[[str], bool]
) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Load a program; it knows its inputs by name, and its outputs by the keys of a dict or else by position.

    Returns:
        The module, its inputs and outputs, and which of its last arguments are keywords.
    """
    archive.check(file, allows)
    try:
        program = torch.export.load(str(file))
    except Exception as error:  # whatever torch.export raises means that the file is not one of its own
        raise ConfigError(f"{file}: not an exported program of this PyTorch ({torch.__version__}): {error}") from error
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = tuple(_described(str(name), values[name]) for name in signature.user_inputs if name in values)
    found = [(index, values[name]) for index, name in enumerate(signature.user_outputs) if name in values]
    tree = program.call_spec.out_spec
    keys = list(map(str, tree.context)) if tree is not None and tree.type is dict else []
    names = keys if len(keys) == len(signature.user_outputs) else [f"output-{index}" for index, _ in found]
    outputs = tuple(_described(names[index], value) for index, value in found)
    call = program.call_spec.in_spec
    keywords = tuple(map(str, call.child(1).context)) if call is not None else ()
    return program.module().to(device), inputs, outputs, keywords


def _described(name: str, value: Any) -> TensorSpec:
    return TensorSpec(
        name, _DATATYPES[value.dtype], tuple(size if isinstance(size, int) else -1 for size in value.shape)
    )


def _load_state(file: Path, class_name: str, arguments: Mapping[str, Any], device: torch.device) -> Any:
    module_name, colon, name = class_name.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"extra setting 'class' is {class_name!r}: {error}; expected package.module:Class") from error
    if not colon or not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ConfigError(
            f"extra setting 'class' is {class_name!r}: not a torch.nn.Module; expected package.module:Class"
        )
    try:
        module = cls(**arguments)
    except (TypeError, ValueError) as error:
        given = ", ".join(arguments) or "none"
        raise ConfigError(
            f"extra setting 'arguments' ({given}): {class_name} cannot be made with these: {error}"
        ) from error
    try:
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{file}: holds more than tensors and plain containers, so it is not read, for a pickle can run code; save the state "
            "dict alone: torch.save(module.state_dict(), ...)"
        ) from error
    except Exception as error:  # pickle, zip and key errors alike mean that file and class do not fit
        raise ConfigError(f"{file}: no state dict of {class_name}: {' '.join(str(error).split())}") from error
    return module.to(device).eval()


def _arguments_of(module: Any) -> list[str]:
    """Name the arguments of `forward`."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return [argument.name for argument in schema.arguments if argument.name != "self"]
    return [name for name in inspect.signature(module.forward).parameters if name not in {"args", "kwargs"}]
