"""`SerinusRuntime`: a serinus `Model` under stock `mlserver start`, and so under Seldon."""

# MLServer cannot be installed beside KServe, where the type checker runs.
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

try:
    from mlserver import MLModel
except ImportError as error:
    raise ImportError("serving under MLServer needs mlserver: pip install 'serinus[mlserver]'") from error

from mlserver.errors import MLServerError, ModelNotReady
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

from ..dataplane.response_stream import closing
from ..errors import SerinusError
from ..hosts.factory import build_model
from ..hosts.mlserver.mlserver_types import from_mlserver_request, tensor_metadata, to_mlserver_response
from ..model import RequestModel
from ..protocol.types import InferRequest
from ..settings import ModelSettings
from .local_calls import LocalCalls

__all__ = ["SerinusRuntime"]


class SerinusRuntime(MLModel):
    """A serinus `Model` under stock MLServer and Seldon: `"implementation": "serinus.hosts.mlserver_host.SerinusRuntime"`.

    `parameters.extra.class` names the model's package or class (`xgboost_server`); without it the runtime is inferred
    from the files. The rest of `parameters.extra` is the model's own.
    """

    _calls: LocalCalls | None = None

    async def load(self) -> bool:
        """Make and load the model."""
        parameters = self.settings.parameters
        extra = dict((parameters.extra if parameters is not None else None) or {})
        location = await get_model_uri(self.settings) if parameters is not None and parameters.uri else None
        if location is None and self.settings._source:  # no public name for where the settings came from
            location = str(Path(self.settings._source).parent)
        settings = ModelSettings(
            name=self.name,
            version=self.version or "",
            implementation=extra.pop("class", ""),
            model_dir=Path(location) if location else None,
            extra=extra,
            # MLServer has chosen code by the same file already, and its `uri` may lead anywhere.
            allow_implementation=("*",),
            allow_uri=(Path("/"),),
        )
        model = build_model(settings)
        await asyncio.get_running_loop().run_in_executor(None, model.load)
        if isinstance(model, RequestModel):
            await model.start()
        self._calls = LocalCalls(model)
        self.inputs = self.inputs or tensor_metadata(model.inputs)
        self.outputs = self.outputs or tensor_metadata(model.outputs)
        self.settings.platform = self.settings.platform or model.platform
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        if self._calls is None:
            raise ModelNotReady(self.name)
        try:
            request = from_mlserver_request(payload, self.name)
            return to_mlserver_response(await self._calls.infer(request))
        except SerinusError as error:
            raise MLServerError(str(error), error.http_status) from error

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        """Answer a stream of requests with the model's stream, or its one answer."""
        model = self._calls.model if self._calls is not None else None
        if not isinstance(model, RequestModel) or not model.streams:
            yield await self.predict(await anext(payloads))
            return

        async def requests() -> AsyncIterator[InferRequest]:
            async for payload in payloads:
                yield from_mlserver_request(payload, self.name)

        responses = model.infer_stream(requests())
        try:
            async with closing(responses):
                async for response in responses:
                    yield to_mlserver_response(response)
        except SerinusError as error:
            raise MLServerError(str(error), error.http_status) from error

    async def unload(self) -> bool:
        """Unload the model."""
        calls, self._calls = self._calls, None
        if calls is not None:
            await asyncio.get_running_loop().run_in_executor(None, calls.model.unload)
        return True
