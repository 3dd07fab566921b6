"""`RecommenderFeatures`: the KServe transformer between user ids and a recommender model.

Theory of operation. `preprocess` checks the request (`questions`), finds its users in the catalogue, and makes the tensors that
this version of the model takes (`features`), for the users that the catalogue knows. `postprocess` takes the best of the
model's scores, and for users that nobody knows the items that most people liked: the output `source` says which. Where no user is
known the model is not asked. What `postprocess` needs of the request travels in a context variable, which belongs to
the task that runs the three methods.

The catalogue lies beside the model, and both are of one version; run the transformer in the model's pod or process, so that a
canary has its own (`inferenceservices/recommender`).
"""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from .catalogue import CATALOGUE_FILE, TITLES_FILE, Catalogue
from .features import Picks, candidates, find_users, model_inputs, top_k
from .questions import BadQuestion, Question, ask_instances, ask_tensor

try:
    import kserve
    from kserve import InferInput, InferOutput, InferRequest, InferResponse
    from kserve.errors import InferenceError, InvalidInput
except ImportError as error:  # pragma: no cover # the extra that brings it is always there in our environments
    raise ImportError("recommender_features needs KServe's SDK: pip install 'serinus[recommender-features]'") from error

__all__ = ["RecommenderFeatures"]

_log = logging.getLogger("serinus.recommender_features")

_OWN_PARAMETERS: Final = frozenset({"k", "exclude_seen", "binary_data_output"})
"""Request parameters that are meant for this transformer and its transport, not for the model."""
_NO_TITLES: Final = f"missing: {TITLES_FILE} is not beside {CATALOGUE_FILE}; `make models-recommender` fetches it"


@dataclass(slots=True, eq=False)
class _Call:
    """What `postprocess` must know of the request."""

    question: Question
    users: np.ndarray
    """int64 [n], -1 for a user that the catalogue does not know."""
    offered: np.ndarray
    """int64 [n, I]"""
    v1: bool
    request_id: str
    binary: bool
    outputs: Any
    """The request's `outputs`, as KServe read them; None: all."""
    grpc: bool


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("recommender_features_call", default=None)


class _NobodyKnown(InferRequest):
    """A request that needs no model; an `InferRequest`, because KServe checks what comes back."""


class RecommenderFeatures(kserve.Model):
    """User ids to recommendations.

    Takes `user_id` BYTES or INT64 [n] (V2), or objects with `user_id` (V1); parameters `k` and `exclude_seen`. Needs a predictor
    that speaks V2 (`--predictor_protocol=grpc-v2` or `v2`).
    """

    def __init__(
        self,
        name: str,
        *,
        catalogue: Catalogue | None = None,
        catalogue_dir: str | Path | None = None,
        model_dir: str | Path | None = None,
    ) -> None:
        """Construct; `load` reads the catalogue.

        Args:
            name: of the served model.
            catalogue: one already read, for tests.
            catalogue_dir: where `catalogue.npz` lies; None: the environment's CATALOGUE_DIR, else beside the model, else /mnt/models.
            model_dir: file or folder of the model in the same process, which `serinus serve` tells.
        """
        super().__init__(name)
        self._catalogue = catalogue
        beside = Path(model_dir or "/mnt/models")
        beside = beside.parent if beside.is_file() else beside
        self._folder = Path(catalogue_dir or os.environ.get("CATALOGUE_DIR") or beside)
        self._index: dict[int | str, int] = {}

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue, read on first use.

        Raises:
            ValueError: see `Catalogue.load`.
        """
        if self._catalogue is None:
            self._catalogue = Catalogue.load(self._folder)
        return self._catalogue

    def load(self) -> bool:
        """Read the catalogue."""
        catalogue = self.catalogue
        for number, user in enumerate(catalogue.user_ids.tolist()):
            self._index[user] = self._index[str(user)] = number
        if not catalogue.titles:
            _log.warning("%s: titles are %s", self.name, _NO_TITLES)
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input; an integer tensor is taken as well."""
        return [{"name": "user_id", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the answer."""
        return [
            {"name": "user_id", "datatype": "BYTES", "shape": [-1]},
            {"name": "item_id", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "title", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "source", "datatype": "BYTES", "shape": [-1]},
        ]

    async def preprocess(  # type: ignore[override] # KServe annotates `headers` as never None
        self, payload: Mapping[str, Any] | InferRequest, headers: Mapping[str, str] | None = None
    ) -> InferRequest:
        """Make the model's tensors for the users that are known.

        Returns:
            The tensors that the catalogue's `inputs` name, rows in request order.

        Raises:
            InvalidInput: the request is wrong.
        """
        _call.set(None)
        v2 = isinstance(payload, InferRequest)
        try:
            question, parameters = _read(payload)
        except BadQuestion as error:
            raise InvalidInput(str(error)) from None
        catalogue = self.catalogue
        users = find_users(self._index, question.user_ids)
        offered = candidates(catalogue, users, exclude_seen=question.exclude_seen)
        request_id = (payload.id or "") if isinstance(payload, InferRequest) else ""
        _call.set(
            _Call(
                question,
                users,
                offered,
                not v2,
                request_id,
                isinstance(payload, InferRequest) and bool(payload.use_binary_outputs),
                payload.request_outputs if isinstance(payload, InferRequest) else None,
                isinstance(payload, InferRequest) and bool(payload.from_grpc),
            )
        )
        known = users >= 0
        if not known.any():
            return _NobodyKnown(self.name, [])
        tensors = model_inputs(catalogue, users[known], offered[known])
        return InferRequest(
            self.name,
            [
                InferInput(name, list(array.shape), "FP32" if array.dtype.kind == "f" else "INT64", array)
                for name, array in tensors.items()
            ],
            request_id or None,
            parameters={k: v for k, v in parameters.items() if k not in _OWN_PARAMETERS},
        )

    async def predict(  # type: ignore[override] # KServe annotates optional arguments as never None
        self, payload: Any, headers: Any = None, response_headers: Any = None
    ) -> Any:
        """Ask the model, unless nobody is known."""
        if isinstance(payload, _NobodyKnown):
            return InferResponse(payload.id or "", self.name, [])
        return await super().predict(payload, headers, response_headers)

    async def postprocess(  # type: ignore[override] # as above
        self, result: Any, headers: Any = None, response_headers: Any = None
    ) -> Any:
        """Take the best.

        Returns:
            V2: user_id as it came [n], item_id INT64 [n, k], title BYTES [n, k], score FP32 [n, k], source BYTES [n].
            V1: one object per instance.

        Raises:
            InferenceError: the model's scores have another shape than the candidates.
        """
        call = _call.get()
        if call is None:
            return result
        catalogue, known = self.catalogue, call.users >= 0
        scores = np.empty(call.offered.shape, np.float32)
        scores[~known] = catalogue.popularity
        if known.any():
            scores[known] = _scores(result, (int(known.sum()), call.offered.shape[1]))
        picks = top_k(call.offered, scores, call.question.k)
        if call.v1:
            return self._predictions(call, picks, result.model_version)
        return self._response(call, picks, result)

    def _response(self, call: _Call, picks: Picks, result: Any) -> InferResponse:
        catalogue = self.catalogue
        n, k = picks.numbers.shape
        source = np.empty(n, object)
        source[:] = [b"model" if user >= 0 else b"popular" for user in call.users.tolist()]
        outputs = [
            _ids_output(call.question.user_ids),
            InferOutput("item_id", [n, k], "INT64", picks.item_ids(catalogue)),
            InferOutput("title", [n, k], "BYTES", picks.titles(catalogue)),
            InferOutput("score", [n, k], "FP32", picks.scores),
            InferOutput("source", [n], "BYTES", source),
        ]
        if call.outputs:
            wanted = {output.name for output in call.outputs}
            unknown = sorted(wanted - {output.name for output in outputs})
            if unknown:
                names = ", ".join(output.name for output in outputs)
                raise InvalidInput(f"output {unknown[0]!r} was asked for; outputs are {names}")
            outputs = [output for output in outputs if output.name in wanted]
        return InferResponse(
            call.request_id or result.id or "",
            result.model_name or self.name,
            outputs,
            model_version=result.model_version,
            from_grpc=call.grpc,
            parameters={} if catalogue.titles else {"titles": _NO_TITLES},
            use_binary_outputs=call.binary,
            requested_outputs=call.outputs,
        )

    def _predictions(self, call: _Call, picks: Picks, version: str | None) -> dict[str, Any]:
        catalogue = self.catalogue
        columns = (picks.item_ids(catalogue), picks.titles(catalogue), picks.scores, picks.numbers)
        predictions = []
        for row, user in enumerate(call.question.user_ids):
            ids, titles, scores, numbers = (column[row].tolist() for column in columns)
            items = [
                {"item_id": one, "title": title.decode() or None, "score": score}
                for one, title, score, number in zip(ids, titles, scores, numbers, strict=True)
                if number
            ]
            source = "model" if call.users[row] >= 0 else "popular"
            predictions.append({"user_id": user, "source": source, "items": items})
        answer: dict[str, Any] = {"predictions": predictions}
        if version:
            answer["model_version"] = version
        if not catalogue.titles:
            answer["titles"] = _NO_TITLES
        return answer


def _read(payload: Mapping[str, Any] | InferRequest) -> tuple[Question, dict[str, Any]]:
    """The question, and the request's parameters as plain values."""
    if not isinstance(payload, InferRequest):
        if not isinstance(payload, Mapping) or "instances" not in payload:
            raise BadQuestion("'instances': missing, expected a list of objects with user_id")
        options = {key: value for key, value in payload.items() if key != "instances"}
        return ask_instances(payload["instances"], options), options
    parameters = _plain(payload.parameters or {})
    names = [tensor.name for tensor in payload.inputs]
    if names != ["user_id"]:
        raise BadQuestion(f"inputs {', '.join(names) or 'none'} came, one input 'user_id' was expected")
    tensor = payload.inputs[0]
    # KServe holds gRPC's raw contents apart, under no public name; as_numpy reads them.
    values = tensor.data if tensor._raw_data is None else tensor.as_numpy()
    return ask_tensor(tensor.datatype, tensor.shape, values, parameters), parameters


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values: over gRPC KServe leaves them as messages."""
    plain: dict[str, Any] = {}
    for key, value in parameters.items():
        which = value.WhichOneof("parameter_choice") if hasattr(value, "WhichOneof") else None
        plain[key] = value if which is None else getattr(value, which)
    return plain


def _scores(result: Any, shape: tuple[int, int]) -> np.ndarray:
    # An exported program has no names for its outputs, so the only one is taken, whatever it is called.
    if len(result.outputs) != 1:
        names = ", ".join(output.name for output in result.outputs) or "nothing"
        raise InferenceError(f"the model answered {names}; one output, the candidates' scores, was expected")
    scores = result.outputs[0].as_numpy()
    if scores.shape != shape:
        raise InferenceError(
            f"output {result.outputs[0].name!r}: shape {list(scores.shape)} came, {list(shape)} was expected"
        )
    return scores


def _ids_output(ids: tuple[int | str, ...]) -> InferOutput:
    if all(isinstance(one, int) and -(2**63) <= one < 2**63 for one in ids):
        return InferOutput("user_id", [len(ids)], "INT64", np.array(ids, np.int64))
    array = np.empty(len(ids), object)
    array[:] = [str(one).encode() for one in ids]
    return InferOutput("user_id", [len(ids)], "BYTES", array)
