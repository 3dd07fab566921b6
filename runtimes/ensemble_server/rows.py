"""`EnsembleRows`: members and a combiner over arrays, whatever server asks. Knows no server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serinus.errors import ConfigError
from serinus.model import Provenance
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES
from serinus.protocol.types import TensorSpec

from . import schema
from .combiners import Combiner, CombinerContext, find
from .members import Member, load_members

__all__ = ["EnsembleRows"]

_log = logging.getLogger("serinus.ensemble")

_WARM_CALLS = 10


class EnsembleRows:
    """Members and a combiner, as `ensemble.yaml` describes them (see the README).

    Args:
        name: in URLs.
        model_dir: holds `ensemble.yaml` and the members' files.
        threads: native threads of one member's predict; 0: the container's CPU limit.
        allow_implementation: patterns of the classes that `ensemble.yaml` may name beside the installed runtimes.
    """

    name: str

    def __init__(self, name: str, model_dir: str, threads: int = 0, allow_implementation: Sequence[str] = ()) -> None:
        self.name = name
        self._allow_implementation = tuple(allow_implementation)
        self._directory = Path(model_dir)
        self._threads = threads
        self._members: Sequence[Member] = ()
        self._combiner: Combiner | None = None
        self.input_specs: tuple[schema.InputSpec, ...] = ()
        """What `ensemble.yaml` declares; empty before it is loaded."""
        self.serinus_details: dict[str, Any] = {}
        """Facts for the metadata's properties."""
        self.serinus_provenance: Provenance | None = None
        """What the answers come from; None: not from files and packages of ours alone."""

    @property
    def output_specs(self) -> Sequence[TensorSpec]:
        """What the combiner answers; empty before it is loaded."""
        return self._combiner.outputs if self._combiner is not None else ()

    def load_members(self) -> None:
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
        self.input_specs = spec.inputs
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

    def _warm_up(self) -> None:
        """Predict a few rows: TorchScript specialises itself over its first calls, and the first takes 20 ms."""
        inputs = self.warmup_arrays()
        if not all(spec.optional or spec.name in inputs for spec in self.input_specs):
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

    def unload_members(self) -> None:
        """Unload the members."""
        members, self._members = self._members, ()
        for member in members:
            member.model.unload()

    def warmup_arrays(self) -> dict[str, np.ndarray]:
        """One row of zeros and empty strings."""
        return {
            spec.name: np.full(shape, b"" if spec.datatype == BYTES else 0, NUMPY_DTYPES[spec.datatype])
            for spec in self.input_specs
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
