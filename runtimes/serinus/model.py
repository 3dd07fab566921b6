"""`Model`: the one class that an author of a runtime must know, and `RequestModel` for those who want whole requests.

Life of a model: construct with its settings, `load()` once (in a thread; readiness waits for it), warm up with
`warmup_inputs()`, then `predict()` for each batch, and `unload()` after the last request in flight has been answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from .bounds import ModelBounds
from .errors import NotSupported, SerinusError
from .feature_columns import FeatureColumns
from .protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Signature, TensorSpec, no_parameters

if TYPE_CHECKING:
    from .settings import ModelSettings

__all__ = [
    "Behind",
    "Call",
    "Cancellable",
    "Execution",
    "Family",
    "Model",
    "Provenance",
    "RequestBatching",
    "RequestModel",
    "V1Answer",
]

Execution = Literal["auto", "inline", "thread", "process"]
"""Where `predict` runs: on the event loop, in a thread, in a process, or wherever the measurement at warm-up says."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a batch asks for besides its arrays. Requests are only batched together when all of this is equal."""

    parameters: Mapping[str, Any] = field(default_factory=no_parameters)
    """The request's parameters, without those that the server itself takes (timeout, priority, binary_data_output)."""
    outputs: frozenset[str] | None = None
    """Names of the outputs that the client wants; None: the model's default ones."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that decides what a model answers. What is found out about it holds for exactly this, and is kept under it."""

    files: Sequence[Path]
    """The model's files; what is kept lies beside the first. A folder stands for all files in it."""
    facts: Mapping[str, Any] = field(default_factory=no_parameters)
    """What else does: versions of frameworks, the device, settings. Values that JSON can carry."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of a model's or transport's own."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    samples: Sequence[tuple[Mapping[str, str], float]] = field(default=())
    """Labels and value. The values of several workers are added. The label `__name__` is Prometheus's for a sample that is not called as
    its family: `rows_bucket`, `rows_sum` and `rows_count` of a histogram `rows`."""


@dataclass(frozen=True, slots=True)
class V1Answer:
    """What a model answers in V1 where it is no object, or has response headers of its own."""

    document: Any
    """What the body is made of: bytes as they are, an asynchronous iterator of bytes piece by piece, all else as JSON."""
    headers: Mapping[str, str] = field(default_factory=no_parameters)
    content_type: str = "application/json"
    """Of bytes and pieces."""


class Model:
    """A model that maps named arrays to named arrays, rows first.

    Example:
        >>> class Doubler(Model):
        ...     inputs = (TensorSpec("x", "FP32", (-1, 2)),)
        ...     outputs = (TensorSpec("y", "FP32", (-1, 2)),)
        ...
        ...     def predict(self, inputs, call):
        ...         return {"y": inputs["x"] * 2}
    """

    answers: ClassVar[Literal["arrays", "requests"]] = "arrays"
    """What the plane serves it by: batches of arrays, or whole requests."""
    extra_settings: ClassVar[Mapping[str, str]] = NO_PARAMETERS
    """Settings of the runtime's own (`parameters.extra`, `--extra`), each with a line for `serinus serve --class ... --help`."""
    platform: ClassVar[str] = ""
    """`<project>_<format>`, as the protocol's metadata wants it: "xgboost_ubj"."""
    execution: Execution = "auto"
    batchable: bool = True
    """Rows of several requests may be stacked along axis 0 and predicted in one call, and the rows of every output
    belong to the rows of the inputs in order, and depend on no others. False: one request per call."""
    batching: Literal["declared", "earned"] = "declared"
    """Whose word `batchable` is. declared: the author's, who wrote `predict` and knows. earned: `batchable` says no more than that the
    shapes allow it, since the model is a file of somebody else's; rows are joined only where `serinus.dataplane.joining.decision` has
    found at start that they are independent. For runtimes that serve any graph."""
    unbatchable_reason: str = ""
    """Why `batchable` is false, for people, where the shapes do not say it; set with it."""
    unbatched_signatures: Mapping[str, str] = NO_PARAMETERS
    """Those of `signatures` whose requests are predicted alone, and why, although `batchable` is true."""
    provenance: Provenance | None = None
    """What the answers of an earned model come from; set in `load`. None: nothing is kept, and every start checks again."""
    computes_in: str = ""
    """Datatype of `predict`'s own arithmetic where that is coarser than its tensors' (FP16, BF16); bounds what a check may ask of it."""
    checks_apart: bool = False
    """Random inputs may break the process (an index out of range ends a CUDA context), so they are tried in one of their own."""
    coerce: bool = False
    """Numbers of another datatype than an input's are converted (any float, integer or boolean to a float, an integer to another
    where its values fit) instead of refused, and a column [n, 1] is taken for an input [n]. For models whose clients send FP64
    to an FP32 matrix."""
    columns: FeatureColumns | None = None
    """Names of the columns of the one matrix that the model takes; set in `load`. A request may send one tensor a column instead, by name,
    and V1 rows may be objects; `predict` gets the matrix, whatever came, under any name. `inputs` is then for the metadata alone."""
    any_input_name: bool = False
    """Where exactly one input is declared, take a request's only input under whatever name it has."""
    takes_v1_shapes: bool = False
    """Rows of single numbers in a V1 request go to `predict` nested as they came, where the model takes rows of one number or of any: [3]
    for an input [-1, 1]. TensorFlow Serving leaves all shapes to the graph, and its own first examples are such requests."""
    checks_requests: bool = True
    """Refuse requests that do not fit `inputs` and `outputs`. False: those are for the metadata only, and the model sees all."""
    slow_outputs: frozenset[str] = frozenset()
    """Outputs that take far longer than the others (explanations): a batch that wants one never runs on the event loop."""
    inputs: Sequence[TensorSpec] = ()
    """What `predict` takes; set on the class or in `load`. Empty: whatever comes is passed on unchecked."""
    outputs: Sequence[TensorSpec] = ()
    """What `predict` returns; set on the class or in `load`. One marked `optional` may be left out of an
    answer to a request that does not name it."""
    signatures: Mapping[str, Signature] = NO_PARAMETERS
    """Further functions of the model, which requests choose by the parameter `signature_name`; `predict` finds the name in
    `call.parameters`. A request that names none gets `inputs` and `outputs`."""
    default_signature: str = ""
    """Which of `signatures` that is; empty: none of them."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.name: str = settings.name
        self.version: str = settings.version
        """Empty: the model is not versioned."""
        self.details: dict[str, Any] = {}
        """Facts for the metadata's `properties`: the engine in use, the file loaded."""
        self.observe_stage: Callable[[str, float], None] = _unobserved
        """Call with "preprocess", "predict", "postprocess" or "explain" and seconds, on the event loop's thread, to show a stage
        of the model's own in the metrics `request_<stage>_seconds`."""
        self.ask: Callable[[InferRequest], Awaitable[InferResponse]] | None = None
        """Set by the plane once the model is served: answers a request as one that came over the wire, with the model's queue, checks and
        statistics. For routes of the model's own."""
        self.bounds = ModelBounds()
        """What the server allows a model to size; for one that loads another."""

    def load(self) -> None:
        """Read the model's files. Runs once, in a thread. Raise `ConfigError` for a wrong model directory."""

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Compute the outputs of one batch.

        Args:
            inputs: one array per input, rows of all batched requests in order; may be read-only.
            call: parameters and wanted outputs, equal for the whole batch.

        Returns:
            One array per output. With `batchable`, each has as many rows as the inputs.

        Raises:
            InvalidInput: the inputs are wrong; where they came from several requests, each is then tried alone.
        """
        raise NotImplementedError

    def warmup_inputs(self) -> Mapping[str, np.ndarray] | None:
        """One row of input to warm up and time the model with; None: made of zeros from `inputs`, or skipped."""
        return None

    def join_rows(self, joined: bool) -> None:
        """Learn whether rows of several requests will be joined, before the first of them.

        A model that earns its batching is told false before the check and what was found after it, so that `predict` can do no more with
        the rows of one request than is right: padding them, for instance, needs independent rows.
        """
        self.batchable = joined

    @property
    def decoupled(self) -> bool:
        """Each request on a stream has any number of responses (Triton, decoupled_models.md)."""
        return False

    def metrics(self) -> Iterable[Family]:
        """Metrics of the model's own, asked for at each scrape, on the event loop: be quick.

        What several models of one process tell alike (the memory of a shared device) counts once.
        """
        return ()

    def extra_routes(self) -> Sequence[Any]:
        """HTTP routes of the model's own, in the form that the REST server takes; read once, after `load`."""
        return ()

    def unload(self) -> None:
        """Release what `load` took. Runs after the last request has been answered."""


def _unobserved(stage: str, seconds: float) -> None:
    """Observe nothing: the model is not served yet."""


class Cancellable(Protocol):
    """Work under way whose result may turn out to be wanted by nobody."""

    def cancel(self) -> object:
        """Give it up."""
        ...


class Behind(Protocol):
    """The model that another one stands in front of, as that one asks it."""

    model: Model
    """Loaded."""

    @property
    def batchable(self) -> bool:
        """Rows of several requests share its batches."""
        ...

    def infer_nowait(
        self, request: InferRequest, on_complete: Callable[[InferResponse | SerinusError], None]
    ) -> Cancellable:
        """Begin a request; `on_complete` is told the outcome, once, later than this returns, and not at all after a cancel.

        Raises:
            SerinusError: it is refused; `on_complete` will not be called.
        """
        ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; cancelling the task that awaits cancels the request."""
        ...

    async def predict_v1(self, body: bytes, headers: Mapping[str, str], *, deadline: float | None = None) -> V1Answer:
        """Answer a V1 `:predict` body."""
        ...


class RequestBatching(Protocol):
    """How a `RequestModel` answers several requests together; see `RequestModel.request_batching`."""

    max_rows: int
    """Most rows of one batch."""
    max_delay_s: float
    """Longest wait for more rows where the model could begin at once; 0: none."""

    def key(self, request: InferRequest) -> tuple[Hashable, int] | None:
        """Say what must be equal for requests to be answered together, and how many rows this one has; None: it is answered alone."""
        ...

    def infer_batch(
        self, requests: Sequence[InferRequest], on_complete: Callable[[Sequence[InferResponse] | BaseException], None]
    ) -> Cancellable | None:
        """Answer requests of one key, one or several, by callback.

        Args:
            requests: in the order of their arrival.
            on_complete: to be told the responses in the requests' order, or the error, once, on the event loop's thread; also
                where the batch was cancelled.

        Returns:
            What stops it, for when all clients have gone.
        """
        ...

    def is_of_a_member(self, error: BaseException) -> bool:
        """Whether one of several requests may have caused the error, so that each is worth trying alone."""
        ...


class RequestModel(Model):
    """A model that answers whole requests itself: hosts of other frameworks' classes, and pipelines.

    Its requests are answered one by one unless it says how several are (`request_batching`). `infer` runs on the event loop; put blocking work in
    a thread yourself.
    """

    answers = "requests"
    batchable = False
    forwards_classification: bool = False
    """The outputs that a request wants are asked of a predictor, which classifies them; what comes as text is not classified
    again."""

    takes_bytes: ClassVar[bool] = False
    """Its V1 calls are given any JSON, and a body that is none as the bytes that came, where the content type does not claim JSON."""

    streams: bool = False
    """It offers `infer_stream`: any number of responses to a request, over `/infer_stream` and ModelStreamInfer."""
    whole_streams: bool = False
    """All requests of a gRPC stream go to one call of `infer_stream`, and are answered in MLServer's messages (ModelInferResponse),
    unless the client asks for Triton's. False: each request has a call of its own, answered in Triton's."""
    has_generate: bool = False
    """`/generate` and `/generate_stream` are `/infer` and `/infer_stream` by other names, as on MLServer."""

    request_batching: RequestBatching | None = None
    """Set in `load` or `start` by a model that can answer several requests together; the plane's one batcher joins them."""
    serve_behind: Callable[[Callable[[ModelSettings], Model], ModelSettings], Awaitable[Behind]] | None = None
    """Set by the plane before `start`: load a model that this one stands in front of. It has a queue, checks, statistics and readiness of its
    own, under this model's name and "-predictor", and is unloaded after this one."""

    def loose_request(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
        """Read the JSON of an inference request that the protocol does not allow, for clients that are used to more; None: it is refused."""
        return None

    @property
    def decoupled(self) -> bool:
        """See `Model.decoupled`."""
        return self.streams and not self.whole_streams

    async def start(self) -> None:
        """Do what needs the event loop, after `load` and before the first request. Raise `ConfigError` as `load` does."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request.

        Raises:
            SerinusError: with the status to answer with; any other exception is reported as `ModelFailed`.
        """
        if self.streams:
            raise NotSupported(f"model '{self.name}' answers in streams only; use infer_stream or ModelStreamInfer")
        raise NotImplementedError

    def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        """Answer a stream of requests with a stream of responses; called where `streams` is true. An asynchronous generator.

        It waits where the client reads slowly, and is closed when the client leaves.

        Args:
            requests: one request; with `whole_streams` over gRPC, those that follow on the same stream too.

        Raises:
            SerinusError: with the status to answer with, or, after the first response, to end the stream with.
        """
        raise NotImplementedError

    async def is_ready(self) -> bool:
        """Whether requests would succeed now; asked every second where a class overrides it, and shown by readiness."""
        return True

    async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any] | V1Answer | None:
        """Answer a V1 `:predict` body; None: the plane converts it to V2 and calls `infer`."""
        return None

    async def explain_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any] | V1Answer | None:
        """Answer a V1 `:explain` body; None: the model explains nothing (501)."""
        return None
