"""The distribution of a model's score: one value a row of the output that its settings declare.

Theory of operation. The servable that has answered a batch hands over its outputs, once a batch; a single row costs one bisection, more
rows one pass of NumPy. It is no part of an answer, so nothing here fails one: an output that is absent or holds no numbers is said once
in the log and counts nothing. A NaN counts in the last bin, beyond all bounds, and not in the sum.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...protocol.types import InferResponse
from ...settings import ScoreSettings
from .histogram import Histogram

__all__ = ["Scores"]

_log = logging.getLogger("serinus.model")
_FEW: int = 4
"""Rows up to which a bisection each is faster than one searchsorted (measured: 0.3 us a row against 3 us a call)."""


class Scores:
    """Counts the values of one output.

    Args:
        settings: which output, which bins.
        model: its name, for the log.
    """

    def __init__(self, settings: ScoreSettings, model: str) -> None:
        self.settings = settings
        self.histogram = Histogram(settings.bins)
        self._model = model
        self._output = settings.output
        self._column = -1 if settings.column is None else settings.column
        self._edges = np.asarray(settings.bins)
        self._told = False

    def observe(self, outputs: Any) -> None:
        """Count what a batch was answered with.

        Args:
            outputs: arrays by name, as predict returned them; rows first.
        """
        try:
            self._count(outputs[self._output])
        except Exception as error:  # noqa: BLE001 # an observation fails no request; it is told once
            self._tell(error)

    def observe_responses(self, responses: Iterable[InferResponse]) -> None:
        """Count what whole requests were answered with."""
        for response in responses:
            try:
                self._count(next(tensor.data for tensor in response.outputs if tensor.name == self._output))
            except Exception as error:  # noqa: BLE001 # as above
                self._tell(error)

    def pack(self) -> list[Any]:
        """Give output, bins, counts and sum as JSON values."""
        return [self._output, list(self.settings.bins), list(self.histogram.counts), self.histogram.total]

    def _count(self, array: np.ndarray) -> None:
        if array.ndim > 1:
            array = array.reshape(array.shape[0], -1)[:, self._column]
        histogram = self.histogram
        if array.size <= _FEW:
            counts, bounds = histogram.counts, histogram.bounds
            for value in array.ravel().tolist():
                if value == value:  # not NaN, and cheaper than a call
                    counts[bisect_left(bounds, value)] += 1
                    histogram.total += value
                else:
                    counts[-1] += 1
            return
        values = array.astype(np.float64, copy=False)
        # NaN sorts behind everything: searchsorted puts it beyond the last edge.
        found = np.bincount(np.searchsorted(self._edges, values), minlength=len(histogram.counts)).tolist()
        histogram.counts = [count + more for count, more in zip(histogram.counts, found, strict=True)]
        histogram.total += float(np.nansum(values))

    def _tell(self, error: BaseException) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "model '%s': output '%s' was declared as its score and cannot be counted (%s: %s); check score_output",
                *(self._model, self._output, type(error).__name__, error),
            )
