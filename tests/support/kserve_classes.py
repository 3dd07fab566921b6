"""Classes as the documents of KServe show them, to be hosted unchanged.

The shapes come from KServe's "Custom Predictor" and "Custom Transformer" pages: constructors that load, V1 dicts and V2 requests,
synchronous and asynchronous handlers, `get_predict_response`, response headers.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import kserve
import numpy as np
import prometheus_client
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.model import BaseKServeModel, InferenceModel, InferenceVerb, PredictorConfig, PredictorProtocol
from kserve.utils.utils import generate_uuid, get_predict_input, get_predict_response


class DocumentedPredictor(kserve.Model):
    """Custom Predictor page: the constructor loads, `predict` is synchronous and answers the protocol it was asked in."""

    def __init__(self, name: str):
        super().__init__(name)
        self.weights: np.ndarray | None = None
        self.ready = False
        self.load()

    def load(self):
        self.weights = np.array([1.0, 10.0])
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        rows = get_predict_input(payload)
        return get_predict_response(payload, np.asarray(rows, dtype=np.float64) @ self.weights, self.name)


class AsyncStages(kserve.Model):
    """All handlers are coroutines, and each leaves its mark."""

    async def preprocess(self, payload, headers=None):
        await asyncio.sleep(0)
        tensor = payload.inputs[0]
        return {"x": tensor.as_numpy() + 1, "id": payload.id, "tenant": headers.get("x-tenant", "none")}

    async def predict(self, payload, headers=None, response_headers=None):
        await asyncio.sleep(0)
        return {**payload, "x": payload["x"] * 10}

    async def postprocess(self, result, headers=None, response_headers=None):
        output = InferOutput(name="y", shape=list(result["x"].shape), datatype="FP32")
        output.set_data_from_numpy(result["x"].astype(np.float32), binary_data=False)
        tenant = InferOutput(name="tenant", shape=[1], datatype="BYTES", data=[result["tenant"]])
        return InferResponse(response_id=result["id"], model_name=self.name, infer_outputs=[output, tenant])


class HeadersBack(kserve.Model):
    """Asks for response headers in its constructor."""

    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)

    def predict(self, payload, headers=None, response_headers=None):
        response_headers.update({"x-model-revision": "7", "content-length": "1"})
        return InferResponse(generate_uuid(), self.name, [InferOutput("y", [1], "INT64", [5])])


class ImageTransformer(kserve.Model):
    """Custom Transformer page: base64 strings to pixels for a predictor, labels out of its answer."""

    def __init__(self, name: str, predictor_host: str = "", predictor_protocol: str = "v2"):
        super().__init__(name)
        self.ready = True

    def preprocess(self, payload, headers=None):
        if isinstance(payload, dict):
            return {"instances": [list(base64.b64decode(row["image"]["b64"])) for row in payload["instances"]]}
        pixels = [np.frombuffer(base64.b64decode(text), np.uint8) for text in payload.inputs[0].data]
        array = np.asarray(pixels).astype(np.float32)
        infer_input = InferInput(name="pixels", shape=list(array.shape), datatype="FP32")
        infer_input.set_data_from_numpy(array, binary_data=True)
        return InferRequest(model_name=self.name, infer_inputs=[infer_input], request_id=payload.id)

    def postprocess(self, result, headers=None, response_headers=None):
        if isinstance(result, dict):
            return {"predictions": [{"label": "bright" if value > 300 else "dark"} for value in result["predictions"]]}
        sums = result.outputs[0].as_numpy().reshape(-1)
        labels = [b"bright" if value > 300 else b"dark" for value in sums]
        return InferResponse(
            response_id=result.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[InferOutput("label", [len(labels)], "BYTES", labels)],
        )


class HeadersThrough(kserve.Model):
    """A transformer that reads the predictor's response headers."""

    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)
        self.ready = True

    def postprocess(self, result, headers=None, response_headers=None):
        response_headers["x-seen"] = response_headers["x-revision"]
        return result


class Counting(kserve.Model):
    """Counts and times what it sees with `prometheus_client`."""

    rows = prometheus_client.Counter("audited_rows", "Rows seen.", ["tenant"])
    seconds = prometheus_client.Histogram("audited_seconds", "Time spent.", buckets=[1.0])
    size = prometheus_client.Summary("audited_size", "Rows of a request.")

    def predict(self, payload, headers=None, response_headers=None):
        self.rows.labels(tenant=headers.get("x-tenant", "none")).inc(len(payload["instances"]))
        self.seconds.observe(0.5)
        self.size.observe(len(payload["instances"]))
        return {"predictions": payload["instances"]}


class OnlyCalled(InferenceModel):
    """Derives from what `kserve.Model` derives from, and has no stages."""

    def __init__(self, name: str):
        super().__init__(name)
        self.ready = True

    async def __call__(self, body, headers=None, verb=InferenceVerb.PREDICT):
        if isinstance(body, dict):
            return {"predictions": [verb.name, *body["instances"]]}, {"x-seen": "yes"}
        return InferResponse("1", self.name, [InferOutput("y", [1], "INT64", [len(body.inputs)])]), {}


class OfNoInference(BaseKServeModel):
    """As KServe's OpenAI models: served at endpoints of their own."""

    def __init__(self, name: str):
        super().__init__(name)


class OwnCall(kserve.Model):
    """Asks its predictor in a way of its own."""

    async def _http_predict(self, payload, headers=None, response_headers=None):
        return {"predictions": ["asked", *payload["instances"]]}


class Moody(kserve.Model):
    """Is ready, and healthy when it likes to be."""

    well = True

    async def healthy(self):
        return self.well

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": payload}


class Spawning(kserve.Model):
    """Starts a task in a synchronous method, which KServe calls on its event loop."""

    def __init__(self, name: str):
        super().__init__(name)
        self.ready = True
        self.logged: list[Any] = []

    def preprocess(self, payload, headers=None):
        self.task = asyncio.create_task(self.log(threading.get_ident()))
        return payload

    async def log(self, thread: int) -> None:
        self.logged.append((thread, asyncio.get_running_loop()))


class SpawningPredictor(Spawning):
    """Its `preprocess` is that of another class."""

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": payload["instances"]}


class SpawningTeller(Spawning):
    """Tells on which thread each piece of its stream is made, and when the stream is closed."""

    def predict(self, payload, headers=None, response_headers=None):
        return self.pieces(payload["instances"])

    async def pieces(self, texts: list[str]):
        self.closed = False
        try:
            for text in texts:
                if text == "fail":
                    raise kserve.errors.InvalidInput("not that")
                await asyncio.sleep(0)
                yield f"{text} {threading.get_ident()}"
        finally:
            self.closed = True


class Stuck(Spawning):
    """Blocks the loop that it is called on until it is let go."""

    let_go = threading.Event()

    def predict(self, payload, headers=None, response_headers=None):
        self.let_go.wait(30)
        return {"predictions": []}


class Engined(kserve.Model):
    """Answers by a task that its engine runs, which never ends by itself."""

    def __init__(self, name: str):
        super().__init__(name)
        self.ended = False

    def load(self):
        self.engine = self.ready = True
        return True

    async def start_engine(self):
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.ready = True
        try:
            while True:
                value, answer = await self.queue.get()
                answer.set_result(2 * value)
        finally:
            self.ended = True

    async def predict(self, payload, headers=None, response_headers=None):
        answer = asyncio.get_running_loop().create_future()
        await self.queue.put((payload["instances"][0], answer))
        return {"predictions": [await answer]}


class BrokenEngine(Engined):
    """Has an engine that does not start."""

    async def start_engine(self):
        raise RuntimeError("no such device")


class SuperTransformer(kserve.Model):
    """Overrides `predict` only to call KServe's own."""

    async def predict(self, payload, headers=None, response_headers=None):
        return await super().predict(payload, headers, response_headers)


class Versioned(kserve.Model):
    """Says in its answer which version of the predictor it came from."""

    def postprocess(self, result, headers=None, response_headers=None):
        output = InferOutput("version", [1], "BYTES", [result.model_version or ""])
        return InferResponse(result.id, self.name, [output])


class EarlierTransformer(kserve.Model):
    """A transformer as KServe's documents had it from 0.11 to 0.16: the predictor's configuration in the constructor, `self.protocol`."""

    def __init__(self, name: str, predictor_host: str, predictor_protocol: str, predictor_use_ssl: bool):
        super().__init__(name, PredictorConfig(predictor_host, predictor_protocol, predictor_use_ssl))
        self.seen = []
        self.ready = True

    def preprocess(self, payload, headers=None):
        self.seen.append((self.predictor_host, self.protocol, self.use_ssl, self.timeout, self.retries))
        if self.protocol == PredictorProtocol.REST_V1.value:
            return {"instances": payload["instances"]}
        return payload

    def postprocess(self, result, headers=None):
        return result


class EarlierHeaders(EarlierTransformer):
    """As its base, asking for response headers, all by name."""

    def __init__(self, name: str, predictor_host: str, predictor_protocol: str):
        kserve.Model.__init__(
            self,
            name,
            predictor_config=PredictorConfig(predictor_host, predictor_protocol),
            return_response_headers=True,
        )
        self.seen = []
        self.ready = True

    def postprocess(self, result, headers=None, response_headers=None):
        response_headers["x-seen"] = "yes"
        return result


class EarlierAttributes(EarlierTransformer):
    """Sets host and protocol on itself, as up to 0.11."""

    def __init__(self, name: str, predictor_host: str, protocol: str):
        kserve.Model.__init__(self, name)
        self.predictor_host = predictor_host
        self.protocol = protocol
        self.seen = []
        self.ready = True


class EarlierFixed(EarlierTransformer):
    """Knows its predictor by itself: no flag names it."""

    address = ""

    def __init__(self, name: str):
        kserve.Model.__init__(self, name, PredictorConfig(self.address, "v2", False, 30, 1), False)
        self.seen = []
        self.ready = True


class EarlierPredictor(kserve.Model):
    """No transformer: gives None for the configuration, and reads the protocol all the same."""

    def __init__(self, name: str):
        super().__init__(name, None)

    def predict(self, payload, headers=None):
        return {"predictions": [self.protocol, self.predictor_host, self.timeout]}


class AsksForVersion(kserve.Model):
    """Asks its predictor for a version."""

    def preprocess(self, payload, headers=None):
        payload.model_version = "7"
        return payload


class Seen(kserve.Model):
    """Remembers all inputs of its last request."""

    def predict(self, payload, headers=None, response_headers=None):
        self.seen = [{"data": tensor.data, "numpy": tensor.as_numpy()} for tensor in payload.inputs]
        return InferResponse("", self.name, [InferOutput("y", [1], "INT64", [1])])


class OwnVersion(kserve.Model):
    """Says itself which version has answered: in its response, or in an object."""

    def predict(self, payload, headers=None, response_headers=None):
        output = {"name": "y", "shape": [1], "datatype": "INT64", "data": [1]}
        if payload.inputs[0].as_numpy()[0]:
            return {"model_name": self.name, "model_version": "9", "outputs": [output]}
        return InferResponse("", self.name, [InferOutput("y", [1], "INT64", [1])], model_version="8")


class Raising(kserve.Model):
    """Raises what the request's parameter names."""

    def predict(self, payload, headers=None, response_headers=None):
        kind = payload.inputs[0].as_string()[0]
        if kind == "fastapi":
            from fastapi import HTTPException

            raise HTTPException(status_code=418, detail="a teapot")
        raise {
            "invalid": InvalidInput("column 'amount' is missing"),
            "inference": InferenceError("the weights are corrupt"),
            "notready": kserve.errors.ModelNotReady(self.name),
            "notfound": kserve.errors.ModelNotFound("other"),
            "notimplemented": NotImplementedError("no such mode"),
            "httpx": httpx.ConnectError("refused"),
            "timeout": httpx.ReadTimeout("late"),
            "bug": ZeroDivisionError("division by zero"),
        }[kind]


ENTERED, GATE = threading.Event(), threading.Event()
"""Of `Blocking`: whether it was called, and whether it may go on."""
GATE.set()


class Blocking(kserve.Model):
    """A synchronous predict that blocks while the gate is closed, and then for as long as its input says; tells its thread."""

    def predict(self, payload, headers=None, response_headers=None):
        ENTERED.set()
        if not GATE.wait(20):
            raise RuntimeError("nobody opened the gate")
        time.sleep(float(payload.inputs[0].as_numpy()[0]))  # how long it takes decides where it runs
        output = InferOutput("thread", [1], "BYTES", [threading.current_thread().name])
        return InferResponse(generate_uuid(), self.name, [output])


class Explainer(kserve.Model):
    """Explains as well as it predicts."""

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": [sum(row) for row in payload["instances"]]}

    def explain(self, payload, headers=None):
        return {"explanations": [[value / 2 for value in row] for row in payload["instances"]]}


class Talker(kserve.Model):
    """Answers in the forms that classes under KServe's server answer in, by the request's `form`."""

    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)

    def predict(self, payload, headers=None, response_headers=None):
        form = payload["form"] if isinstance(payload, dict) else payload.inputs[0].name
        output = InferOutput("y", [2], "FP32", [1.5, 2.5])
        contents = {"name": "y", "shape": [2], "datatype": "FP32", "contents": {"fp32_contents": [1.5, 2.5]}}
        return {
            "text": "hello",
            "bytes": b"\x89PNG",
            "list": [1, 2],
            "number": 3,
            "nothing": None,
            "stream": self.stream(),
            "message": InferResponse("r", self.name, [output]).to_grpc(),
            "contents": {"id": "1", "model_name": self.name, "outputs": [contents]},
            "wrong": {"outputs": [{**contents, "contents": {"fp32": [1.5]}}]},
        }[form]

    def explain(self, payload, headers=None):
        return {"explanations": payload["instances"]}

    async def postprocess(self, result, headers=None, response_headers=None):
        response_headers["x-after"] = "yes"
        return result

    async def stream(self):
        for word in ("a", b"b", "c"):
            yield word


class WithDirectory(kserve.Model):
    """Takes what command lines usually hand over."""

    def __init__(self, name: str, model_dir: str, nthread: int = 1, mode: str = "fast"):
        super().__init__(name)
        self.seen = (name, model_dir, nthread, mode)

    def load(self):
        self.ready = Path(self.seen[1]).exists()
        return self.ready

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": [str(self.seen)]}


class NeverReady(kserve.Model):
    """Fails to load, as KServe's server would see it."""

    def load(self):
        return False


class Mirror(kserve.Model):
    """Shows what a class sees of a request."""

    seen: Any = None

    def predict(self, payload, headers=None, response_headers=None):
        tensor = payload.inputs[0]
        self.seen = {
            "data": tensor.data,
            "numpy": tensor.as_numpy(),
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "from_grpc": payload.from_grpc,
            "parameters": dict(payload.parameters or {}),
            "outputs": [output.name for output in payload.request_outputs or ()],
            "headers": headers,
        }
        return InferResponse(
            payload.id or "made-up",
            self.name,
            [InferOutput(t.name, t.shape, t.datatype, t.as_numpy()) for t in payload.inputs],
        )


def make_predictor(name: str, factor: float = 2.0) -> kserve.Model:
    """A function in place of a class."""

    class Made(kserve.Model):
        def predict(self, payload, headers=None, response_headers=None):
            return {"predictions": [value * factor for value in payload["instances"]]}

    return Made(name)


ready_instance = DocumentedPredictor("instance")


class Taking(kserve.Model):
    """A class that takes what `ensemble_server` takes."""

    def __init__(self, name: str, allow_implementation: Any = ()) -> None:
        super().__init__(name)
        self.allowed = allow_implementation


class Sums(kserve.Model):
    """Adds up each row, as KServe's documents write a predictor."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": [sum(row) for row in payload["instances"]]}


class PlusOneTimesTen(kserve.Model):
    """A transformer around it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return {"instances": [[value + 1 for value in row] for row in payload["instances"]]}

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": [value * 10 for value in result["predictions"]]}
