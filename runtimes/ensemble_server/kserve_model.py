"""`Ensemble` for KServe: several models and a combiner as one `kserve.Model`.

Theory of operation. `predict_arrays` (see `rows`) is the whole work, on arrays of any number of rows: cut each member's inputs,
predict, combine. Under `serinus serve` the data plane calls it with the rows of all requests that wait (`serinus_batchable`), once a
check has found them independent, whatever the members are (`serinus_batching`); under stock KServe `predict` decodes one request, V1
or V2, and calls it. Both ways give the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import kserve
import numpy as np
from kserve import InferOutput, InferResponse
from kserve.errors import InvalidInput as KServeInvalidInput
from kserve.protocol.infer_type import InferRequest, to_http_parameters

from serinus.errors import ClientError, InvalidInput
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES

from . import schema
from .rows import EnsembleRows

__all__ = ["Ensemble"]


class Ensemble(EnsembleRows, kserve.Model):
    """`EnsembleRows` that KServe serves, and `serinus serve`."""

    serinus_batchable = True
    serinus_batching = "earned"
    serinus_platform = "serinus_ensemble"

    def __init__(self, name: str, model_dir: str, threads: int = 0, allow_implementation: Sequence[str] = ()) -> None:
        kserve.Model.__init__(self, name)
        EnsembleRows.__init__(self, name, model_dir, threads, allow_implementation)

    def load(self) -> bool:
        """Check `ensemble.yaml` whole, then load the members.

        Raises:
            ConfigError: with every problem of the file, or else of the members, each with its line.
        """
        self.load_members()
        self.ready = True
        return True

    def stop(self) -> None:
        """Unload the members."""
        self.unload_members()
        super().stop()

    def get_input_types(self) -> list[dict[str, Any]]:
        """What a request must carry."""
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape), "optional": spec.optional}
            for spec in self.input_specs
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """What the combiner answers."""
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in self.output_specs]

    def predict(  # type: ignore[override] # KServe calls a plain def as well as a coroutine
        self,
        payload: dict[str, Any] | InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answer one request under stock KServe: V2 tensors, or V1 rows (`instances` of objects)."""
        try:
            if isinstance(payload, dict):
                return self._predict_v1(payload)
            inputs = self._checked({tensor.name: tensor.as_numpy() for tensor in payload.inputs})
            outputs = self.predict_arrays(inputs, to_http_parameters(payload.parameters or {}))
        except ClientError as error:
            raise KServeInvalidInput(str(error)) from error
        wanted = {output.name for output in payload.request_outputs or ()}
        return InferResponse(
            payload.id or "",
            self.name,
            [
                _output(spec.name, spec.datatype, outputs[spec.name], payload.use_binary_outputs)
                for spec in self.output_specs
                if not wanted or spec.name in wanted
            ],
            use_binary_outputs=payload.use_binary_outputs,
        )

    def _predict_v1(self, payload: dict[str, Any]) -> dict[str, Any]:
        rows = payload.get("instances")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise InvalidInput("'instances' must be a list of objects, one a row, with a value for each input")
        columns: dict[str, np.ndarray] = {}
        for spec in self.input_specs:
            present = [row for row in rows if row.get(spec.name) is not None]
            if len(present) == len(rows):
                columns[spec.name] = np.array([row[spec.name] for row in rows], dtype=object)
            elif present or not spec.optional:
                index = next(i for i, row in enumerate(rows) if row.get(spec.name) is None)
                raise InvalidInput(f"instance {index} has no {spec.name!r}")
        outputs = self.predict_arrays(self._checked(columns), {"explain": payload.get("explain")})
        listed = {
            name: [value.decode() if isinstance(value, bytes) else value for value in array.tolist()]
            for name, array in outputs.items()
        }
        return {"predictions": [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]}

    def _checked(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check names, types and shapes, which serinus's data plane would have done."""
        known = {spec.name: spec for spec in self.input_specs}
        unknown = [name for name in tensors if name not in known]
        if unknown:
            raise InvalidInput(f"input {unknown[0]!r} is not one of this model's: {', '.join(known)}")
        arrays: dict[str, np.ndarray] = {}
        rows: int | None = None
        for name, spec in known.items():
            array = tensors.get(name)
            if array is None:
                if spec.optional:
                    continue
                raise InvalidInput(f"input {name!r} is missing; expected are {', '.join(known)}")
            array = _cast(name, array, spec)
            if rows is not None and len(array) != rows:
                raise InvalidInput(f"input {name!r} has {len(array)} rows, others have {rows}")
            rows = len(array)
            arrays[name] = array
        return arrays


def _cast(name: str, array: np.ndarray, spec: schema.InputSpec) -> np.ndarray:
    if spec.datatype == BYTES:
        elements = [value if isinstance(value, bytes) else str(value).encode() for value in array.reshape(-1).tolist()]
        cast = np.empty(len(elements), dtype=object)
        cast[:] = elements
        array = cast.reshape(array.shape)
    else:
        try:
            array = (
                np.array(array.tolist()).astype(NUMPY_DTYPES[spec.datatype])
                if array.dtype == object
                else array.astype(NUMPY_DTYPES[spec.datatype], copy=False)
            )
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"input {name!r}: values of {spec.datatype} were expected: {error}") from error
    if array.ndim != len(spec.shape) or any(
        want not in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
    ):
        raise InvalidInput(f"input {name!r} has shape {list(array.shape)}, {list(spec.shape)} was expected")
    return array


def _output(name: str, datatype: str, array: np.ndarray, binary: bool) -> InferOutput:
    output = InferOutput(name, list(array.shape), datatype)
    output.set_data_from_numpy(array, binary_data=binary)
    return output
