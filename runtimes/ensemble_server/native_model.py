"""`Ensemble` without KServe: the same rows as a serinus `Model`, for environments that have no KServe, such as MLServer's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serinus.errors import ConfigError
from serinus.model import Call, Model
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings

from .rows import EnsembleRows

__all__ = ["Ensemble"]


class Ensemble(Model):
    """Members and a combiner, as `ensemble.yaml` describes them (see the README)."""

    platform = "serinus_ensemble"
    batching = "earned"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        if settings.model_dir is None:
            raise ConfigError("model_dir is not set; name the folder that holds ensemble.yaml")
        self._rows = EnsembleRows(
            settings.name, str(settings.model_dir), settings.native_threads, settings.allow_implementation
        )

    def load(self) -> None:
        """Check `ensemble.yaml` whole, then load the members.

        Raises:
            ConfigError: with every problem of the file, or else of the members, each with its line.
        """
        rows = self._rows
        rows.load_members()
        self.inputs = [TensorSpec(s.name, s.datatype, s.shape, optional=s.optional) for s in rows.input_specs]
        self.outputs = rows.output_specs
        self.details.update(rows.serinus_details)
        self.provenance = rows.serinus_provenance

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Score rows; see `EnsembleRows.predict_arrays`."""
        return self._rows.predict_arrays(inputs, call.parameters)

    def warmup_inputs(self) -> Mapping[str, np.ndarray]:
        """One row of zeros and empty strings."""
        return self._rows.warmup_arrays()

    def join_rows(self, joined: bool) -> None:
        """Tell the members whether the rows that they get are independent."""
        super().join_rows(joined)
        self._rows.serinus_join_rows(joined)

    def unload(self) -> None:
        """Unload the members."""
        self._rows.unload_members()
