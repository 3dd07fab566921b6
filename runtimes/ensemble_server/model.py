"""`Ensemble`: several models and a combiner as one `kserve.Model`.

Theory of operation. `predict_arrays` is the whole work, on arrays of any number of rows: cut each member's inputs,
predict, combine. Under `serinus serve` the data plane calls it with the rows of all requests that wait (`serinus_batchable`), once a
check has found them independent, whatever the members are (`serinus_batching`); under stock KServe `predict` decodes one request, V1
or V2, and calls it. Both ways give the same values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import kserve
except ImportError as error:
    raise ImportError("ensemble_server needs kserve: pip install 'serinus[ensemble_server]'") from error

from kserve import InferOutput, InferResponse
from kserve.errors import InvalidInput as KServeInvalidInput
from kserve.protocol.infer_type import InferRequest, to_http_parameters

from serinus.errors import ClientError, ConfigError, InvalidInput
from serinus.model import Provenance
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES

from . import schema
from .combiners import Combiner, CombinerContext, find
from .members import Member, load_members

__all__ = ["Ensemble"]

_log = logging.getLogger("serinus.ensemble")

_WARM_CALLS = 10


class Ensemble(kserve.Model):
    """Members and a combiner, as `ensemble.yaml` describes them (see the README).

    Args:
        name: in URLs.
        model_dir: holds `ensemble.yaml` and the members' files.
        threads: native threads of one member's predict; 0: the container's CPU limit.
        allow_implementation: patterns of the classes that `ensemble.yaml` may name beside the installed runtimes.
    """

    serinus_batchable = True
    serinus_batching = "earned"
    serinus_platform = "serinus_ensemble"

    def __init__(self, name: str, model_dir: str, threads: int = 0, allow_implementation: Sequence[str] = ()) -> None:
        super().__init__(name)
        self._allow_implementation = tuple(allow_implementation)
        self._directory = Path(model_dir)
        self._threads = threads
        self._members: Sequence[Member] = ()
        self._combiner: Combiner | None = None
        self._inputs: tuple[schema.InputSpec, ...] = ()
        self.serinus_details: dict[str, Any] = {}
        """Facts for the metadata's properties."""
        self.serinus_provenance: Provenance | None = None
        """What the answers come from; None: not from files and packages of ours alone."""

    def load(self) -> bool:
        """Check `ensemble.yaml` whole, then load the members.

        Raises:
            ConfigError: with every problem of the file, or else of the members, each with its line.
        """
        spec, checker = schema.read(self._directory)
        context = CombinerContext(spec, checker)
        kind = find(spec.combiner, context) if spec.combiner else None
        combiner: Combiner | None = kind(context, spec.parameters) if kind is not None else None
        checker.raise_problems()
        if combiner is None:
            raise AssertionError("a combiner that was not found is a problem, and was raised")
        members = load_members(spec, checker.path, checker.lines, self._threads, self._allow_implementation)
        for member in members:
            shape = member.output_shape("score") if "score" in member.roles else None
            if shape is not None and (not 1 <= len(shape) <= 2 or shape[-1] not in (-1, 1, 2)):
                line = checker.lines.get(("members", [m.name for m in spec.members].index(member.name)), 1)
                raise ConfigError(
                    f"{checker.path}:{line}: member {member.name!r}: its score has shape {list(shape)}; one value a row, or two "
                    "classes, was expected"
                )
        combiner.bind({member.name: member.features for member in members})
        self._inputs = spec.inputs
        self._members, self._combiner = members, combiner
        if type(combiner).__module__.startswith(f"{__package__}.") and all(member.is_kept for member in members):
            facts = {member.name: dict(member.model.provenance.facts) for member in members if member.model.provenance}
            self.serinus_provenance = Provenance((checker.path, spec.directory), {"members": facts})
        self.serinus_join_rows(False)
        self.serinus_details = {
            "combiner": spec.combiner,
            "members": {member.name: dict(member.model.details) for member in members},
        }
        self._warm_up()
        _log.info("ensemble %s: %s combined by %s", self.name, ", ".join(m.name for m in members), spec.combiner)
        self.ready = True
        return True

    def _warm_up(self) -> None:
        """Predict a few rows: TorchScript specialises itself over its first calls, and the first takes 20 ms."""
        inputs = self.warmup_arrays()
        if not all(spec.optional or spec.name in inputs for spec in self._inputs):
            return
        try:
            for _ in range(_WARM_CALLS):
                self.predict_arrays(inputs, {})
        except Exception as error:  # noqa: BLE001 # zeros need not be what a combiner of somebody else's takes
            _log.info("ensemble %s: not warmed up, since it does not predict zeros (%s)", self.name, error)

    def serinus_join_rows(self, joined: bool) -> None:
        """Tell the members whether the rows that they get are independent; see `serinus.model.Model.join_rows`."""
        for member in self._members:
            member.join_rows(joined)

    def stop(self) -> None:
        """Unload the members."""
        members, self._members = self._members, ()
        for member in members:
            member.model.unload()
        super().stop()

    def get_input_types(self) -> list[dict[str, Any]]:
        """What a request must carry."""
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape), "optional": spec.optional}
            for spec in self._inputs
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """What the combiner answers."""
        outputs = self._combiner.outputs if self._combiner is not None else ()
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in outputs]

    def warmup_arrays(self) -> dict[str, np.ndarray]:
        """One row of zeros and empty strings."""
        return {
            spec.name: np.full(shape, b"" if spec.datatype == BYTES else 0, NUMPY_DTYPES[spec.datatype])
            for spec in self._inputs
            if -1 not in (shape := (1, *spec.shape[1:]))
        }

    def predict_arrays(
        self, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any]
    ) -> Mapping[str, np.ndarray]:
        """Score rows.

        Args:
            inputs: the tensors of `ensemble.yaml`, rows first; optional ones may be absent.
            parameters: the request's; `explain` asks for reasons by feature.

        Returns:
            The combiner's outputs, as many rows.

        Raises:
            InvalidInput: a tensor is missing, or its values are at fault.
        """
        combiner = self._combiner
        if combiner is None:
            raise ConfigError(f"ensemble {self.name!r} is not loaded")
        rows = len(next(iter(inputs.values()))) if inputs else 0
        needs = combiner.needs(parameters)
        answers = {
            member.name: member.predict(inputs, roles, rows)
            for member in self._members
            if (roles := needs.get(member.name))
        }
        return combiner.combine(answers, inputs, parameters, rows)

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
                for spec in (self._combiner.outputs if self._combiner else ())
                if not wanted or spec.name in wanted
            ],
            use_binary_outputs=payload.use_binary_outputs,
        )

    def _predict_v1(self, payload: dict[str, Any]) -> dict[str, Any]:
        rows = payload.get("instances")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise InvalidInput("'instances' must be a list of objects, one a row, with a value for each input")
        columns: dict[str, np.ndarray] = {}
        for spec in self._inputs:
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
        known = {spec.name: spec for spec in self._inputs}
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
