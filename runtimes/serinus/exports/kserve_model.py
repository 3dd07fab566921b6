"""The other way: a serinus `Model` as a `kserve.Model`, for stock `kserve.ModelServer`.

    python -m serinus.exports.kserve_model --class xgboost_server --model_name fraud --model_dir ./model --http_port 8080

takes KServe's flags, runs KServe's server, and has nothing of this library's but the model.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from typing import Any

try:
    import kserve
except ImportError as error:
    raise ImportError("serving under KServe needs kserve: pip install 'serinus[kserve]'") from error

import orjson
from kserve import InferOutput, InferResponse
from kserve import InferRequest as KServeRequest
from kserve.errors import InferenceError, ModelNotReady
from kserve.errors import InvalidInput as KServeInvalidInput

from ..dataplane.servables.v1_requests import convert
from ..errors import ClientError, ConfigError, ServerError
from ..hosts.factory import build_model
from ..hosts.kserve.kserve_types import from_kserve_request
from ..loading.directory import settings_from_directory
from ..model import Model, RequestModel
from ..protocol.types import Tensor, TensorSpec
from ..settings import ModelSettings
from .local_calls import LocalCalls

__all__ = ["ServedByKServe", "as_kserve", "main"]


class ServedByKServe(kserve.Model):
    """A serinus `Model` that stock KServe serves.

    Args:
        model: made, not necessarily loaded.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.name)
        self._model = model
        self._calls: LocalCalls | None = None

    def load(self) -> bool:
        """Load the model."""
        self._model.load()
        if isinstance(self._model, RequestModel):
            asyncio.run(self._model.start())
        self._calls = LocalCalls(self._model)
        self.ready = True
        return True

    def stop(self) -> None:
        """Unload the model."""
        if self._calls is not None:
            self._calls = None
            self._model.unload()
        super().stop()

    def get_input_types(self) -> list[dict[str, Any]]:
        """What the model takes."""
        return [_spec(spec) for spec in self._model.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """What the model answers."""
        return [_spec(spec) for spec in self._model.outputs]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answer one request: V1 rows or columns, or V2 tensors."""
        calls = self._calls
        if calls is None:
            raise ModelNotReady(self.name)
        try:
            if isinstance(payload, dict):
                request, write = convert(orjson.dumps(payload), calls.metadata)
                return orjson.loads(write(await calls.infer(request)))
            request = from_kserve_request(payload, model_name=self.name, headers=headers or {}, deadline=None)
            response = await calls.infer(request)
        except ClientError as error:
            raise KServeInvalidInput(str(error)) from error
        except ServerError as error:
            raise InferenceError(str(error)) from error
        by_name = {tensor.name: tensor for tensor in response.outputs}
        wanted = [output.name for output in payload.request_outputs or () if output.name in by_name]
        return InferResponse(
            payload.id or "",
            self.name,
            [_output(by_name[name], payload) for name in wanted or by_name],
            use_binary_outputs=payload.use_binary_outputs,
        )


def as_kserve(model: Model) -> ServedByKServe:
    """Give a serinus `Model` as a `kserve.Model`, for stock `kserve.ModelServer`; call its `load()` first, as with any other."""
    return ServedByKServe(model)


def _output(tensor: Tensor, payload: KServeRequest) -> InferOutput:
    """Write one output; KServe has no BF16, so its values travel as the FP32 that carries them."""
    datatype = "FP32" if tensor.datatype == "BF16" else tensor.datatype
    output = InferOutput(tensor.name, list(tensor.shape), datatype)
    output.set_data_from_numpy(tensor.data, binary_data=payload.use_binary_outputs)
    return output


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _settings(arguments: argparse.Namespace) -> ModelSettings:
    """Read the model directory as `serinus serve` does; of several versions the last is served, since KServe has none.

    Raises:
        ConfigError: the directory holds no model, or several.
    """
    named = arguments.implementation
    if arguments.model_dir:
        allowed = [pattern for text in arguments.allow_implementation for pattern in text.split(",") if pattern]
        found = settings_from_directory(arguments.model_dir, named, allow_implementation=allowed)
    else:
        found = [ModelSettings(name="", implementation=named)]
    names = sorted({settings.name for settings in found})
    if len(names) > 1:
        raise ConfigError(f"{arguments.model_dir} holds several models, {', '.join(names)}: name the folder of one")
    last = max(found, key=lambda settings: int(settings.version) if settings.version.isdecimal() else -1)
    threads = arguments.nthread or last.threads
    return dataclasses.replace(last, name=arguments.model_name, threads=threads)


def main() -> None:
    """Serve a serinus model with KServe's own server."""
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument(
        "--class", dest="implementation", default="", help="package[:Class] or file.py[:Class]; default: from the files"
    )
    parser.add_argument("--model_dir", default=None, help="model file or directory")
    parser.add_argument(
        "--allow_implementation",
        action="append",
        default=[],
        help="pattern of classes that the model directory may choose beside the installed runtimes; may be repeated",
    )
    parser.add_argument("--nthread", type=int, default=0, help="native threads of one predict; 0: the CPU limit")
    arguments, _ = parser.parse_known_args()
    try:
        model = ServedByKServe(build_model(_settings(arguments)))
    except ConfigError as error:
        parser.exit(2, "".join(f"{parser.prog}: {problem}\n" for problem in error.problems))
    model.load()
    kserve.ModelServer().start([model])


if __name__ == "__main__":
    main()
