"""MLflow's own `pyfunc`, for what no runtime here serves: in a process of its own, since it is Python code of anybody's.

What it answers over V2 is made of what `predict` returned: columns of a DataFrame by name, an array, lists of texts, numbers or objects. `/invocations` is
answered in that process by MLflow's own `scoring_server`, so that whatever it takes (CSV, Parquet, chats) is taken, and answered word for word. It is the
signature `invocations` of the model, from one tensor of bytes to another.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np

from serinus.errors import ConfigError, InvalidInput, ModelFailed
from serinus.model import Call, Model, Provenance
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES
from serinus.protocol.types import InferRequest, Signature, Tensor, TensorSpec
from serinus.settings import ModelSettings

from .flavours import Choice
from .frames import as_arrays, as_given
from .mlmodel import PYFUNC, MlModel
from .routes import Answered, installed_version, routes

__all__ = ["ALLOW", "PyfuncModel"]

_log = logging.getLogger("serinus.mlflow")

ALLOW: Final = "mlflow.pyfunc"
"""What `--allow_implementation` must name."""
_INVOCATIONS: Final = "invocations"
_UNEXPECTED: Final = "Encountered an unexpected error"
"""How MLflow's scoring server begins its message of what the model itself raised."""


class PyfuncModel(Model):
    """Serves a folder by `mlflow.pyfunc.load_model`.

    Args:
        settings: of the model.
        model: its `MLmodel`.
        choice: why no runtime here serves it.

    Raises:
        ConfigError: nobody trusts its code, or there is no pyfunc.
    """

    platform = "mlflow_pyfunc"
    execution = "process"
    coerce = True

    def __init__(self, settings: ModelSettings, model: MlModel, choice: Choice) -> None:
        super().__init__(settings)
        self._described = model
        self._choice = choice
        self._pyfunc: Any = None
        self.batching = "earned"
        self.batchable = settings.batchable is True
        self.unbatchable_reason = "a pyfunc may look at all rows of a call; batchable: true has it checked"
        self._check_trust()

    def _check_trust(self) -> None:
        folder, choice = self._described.folder, self._choice
        if PYFUNC not in self._described.flavours:
            raise ConfigError(f"{folder}: {choice.reason}, and the model has no {PYFUNC} flavour for MLflow to serve")
        if not self.settings.allows(ALLOW):
            loader = str(self._described.flavours[PYFUNC].get("loader_module"))[:100]
            raise ConfigError(
                f"{folder}: {choice.reason}; MLflow would load it (by {loader}), which runs whatever code the folder's writer put in, with this server's "
                "rights: its files, network and credentials. If the folder is your own and nobody else can write it, start with "
                f"--allow_implementation {ALLOW}"
            )

    def load(self) -> None:
        """Load the model, in the process that serves it.

        Raises:
            ConfigError: MLflow is not installed, or does not load the folder.
        """
        folder = self._described.folder
        try:
            from mlflow import pyfunc
        except ImportError as error:
            raise ConfigError(
                f"{folder}: serving this model takes MLflow, which cannot be imported ({error}); pip install 'serinus[mlflow-server]'"
            ) from None
        try:
            self._pyfunc = pyfunc.load_model(str(folder.resolve()))
        except Exception as error:  # noqa: BLE001 # a folder's code raises whatever it likes
            _log.exception("model %s: MLflow does not load %s", self.name, folder)
            raise ConfigError(f"{folder}: MLflow {installed_version()} does not load it: {error}") from None
        signature = self._described.signature
        self.inputs = tuple(column.spec for column in signature.inputs)
        self.outputs = tuple(column.spec for column in signature.outputs if column.kind != "json")
        if len(self.outputs) != len(signature.outputs):
            self.outputs = ()
        self.signatures = {_INVOCATIONS: _BODIES}
        self.unbatched_signatures = {_INVOCATIONS: "a body is a request of its own"}
        self.provenance = Provenance((folder,), {"mlflow": installed_version()})
        self.details |= {
            "engine": "pyfunc",
            "engine_reason": self._choice.reason,
            "flavour": self._choice.flavour,
            **signature.told,
        }
        _log.info("model %s: served by MLflow's pyfunc: %s", self.name, self._choice.reason)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict, or answer a body of `/invocations`.

        Raises:
            InvalidInput: MLflow refuses the rows, in its words.
            ModelFailed: it answers what no tensor carries.
        """
        if call.parameters.get("signature_name") == _INVOCATIONS:
            return self._invoke(inputs["body"][0], inputs["content_type"][0])
        from mlflow.exceptions import MlflowException

        signature = self._described.signature
        given = as_given(inputs, signature)
        try:
            answer = self._pyfunc.predict(given, params=self._parameters(call.parameters))
        except MlflowException as error:
            raise _refusal(error) from error
        made = as_arrays(answer, signature)
        for spec in self.outputs:
            array = made.get(spec.name)
            if array is not None and spec.datatype != BYTES and array.dtype != object:
                made[spec.name] = array.astype(NUMPY_DTYPES[spec.datatype], copy=False)
        if call.outputs is not None and call.outputs - made.keys():
            raise InvalidInput(f"output {min(call.outputs - made.keys())!r}: the model answers {', '.join(made)}")
        return {name: array for name, array in made.items() if call.outputs is None or name in call.outputs}

    def _parameters(self, came: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take those that the signature has; a list comes as its JSON text, since the protocol's parameters are single values."""
        known = self._described.signature.parameters or {}
        found: dict[str, Any] = {}
        for name, value in came.items():
            if name not in known:
                continue
            if known[name].is_list and isinstance(value, str):
                try:
                    value = json.loads(value)
                except ValueError:
                    raise InvalidInput(f"parameter {name!r} is a list; its JSON text was expected") from None
            found[name] = value
        return found or None

    def _invoke(self, body: bytes, content_type: bytes) -> dict[str, np.ndarray]:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server

        kind = content_type.decode(errors="replace") or "application/json"
        try:
            made = scoring_server.invocations(body, kind, self._pyfunc, self._pyfunc.metadata.get_input_schema())
        except MlflowException as error:
            raise _refusal(error) from error
        return {
            "body": _bytes(made.response.encode()),
            "content_type": _bytes(made.mimetype.encode()),
            "status": np.array([made.status], np.int32),
        }

    def extra_routes(self) -> list[Any]:
        """Give MLflow's paths."""
        return routes(self._answer, self._described.mlflow_version)

    async def _answer(self, body: bytes, content_type: str) -> Answered:
        assert self.ask is not None  # noqa: S101 # routes are asked of what is served
        request = InferRequest(
            self.name,
            [
                Tensor("body", BYTES, (1,), _bytes(body)),
                Tensor("content_type", BYTES, (1,), _bytes(content_type.encode())),
            ],
            parameters={"signature_name": _INVOCATIONS},
        )
        answer = {tensor.name: tensor.data[0] for tensor in (await self.ask(request)).outputs}
        return int(answer["status"]), cast("bytes", answer["content_type"]).decode(), answer["body"]

    def unload(self) -> None:
        """Forget the model."""
        self._pyfunc = None


_BODIES: Final = Signature(
    (TensorSpec("body", BYTES, (1,)), TensorSpec("content_type", BYTES, (1,))),
    (TensorSpec("body", BYTES, (1,)), TensorSpec("content_type", BYTES, (1,)), TensorSpec("status", "INT32", (1,))),
)


def _bytes(value: bytes) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = value
    return array


def _refusal(error: Any) -> InvalidInput | ModelFailed:
    """Tell a refusal of the request by MLflow's status, and a fault of the model's."""
    text = str(error.message).strip()
    if error.get_http_status_code() < 500 and not text.startswith(_UNEXPECTED):
        return InvalidInput(text[:2000])
    _log.error(
        "the model failed: %s\n%s", text[:500], (getattr(error, "json_kwargs", None) or {}).get("stack_trace", "")
    )
    return ModelFailed("the model failed to predict; the server's log has the details")
