"""Classes of other frameworks, of a known time, for the overload benchmark: kserve.Model and MLServer's MLModel, as far as installed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .overload_models import PREDICT_S, compute

__all__: list[str] = []

try:
    import kserve
except ImportError:
    pass
else:

    def _echo(payload: Any, model: str) -> Any:
        tensor = kserve.InferOutput("y", [1, 2], "FP32", data=payload.inputs[0].data)
        return kserve.InferResponse(payload.id, model, [tensor])

    class KServeSleeping(kserve.Model):
        """A synchronous predict that waits, as most of KServe's classes have."""

        def load(self) -> bool:
            self.ready = True
            return True

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            time.sleep(PREDICT_S)  # what is measured
            return _echo(payload, self.name)

    class KServeComputing(KServeSleeping):
        """A synchronous predict that computes in Python."""

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            compute(PREDICT_S)
            return _echo(payload, self.name)

    class KServeAsyncSleeping(KServeSleeping):
        """An asynchronous predict that waits its turn, and then for a device."""

        _place: asyncio.Lock | None = None

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            self._place = self._place or asyncio.Lock()
            async with self._place:
                await asyncio.sleep(PREDICT_S)  # what is measured
            return _echo(payload, self.name)

    class KServeAsyncComputing(KServeSleeping):
        """An asynchronous predict that computes on the event loop."""

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            compute(PREDICT_S)
            return _echo(payload, self.name)

    class Transformer(kserve.Model):
        """Stands in front of a model, and adds nothing."""

        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return payload

        async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return result

    __all__ += ["KServeAsyncComputing", "KServeAsyncSleeping", "KServeComputing", "KServeSleeping", "Transformer"]

try:
    import mlserver  # pyright: ignore[reportMissingImports] # in an environment of its own
    from mlserver.types import InferenceResponse, ResponseOutput  # pyright: ignore[reportMissingImports] # likewise
except ImportError:
    pass
else:

    class MLServerSleeping(mlserver.MLModel):
        """A predict that blocks, as most of MLServer's runtimes have."""

        async def predict(self, payload: Any) -> Any:
            time.sleep(PREDICT_S)  # what is measured
            return self._answer(payload)

        def _answer(self, payload: Any) -> Any:
            output = ResponseOutput(name="y", shape=[1, 2], datatype="FP32", data=payload.inputs[0].data)
            return InferenceResponse(model_name=self.name, outputs=[output])

    class MLServerComputing(MLServerSleeping):
        """A predict that computes in Python."""

        async def predict(self, payload: Any) -> Any:
            compute(PREDICT_S)
            return self._answer(payload)

    class MLServerAsyncSleeping(MLServerSleeping):
        """A predict that waits its turn, and then for a device."""

        _place: asyncio.Lock | None = None

        async def predict(self, payload: Any) -> Any:
            self._place = self._place or asyncio.Lock()
            async with self._place:
                await asyncio.sleep(PREDICT_S)  # what is measured
            return self._answer(payload)

    __all__ += ["MLServerAsyncSleeping", "MLServerComputing", "MLServerSleeping"]
