"""`RowBatching`: one-row requests of a pipeline go through its transformer together.

Theory of operation. A transformer's `preprocess` sees one request; for one row, wrapping and unwrapping costs many times
the work. A class may say how it treats rows of several requests at once (`RowTransformer`). Requests of one row that ask for
nothing special are then joined by the plane's batcher, preprocessed in one call, sent to the model
as one request and answered one by one. All others, V1 bodies among them, take the way of `KServeHost`.

The order of requests is kept. When preprocessing or predicting several rows fails, the batcher has each row go again, alone, so one bad
request fails alone, and with the message that it would have had alone. `preprocess_rows` must therefore change nothing before it
has accepted all rows, and must stand to be called again with rows that it has seen.

A subclass that overrides `preprocess`, `predict` or `postprocess` and says nothing of rows has none of this: what it changed would
not be called. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ...dataplane.servables.checks import SERVER_PARAMETERS
from ...dataplane.telemetry.request_records import join_headers
from ...errors import Cancelled, ModelFailed, NotReady, Overloaded, SerinusError, TimedOut
from ...model import Behind, Cancellable
from ...protocol.datatypes import datatype_of
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Tensor
from ...tracing.tracer import current_tracer
from .kserve_errors import translate

__all__ = ["RowBatching", "RowTransformer", "row_transformer"]

_MAX_ROWS: Final = 64
"""Rows of one call: what follows waits for the loop's next turn, so that no other connection waits much longer than 1 ms."""
_MAX_KEYS: Final = 256
"""Combinations of names, datatypes and shapes remembered; beyond it all are forgotten."""

_NOT_OF_ROWS: Final = (Cancelled, NotReady, Overloaded, TimedOut)
"""Errors that no row can be the cause of: alone it would fare no better."""

_Key = tuple[tuple[str, str, tuple[int, ...]], ...]


class RowTransformer(Protocol):
    """What a `kserve.Model` offers beside `preprocess` and `postprocess` to have the rows of several requests at once."""

    serinus_row_inputs: frozenset[str]
    """Inputs that a request may have for it; empty: not now. Read before each request."""

    def preprocess_rows(self, columns: Mapping[str, tuple[str, np.ndarray]]) -> tuple[Mapping[str, np.ndarray], Any]:
        """Make the model's inputs of n requests of one row each.

        Args:
            columns: datatype and array [n] or [n, 1] of each input, rows in the requests' order.

        Returns:
            The model's inputs, n rows each, and whatever `postprocess_rows` needs.

        Raises:
            Exception: as `preprocess`; nothing has changed.
        """
        ...

    def postprocess_rows(self, state: Any, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Make the answers' outputs, n rows each, of the model's."""
        ...


def row_transformer(hosted: Any) -> RowTransformer | None:
    """Give the class's word on rows, unless a subclass of it changed the methods that it stands for."""
    mro = type(hosted).__mro__
    owner = next((at for at, kind in enumerate(mro) if "preprocess_rows" in vars(kind)), None)
    if owner is None:
        return None
    for name in ("__call__", "validate", "preprocess", "predict", "postprocess"):
        if name in vars(hosted) or any(name in vars(kind) for kind in mro[:owner]):
            return None
    return hosted


class RowBatching:
    """How one pipeline answers one-row requests together; see `model.RequestBatching`.

    Args:
        transformer: from `row_transformer`.
        predictor: the model behind the pipeline.
        observe: told stages and seconds, as `Model.observe_stage`, once a request.
        is_open: false: none are taken now, each takes the general way.
    """

    max_rows = _MAX_ROWS
    max_delay_s = 0.0

    def __init__(
        self,
        transformer: RowTransformer,
        predictor: Behind,
        *,
        name: str,
        version: str,
        observe: Callable[[str, float], None],
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._transformer = transformer
        self._predictor = predictor
        self._name = name
        self._version = version
        self._observe = observe
        self._is_open = is_open
        self._keys: dict[_Key, bool] = {}
        """Whether requests of these names, datatypes and shapes are taken."""

    def key(self, request: InferRequest) -> tuple[Hashable, int] | None:
        """Take a request if it is of one row and plain."""
        if request.outputs or (request.parameters and not request.parameters.keys() <= SERVER_PARAMETERS):
            return None
        key = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs])
        takes = self._keys.get(key)
        if takes is None:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            takes = self._keys[key] = self._takes(key)
        return (key, 1) if takes and self._transformer.serinus_row_inputs and self._is_open() else None

    def is_of_a_member(self, error: BaseException) -> bool:
        """See `model.RequestBatching`."""
        return not isinstance(error, _NOT_OF_ROWS)

    def infer_batch(
        self, requests: Sequence[InferRequest], on_complete: Callable[[Sequence[InferResponse] | BaseException], None]
    ) -> Cancellable:
        """Preprocess rows of one key, and ask the model.

        Raises:
            Exception: what the transformer raises of the rows, or the model's refusal, as the client reads it.
        """
        started = time.perf_counter()
        first = requests[0].inputs
        if len(requests) == 1:
            columns = {tensor.name: (tensor.datatype, tensor.data) for tensor in first}
        else:
            columns = {
                tensor.name: (tensor.datatype, np.concatenate([request.inputs[at].data for request in requests]))
                for at, tensor in enumerate(first)
            }
        try:
            inputs, state = self._transformer.preprocess_rows(columns)
        except Exception as error:
            raise translate(error) or error from error
        rows = InferRequest(
            self._name,
            [Tensor(name, datatype_of(array.dtype), array.shape, array) for name, array in inputs.items()],
            headers=join_headers(requests) if current_tracer() is not None else NO_PARAMETERS,
        )
        asked = time.perf_counter()
        for _ in requests:
            self._observe("preprocess", asked - started)

        def answer(outcome: InferResponse | SerinusError) -> None:
            if not isinstance(outcome, InferResponse):
                on_complete(translate(outcome) or outcome)
                return
            answered = time.perf_counter()
            try:
                responses = self._responses(requests, state, outcome)
            except Exception as error:  # noqa: BLE001 # the edge of these requests
                on_complete(translate(error) or error)
                return
            written = time.perf_counter()
            for _ in requests:
                self._observe("predict", answered - asked)
                self._observe("postprocess", written - answered)
            on_complete(responses)

        return _Asked(self._predictor.infer_nowait(rows, answer), on_complete)

    def _takes(self, key: _Key) -> bool:
        names = [name for name, _, _ in key]
        return (
            all(shape in ((1,), (1, 1)) for _, _, shape in key)
            and len(set(names)) == len(names)
            and self._transformer.serinus_row_inputs.issuperset(names)
        )

    def _responses(self, requests: Sequence[InferRequest], state: Any, answer: InferResponse) -> list[InferResponse]:
        """Cut the answer to all rows into one for each."""
        datatypes = {tensor.name: tensor.datatype for tensor in answer.outputs}
        outputs = self._transformer.postprocess_rows(state, {tensor.name: tensor.data for tensor in answer.outputs})
        columns = []
        for name, array in outputs.items():
            if array.shape[:1] != (len(requests),):
                raise ModelFailed(f"output '{name}': shape {list(array.shape)} came, expected {len(requests)} rows")
            columns.append((name, datatypes.get(name) or datatype_of(array.dtype), (1, *array.shape[1:]), array))
        name, version, parameters = self._name, self._version, answer.parameters
        return [
            InferResponse(
                name,
                [Tensor(output, datatype, shape, array[at : at + 1]) for output, datatype, shape, array in columns],
                version,
                request.id,
                parameters,
            )
            for at, request in enumerate(requests)
        ]


class _Asked:
    """Rows on their way through the model."""

    __slots__ = ("_on_complete", "_pending")

    def __init__(
        self, pending: Cancellable, on_complete: Callable[[Sequence[InferResponse] | BaseException], None]
    ) -> None:
        self._pending = pending
        self._on_complete = on_complete

    def cancel(self) -> None:
        """All clients have gone: the model is told nothing more, and the batch ends."""
        self._pending.cancel()
        asyncio.get_running_loop().call_soon(self._on_complete, Cancelled("the client went away"))
