"""`TorchModule`: TorchScript (.pt), exported programs (.pt2), or a state dict with an importable class, run by PyTorch.

A TorchScript file says neither its inputs' names in the protocol's sense nor their shapes: name them in `model-settings.json`
(`inputs`, `outputs`), or let them be called as the arguments of `forward` are, unchecked. An exported program says both.
"""

from __future__ import annotations

import logging
import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from serinus import Call, Family, Model, TensorSpec
from serinus.artifacts import Extra, held, override_specs, read_labels
from serinus.engines import mlp_records, thread_choice
from serinus.engines.mlp import CompiledMLP
from serinus.engines.mlp_records import MLPRecord
from serinus.engines.not_covered import NotCovered
from serinus.engines.thread_choice import ThreadChoice
from serinus.errors import ConfigError, InvalidInput
from serinus.protocol.datatypes import NUMPY_DTYPES

# How often a thread of GNU OpenMP looks for more work before it sleeps. Left at its default (300,000) on CPUs that anything else
# uses, threads that wait keep those that work from their CPU: ResNet-50 on 2 CPUs beside one busy process took 323 ms a row, with
# this 135 ms; on idle CPUs 41 ms either way. It is read when PyTorch loads the library.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
try:
    import torch
except ImportError as error:  # pragma: no cover # the image has it
    raise ImportError("torch_server needs PyTorch: pip install 'serinus[torch-server]'") from error

from . import archive
from .archive_storages import check_storages
from .memory import CudaMemory
from .mlp_compiler import compile_mlp
from .module_files import (
    arguments_of,
    choose_device,
    describe_program,
    load_program,
    load_script,
    load_state,
    row_bounds,
)
from .module_tensors import (
    KNOWN,
    find_model_file,
    is_batchable,
    is_program,
    label_outputs,
    order_inputs,
    provenance_of,
)
from .own_types import OwnTypes

__all__ = ["TorchModule"]

_log = logging.getLogger("serinus.torch")

_FLOATS = {"FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float16, "BF16": torch.float32}
_TYPES_HINT: Final = (
    "; its inputs are not declared: say their datatypes in model-settings.json, "
    '"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]'
)
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
        extra = Extra(self.settings.extra, known=tuple(KNOWN))
        self._device = choose_device(extra.text("device", "auto"))
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
        self._threads = ThreadChoice(self.settings.native_threads)
        torch.set_num_threads(self.settings.native_threads)
        file = find_model_file(self.settings)
        program: torch.export.ExportedProgram | None = None
        own_inputs: tuple[TensorSpec, ...] = ()
        own_outputs: tuple[TensorSpec, ...] = ()
        self._keywords: tuple[str, ...] = ()
        self._least_rows, self._most_rows = 1, None
        if is_program(file):
            try:
                content = file.read_bytes()
                archive.check(file, content, self.settings.allows)
                program = load_program(file, content)
                del content
                self._module = program.module().to(self._device)
                own_inputs, own_outputs, self._keywords = describe_program(program)
                self._least_rows, self._most_rows = row_bounds(program)
            except ConfigError:
                raise
            except (
                Exception
            ) as error:  # a damaged program raises whatever its parts meet, in PyTorch and in what looks it through
                raise ConfigError(f"{file}: damaged: {error!r}") from error
        elif class_name:
            if not self.settings.allows(class_name):
                raise ConfigError(
                    f"extra setting 'class' is {class_name!r}, and code is not loaded because a model directory says so; to trust it, "
                    f"start with --allow_implementation {class_name.replace(':', '.')!r}, or give --extra class={class_name} yourself"
                )
            with held(file) as own:
                if zipfile.is_zipfile(own):  # before 1.6 torch.save wrote no archive; that reader checks
                    check_storages(own)
                self._module = load_state(own, class_name, arguments, self._device)
        else:
            with held(file) as own:
                archive.check_script(own, self.settings.allows)
                if zipfile.is_zipfile(own):
                    check_storages(own)
                self._module = load_script(own, self._device)
        self._names = [spec.name for spec in own_inputs] or arguments_of(self._module)
        self.inputs = override_specs(own_inputs, self.settings.inputs, "inputs")
        labels = read_labels(self.settings, labels_file)
        self.outputs = tuple(label_outputs(override_specs(own_outputs, self.settings.outputs, "outputs"), labels))
        self._expected = tuple(spec.name for spec in self.inputs)
        self._own_types = OwnTypes(self._module)
        self._half = frozenset(index for index, spec in enumerate(self.inputs) if spec.datatype == "BF16")
        self._floats = {spec.name: dtype for spec in self.outputs if (dtype := _FLOATS.get(spec.datatype)) is not None}
        self.batchable = self._by_rows = is_batchable(self.inputs, self.outputs)
        self.checks_apart = on_gpu
        self.computes_in = "FP16" if on_gpu or self._autocast or _is_half(self._module) else ""
        # A class's code is no file of the model's, and may change: then nothing is kept.
        self.provenance = None if class_name else provenance_of(file, str(self._device), self.settings)
        self.details |= {
            "file": file.name,
            "device": str(self._device),
            "batch_buckets": ",".join(map(str, self._buckets)),
        }
        names = getattr(self._module, "feature_names", None)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            self.details["feature_names"] = names
        self._output = self.outputs[0].name if self.outputs else "output-0"
        self._compiled: CompiledMLP | None = None
        try:
            self._compiled = compiled = self._compile(program)
        except NotCovered as reason:
            self.details["compiled_reason"] = str(reason)
            _log.info("model %s: %s is PyTorch's alone: %s", self.name, file.name, reason)
        else:
            self.details["compiled_rows"] = compiled.most_rows
            names = tuple(self.details.get("feature_names", ()))
            record = MLPRecord(compiled, names, tuple(self._names), own_inputs, own_outputs)
            mlp_records.save(file, record, "torch", torch.__version__.partition("+")[0])
        self._measure_threads()
        self.details["threads"] = str(self._threads)

    def _measure_threads(self) -> None:
        """Find out which batches more than one thread is worth it for, unless somebody said a number.

        Modules that do not say what they take, and that refuse zeros, keep all threads.
        """
        settings = self.settings
        if settings.threads or settings.native_threads == 1 or self._device.type != "cpu" or not settings.warmup:
            return
        if not self.inputs or (
            self._compiled is not None and self._compiled.most_rows >= settings.batch.max_batch_rows
        ):
            return

        def predict(rows: int, threads: int) -> None:
            self._threads = ThreadChoice(threads)
            arrays = {}
            for spec in self.inputs:
                shape = [1 if size == -1 else size for size in spec.shape]
                shape[:1] = [rows] if spec.shape[:1] == (-1,) else shape[:1]
                arrays[spec.name] = np.zeros(shape, NUMPY_DTYPES[spec.datatype])
            self.predict(arrays, Call())

        most = settings.native_threads
        try:
            self._threads = thread_choice.measure(
                predict, most, most_rows=settings.batch.max_batch_rows if self.batchable else 1
            )
        except Exception as error:  # noqa: BLE001 # whatever a module says to zeros
            self._threads = ThreadChoice(most)
            _log.info("model %s: threads were not measured, since it does not take zeros (%s)", self.name, error)

    def _compile(self, program: torch.export.ExportedProgram | None) -> CompiledMLP:
        """Turn the module into verified steps.

        Raises:
            NotCovered: it is another kind of module, or the steps answer otherwise.
        """
        if self._device.type != "cpu" or self._autocast is not None or self._half:
            raise NotCovered("a device, autocast or datatype that is PyTorch's")
        shape = self.inputs[0].shape if len(self.inputs) == 1 else ()
        columns = len(self.details.get("feature_names", ())) or (max(shape[1], 0) if len(shape) == 2 else 0)
        declared = self._floats.get(self._output)

        def answer(rows: torch.Tensor) -> torch.Tensor:
            ((name, value),) = self._named(self._called([rows]))
            if name != self._output:
                raise NotCovered(f"an output {name!r} where {self._output!r} is declared")
            return value

        return compile_mlp(
            self._module if program is None else program,
            answer,
            columns=columns,
            declared=str(declared).removeprefix("torch.") if declared is not None else "",
        )

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Run the module.

        Args:
            inputs: one array per argument of `forward`, by name, or in the order of the declared inputs.
            call: `outputs` limits what is returned.

        Raises:
            InvalidInput: an input is missing, is BYTES, or has a shape that the module refuses.
        """
        arrays = order_inputs(inputs, self._expected, self._names)
        rows = arrays[0].shape[0] if arrays and arrays[0].ndim else 0
        compiled = self._compiled
        if self._by_rows and self._most_rows is not None and rows > self._most_rows:
            return self._in_pieces(inputs, call, rows, self._most_rows)
        if compiled is not None and 0 < rows <= compiled.most_rows and len(arrays) == 1 and compiled.takes(arrays[0]):
            if call.outputs is not None and self._output not in call.outputs:
                return {}
            return {self._output: compiled.predict(arrays[0])}
        threads = self._threads.of(rows)
        if torch.get_num_threads() != threads:  # a number of each thread's own
            torch.set_num_threads(threads)
        padded = self._padded(rows)
        tensors = [self._tensor(array, rows, padded) for array in arrays]
        if self._half:  # NumPy has no such type: BF16 arrives as float32
            tensors = [
                tensor.to(torch.bfloat16) if index in self._half else tensor for index, tensor in enumerate(tensors)
            ]
        try:
            with torch.inference_mode():
                if self._autocast is None:
                    result = self._called(tensors) if self._expected else self._own_types.call(self._called, tensors)
                else:
                    with torch.autocast(self._device.type, dtype=self._autocast):
                        result = self._called(tensors)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:  # a program's guards assert
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            hint = _TYPES_HINT if not self._expected and OwnTypes.is_of_types(error) else ""
            raise InvalidInput(
                f"the module refuses inputs of shape {shapes}: {str(error).splitlines()[-1]}{hint}"
            ) from error
        return {
            name: self._array(name, value, rows, padded)
            for name, value in self._named(result)
            if call.outputs is None or name in call.outputs
        }

    def _in_pieces(
        self, inputs: Mapping[str, np.ndarray], call: Call, rows: int, most: int
    ) -> Mapping[str, np.ndarray]:
        """Run a program that was exported for fewer rows, several times."""
        pieces = [
            self.predict({name: array[at : at + most] for name, array in inputs.items()}, call)
            for at in range(0, rows, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

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
        if not self._by_rows or not rows:
            return rows
        least = max(rows, self._least_rows)
        return next((bucket for bucket in self._buckets if bucket >= least), least) if self.batchable else least

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
