"""A PyTorch file as a module on its device: TorchScript, an exported program, or a state dict with an importable class."""

from __future__ import annotations

import importlib
import inspect
import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from serinus import TensorSpec
from serinus.errors import ConfigError

__all__ = [
    "arguments_of",
    "choose_device",
    "describe_program",
    "load_program",
    "load_script",
    "load_state",
    "row_bounds",
]

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


def choose_device(wanted: str) -> torch.device:
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


def load_script(file: Path, device: torch.device) -> Any:
    """Load TorchScript.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, and what many have
            return torch.jit.load(str(file), map_location=device).eval()
    except (
        Exception
    ) as error:  # of a damaged archive half a dozen classes are raised, by PyTorch and by what it is built on
        why = "a pickle" if _is_pickle(file) else next(iter(str(error).splitlines()), repr(error))
        raise ConfigError(
            f"{file}: not TorchScript: {why}. A state dict needs its class: --extra class=package:Class; of a whole module that was "
            "pickled, which is code, save the state dict: torch.save(module.state_dict(), ...)"
        ) from error


def _is_pickle(file: Path) -> bool:
    """Whether `torch.save` wrote it, and not `torch.jit.save`, whose archive has constants beside its data."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return "data.pkl" in names and "constants.pkl" not in names


def load_program(file: Path, content: bytes) -> torch.export.ExportedProgram:
    """Load an exported program.

    Args:
        file: for messages.
        content: its bytes, which were looked through.

    Raises:
        ConfigError: the file is something else, or of another PyTorch.
    """
    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:  # whatever torch.export raises means that the file is not one of its own
        raise ConfigError(f"{file}: not an exported program of this PyTorch ({torch.__version__}): {error}") from error


def describe_program(
    program: torch.export.ExportedProgram,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """Read a program's tensors; it knows its inputs by name, and its outputs by the keys of a dict or else by position.

    Returns:
        Inputs and outputs, and which of its last arguments are keywords.
    """
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
    return inputs, outputs, keywords


def row_bounds(program: torch.export.ExportedProgram) -> tuple[int, int | None]:
    """Give the fewest and most rows that a program was exported for (`Dim("n", min=..., max=...)`); None: any number.

    What has 1 as its fewest, or 0, is taken with one row, as PyTorch itself takes it.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    least, most = 1, None
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        size = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else None
        if not isinstance(size, torch.SymInt):
            continue
        found = program.range_constraints.get(size.node.expr)
        if found is None:
            continue
        if found.lower.is_Integer:  # infinities are none
            least = max(least, int(found.lower))
        if found.upper.is_Integer:
            most = int(found.upper) if most is None else min(most, int(found.upper))
    return least, most


def _described(name: str, value: Any) -> TensorSpec:
    return TensorSpec(
        name, _DATATYPES[value.dtype], tuple(size if isinstance(size, int) else -1 for size in value.shape)
    )


def load_state(file: Path, class_name: str, arguments: Mapping[str, Any], device: torch.device) -> Any:
    """Load a state dict into a class, `package.module:Class`, made with `arguments`.

    Raises:
        ConfigError: no such class, other arguments, or a state that is not the class's.
    """
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


def arguments_of(module: Any) -> list[str]:
    """Name the arguments of `forward`."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return [
            argument.name for argument in schema.arguments[1:]
        ]  # the first is the module, whatever its author calls it
    return [name for name in inspect.signature(module.forward).parameters if name not in {"args", "kwargs"}]
