"""`FraudFeatures`: the KServe transformer between raw transactions and the fraud ensemble.

Theory of operation. `preprocess` checks the whole request (`column_reader`), then counts it in the feature store and reads the
windows in one step (`store`), then computes the features (`features`), and hands the predictor three tensors. `postprocess` gives
the predictor's outputs their transaction ids back. KServe passes no request to `postprocess`; what it needs travels in a context
variable, which belongs to the task that runs the three methods of one request.

A request with the parameter ``operation: record_labels`` (V1: a key beside ``instances``) carries outcomes, not transactions
to score: they go to the store, and `predict` answers without asking the predictor.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from .column_reader import columns_of_instances, parse, parse_labels
from .features import FEATURE_NAMES, batch_of, compute
from .schema import (
    COLUMNS,
    BadTransactions,
    Labels,
    RawTensor,
    Transactions,
)
from .store import FeatureStore, MemoryStore

try:
    import kserve
    from kserve import InferInput, InferOutput, InferRequest, InferResponse
    from kserve.errors import InferenceError, InvalidInput, ModelNotReady
except ImportError as error:  # pragma: no cover # the extra that brings it is always there in our environments
    raise ImportError("fraud_features needs KServe's SDK: pip install 'serinus[fraud-features]'") from error

__all__ = ["FraudFeatures", "open_store"]

_THREAD_ROWS: Final = 2048
"""From here on checking and computing (~5 us a row) leave the event loop."""

_OPERATIONS: Final = ("score", "record_labels")


@dataclass(slots=True, eq=False)
class _Call:
    """What `postprocess` must know of the request."""

    ids: list[bytes]
    integer_ids: bool
    v1: bool
    request_id: str | None
    binary: bool
    outputs: Any
    """The request's `outputs`, as KServe read them; None: all."""
    stats: bool


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("fraud_features_call", default=None)


class _Answered(InferRequest):
    """A request that `preprocess` has answered itself; an `InferRequest`, because KServe checks what comes back."""

    def __init__(self, name: str, answer: InferResponse) -> None:
        super().__init__(name, [])
        self.answer = answer


def open_store(url: str) -> FeatureStore:
    """Open the store that a URL names: empty for the in-process one, redis://, rediss:// or unix:// for Redis.

    Raises:
        ValueError: another scheme.
    """
    if not url:
        return MemoryStore()
    if url.split(":", 1)[0] in ("redis", "rediss", "unix"):
        from .redis_store import RedisStore  # its client is only needed here

        return RedisStore(url)
    raise ValueError(
        f"FEATURE_STORE_URL: {url!r} came, expected redis://, rediss:// or unix://, or nothing (in-process)"
    )


class FraudFeatures(kserve.Model):
    """Raw transactions to features, and the answer back to transactions.

    Takes the columns of `schema.COLUMNS`, as V2 tensors or V1 instances. Needs a predictor that speaks V2
    (`--predictor_protocol=grpc-v2` or `v2`).
    """

    def __init__(
        self,
        name: str,
        *,
        store: FeatureStore | None = None,
        feature_store_url: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Construct; `load` opens the store.

        Args:
            name: of the served model.
            store: a store already open, for tests and for sharing one.
            feature_store_url: see `open_store`; None: the environment's FEATURE_STORE_URL.
            clock: epoch seconds, to tell absurd timestamps.
        """
        super().__init__(name)
        self._store = store
        self._url = os.environ.get("FEATURE_STORE_URL", "") if feature_store_url is None else feature_store_url
        self._clock = clock

    @property
    def store(self) -> FeatureStore:
        """The feature store, opened on first use."""
        if self._store is None:
            self._store = open_store(self._url)
        return self._store

    def load(self) -> bool:
        """Open the store; Redis itself is first asked by the first request."""
        _ = self.store
        self.ready = True
        return self.ready

    def stop(self) -> None:
        """Give back the store's connections."""
        self.ready = False
        if self._store is not None:
            store, self._store = self._store, None
            try:
                self._closing = asyncio.get_running_loop().create_task(store.close())
            except RuntimeError:  # no loop: nothing that was opened in one can still be open
                pass

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the required columns, each in the first of its datatypes."""
        return [{"name": c.name, "datatype": c.datatypes[0], "shape": [-1]} for c in COLUMNS if c.required]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the answer: ids, and the outputs of the fraud ensemble."""
        return [
            {"name": "transaction_id", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "decision", "datatype": "BYTES", "shape": [-1]},
            {"name": "reasons", "datatype": "BYTES", "shape": [-1]},
        ]

    async def preprocess(  # type: ignore[override] # KServe annotates `headers` as never None
        self, payload: Mapping[str, Any] | InferRequest, headers: Mapping[str, str] | None = None
    ) -> InferRequest:
        """Check, count and compute.

        Returns:
            features FP32 [n, F] in the order of `FEATURE_NAMES`, amount FP64 [n], terminal_id BYTES [n]; rows in request order.

        Raises:
            InvalidInput: columns that are wrong, all of them named; nothing has been counted.
            ModelNotReady: the feature store does not answer.
        """
        _call.set(None)
        try:
            columns, parameters, v1 = _read(payload)
            operation = _operation(parameters)
            now_s = self._clock()
            if operation == "record_labels":
                return await self._record(columns, now_s, payload, v1)
            large = any(_length(column) > _THREAD_ROWS for column in columns.values())
            transactions = await asyncio.to_thread(parse, columns, now_s) if large else parse(columns, now_s)
        except BadTransactions as error:
            raise InvalidInput(str(error)) from None
        n = len(transactions)
        batch = batch_of(transactions)
        try:
            aggregates = await self.store.update(batch)
            if transactions.frauds is not None:
                await self.store.record_labels(_labels_of(transactions))
        except OSError as error:
            raise ModelNotReady(self.name, str(error)) from error
        if n > _THREAD_ROWS:
            features = await asyncio.to_thread(compute, transactions, batch, aggregates)
        else:
            features = compute(transactions, batch, aggregates)
        _call.set(_call_of(transactions, payload, parameters, v1))
        terminals = np.empty(n, object)
        terminals[:] = transactions.terminals
        return InferRequest(
            self.name,
            [
                InferInput("features", [n, len(FEATURE_NAMES)], "FP32", features),
                InferInput("amount", [n], "FP64", np.array(transactions.amounts)),
                InferInput("terminal_id", [n], "BYTES", terminals),
            ],
            None if v1 else payload.id,  # type: ignore[union-attr] # V2 payloads are InferRequests
            parameters={k: v for k, v in parameters.items() if k not in _OWN_PARAMETERS and not isinstance(v, float)},
            request_outputs=None if v1 else _wanted_of_predictor(payload.request_outputs),  # type: ignore[union-attr] # as above
        )

    async def predict(  # type: ignore[override] # KServe annotates optional arguments as never None
        self,
        payload: Any,
        headers: Any = None,
        response_headers: Any = None,
    ) -> Any:
        """Ask the predictor, unless `preprocess` has answered."""
        if isinstance(payload, _Answered):
            return payload.answer
        return await super().predict(payload, headers, response_headers)

    async def postprocess(  # type: ignore[override] # as above
        self,
        result: Any,
        headers: Any = None,
        response_headers: Any = None,
    ) -> Any:
        """Give the predictor's rows their transaction ids.

        Returns:
            V2: `transaction_id` (datatype as it came), then the predictor's outputs. V1: one object per instance.

        Raises:
            InferenceError: the predictor answered another number of rows.
        """
        call = _call.get()
        if call is None:
            return result
        n = len(call.ids)
        outputs: list[InferOutput] = [_ids_output(call.ids, call.integer_ids), *result.outputs]
        for output in outputs[1:]:
            if not output.shape or output.shape[0] != n:
                raise InferenceError(f"output '{output.name}': shape {list(output.shape)} came, expected {n} rows")
        parameters = result.parameters
        if call.stats:
            stats = asdict(await self.store.stats())
            parameters = {**dict(parameters or {}), **{f"store_{key}": value for key, value in stats.items()}}
        if call.v1:
            return _predictions(outputs, parameters if call.stats else None)
        if call.outputs:
            wanted = {output.name for output in call.outputs}
            outputs = [output for output in outputs if output.name in wanted]
        return InferResponse(
            call.request_id or result.id or "",
            result.model_name or self.name,
            outputs,
            model_version=result.model_version,
            from_grpc=bool(result.from_grpc),
            parameters=parameters,
            use_binary_outputs=call.binary,
            requested_outputs=call.outputs,
        )

    @property
    def serinus_row_inputs(self) -> frozenset[str]:
        """Columns of one-row requests that may be scored together; none where the store is not in this process.

        Outcomes (`fraud`) are not among them: a row must not see those of a later one.
        """
        return _ROW_INPUTS if type(self.store) is MemoryStore else frozenset()

    def preprocess_rows(
        self, columns: Mapping[str, tuple[str, np.ndarray]]
    ) -> tuple[dict[str, np.ndarray], tuple[list[bytes], bool]]:
        """`preprocess` for the rows of n requests; see `serinus.hosts.kserve.row_batching`.

        Each row is counted in the order it came, and may repeat the id of one before it, as if they had come one after the other.

        Raises:
            InvalidInput: at least one row is wrong; nothing has been counted.
        """
        try:
            raw = {name: RawTensor(datatype, array.shape, array) for name, (datatype, array) in columns.items()}
            transactions = parse(raw, self._clock(), apart=True)
        except BadTransactions as error:
            raise InvalidInput(str(error)) from None
        batch = batch_of(transactions)
        store = self.store
        if not isinstance(store, MemoryStore):
            raise ModelNotReady(self.name, "the feature store was exchanged")
        features = compute(transactions, batch, store.update_now(batch, range(len(batch))))
        terminals = np.empty(len(batch), object)
        terminals[:] = transactions.terminals
        inputs = {"features": features, "amount": np.array(transactions.amounts), "terminal_id": terminals}
        return inputs, (transactions.ids, transactions.integer_ids)

    def postprocess_rows(
        self, state: tuple[list[bytes], bool], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """`postprocess` for the rows of n requests."""
        return {"transaction_id": _ids_array(*state), **outputs}

    @staticmethod
    def answers_v1() -> bool:
        """Whether the request that this task works on came as V1; False where it brought outcomes."""
        call = _call.get()
        return call is not None and call.v1

    async def _record(self, columns: Mapping[str, RawTensor], now_s: float, payload: Any, v1: bool) -> InferRequest:
        labels = parse_labels(columns, now_s)
        try:
            recorded = await self.store.record_labels(labels)
            stats = asdict(await self.store.stats())
        except OSError as error:
            raise ModelNotReady(self.name, str(error)) from error
        outputs = [
            _ids_output(labels.ids, labels.integer_ids),
            InferOutput("recorded", [len(labels)], "BOOL", np.array(recorded, np.bool_)),
        ]
        parameters = {f"store_{key}": value for key, value in stats.items()}
        if v1:
            answer: Any = _predictions(outputs, parameters)
        else:
            answer = InferResponse(
                payload.id or "",
                self.name,
                outputs,
                parameters=parameters,
                use_binary_outputs=bool(payload.use_binary_outputs),
            )
        return _Answered(self.name, answer)


_ROW_INPUTS: Final = frozenset(column.name for column in COLUMNS if column.name != "fraud")

_OWN_PARAMETERS: Final = frozenset({"operation", "stats", "binary_data_output"})
"""Request parameters that are meant for this transformer and its transport, not for the predictor."""


def _read(payload: Mapping[str, Any] | InferRequest) -> tuple[dict[str, RawTensor], dict[str, Any], bool]:
    """Columns, parameters and whether the request is V1."""
    if isinstance(payload, InferRequest):
        columns: dict[str, RawTensor] = {}
        for tensor in payload.inputs:
            # KServe holds gRPC's raw contents apart, under no public name; everything else is `data`.
            raw = tensor._raw_data
            if tensor.name in columns:
                raise BadTransactions([f"column '{tensor.name}': came twice, expected once; send each column once"])
            columns[tensor.name] = RawTensor(tensor.datatype, tensor.shape, tensor.data if raw is None else raw)
        return columns, _plain(payload.parameters) if payload.parameters else {}, False
    if not isinstance(payload, Mapping) or "instances" not in payload:
        raise BadTransactions(["'instances': missing, expected a list of objects, one per transaction"])
    return columns_of_instances(payload["instances"]), {k: v for k, v in payload.items() if k != "instances"}, True


def _operation(parameters: Mapping[str, Any]) -> str:
    operation = parameters.get("operation", "score")
    if operation not in _OPERATIONS:
        expected = " or ".join(_OPERATIONS)
        raise BadTransactions(
            [f"parameter 'operation': {operation!r} came, expected {expected}; leave it out to score"]
        )
    return operation


def _length(column: RawTensor) -> int:
    return column.shape[0] if column.shape else len(column.data)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values: over gRPC KServe leaves them as messages."""
    plain: dict[str, Any] = {}
    for key, value in parameters.items():
        which = value.WhichOneof("parameter_choice") if hasattr(value, "WhichOneof") else None
        plain[key] = value if which is None else getattr(value, which)
    return plain


def _call_of(transactions: Transactions, payload: Any, parameters: Mapping[str, Any], v1: bool) -> _Call:
    return _Call(
        transactions.ids,
        transactions.integer_ids,
        v1,
        None if v1 else payload.id,
        not v1 and bool(payload.use_binary_outputs),
        None if v1 else payload.request_outputs,
        bool(parameters.get("stats")),
    )


def _wanted_of_predictor(outputs: Any) -> Any:
    return [output for output in outputs if output.name != "transaction_id"] or None if outputs else None


def _labels_of(transactions: Transactions) -> Labels:
    t = transactions
    return Labels(t.ids, t.seconds, t.customers, t.terminals, t.frauds or [])


def _ids_output(ids: list[bytes], integers: bool) -> InferOutput:
    return InferOutput("transaction_id", [len(ids)], "INT64" if integers else "BYTES", _ids_array(ids, integers))


def _ids_array(ids: list[bytes], integers: bool) -> np.ndarray:
    if integers:
        return np.array([int(v) for v in ids], np.int64)
    array = np.empty(len(ids), object)
    array[:] = ids
    return array


def _predictions(outputs: list[InferOutput], parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """V1's answer: one object per instance."""
    names = [output.name for output in outputs]
    columns = [
        [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in output.as_numpy().tolist()]
        for output in outputs
    ]
    answer: dict[str, Any] = {"predictions": [dict(zip(names, row)) for row in zip(*columns)]}  # noqa: B905 # rows were checked
    if parameters:
        answer["parameters"] = dict(parameters)
    return answer
