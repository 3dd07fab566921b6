"""A model's settings as a load request changes them: the parameter `config` of the model repository extension.

Source: Triton, extension_model_repository.md, "Load", and model_config.proto. The parameter is a model configuration as JSON text. It holds
until the model is loaded again. What it may change here is how the model is batched (`max_batch_size` 0: not at all) and how often it
runs at a time; what the
model itself decides (inputs, outputs, backend) it cannot, and says so rather than ignoring it. It may repeat that, so that a client can
send the configuration that it was told with another batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ..bounds import BOUNDS, INSTANCES
from ..errors import InvalidInput
from ..model import Model
from ..protocol.json_codec import describe, load_object
from ..protocol.types import Limits, TensorSpec
from ..settings import BatchSettings, ModelSettings

__all__ = ["overridden"]

_WHAT = "load parameter 'config'"
_OFFERED = "max_batch_size, dynamic_batching, instance_group"


def overridden(
    settings: ModelSettings,
    config: Any,
    loaded: Model | None = None,
    *,
    batched: bool = True,
    max_instances: int = INSTANCES,
) -> ModelSettings:
    """Apply a model configuration.

    Args:
        settings: the model's own.
        config: JSON text.
        loaded: the model as it is served until this load, whose own decisions may be repeated; None: it is not loaded.
        batched: whether that one is batched.
        max_instances: most instances that the server allows.

    Raises:
        InvalidInput: no text, no JSON object, or a field that is not offered or out of its range.
    """
    if type(config) is not str:
        raise InvalidInput(f"{_WHAT} is {describe(config)}; the text of a JSON object was expected")
    document = load_object(config.encode(errors="replace"), _WHAT, Limits())
    batch, instances, batchable = settings.batch, settings.instances, settings.batchable
    for key, value in document.items():
        if key == "name":
            if value != settings.name:
                raise InvalidInput(f"{_WHAT}: 'name' is {describe(value)}, the model is '{settings.name}'")
        elif loaded is not None and _repeats(key, value, loaded, batched) and not _is_held(key, settings, loaded):
            continue
        elif key == "max_batch_size":
            if value == "0" or (type(value) is int and value == 0):  # Triton's way to say that rows are never joined
                batchable = False
            else:
                batch = replace(batch, max_batch_rows=_number(value, key, "max_batch_rows"))
        elif key == "dynamic_batching":
            batch = _batching(batch, value)
        elif key == "instance_group":
            instances = _instances(value, max_instances)
        else:
            raise InvalidInput(f"{_WHAT}: {key[:40]!r} cannot be changed by a load; what can is {_OFFERED}")
    return replace(settings, batch=batch, instances=instances, batchable=batchable)


def _repeats(key: str, value: Any, model: Model, batched: bool) -> bool:
    """Whether this is what ModelConfig says of the model anyway."""
    if key == "max_batch_size":
        return not batched and value == 0 and type(value) is int
    if key == "model_transaction_policy":
        return type(value) is dict and value in (
            [{"decoupled": True}] if model.decoupled else [{}, {"decoupled": False}]
        )
    if key == "parameters":
        reason = model.details.get("batching_reason")
        return not batched and value == {"batching_reason": {"string_value": reason}}
    if key in ("platform", "backend"):
        return value == (model.settings.platform or model.platform)
    if key == "input":
        return _told(value) == _tensors(model.inputs, batched)
    if key == "output":
        always = [spec for spec in model.outputs if not spec.optional]
        shown = always or [replace(spec, optional=False) for spec in model.outputs]  # its outputs have no such field
        return _told(value) == _tensors(shown, batched)
    return False


def _is_held(key: str, settings: ModelSettings, loaded: Model) -> bool:
    """Whether what is repeated is an earlier load's word, which this one has to say again to keep it, and not the model's own."""
    return key == "max_batch_size" and loaded.settings.batchable is False and settings.batchable is not False


_SCALAR: Final[Mapping[str, Any]] = {"shape": []}
"""`reshape` of a scalar, whose `dims` are [1]."""


def _told(value: Any) -> Any:
    """Bring a configuration's tensors into the form of `_tensors`; None where it says anything else of them."""
    known = {"name", "data_type", "dims", "optional", "reshape"}
    if type(value) is not list or not all(type(entry) is dict and entry.keys() <= known for entry in value):
        return None
    dims = [entry.get("dims", []) for entry in value]
    if not all(type(sizes) is list for sizes in dims):
        return None
    told = []
    for entry, sizes in zip(value, dims, strict=True):
        reshape = entry.get("reshape")
        if not sizes and reshape is None:  # how a scalar was told of before, and how some write it
            sizes, reshape = [1], _SCALAR
        elif reshape == {}:  # protobuf's JSON leaves out what is empty
            reshape = _SCALAR
        told.append(
            (
                entry.get("name"),
                entry.get("data_type"),
                [str(size) for size in sizes],
                entry.get("optional", False),
                reshape,
            )
        )
    return told


def _tensors(specs: Sequence[TensorSpec], batched: bool) -> Any:
    """Name, type, dimensions but the batch's, whether a request may leave it out, and `reshape`; protobuf writes 64-bit integers as text."""
    return [
        (spec.name, kind, [str(size) for size in dims], spec.optional, _SCALAR if is_scalar else None)
        for spec in specs
        for kind, dims, is_scalar in (spec.in_config(batched=batched),)
    ]


def _batching(batch: BatchSettings, value: Any) -> BatchSettings:
    for key, item in _object(value, "dynamic_batching").items():
        name = f"dynamic_batching.{key[:40]}"
        if key == "max_queue_delay_microseconds":
            batch = replace(batch, max_delay_s=_number(item, name, "max_delay_s", unit=1_000_000) / 1e6)
        elif key == "priority_levels":
            batch = replace(batch, priority_levels=_number(item, name, "priority_levels"))
        elif key == "default_priority_level":
            batch = replace(batch, default_priority=_number(item, name, "priority_levels"))
        elif key == "default_queue_policy":
            for policy, limit in _object(item, name).items():
                if policy != "default_timeout_microseconds":
                    raise InvalidInput(f"{_WHAT}: '{name}.{policy[:40]}' is not offered")
                timeout_s = _number(limit, f"{name}.{policy}", "default_timeout_s", unit=1_000_000) / 1e6
                batch = replace(batch, default_timeout_s=timeout_s or None)
        else:
            raise InvalidInput(f"{_WHAT}: '{name}' is not offered")
    if batch.default_priority > batch.priority_levels:
        raise InvalidInput(
            f"{_WHAT}: the default priority {batch.default_priority} is beyond the {batch.priority_levels} levels"
        )
    return batch


def _instances(value: Any, most: int) -> int:
    if type(value) is not list:
        raise InvalidInput(f"{_WHAT}: 'instance_group' is {describe(value)}; an array was expected")
    count = 0
    for group in value:
        for key, item in _object(group, "instance_group").items():
            if key == "count":
                count += _number(item, "instance_group.count", "instances", most=most)
            else:
                raise InvalidInput(f"{_WHAT}: 'instance_group.{key[:40]}' is not offered; 'count' is")
    if count > most:
        raise InvalidInput(f"{_WHAT}: 'instance_group' counts {count} instances, the limit is {most} (max_instances)")
    return count or 1


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise InvalidInput(f"{_WHAT}: '{name}' is {describe(value)}; an object was expected")
    return value


def _number(value: Any, name: str, setting: str, *, unit: int = 1, most: int | None = None) -> int:
    """Read a number within the bound of the setting that it changes, whose unit is `unit` times the number's."""
    bound = BOUNDS[setting]
    least, limit = int(bound.least * unit), int((bound.most if most is None else most) * unit)
    if type(value) is str and value.isdecimal() and len(value) < 20:  # protobuf writes 64-bit integers as text
        value = int(value)
    if type(value) is not int or not least <= value <= limit:
        raise InvalidInput(
            f"{_WHAT}: '{name}' is {describe(value)}; an integer of {least} to {limit} was expected ({bound.raised_by or setting})"
        )
    return value
