"""`RowLane`: one-row requests of a pipeline go through its transformer together.

Theory of operation. A transformer's `preprocess` sees one request; for one row, wrapping and unwrapping costs many times
the work. A class may say how it treats rows of several requests at once (`RowTransformer`). Requests of one row that ask for
nothing special, and came in one turn of the event loop, are then stacked, preprocessed in one call, sent to the model
as one request and answered one by one. All others, V1 bodies among them, take the way of `KServeHost`.

The order of requests is kept. When preprocessing or predicting several rows fails, each row goes again, alone, so one bad
request fails alone, and with the message that it would have had alone. `preprocess_rows` must therefore change nothing before it
has accepted all rows, and must stand to be called again with rows that it has seen.

A subclass that overrides `preprocess`, `predict` or `postprocess` and says nothing of rows has no lane: what it changed would
not be called. Everything runs on the event loop; a request given up by its client leaves before it is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ...dataplane.batching.pending_request import Done, Ticket
from ...dataplane.checks import SERVER_PARAMETERS
from ...errors import Cancelled, ModelFailed, NotReady, Overloaded, SerinusError, TimedOut
from ...model import RequestDone
from ...protocol.datatypes import datatype_of
from ...protocol.types import InferRequest, InferResponse, Tensor
from .kserve_errors import translate

__all__ = ["RowLane", "RowTransformer", "row_transformer"]

_MAX_ROWS: Final = 64
"""Rows of one call: what follows waits for the loop's next turn, so that no other connection waits much longer than 1 ms."""
_MAX_FORMS: Final = 256
"""Combinations of names, datatypes and shapes remembered; beyond it all are forgotten."""

_NOT_OF_ROWS: Final = (Cancelled, NotReady, Overloaded, TimedOut)
"""Errors that no row can be the cause of: alone it would fare no better."""

_Form = tuple[tuple[str, str, tuple[int, ...]], ...]


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


class _Row:
    """One request in the lane."""

    __slots__ = ("cancelled", "done", "form", "lane", "request", "ticket")

    def __init__(self, request: InferRequest, form: _Form, done: RequestDone) -> None:
        self.request = request
        self.form = form
        self.done = done
        self.cancelled = False
        self.ticket: _Flight | None = None

    def cancel(self) -> None:
        """Leave the lane; the model stops when nobody waits for it any more."""
        self.cancelled = True
        if self.ticket is not None:
            self.ticket.left()


class _Flight:
    """Rows on their way through the model."""

    __slots__ = ("rows", "started", "state", "ticket")

    def __init__(self, rows: Sequence[_Row], state: Any, started: float) -> None:
        self.rows = rows
        self.state = state
        self.started = started
        self.ticket: Ticket | None = None

    def left(self) -> None:
        """One row was given up."""
        if self.ticket is not None and all(row.cancelled for row in self.rows):
            self.ticket.cancel()
            ticket, self.ticket = self.ticket, None
            if ticket is not None:
                asyncio.get_running_loop().call_soon(_tell_all, self.rows, Cancelled("the client went away"))


class RowLane:
    """The lane of one pipeline.

    Args:
        transformer: from `row_transformer`.
        submit: asks the model: `ServedModel.submit`.
        observe: told stages and seconds, as `Model.observe_stage`, once a request.
    """

    def __init__(
        self,
        transformer: RowTransformer,
        submit: Callable[[InferRequest, Done, float], Ticket],
        *,
        name: str,
        version: str,
        observe: Callable[[str, float], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transformer = transformer
        self._submit = submit
        self._name = name
        self._version = version
        self._observe = observe
        self._loop = loop
        self._waiting: list[_Row] = []
        self._forms: dict[_Form, bool] = {}
        """Whether requests of this form go through the lane."""

    def begin(self, request: InferRequest, done: RequestDone) -> _Row | None:
        """Take a request, if it is of one row and plain; `done` is told later, once, even after `cancel`."""
        if request.outputs or (request.parameters and not request.parameters.keys() <= SERVER_PARAMETERS):
            return None
        form = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs])
        takes = self._forms.get(form)
        if takes is None:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            takes = self._forms[form] = self._takes(form)
        if not takes or not self._transformer.serinus_row_inputs:
            return None
        row = _Row(request, form, done)
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(row)
        return row

    def _takes(self, form: _Form) -> bool:
        names = [name for name, _, _ in form]
        return (
            all(shape in ((1,), (1, 1)) for _, _, shape in form)
            and len(set(names)) == len(names)
            and self._transformer.serinus_row_inputs.issuperset(names)
        )

    def _flush(self) -> None:
        waiting = self._waiting
        self._waiting = waiting[_MAX_ROWS:]
        if self._waiting:
            self._loop.call_soon(self._flush)
        together: list[_Row] = []
        for row in waiting[:_MAX_ROWS]:
            if row.cancelled:
                row.done(Cancelled("the client went away"))
                continue
            if together and row.form != together[0].form:
                self._run(together)
                together = []
            together.append(row)
        if together:
            self._run(together)

    def _run(self, rows: Sequence[_Row]) -> None:
        """Preprocess rows of one form, and ask the model."""
        started = time.perf_counter()
        first = rows[0].request.inputs
        try:
            if len(rows) == 1:
                columns = {tensor.name: (tensor.datatype, tensor.data) for tensor in first}
            else:
                columns = {
                    tensor.name: (tensor.datatype, np.concatenate([row.request.inputs[at].data for row in rows]))
                    for at, tensor in enumerate(first)
                }
            inputs, state = self._transformer.preprocess_rows(columns)
        except Exception as error:  # noqa: BLE001 # the edge of these requests
            self._failed(rows, error)
            return
        request = InferRequest(
            self._name,
            [Tensor(name, datatype_of(array.dtype), array.shape, array) for name, array in inputs.items()],
        )
        now = time.perf_counter()
        for _ in rows:
            self._observe("preprocess", now - started)
        flight = _Flight(rows, state, now)
        for row in rows:
            row.ticket = flight
        try:
            flight.ticket = self._submit(request, lambda answer: self._answered(flight, answer), time.monotonic())
        except SerinusError as error:
            self._failed(rows, error)

    def _answered(self, flight: _Flight, answer: InferResponse | SerinusError) -> None:
        rows = flight.rows
        flight.ticket = None
        if not isinstance(answer, InferResponse):
            self._failed(rows, answer)
            return
        now = time.perf_counter()
        try:
            responses = self._responses(flight, answer)
        except Exception as error:  # noqa: BLE001 # the edge of these requests
            self._failed(rows, error)
            return
        after = time.perf_counter()
        for row, response in zip(rows, responses, strict=True):
            self._observe("predict", now - flight.started)
            self._observe("postprocess", after - now)
            row.done(response)

    def _responses(self, flight: _Flight, answer: InferResponse) -> list[InferResponse]:
        """Cut the answer to all rows into one for each."""
        rows = flight.rows
        datatypes = {tensor.name: tensor.datatype for tensor in answer.outputs}
        outputs = self._transformer.postprocess_rows(
            flight.state, {tensor.name: tensor.data for tensor in answer.outputs}
        )
        columns = []
        for name, array in outputs.items():
            if array.shape[:1] != (len(rows),):
                raise ModelFailed(f"output '{name}': shape {list(array.shape)} came, expected {len(rows)} rows")
            columns.append((name, datatypes.get(name) or datatype_of(array.dtype), (1, *array.shape[1:]), array))
        name, version, parameters = self._name, self._version, answer.parameters
        return [
            InferResponse(
                name,
                [Tensor(output, datatype, shape, array[at : at + 1]) for output, datatype, shape, array in columns],
                version,
                row.request.id,
                parameters,
            )
            for at, row in enumerate(rows)
        ]

    def _failed(self, rows: Sequence[_Row], error: Exception) -> None:
        """Try each of several rows again, alone; tell the only one."""
        error = translate(error) or error
        if len(rows) > 1 and not isinstance(error, _NOT_OF_ROWS):
            for row in rows:
                row.ticket = None
                if row.cancelled:
                    row.done(Cancelled("the client went away"))
                else:
                    self._run((row,))
        else:
            _tell_all(rows, error)


def _tell_all(rows: Sequence[_Row], error: Exception) -> None:
    for row in rows:
        row.done(error)
