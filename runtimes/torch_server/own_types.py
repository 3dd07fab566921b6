"""The datatypes that a module computes in, found out by calling it, for modules whose inputs are not declared.

Theory of operation. TorchScript does not say what `forward` takes, and V1's JSON does not say what a number is: `[1, 2]` comes as INT64 and
`[1.5]` as FP64, which a module of float32 weights refuses. Where a call fails because of types, it is tried again with the inputs in
the type of the module's weights: those of floats first, then those of integers and booleans too, one by one where there are several, as
some may be indices. What works is remembered by the types that came, and costs nothing from then on. What does not fail is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, Final

import torch

__all__ = ["OwnTypes"]

_OF_TYPES: Final = re.compile(r"(?i)types?\b")
"""What PyTorch says of operands of other types: "must have the same dtype", "expected scalar type Float", "Input type (long int)"."""
_MOST_TRIES: Final = 16
"""Of one call: all choices of four inputs that are no floats."""
_MOST_KEPT: Final = 256

_Types = tuple[torch.dtype, ...]


class OwnTypes:
    """Converts what comes to what a module takes.

    Args:
        module: on its device.
    """

    def __init__(self, module: Any) -> None:
        self._float = _weights_type(module)
        self._found: dict[_Types, _Types] = {}

    def call(self, function: Callable[[list[torch.Tensor]], Any], tensors: list[torch.Tensor]) -> Any:
        """Call a module, with converted tensors where it takes only those.

        Raises:
            Exception: what the module raised of the tensors as they came.
        """
        came = tuple(tensor.dtype for tensor in tensors)
        known = self._found.get(came)
        if known is not None:
            return function(_converted(tensors, known))
        try:
            return function(tensors)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or not self.is_of_types(error):
                raise
            for types in self._choices(came):
                try:
                    result = function(_converted(tensors, types))
                except (RuntimeError, ValueError, IndexError, TypeError):
                    continue
                if len(self._found) < _MOST_KEPT:
                    self._found[came] = types
                return result
            raise

    @staticmethod
    def is_of_types(error: BaseException) -> bool:
        """Whether PyTorch's error is about datatypes; of a script's, which quotes its source, the last line says."""
        return _OF_TYPES.search(str(error).rstrip().rpartition("\n")[2]) is not None

    def _choices(self, came: _Types) -> Iterator[_Types]:
        """Give the types to try, fewest changes first."""
        floats = tuple(self._float if one.is_floating_point else one for one in came)
        others = [place for place, one in enumerate(came) if not one.is_floating_point]
        tries = 0
        for count in range(len(others) + 1):
            for chosen in combinations(others, count):
                types = tuple(self._float if place in chosen else one for place, one in enumerate(floats))
                if types != came:
                    tries += 1
                    if tries > _MOST_TRIES:
                        return
                    yield types


def _converted(tensors: Sequence[torch.Tensor], types: _Types) -> list[torch.Tensor]:
    return [tensor.to(wanted) for tensor, wanted in zip(tensors, types, strict=True)]


def _weights_type(module: Any) -> torch.dtype:
    """Find the type of a module's weights; float32, PyTorch's own default, where it shows none (a frozen script)."""
    try:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
    except (AttributeError, RuntimeError):
        pass
    return torch.float32
