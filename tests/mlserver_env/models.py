"""Classes as MLServer's documents show them ("Custom Inference Runtimes", "Codecs", "Custom endpoints", "Streaming")."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import List  # noqa: UP035 # MLServer finds its codecs by this very type

import mlserver
import numpy as np
from fastapi import HTTPException
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, NumpyRequestCodec, StringCodec, decode_args
from mlserver.errors import InferenceError, MLServerError
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from starlette.responses import StreamingResponse


class SumModel(MLModel):
    """MLServer's own test fixture by this name: sums a request, and has a custom endpoint."""

    @custom_handler(rest_path="/my-custom-endpoint")
    async def my_payload(self, payload: list[int]) -> int:
        return sum(payload)

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        decoded = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        total = decoded.sum(axis=1, keepdims=True)
        output = NumpyCodec.encode_output(name="total", payload=total)
        response = InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
        if payload.parameters and payload.parameters.headers:
            response.parameters = Parameters(headers={"x-seen": payload.parameters.headers.get("x-tenant", "none")})
        return response


class TextModel(MLModel):
    """Strings in and out, with `decode_args`, and a stream."""

    @decode_args
    async def predict(self, text: List[str]) -> List[str]:  # noqa: UP006
        return [value.upper() for value in text]

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        async for payload in payloads:
            for word in StringCodec.decode_input(payload.inputs[0])[0].split():
                yield InferenceResponse(
                    model_name=self.name, outputs=[StringCodec.encode_output("word", [word], use_bytes=False)]
                )


class TwoTexts(MLModel):
    """Two arguments, one of which may be left out; fails in its own code where the text is "fail"."""

    @decode_args
    async def predict(self, text: List[str], end: List[str] = ["!"]) -> List[str]:  # noqa: UP006, B006
        if text == ["fail"]:
            raise TypeError("a fault of the class")
        return [value + end[0] for value in text]


class Scaled(MLModel):
    """Uses `parameters.extra`, the settings' content type, and a load that counts."""

    async def load(self) -> bool:
        self.factor = self.settings.parameters.extra["factor"]
        return self.factor > 0

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = self.decode_request(payload, default_codec=NumpyRequestCodec)
        if not np.isfinite(rows).all():
            raise InferenceError("rows must be finite")
        return self.encode_response(rows * self.factor, default_codec=NumpyRequestCodec)


class Contradiction(MLModel):
    """Answers a shape that its data does not have."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        output = ResponseOutput(name="y", shape=[3], datatype="FP32", data=[1.0])
        return InferenceResponse(model_name=self.name, outputs=[output])


class WholeText(MLModel):
    """Answers one string whose shape is its length in bytes, as MLServer's "custom JSON" example does."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        text = json.dumps({"got": self.decode(payload.inputs[0], default_codec=StringCodec)}).encode()
        output = ResponseOutput(
            name="text", shape=[len(text)], datatype="BYTES", data=[text], parameters=Parameters(content_type="str")
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


class Refusing(MLModel):
    """Raises the status that `parameters.extra` says, in `predict` and in a custom endpoint."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        extra = self.settings.parameters.extra
        if extra["kind"] == "http":
            raise HTTPException(extra["status"], "refused")
        raise MLServerError("refused", extra["status"])

    @custom_handler(rest_path="/refuse", rest_method="GET")
    async def refuse(self) -> None:
        raise MLServerError("refused here", self.settings.parameters.extra["status"])


class Counting(MLModel):
    """Has a metric of its own, of which it logs the rows of each request."""

    async def load(self) -> bool:
        mlserver.register("rows_seen", "Rows of a request.")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        mlserver.log(rows_seen=payload.inputs[0].shape[0])
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("n", np.array(payload.inputs[0].shape))]
        )


class Speaking(MLModel):
    """Streams each text's words; before a word "wait", it waits for a `predict`. Fails at "fail" and at "break"."""

    async def load(self) -> bool:
        self.gate = asyncio.Semaphore(0)
        self.ended = 0
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        self.gate.release()
        return self._response(str(self.ended))

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        try:
            async for payload in payloads:
                for word in StringCodec.decode_input(payload.inputs[0])[0].split():
                    if word == "wait":
                        await self.gate.acquire()
                    if word == "fail":
                        raise InferenceError("it cannot say that")
                    if word == "break":
                        raise ZeroDivisionError("secret of the model")
                    yield self._response(word)
        finally:
            self.ended += 1

    def _response(self, word: str) -> InferenceResponse:
        output = StringCodec.encode_output("word", [word])
        return InferenceResponse(model_name=self.name, outputs=[output])

    @custom_handler(rest_path="/lines", rest_method="GET")
    async def lines(self, count: int) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            for n in range(count):
                if n:
                    await self.gate.acquire()
                yield f"{n}\n"

        return StreamingResponse(body(), media_type="text/plain", headers={"x-own": "1"})


class Shown(MLModel):
    """Answers what it is shown of a request, and says in its parameters and elements more than the protocol has words for."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        shown = payload.model_dump(exclude={"id": True, "parameters": {"headers"}}, exclude_none=True)
        output = ResponseOutput(
            name="shown",
            shape=[2],
            datatype="BYTES",
            data=[json.dumps(shown, sort_keys=True), {"a": 1}],
            parameters=Parameters(nested={"b": [1]}, kept=True),
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


class Tired(MLModel):
    """Calls itself not ready after its first answer."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        self.ready = False
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("n", np.array([1]))])

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        async for payload in payloads:
            yield await self.predict(payload)


class Merged(MLModel):
    """Doubles rows, notes how many it saw at a time, and refuses any that has 13 in it; `mode` says what else is wrong with it."""

    async def load(self) -> bool:
        self.seen: list[int] = []
        self.mode = ""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        self.seen.append(len(rows))
        await asyncio.sleep(0)
        if (rows == 13).any():
            raise InferenceError("13 is refused")
        answer = rows.sum(axis=0, keepdims=True) if self.mode == "sum" else 2 * rows
        response = InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", answer)])
        response.parameters = Parameters(headers={"x-first": payload.parameters.headers.get("x-tenant", "none")})
        return response
