"""`MlflowModel`: a folder that MLflow saved, served by whichever runtime serves its flavour, else as MLflow's pyfunc.

Theory of operation. `MLmodel` says what the model is (`mlmodel`), its file what can serve it (`flavours`). Where that is one of our runtimes
its class, found by name, is derived from here and now, with what is MLflow's beside it: the labels of a classifier, the scoring server's paths,
the signature in the metadata. Nothing stands between such a model and the data plane. The others are the pyfunc's (`pyfunc`), which runs code of
the folder, and so only where the operator says so. `/invocations` asks the model as every other request does: with its queue, its batches and
its statistics.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from serinus.artifacts import Extra
from serinus.dataplane.large_bodies import read_aside
from serinus.errors import ConfigError
from serinus.model import Call, Model
from serinus.protocol.documents.json_values import dump_document
from serinus.protocol.types import InferRequest, TensorSpec
from serinus.settings import ModelSettings

from .flavours import Choice, choose
from .invocations import predictions, read_body, to_request
from .mlmodel import MlModel, read
from .pyfunc import PyfuncModel
from .routes import Answered, routes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MlflowModel"]

_log = logging.getLogger("serinus.mlflow")

_SERVED_BY: Final = "served_by"
_LABELLED: Final = ("binary:logistic", "multi:softprob")
"""Objectives whose probabilities an XGBClassifier makes labels of in a way that is known here."""


class MlflowModel(Model):
    """Makes the model of a folder: constructing it gives an instance of the runtime's class that serves it.

    Raises:
        ConfigError: the folder is none of MLflow's, is damaged, or only code that nobody trusts could serve it.
    """

    platform = "mlflow_model"
    extra_settings: ClassVar[Mapping[str, str]] = {
        _SERVED_BY: "auto (default): one of our runtimes where one serves the flavour, else MLflow's pyfunc; runtime; pyfunc",
    }

    def __new__(cls, settings: ModelSettings) -> Self:
        """Read `MLmodel` and choose."""
        extra = Extra({key: value for key, value in settings.extra.items() if key == _SERVED_BY}, known=(_SERVED_BY,))
        wanted = extra.choice(_SERVED_BY, ("auto", "runtime", "pyfunc"))
        extra.close()
        own = {key: value for key, value in settings.extra.items() if key != _SERVED_BY}
        model = read(settings)
        choice = choose(model, settings)
        if wanted == "pyfunc" and choice.package:
            choice = Choice(choice.flavour, reason="asked for by the setting served_by")
        if not choice.package:
            if wanted == "runtime":
                raise ConfigError(
                    f"{model.folder}: the setting served_by is 'runtime', and none serves it: {choice.reason}"
                )
            if own:
                raise ConfigError(f"{model.folder}: MLflow's pyfunc has no setting {min(own)!r}; there is {_SERVED_BY}")
            return PyfuncModel(settings, model, choice)  # type: ignore[return-value] # as the docstring says
        kind = type(f"Mlflow{choice.target.__name__}", (_Labelled if choice.labels else _Flavour, choice.target), {})
        inner = dataclasses.replace(settings, model_dir=choice.file, extra={**choice.extra, **own})
        if (
            choice.is_untold and not settings.inputs
        ):  # a TorchScript archive does not say what it takes; the signature does
            inner = dataclasses.replace(
                inner,
                inputs=tuple(column.spec for column in model.signature.inputs if column.kind == "tensor"),
                outputs=settings.outputs or tuple(c.spec for c in model.signature.outputs if c.kind == "tensor"),
            )
        made = kind(inner)
        made.tell_flavour(model, choice)
        return made


class _Flavour(Model):
    """What is MLflow's of a model that another runtime serves; stands before that runtime's class."""

    _mlmodel: MlModel
    _flavour_choice: Choice

    def tell_flavour(self, model: MlModel, choice: Choice) -> None:
        """Take what `MLmodel` says."""
        self._mlmodel, self._flavour_choice = model, choice

    def load(self) -> None:
        """Load as the runtime does, then add what the signature says."""
        super().load()
        choice, signature = self._flavour_choice, self._mlmodel.signature
        self.details |= {"flavour": choice.flavour, "served_by": choice.package, **signature.told}
        if self._mlmodel.mlflow_version:
            self.details["mlflow_version"] = self._mlmodel.mlflow_version
        _log.info("model %s: the flavour %s is served by %s", self.name, choice.flavour, choice.package)

    def extra_routes(self) -> list[Any]:
        """Give MLflow's paths."""
        return [*super().extra_routes(), *routes(self._invoke, self._mlmodel.mlflow_version)]

    async def _invoke(self, body: bytes, content_type: str) -> Answered:
        assert self.ask is not None  # noqa: S101 # routes are asked of what is served

        def read() -> tuple[bool, InferRequest]:
            asked = read_body(body, content_type)
            return asked.is_frame, to_request(asked, self, self._mlmodel.signature)

        is_frame, request = await read_aside(len(body), read)
        response = await self.ask(request)
        document = {"predictions": predictions(response, self._flavour_choice.answer, is_frame=is_frame)}
        return 200, "application/json", dump_document(document, "null")


class _Labelled(_Flavour):
    """A classifier whose pyfunc answers labels, served by a runtime that answers probabilities."""

    def load(self) -> None:
        """Load as the runtime does.

        Raises:
            ConfigError: as the runtime's; or its probabilities cannot be made the labels that the pyfunc answers.
        """
        super().load()
        self._expect_labels()

    def _expect_labels(self) -> None:
        objective = str(self.details.get("objective", ""))
        if objective not in _LABELLED:
            raise ConfigError(
                f"{self._mlmodel.folder}: an XGBClassifier of the objective {objective!r} answers labels that are not made here; start with "
                f"--extra {_SERVED_BY}=pyfunc --allow_implementation mlflow.pyfunc, and MLflow serves it"
            )
        first, *others = self.outputs
        self.outputs = (TensorSpec(first.name, "INT64", (-1,)), *others)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        """Predict as the runtime does; a classifier's probabilities become labels, as XGBoost's own class makes them."""
        made = super().predict(inputs, call)
        name = self.outputs[0].name
        if name not in made:
            return made
        scores = made[name]
        labels = scores.argmax(axis=1) if scores.ndim == 2 and scores.shape[1] > 1 else scores.reshape(-1) > 0.5
        return {**made, name: labels.astype(np.int64)}
