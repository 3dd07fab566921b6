"""Warming a model up, measuring it, and choosing where its predict runs.

`auto` means: inline where one row takes less than `INLINE_ROW_S`, else in a thread. The first calls of a model
compile and allocate, so they are not measured; the median of a few later ones is, for one row and for growing
batches, which gives the cost per row. Runs in the thread that loads the model; readiness waits for it. `process` is
never chosen by itself: it loads the model a second time.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from ...errors import ModelFailed
from ...model import Call, Model
from ...protocol.datatypes import NUMPY_DTYPES
from .executor import Cost, Predict

__all__ = ["INLINE_ROW_S", "measure", "sample_inputs"]

_log = logging.getLogger("serinus.model")

INLINE_ROW_S: Final = 0.0002
"""Slowest one-row predict that runs on the event loop: handing a batch to a thread and back costs about half of it."""
_BUDGET_S: Final = 0.5
"""Time for the whole measurement of one model, the first call not counted."""
_FREE_DIMENSION: Final = 1


def sample_inputs(model: Model) -> Mapping[str, np.ndarray] | None:
    """Make one row of zeros (empty strings) from the model's input specs; None where it declares none.

    A dimension that may vary is 1; optional inputs are left out.
    """
    if not model.inputs:
        return None
    sample = {}
    for spec in model.inputs:
        if spec.optional:
            continue
        shape = tuple(_FREE_DIMENSION if size == -1 else size for size in spec.shape)
        sample[spec.name] = (
            np.full(shape, b"", dtype=object)
            if spec.datatype == "BYTES"
            else np.zeros(shape, NUMPY_DTYPES[spec.datatype])
        )
    return sample


def measure(
    model: Model, predict: Predict, clock: Callable[[], float], *, batchable: bool, max_rows: int
) -> Cost | None:
    """Warm up and time a model.

    Args:
        model: loaded.
        clock: seconds.
        predict: the model's, or that of its worker process.
        batchable: rows may be repeated into larger batches.
        max_rows: largest batch to try.

    Returns:
        What a predict costs; None where there is nothing to predict, or zeros are not an input that the model takes.

    Raises:
        ModelFailed: the model does not predict the inputs that it gave for warming up.
    """
    given = model.warmup_inputs()
    inputs = given if given is not None else sample_inputs(model)
    if inputs is None:
        return None
    call = Call()
    try:
        predict(inputs, call)
    except Exception as error:
        if given is not None:
            raise ModelFailed(f"model '{model.name}' does not predict its own warm-up inputs: {error}") from error
        _log.info(
            "model '%s': not warmed up, since it does not predict zeros (%s); it may give warmup_inputs()",
            model.name,
            error,
        )
        return None
    until = clock() + _BUDGET_S
    predict(inputs, call)
    one = _median(predict, inputs, call, clock, until)
    rows = 1
    total = one
    if batchable:
        while rows * 8 <= max_rows and total < 0.02 and clock() + 24 * total < until:
            rows *= 8
            batch = {name: np.repeat(array, rows, axis=0) for name, array in inputs.items()}
            predict(batch, call)
            total = _median(predict, batch, call, clock, until)
    row_s = max(0.0, (total - one) / (rows - 1)) if rows > 1 else 0.0
    return Cost(one - row_s if one > row_s else one, row_s)


def _median(
    predict: Predict, inputs: Mapping[str, np.ndarray], call: Call, clock: Callable[[], float], until: float
) -> float:
    times = []
    for _ in range(7):
        start = clock()
        predict(inputs, call)
        end = clock()
        times.append(end - start)
        if end > until:
            break
    return statistics.median(times)
