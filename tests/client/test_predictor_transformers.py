"""Transformers in front of a predictor, whichever way they ask it: versions, headers, earlier KServe's classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from hosts_support import here, hosted, serving
from predictor_support import Predictor, Servicer, doubled, http, question
from serinus.errors import (
    InvalidInput,
)
from serinus.model import V1Answer
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import PredictorSettings


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
@pytest.mark.parametrize("transformer", ["ImageTransformer", "SuperTransformer"])
async def test_a_transformer_reaches_its_remote_predictor_whichever_way_it_predicts(protocol: str, transformer: str):
    """The author's `preprocess`, KServe's `Model.predict` and our client in a row."""
    rest, servicer = Predictor(doubled), Servicer("a")
    async with rest.listening(), servicer.listening() as port:
        target = rest.port if protocol == "v2" else port
        predictor = PredictorSettings(host=f"127.0.0.1:{target}", protocol=protocol)
        async with serving(here(transformer), predictor=predictor) as plane:
            if transformer == "ImageTransformer":
                request = InferRequest("m", [Tensor.of("image", np.array([b"AQI=", b"/38="], dtype=object))])
            else:
                request = question()
            request.headers = {"host": "x", "x-request-id": "abc"}
            response = await plane.infer(request)
    if transformer == "SuperTransformer":
        assert response.outputs[0].data.tolist() == [[3.0, 5.0]]
    else:
        assert set(response.outputs[0].data.tolist()) <= {b"dark", b"bright"}
    seen = rest.requests[0][2] if protocol == "v2" else servicer.calls[0][0]
    assert seen["x-request-id"] == "abc"


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
async def test_the_predictors_version_and_the_trace_are_not_lost_on_the_way(protocol: str):
    """Departures 21 and 22 of KServe's: `from_bytes` drops the version, and `traceparent` is not forwarded."""
    output = {"name": "y", "shape": [1], "datatype": "FP32", "data": [1.0]}
    answer = orjson.dumps({"model_name": "m", "model_version": "7", "outputs": [output]})
    rest, servicer = Predictor(http(200, answer)), Servicer("m", version="7")
    async with rest.listening(), servicer.listening() as port:
        predictor = PredictorSettings(host=f"127.0.0.1:{rest.port if protocol == 'v2' else port}", protocol=protocol)
        async with serving(here("Versioned"), predictor=predictor) as plane:
            response = await plane.infer(question(headers={"host": "x", "traceparent": "00-1"}))
    assert response.outputs[0].data.tolist() == [b"7"]
    seen = rest.requests[0][2] if protocol == "v2" else servicer.calls[0][0]
    assert seen["traceparent"] == "00-1"


@pytest.mark.parametrize("kind", ["EarlierTransformer", "EarlierHeaders", "EarlierAttributes"])
@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
async def test_a_transformer_of_kserve_0_11_to_0_16_is_hosted_as_it_was_meant(
    kind: str, protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    rest, servicer = Predictor(http(200, b'{"predictions": [[3, 5]]}') if protocol == "v1" else doubled), Servicer("a")
    async with rest.listening(), servicer.listening() as port:
        host = f"127.0.0.1:{port if protocol == 'grpc-v2' else rest.port}"
        predictor = PredictorSettings(host=host, protocol=protocol, timeout_s=30, retries=2)
        monkeypatch.setattr("serinus.hosts.earlier_kserve._told", set())
        async with serving(here(kind), predictor=predictor) as plane:
            if protocol == "v1":
                answer = await plane.predict_v1("m", b'{"instances": [[1.5, 2.5]]}')
                document = answer.document if isinstance(answer, V1Answer) else answer
                assert document == {"predictions": [[3, 5]]}
            else:
                response = await plane.infer(question(headers={"host": "a"}))
                assert response.outputs[0].data.tolist() == [[3.0, 5.0]]
                assert response.headers.get("x-seen") == ("yes" if kind == "EarlierHeaders" else None)
            seen = hosted(plane).seen
    assert {(entry[0], entry[1]) for entry in seen} == {(host, protocol)}
    warnings = [record.getMessage() for record in caplog.records if "up to 0.16" in record.getMessage()]
    assert len(warnings) == 1
    assert kind in warnings[0]


async def test_a_predictor_that_an_earlier_class_names_itself_is_asked(monkeypatch: pytest.MonkeyPatch):
    async with Predictor(doubled).listening() as predictor:
        monkeypatch.setattr("kserve_classes.EarlierFixed.address", f"127.0.0.1:{predictor.port}")
        async with serving(here("EarlierFixed")) as plane:
            response = await plane.infer(question())
            assert response.outputs[0].data.tolist() == [[3.0, 5.0]]
            assert hosted(plane).seen == [(f"127.0.0.1:{predictor.port}", "v2", False, 30, 1)]


async def test_an_earlier_transformer_stands_in_front_of_a_model_in_its_process():
    async with serving("hosts_support:Pixels", transformer=here("EarlierTransformer")) as plane:
        response = await plane.infer(InferRequest("m", [Tensor.of("pixels", np.ones((1, 2), np.float32))]))
        assert response.outputs[0].data.tolist() == [2.0]


async def test_a_predictor_of_an_earlier_kserve_reads_what_it_was_without_a_configuration():
    async with serving(here("EarlierPredictor")) as plane:
        assert await plane.predict_v1("m", b'{"instances": []}') == {"predictions": ["v1", None, 600]}


@pytest.mark.parametrize("sent", ["2", ""])
async def test_the_version_of_a_transformer_is_none_of_its_predictors(sent: str):
    async with Predictor(doubled).listening() as predictor:
        settings = PredictorSettings(host=f"127.0.0.1:{predictor.port}", protocol="v2")
        async with serving(here("SuperTransformer"), predictor=settings, version="2") as plane:
            response = await plane.infer(InferRequest("m", question().inputs, sent))
    assert response.model_version == "2"
    assert predictor.requests[0][1] == "/v2/models/m/infer"


async def test_a_version_that_a_class_sets_itself_is_the_predictors():
    async with Predictor(doubled).listening() as predictor:
        settings = PredictorSettings(host=f"127.0.0.1:{predictor.port}", protocol="v2")
        async with serving(here("AsksForVersion"), predictor=settings) as plane:
            await plane.infer(question())
    assert predictor.requests[0][1] == "/v2/models/m/versions/7/infer"


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_response_headers_of_the_predictor_reach_a_transformer_that_asked_for_them_and_the_client(protocol: str):
    body = b'{"model_name": "m", "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [3.0]}]}'
    answer = http(200, b'{"predictions": [3.0]}' if protocol == "v1" else body, x_revision="7", server="other")
    async with Predictor(answer).listening() as predictor:
        settings = PredictorSettings(host=f"127.0.0.1:{predictor.port}", protocol=protocol)
        async with serving(here("HeadersThrough"), predictor=settings) as plane:
            response = await plane.infer(question(headers={"host": "a"}))
            v1 = await plane.predict_v1("m", b'{"instances": [1]}') if protocol == "v1" else None
    assert response.headers == {"x-revision": "7", "x-seen": "7"}
    if protocol == "v1":
        assert v1 == V1Answer({"predictions": [3.0]}, {"x-revision": "7", "x-seen": "7"})


async def test_a_v1_body_for_a_predictor_over_grpc_is_refused_in_words():
    settings = PredictorSettings(host="127.0.0.1:1", protocol="grpc-v2")
    async with serving(here("SuperTransformer"), predictor=settings) as plane:
        with pytest.raises(InvalidInput, match=r"gRPC .*has no V1"):
            await plane.predict_v1("m", b'{"instances": [1]}')


async def test_readiness_asks_the_predictor_where_it_is_told_to():
    async with Predictor(http(200)).listening() as predictor:
        settings = PredictorSettings(host=f"127.0.0.1:{predictor.port}", protocol="v2", health_check=True)
        async with serving(here("SuperTransformer"), predictor=settings) as plane:
            model: Any = plane.registry.find("m", "").model
            assert await model.is_ready()
            assert predictor.requests[-1][1] == "/v2/models/m/ready"
            predictor.answers[:] = [http(503)]
            assert not await model.is_ready()
