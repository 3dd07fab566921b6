"""Whether a request fits the model, and whether the model's answer fits what it promised.

`RequestChecks.admit` turns a request into what the batcher needs: the key, the arrays in the key's order, the rows.
It is on the hot path: a request with one input, no parameters and no wanted outputs is recognised with a few
comparisons and shares one `BatchKey` object; all others take the general way, which makes the messages.

What is refused (InvalidInput): an input that is unknown, missing or given twice; another datatype, unless the model
sets `coerce`; another rank or dimension; inputs of one request with different numbers of rows; a wanted output that
the model does not have. A model that declares no inputs takes anything. One that declares exactly one and sets
`any_input_name` takes that one under any name, since clients of bare matrices (KServe's, MLServer's) name it as they
please. One that names its columns (`Model.columns`) takes them as one tensor each, too, which are made the matrix here, so that both
forms share batches. A model with signatures has checks for each, chosen by the request's parameter `signature_name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from ...errors import InvalidInput, ModelFailed
from ...model import Call, Model
from ...protocol.classification import classification_count
from ...protocol.datatypes import NUMPY_DTYPES, datatype_of
from ...protocol.types import InferRequest, RequestedOutput, Tensor, TensorSpec
from ..batching.pending_request import BatchKey

__all__ = ["AS_SENT", "SERVER_PARAMETERS", "OutputChecks", "RequestChecks", "RowsDiffer"]

AS_SENT: Final = object()
"""First of a key's values where the request's shapes are its own, `RequestChecks.admit_as_sent`."""

SERVER_PARAMETERS: Final = frozenset({"timeout", "priority", "binary_data_output"})
"""Request parameters that the server itself takes and the model does not see."""

_PARAMETERS_OF_COLUMNS: Final = SERVER_PARAMETERS | {"content_type"}
"""Of a model that names its columns: MLServer's `content_type` ("pd") says how they came, and makes no other batch of them."""


class RowsDiffer(ModelFailed):
    """An output has another number of rows than the batch."""


class RequestChecks:
    """The checks of one model's requests, made ready once.

    Args:
        model: loaded; `inputs`, `outputs`, `signatures`, `batchable`, `coerce`, `columns` and `any_input_name` are read.
        signature: check for this one of the model's signatures.
    """

    def __init__(self, model: Model, signature: str = "") -> None:
        inputs, outputs = model.inputs, model.outputs
        self._signature = signature
        self._signatures: dict[str, RequestChecks] = {}
        if signature:
            inputs, outputs = model.signatures[signature].inputs, model.signatures[signature].outputs
        else:
            self._signatures = {name: RequestChecks(model, name) for name in model.signatures}
        self._columns = model.columns
        if self._columns is not None:  # what `predict` gets, in whichever form the metadata tells it
            inputs = (self._columns.matrix,)
        self._specs = tuple(inputs) if model.checks_requests else ()
        self._by_name = {spec.name: spec for spec in self._specs}
        self._name = model.name
        rowed = (*self._specs, *outputs) if signature else self._specs
        joined = model.batchable and signature not in model.unbatched_signatures
        self._batchable = joined and all(spec.shape and spec.shape[0] == -1 and not spec.any_rank for spec in rowed)
        self._whole = not self._batchable and model.answers == "arrays"
        """A request is one thing, whatever its shape: for the queue and the statistics it is one row."""
        self._coerce = model.coerce
        self._any_name = model.any_input_name and len(self._specs) == 1
        self._outputs = {spec.name: spec for spec in outputs} if model.checks_requests else {}
        self._alone = 0
        names = tuple(spec.name for spec in self._specs)
        self._fixed = bool(self._specs) and all(-1 not in spec.shape[1:] for spec in self._specs)
        self._plain = BatchKey(None, names, Call(), _row_bytes(self._specs) if self._fixed and self._batchable else 0)
        """For requests that send every input and ask for nothing special, where no dimension but the rows may vary."""
        self._single: TensorSpec | None = None
        self._single_rank = 0
        self._single_tail: tuple[int, ...] = ()
        if len(self._specs) == 1 and self._batchable and self._fixed:
            self._single = self._specs[0]
            self._single_rank = len(self._single.shape)
            self._single_tail = self._single.shape[1:]

    @property
    def signatures(self) -> Mapping[str, RequestChecks]:
        """The checks of each signature."""
        return self._signatures

    @property
    def batchable(self) -> bool:
        """Requests may share a batch: the model allows it, and leaves the first dimension of every input free."""
        return self._batchable

    def admit(self, request: InferRequest) -> tuple[BatchKey, tuple[np.ndarray, ...], int]:
        """Check a request.

        Returns:
            Its key, its arrays in the key's order, its rows.

        Raises:
            InvalidInput: naming the tensor, what came, and what the model takes.
        """
        spec = self._single
        if spec is not None and not request.outputs:
            inputs = request.inputs
            if len(inputs) == 1 and (not request.parameters or request.parameters.keys() <= SERVER_PARAMETERS):
                tensor = inputs[0]
                shape = tensor.shape
                if (
                    tensor.datatype == spec.datatype
                    and shape[1:] == self._single_tail
                    and len(shape) == self._single_rank
                    and (tensor.name == spec.name or self._any_name)
                ):
                    return self._plain, (tensor.data,), shape[0]
        return self._admit(request)

    def admit_as_sent(self, request: InferRequest) -> tuple[BatchKey, tuple[np.ndarray, ...], int] | None:
        """Admit a request whose rows of single numbers are nested otherwise than the model says; see `Model.takes_v1_shapes`.

        Returns:
            As `admit`, to be predicted alone; None: nothing of this kind is odd about it.

        Raises:
            InvalidInput: something else is.
        """
        if "signature_name" in request.parameters:
            checks = self._chosen(request.parameters["signature_name"])
        else:
            checks = self
        tensors = [
            tensor if (spec := checks._by_name.get(tensor.name)) is None else _nested_as(tensor, spec)
            for tensor in request.inputs
        ]
        if all(one is other for one, other in zip(tensors, request.inputs, strict=True)):
            return None
        checks._match(tensors)
        sent = {tensor.name: tensor.data for tensor in request.inputs}
        names = tuple(spec.name for spec in checks._specs if spec.name in sent)
        self._alone += 1
        key = BatchKey((AS_SENT, self._alone), names, checks._call(request, None))
        return key, tuple(sent[name] for name in names), 1

    def _admit(self, request: InferRequest) -> tuple[BatchKey, tuple[np.ndarray, ...], int]:
        if self._signatures and "signature_name" in request.parameters:
            return self._chosen(request.parameters["signature_name"])._admit(request)
        wanted = self._wanted(request.outputs) if request.outputs else None
        found = self._match(request.inputs)
        names = tuple(found)
        arrays = tuple(found.values())
        rows = arrays[0].shape[0] if arrays and arrays[0].ndim else 1
        if not self._batchable:
            self._alone += 1
            key = BatchKey((self._signature, self._alone), names, self._call(request, wanted))
            return key, arrays, min(rows, 1) if self._whole else rows
        for name, array in found.items():
            if not array.ndim:
                raise InvalidInput(
                    f"input '{name}': shape [] has no rows; the first dimension is the rows of the batch"
                )
            if array.shape[0] != rows:
                raise InvalidInput(
                    f"input '{name}' has {array.shape[0]} rows, input '{names[0]}' has {rows}: all inputs of a request "
                    "have the same number of rows"
                )
        call = self._call(request, wanted)
        if call is self._plain.call and self._fixed and len(found) == len(self._specs):
            return self._plain, arrays, rows
        asked: Any = None
        if call.parameters:
            # The type is part of the key: True, 1 and 1.0 are equal, and are different parameters.
            asked = tuple(sorted((name, type(value).__name__, repr(value)) for name, value in call.parameters.items()))
        shapes = tuple((name, array.shape[1:], array.dtype.str) for name, array in found.items())
        return BatchKey((shapes, asked, wanted), names, call), arrays, rows

    def _chosen(self, name: Any) -> RequestChecks:
        checks = self._signatures.get(name) if isinstance(name, str) else None
        if checks is None:
            raise InvalidInput(
                f"parameter 'signature_name' is {name!r}; the signatures of model '{self._name}' are {_list(self._signatures)}"
            )
        return checks

    def _call(self, request: InferRequest, wanted: frozenset[str] | None) -> Call:
        parameters = request.parameters
        if parameters:
            taken = SERVER_PARAMETERS if self._columns is None else _PARAMETERS_OF_COLUMNS
            parameters = {name: value for name, value in parameters.items() if name not in taken}
        if not parameters and wanted is None:
            return self._plain.call
        return Call(parameters=parameters, outputs=wanted)

    def _wanted(self, outputs: Sequence[RequestedOutput]) -> frozenset[str]:
        names = set()
        for output in outputs:
            if self._outputs and output.name not in self._outputs:
                raise InvalidInput(
                    f"output '{output.name}' is not one of model '{self._name}'; its outputs are {_list(self._outputs)}"
                )
            if output.name in names:
                raise InvalidInput(f"output '{output.name}' is asked for twice")
            if classification_count(output.parameters, f"output '{output.name}'"):
                spec = self._outputs.get(output.name)
                if spec is not None and spec.datatype in ("BYTES", "BOOL"):
                    raise InvalidInput(
                        f"output '{output.name}': classification needs numbers, the output is {spec.datatype}"
                    )
            names.add(output.name)
        return frozenset(names)

    def _match(self, tensors: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Find each input's array, in the model's order; by name where the model declares none, so that order is no difference."""
        by_name: dict[str, Tensor] = {}
        for tensor in tensors:
            if tensor.name in by_name:
                raise InvalidInput(f"input '{tensor.name}' is given twice")
            by_name[tensor.name] = tensor
        if not self._specs:
            return {name: by_name[name].data for name in sorted(by_name)}
        if self._columns is not None and self._columns.claims(tensors):
            return {self._specs[0].name: self._columns.join({tensor.name: tensor.data for tensor in tensors})}
        if self._any_name and len(tensors) == 1:
            spec = self._specs[0]
            return {spec.name: self._fit(tensors[0], spec)}
        for name in by_name:
            if name not in self._by_name:
                raise InvalidInput(
                    f"input '{name}' is not one of model '{self._name}'; its inputs are {_list(self._by_name)}"
                )
        found = {}
        for spec in self._specs:
            tensor = by_name.get(spec.name)
            if tensor is not None:
                found[spec.name] = self._fit(tensor, spec)
            elif not spec.optional:
                raise InvalidInput(
                    f"input '{spec.name}' is missing; model '{self._name}' takes {_list(self._by_name)}, got {_list(by_name)}"
                )
        return found

    def _fit(self, tensor: Tensor, spec: TensorSpec) -> np.ndarray:
        shape = tensor.shape
        expected = shape if spec.any_rank else spec.shape
        if len(shape) == 2 and shape[1] == 1 and expected == (-1,) and (self._coerce or self._batchable):
            # One column: [n, 1] is how MLServer's pandas codec and KServe's clients send a feature, and what the configuration says
            # of scalar rows (dims [1], reshape []).
            column = Tensor(tensor.name, tensor.datatype, shape[:1], tensor.data.reshape(-1), tensor.parameters)
            return self._fit(column, spec)
        if not expected and shape == (1,):
            return self._fit(Tensor(tensor.name, tensor.datatype, (), tensor.data.reshape(()), tensor.parameters), spec)
        if len(shape) != len(expected):
            raise InvalidInput(
                f"input '{tensor.name}': shape {list(shape)} has {len(shape)} dimensions, "
                f"the model takes {len(expected)}: {list(expected)}"
            )
        for axis, (size, want) in enumerate(zip(shape, expected, strict=True)):
            if want not in (-1, size):
                raise InvalidInput(
                    f"input '{tensor.name}': shape {list(shape)} has {size} in dimension {axis}, "
                    f"the model takes {want}: {list(expected)} (-1: any)"
                )
        if tensor.datatype == spec.datatype:
            return tensor.data
        if self._coerce:
            return _coerced(tensor, spec)
        raise InvalidInput(f"input '{tensor.name}': datatype is {tensor.datatype}, the model takes {spec.datatype}")


def _nested_as(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Nest single numbers as the model says, where they come as rows of it, and both are rows of one: else gives the tensor itself."""
    shape, expected = tensor.shape, spec.shape
    is_of_one = all(size == 1 for size in shape[1:]) and all(size in (-1, 1) for size in expected)
    if spec.any_rank or not is_of_one or not tensor.data.size:
        return tensor
    if len(shape) == len(expected) and all(want in (-1, size) for size, want in zip(shape, expected, strict=True)):
        return tensor
    # As many rows as the model takes: which they are, the graph says; here the rest of the request is to be checked.
    fitted = tuple(1 for _ in expected)
    return Tensor(tensor.name, tensor.datatype, fitted, tensor.data.reshape(-1)[:1].reshape(fitted), tensor.parameters)


def _coerced(tensor: Tensor, spec: TensorSpec) -> np.ndarray:
    """Convert numbers to the datatype that the model takes.

    Booleans, integers and floats become floats (the nearest), integers become wider or narrower integers where all values fit.
    """
    data = tensor.data
    target = NUMPY_DTYPES[spec.datatype]
    kinds = data.dtype.kind + target.kind
    if tensor.datatype != "BYTES" and kinds in ("ff", "if", "uf", "bf"):
        with np.errstate(over="ignore"):
            result = data.astype(target)
        if kinds == "ff" and target.itemsize < data.dtype.itemsize and np.isinf(result).sum() != np.isinf(data).sum():
            raise InvalidInput(
                f"input '{tensor.name}': a value is too large for {spec.datatype}, which the model takes"
            )
        return result
    if kinds in ("ii", "uu", "iu", "ui"):
        bounds = np.iinfo(target)
        if data.size and (int(data.min()) < bounds.min or int(data.max()) > bounds.max):
            raise InvalidInput(f"input '{tensor.name}': a value does not fit {spec.datatype}, which the model takes")
        return data.astype(target)
    raise InvalidInput(
        f"input '{tensor.name}': datatype is {tensor.datatype}, the model takes {spec.datatype}, and no number is lost only "
        "from integers to floats"
    )


class OutputChecks:
    """The checks of one model's answers, made ready once.

    Args:
        model: loaded.
        batchable: every output has as many rows as the batch.
        outputs: of one of its signatures; None: its default ones.
        any_shape: their shapes follow the request's, which are not the model's.
    """

    def __init__(
        self,
        model: Model,
        *,
        batchable: bool,
        outputs: Sequence[TensorSpec] | None = None,
        any_shape: bool = False,
    ) -> None:
        self._name = model.name
        self._batchable = batchable
        self._specs = tuple(
            (spec, spec.datatype, NUMPY_DTYPES[spec.datatype], -1 if any_shape or spec.any_rank else len(spec.shape))
            for spec in (model.outputs if outputs is None else outputs)
        )

    def take_any_rows(self) -> None:
        """Take any number of rows of any output from now on: batches are of one request."""
        self._batchable = False

    def check(
        self, outputs: Any, rows: int, wanted: frozenset[str] | None
    ) -> list[tuple[str, str, np.ndarray, TensorSpec | None]]:
        """Check what predict returned.

        Args:
            outputs: what came, of any type.
            rows: of the batch.
            wanted: outputs asked for by name; None: all but the optional ones.

        Returns:
            Name, datatype, array and spec of each output to answer with, in the model's order.

        Raises:
            RowsDiffer: an output has other rows than the batch.
            ModelFailed: naming the output and what is wrong with it.
        """
        if not isinstance(outputs, Mapping):
            raise ModelFailed(f"model '{self._name}' did not return its outputs by name")
        result = []
        if not self._specs:
            for name, array in outputs.items():
                if wanted is None or name in wanted:
                    array = array if isinstance(array, np.ndarray) else self._array(name, array)
                    try:
                        datatype = datatype_of(array.dtype)
                    except KeyError:
                        raise ModelFailed(
                            f"model '{self._name}': output '{name}' has type {array.dtype}, which the protocol cannot carry"
                        ) from None
                    result.append((name, datatype, self._rows(name, array, rows), None))
            missing = () if wanted is None else wanted.difference(outputs)
            if missing:
                raise InvalidInput(
                    f"output '{min(missing)}' is not one of model '{self._name}'; its outputs are {_list(outputs)}"
                )
            return result
        for spec, datatype, dtype, rank in self._specs:
            name = spec.name
            if wanted is not None and name not in wanted:
                continue
            array = outputs.get(name)
            if array is None:
                if wanted is None and spec.optional:
                    continue
                raise ModelFailed(f"model '{self._name}' did not return its output '{name}'")
            if not isinstance(array, np.ndarray):
                array = self._array(name, array)
            if array.dtype != dtype and not (datatype == "BYTES" and array.dtype.kind in "SU"):
                raise ModelFailed(
                    f"model '{self._name}': output '{name}' has type {array.dtype}, its metadata promises {datatype}"
                )
            if array.ndim != rank and rank >= 0:
                raise ModelFailed(
                    f"model '{self._name}': output '{name}' has shape {list(array.shape)}, "
                    f"its metadata promises {list(spec.shape)}"
                )
            result.append((name, datatype, self._rows(name, array, rows), spec))
        return result

    def _array(self, name: str, value: Any) -> np.ndarray:
        """Take NumPy's scalar for an array of shape []: that is what its arithmetic makes of one."""
        if isinstance(value, np.generic):
            return np.asarray(value)
        raise ModelFailed(f"model '{self._name}': output '{name}' is not an array")

    def _rows(self, name: str, array: np.ndarray, rows: int) -> np.ndarray:
        if self._batchable and (not array.ndim or array.shape[0] != rows):
            raise RowsDiffer(
                f"model '{self._name}': output '{name}' has shape {list(array.shape)}, its inputs had {rows} rows"
            )
        if array.dtype.kind in "SUO":
            return self._bytes(name, array)
        return array

    def _bytes(self, name: str, array: np.ndarray) -> np.ndarray:
        """Turn strings into the object array of `bytes` that carries BYTES."""
        values = array.ravel().tolist()
        if array.dtype.kind == "O" and all(type(value) is bytes for value in values):
            return array
        result = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            if isinstance(value, str):
                result[i] = value.encode()
            elif isinstance(value, bytes):
                result[i] = value
            else:
                raise ModelFailed(
                    f"model '{self._name}': output '{name}' holds something that is neither bytes nor string"
                )
        return result.reshape(array.shape)


def _list(names: Any) -> str:
    shown = [f"'{name}'" for name in list(names)[:16]]
    if len(names) > 16:
        shown.append(f"and {len(names) - 16} more")
    return ", ".join(shown) or "none"


def _row_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of a row of these inputs; 0 where that depends on the values."""
    dtypes = [np.dtype(NUMPY_DTYPES[spec.datatype]) for spec in specs]
    if any(dtype.hasobject for dtype in dtypes):
        return 0
    return sum(dtype.itemsize * prod(spec.shape[1:]) for dtype, spec in zip(dtypes, specs, strict=True))
