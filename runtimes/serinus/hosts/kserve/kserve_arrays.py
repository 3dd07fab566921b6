"""`KServeArrays`: a `kserve.Model` that hands its rows over, as a model of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import REGISTRY

from ...model import Call, Family, Model
from ...protocol.types import TensorSpec
from ...settings import ModelSettings
from ..error_translation import ErrorTranslation
from ..prometheus_families import read_families
from .kserve_errors import translate
from .kserve_instances import is_of_a_class, load_kserve, specs_of

__all__ = ["KServeArrays"]

_translated = ErrorTranslation(translate)


class KServeArrays(Model):
    """A `kserve.Model` that opted into batching: `serinus_batchable = True` and `predict_arrays(inputs, parameters)`.

    Under stock KServe its `predict` is called; here `predict_arrays`, with the rows of all requests that wait. What its author says of the
    rows is believed, unless `serinus_batching = "earned"`; then `serinus_provenance` and `serinus_join_rows(joined)` are `Model`'s.
    """

    platform = "kserve_model"

    def __init__(self, settings: ModelSettings, model: Any) -> None:
        super().__init__(settings)
        self.hosted = model
        self.platform = getattr(model, "serinus_platform", "kserve_model")  # type: ignore[misc] # of this one model
        self.batching = getattr(model, "serinus_batching", "declared")
        self.details["host"] = "kserve"

    def load(self) -> None:
        """Load the model; what it says of its tensors is checked from then on."""
        load_kserve(self.hosted, self.settings.name)
        self.inputs = self.settings.inputs or self._named(self.hosted.get_input_types())
        self.outputs = self.settings.outputs or specs_of(self.hosted.get_output_types())
        self.provenance = getattr(self.hosted, "serinus_provenance", None)
        self.details.update(getattr(self.hosted, "serinus_details", {}))

    def join_rows(self, joined: bool) -> None:
        """Tell the model, where it wants to know."""
        super().join_rows(joined)
        tell = getattr(self.hosted, "serinus_join_rows", None)
        if tell is not None:
            tell(joined)

    @staticmethod
    def _named(listed: Any) -> tuple[TensorSpec, ...]:
        optional = {entry["name"] for entry in listed if entry.get("optional")}
        return tuple(
            TensorSpec(spec.name, spec.datatype, spec.shape, optional=True) if spec.name in optional else spec
            for spec in specs_of(listed)
        )

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Hand the rows over."""
        with _translated:
            return self.hosted.predict_arrays(inputs, call.parameters)

    def metrics(self) -> Sequence[Family]:
        """As `KServeHost.metrics`."""
        return read_families(REGISTRY.collect(), is_of_a_class)

    def warmup_inputs(self) -> Mapping[str, np.ndarray] | None:
        """Ask the model for a row of its own, if it has one."""
        rows = getattr(self.hosted, "warmup_arrays", None)
        return rows() if rows is not None else None

    def unload(self) -> None:
        """Stop the model."""
        self.hosted.stop()
