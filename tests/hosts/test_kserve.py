"""`kserve.Model` subclasses run unchanged behind the data plane."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from hosts_support import GRPC, REST, here, hosted, rows, serving, text
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import (
    ConfigError,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    NotSupported,
    Overloaded,
    SerinusError,
    TimedOut,
    UpstreamFailed,
)
from serinus.hosts import build_model
from serinus.model import V1Answer
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, RequestedOutput, Tensor
from serinus.settings import ModelSettings, PredictorSettings

kserve = Deferred("kserve")
kserve_classes = Deferred("kserve_classes")
text_string_to_metric_families = Deferred("prometheus_client.parser", "text_string_to_metric_families")
KServeRequest = Deferred("kserve", "InferRequest")
InferParameter = Deferred("kserve.protocol.grpc.grpc_predict_v2_pb2", "InferParameter")
KServeInput = Deferred("kserve.protocol.infer_type", "InferInput")
translate = Deferred("serinus.hosts.kserve.kserve_errors", "translate")
to_kserve_request = Deferred("serinus.hosts.kserve.kserve_types", "to_kserve_request")
to_kserve_response = Deferred("serinus.hosts.kserve.kserve_types", "to_kserve_response")


async def test_a_documented_predictor_answers_v2_and_v1():
    async with serving(here("DocumentedPredictor")) as plane:
        response = await plane.infer(InferRequest("m", [rows([1, 2], [3, 4])], id="r1", headers=REST))
        assert response.outputs[0].name == "output-0"
        assert response.outputs[0].data.tolist() == [21.0, 43.0]
        assert response.id == "r1"
        answer = await plane.predict_v1("m", b'{"instances": [[1, 2], [3, 4]]}')
        assert answer == {"predictions": [21.0, 43.0]}


async def test_an_id_is_never_invented_even_where_kserves_helper_invents_one():
    async with serving(here("DocumentedPredictor")) as plane:
        assert (await plane.infer(InferRequest("m", [rows([1, 2])], headers=REST))).id is None


@pytest.mark.parametrize(("version", "expected"), [("", ["8", "9"]), ("2", ["2", "2"])])
async def test_the_version_that_a_class_answers_is_told_where_it_is_served_without_one(
    version: str, expected: list[str]
):
    async with serving(here("OwnVersion"), version=version) as plane:
        answers = [
            await plane.infer(InferRequest("m", [Tensor.of("x", np.array([as_object]))])) for as_object in (0, 1)
        ]
    assert [answer.model_version for answer in answers] == expected


@pytest.mark.parametrize("transformer", ["ImageTransformer", "SuperTransformer"])
async def test_a_versioned_pipeline_is_asked_by_its_version_and_names_it(transformer: str):
    async with serving("hosts_support:Pixels", transformer=here(transformer), version="2") as plane:
        inputs = (
            [Tensor.of("image", np.array([b"AQI="], dtype=object))]
            if transformer == "ImageTransformer"
            else [Tensor.of("pixels", np.ones((1, 2), np.float32))]
        )
        for version in ("", "2"):
            answer = await plane.infer(InferRequest("m", inputs, version))
            assert answer.model_version == "2"
        assert plane.model_metadata("m").versions == ("2",)
        assert plane.model_metadata("m-predictor", "2").versions == ("2",)


async def test_coroutine_stages_run_in_order_with_the_headers():
    async with serving(here("AsyncStages")) as plane:
        response = await plane.infer(InferRequest("m", [rows([1, 2])], headers={**REST, "x-tenant": "blue"}))
    assert response.output("y").data.tolist() == [[20.0, 30.0]]
    assert response.output("tenant").data.tolist() == [b"blue"]


async def test_response_headers_come_back_without_those_of_framing():
    async with serving(here("HeadersBack")) as plane:
        response = await plane.infer(InferRequest("m", [rows([1])], headers=REST))
    assert response.headers == {"x-model-revision": "7"}


async def test_over_rest_a_class_sees_text_and_lists_as_they_were_sent():
    async with serving(here("Mirror")) as plane:
        request = InferRequest("m", [rows([1, 2], [3, 4])], parameters={"k": 3}, headers=REST)
        request.outputs = [RequestedOutput("x")]
        await plane.infer(request)
        seen = hosted(plane).seen
        assert seen["data"] == [1, 2, 3, 4]
        assert seen["shape"] == [2, 2]
        assert seen["outputs"] == ["x"]
        assert seen["parameters"] == {"k": 3}
        assert seen["from_grpc"] is False
        assert seen["headers"] == REST
        response = await plane.infer(InferRequest("m", [text("Zürich", "b")], headers=REST))
        assert hosted(plane).seen["data"] == ["Zürich", "b"]
        assert hosted(plane).seen["numpy"].tolist() == ["Zürich", "b"]
        assert response.outputs[0].data.tolist() == ["Zürich".encode(), b"b"]


def loosely(plane: Plane, document: Any) -> InferRequest:
    """Read a body as REST does that has failed to read it strictly."""
    body = json.dumps(document).encode()
    with pytest.raises(InvalidInput) as caught:
        RestCodec().decode_request(body, model_name="m", headers=REST)
    return plane.read_loosely(caught.value, "m", "", body, REST)


MIXED = ["Zürich", 1, None, 2.5, True, {"k": [1]}]


@pytest.mark.parametrize(
    ("shape", "data"),
    [([6], MIXED), ([2, 3], MIXED), ([2, 3], [MIXED[:3], MIXED[3:]]), ([1], [None])],
    ids=["flat", "flat matrix", "nested", "null"],
)
async def test_elements_of_bytes_that_are_no_strings_reach_a_class_as_under_kserve(shape: list[int], data: list[Any]):
    numbers = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, None]}
    document = {"inputs": [{"name": "t", "shape": shape, "datatype": "BYTES", "data": data}, numbers]}
    theirs = KServeRequest.from_bytes(json.dumps(document).encode(), len(json.dumps(document)), "m").inputs
    async with serving(here("Seen")) as plane:
        await plane.infer(loosely(plane, document))
        seen = hosted(plane).seen
    assert [tensor["data"] for tensor in seen] == [theirs[0].data, [1.0, pytest.approx(np.nan, nan_ok=True)]]
    assert seen[0]["numpy"].tolist() == theirs[0].as_numpy().tolist()
    assert seen[0]["numpy"].shape == tuple(shape)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "t", "shape": [3], "datatype": "BYTES", "data": ["a", 1]},
        {"name": "t", "shape": [2, 2], "datatype": "BYTES", "data": [["a", 1], ["b"]]},
        {"name": "t", "shape": [1], "datatype": "INT32", "data": [None]},
        {"name": "t", "shape": [1], "datatype": "BYTES", "data": None},
    ],
)
async def test_what_is_wrong_with_mixed_elements_otherwise_is_refused(entry: dict[str, Any]):
    async with serving(here("Seen")) as plane:
        with pytest.raises(InvalidInput, match="input 't'"):
            loosely(plane, {"inputs": [entry]})


async def test_mixed_elements_go_on_to_a_predictor_as_the_text_that_they_were_and_null_does_not():
    entry = {"name": "t", "shape": [4], "datatype": "BYTES", "data": ["a", 1, 2.5, True]}
    async with serving("hosts_support:Texts", transformer=here("SuperTransformer")) as plane:
        answer = await plane.infer(loosely(plane, {"inputs": [entry]}))
        assert answer.outputs[0].data.tolist() == [b"a", b"1", b"2.5", b"true"]
        with pytest.raises(InvalidInput, match="input 't': data holds null"):
            await plane.infer(loosely(plane, {"inputs": [{**entry, "data": ["a", None, "b", "c"]}]}))


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]], ids=["flat", "nested"])
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "python"])
async def test_lists_of_json_are_as_flat_or_nested_as_their_sender_wrote_them(data: list[Any], kernel: bool):
    codec = RestCodec()
    if not kernel:
        codec._kernel = None
    entry = {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": data}
    request = codec.decode_request(json.dumps({"inputs": [entry]}).encode(), model_name="m", headers=REST)
    answer = codec.decode_response(json.dumps({"model_name": "m", "outputs": [entry]}).encode())
    async with serving(here("Mirror")) as plane:
        await plane.infer(request)
        assert hosted(plane).seen["data"] == data
    assert to_kserve_response(answer, False).outputs[0].data == data


async def test_over_grpc_a_class_sees_flat_lists_bytes_and_parameter_messages():
    async with serving(here("Mirror")) as plane:
        await plane.infer(InferRequest("m", [rows([1, 2], [3, 4])], parameters={"k": "v"}, headers=GRPC))
        seen = hosted(plane).seen
        assert seen["data"] == [1, 2, 3, 4]
        assert seen["numpy"].tolist() == [[1, 2], [3, 4]]
        assert seen["from_grpc"] is True
        assert seen["parameters"] == {"k": InferParameter(string_param="v")}
        await plane.infer(InferRequest("m", [text("a")], headers=GRPC))
        assert hosted(plane).seen["data"] == [b"a"]


async def test_text_that_is_no_utf8_is_the_clients_fault():
    async with serving(here("Mirror")) as plane:
        array = np.array([b"\xff"], dtype=object)
        with pytest.raises(InvalidInput, match=r"input 'x'.*not UTF-8"):
            await plane.infer(InferRequest("m", [Tensor.of("x", array)], headers=REST))


@pytest.mark.parametrize(
    "datatype",
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"],
)
@pytest.mark.parametrize("headers", [REST, GRPC], ids=["rest", "grpc"])
async def test_every_datatype_goes_through_a_class_bit_for_bit(datatype: str, headers: dict[str, str]):
    from serinus.protocol.datatypes import NUMPY_DTYPES

    array = np.arange(6).reshape(2, 3).astype(NUMPY_DTYPES[datatype])
    async with serving(here("Mirror")) as plane:
        response = await plane.infer(InferRequest("m", [Tensor("x", datatype, (2, 3), array)], headers=headers))
    output = response.outputs[0]
    assert output.datatype == datatype
    assert output.data.dtype == array.dtype
    assert output.data.tobytes() == array.tobytes()


def test_a_hosted_input_serialises_for_kserves_own_clients_as_theirs_does():
    array = np.array([[1.5, 2.5]], np.float32)
    ours = to_kserve_request(InferRequest("m", [Tensor.of("x", array)], id="1"), REST)
    flat = KServeInput("x", [1, 2], "FP32", [1.5, 2.5], {})
    theirs = KServeRequest("m", [flat], "1", parameters={})
    assert json.dumps(ours.to_rest()[0]) == json.dumps(theirs.to_rest()[0])
    assert ours.to_grpc() == theirs.to_grpc()
    ours_grpc = to_kserve_request(InferRequest("m", [Tensor.of("x", array)], id="1"), GRPC)
    assert ours_grpc.to_grpc() == KServeRequest("m", [flat], "1").to_grpc()


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("invalid", InvalidInput, "column 'amount' is missing"),
        ("inference", ModelFailed, "the weights are corrupt"),
        ("notready", NotReady, "not ready"),
        ("notfound", NotFound, "other"),
        ("notimplemented", NotSupported, "no such mode"),
        ("httpx", UpstreamFailed, "could not be reached"),
        ("timeout", TimedOut, "in time"),
    ],
)
async def test_what_a_class_raises_has_the_status_that_it_deserves(kind: str, expected: type, message: str):
    async with serving(here("Raising")) as plane:
        with pytest.raises(expected, match=message):
            await plane.infer(InferRequest("m", [text(kind)], headers=REST))


async def test_an_http_exception_keeps_its_own_status():
    async with serving(here("Raising")) as plane:
        with pytest.raises(SerinusError, match="a teapot") as caught:
            await plane.infer(InferRequest("m", [text("fastapi")], headers=REST))
    assert caught.value.http_status == 418


async def test_a_bug_in_a_class_is_a_500_that_names_no_python_class():
    async with serving(here("Raising")) as plane:
        with pytest.raises(ModelFailed) as caught:
            await plane.infer(InferRequest("m", [text("bug")], headers=REST))
    assert "ZeroDivision" not in str(caught.value)


async def test_a_class_that_asks_its_predictor_in_a_way_of_its_own_does_so():
    predictor = PredictorSettings(host="127.0.0.1:1")
    async with serving(here("OwnCall"), predictor=predictor) as plane:
        assert await plane.predict_v1("m", b'{"instances": [1]}') == {"predictions": ["asked", 1]}


async def test_a_class_without_stages_is_called():
    async with serving(here("OnlyCalled")) as plane:
        assert await plane.predict_v1("m", b'{"instances": [1]}') == V1Answer(
            {"predictions": ["PREDICT", 1]}, {"x-seen": "yes"}
        )
        response = await plane.infer(InferRequest("m", [rows([1, 2])], headers=REST))
    assert response.outputs[0].data.tolist() == [1]


def test_a_class_that_answers_no_inference_requests_is_refused_in_words():
    with pytest.raises(
        ConfigError, match="'kserve_classes:OfNoInference' is a BaseKServeModel: it answers neither V1 nor V2"
    ):
        build_model(ModelSettings(name="m", implementation=here("OfNoInference")))


async def test_a_model_that_calls_itself_unhealthy_is_asked_nothing_as_under_kserve():
    async with serving(here("Moody")) as plane:
        assert await plane.predict_v1("m", b"{}") == {"predictions": {}}
        hosted(plane).well = False
        with pytest.raises(NotReady, match="not ready"):
            await plane.predict_v1("m", b"{}")


@pytest.mark.parametrize("document", [[1, 2], [{"a": 1}], "text", 5, None], ids=repr)
async def test_any_json_is_a_v1_body_for_a_class_as_under_kserve(document: Any):
    async with serving(here("Moody")) as plane:
        assert await plane.predict_v1("m", json.dumps(document).encode()) == {"predictions": document}


async def test_a_body_that_no_stage_has_made_an_object_of_is_the_clients_fault():
    async with serving(here("Pixels"), transformer=here("SuperTransformer")) as plane:
        with pytest.raises(InvalidInput, match="list, a JSON object was expected"):
            await plane.predict_v1("m", b"[1]")


@pytest.mark.parametrize(
    ("protocol", "body", "accepted"),
    [
        ("v1", {"instances": {}}, False),
        ("v1", {"instances": None}, False),
        ("v1", {"inputs": "text"}, True),
        ("v2", {"inputs": {}}, False),
        ("v2", {"instances": "text"}, True),
        ("grpc-v2", {"instances": "text", "inputs": 5}, True),
    ],
)
async def test_which_list_a_v1_body_must_have_hangs_on_the_predictors_protocol_as_under_kserve(
    protocol: Any, body: Any, accepted: bool
):
    predictor = PredictorSettings(host="127.0.0.1:1", protocol=protocol)
    async with serving(here("Moody"), predictor=predictor) as plane:
        if accepted:
            assert await plane.predict_v1("m", json.dumps(body).encode()) == {"predictions": body}
        else:
            with pytest.raises(InvalidInput, match="to be a list"):
                await plane.predict_v1("m", json.dumps(body).encode())


async def test_explain_is_offered_where_the_class_explains_and_only_there():
    async with serving(here("Explainer")) as plane:
        assert await plane.explain_v1("m", b'{"instances": [[1, 2]]}') == {"explanations": [[0.5, 1.0]]}
        assert await plane.predict_v1("m", b'{"instances": [[1, 2]]}') == {"predictions": [3]}
    async with serving(here("DocumentedPredictor")) as plane:
        with pytest.raises(NotSupported):
            await plane.explain_v1("m", b'{"instances": [[1, 2]]}')


@pytest.mark.parametrize(
    ("form", "document", "kind"),
    [
        ("text", b"hello", "text/plain; charset=utf-8"),
        ("bytes", b"\x89PNG", "application/octet-stream"),
        ("list", [1, 2], "application/json"),
        ("number", 3, "application/json"),
        ("nothing", None, "application/json"),
        ("stream", [b"a", b"b", b"c"], "application/octet-stream"),
    ],
)
async def test_v1_answers_that_are_no_object_are_given_as_kserve_gives_them(form: str, document: Any, kind: str):
    async with serving(here("Talker")) as plane:
        answer = await plane.predict_v1("m", json.dumps({"form": form}).encode())
        if form == "stream":
            answer = replace(answer, document=[piece async for piece in answer.document])
    assert answer == V1Answer(document, {"x-after": "yes"}, kind)


@pytest.mark.parametrize("headers", [REST, GRPC], ids=["rest", "grpc"])
@pytest.mark.parametrize("form", ["message", "contents"])
async def test_grpcs_messages_and_their_fields_as_an_object_are_answers(form: str, headers: dict[str, str]):
    async with serving(here("Talker")) as plane:
        named = Tensor.of(form, np.zeros(1, np.float32))
        response = await plane.infer(InferRequest("m", [named], headers=headers))
    assert response.output("y").datatype == "FP32"
    assert response.output("y").data.tolist() == [1.5, 2.5]


async def test_an_object_of_fields_that_grpc_has_not_is_the_models_fault():
    async with serving(here("Talker")) as plane:
        with pytest.raises(ModelFailed, match="none of gRPC's"):
            await plane.infer(InferRequest("m", [Tensor.of("wrong", np.zeros(1, np.float32))], headers=GRPC))


async def test_metrics_that_a_class_counts_with_prometheus_are_on_the_page_beside_ours():
    metrics = Metrics()
    plane = Plane(Registry(build_model, metrics=metrics))
    names = ("one", "two")
    await plane.start([ModelSettings(name=name, implementation=here("Counting")) for name in names])
    try:
        for name in names:
            await plane.predict_v1(name, b'{"instances": [[1], [2]]}', headers={"x-tenant": "blue"})
        page = metrics.render().decode().splitlines()
        of_two = Metrics.render_merged([metrics.snapshot(), Metrics.retire(metrics.snapshot())]).decode().splitlines()
    finally:
        await plane.close()
    assert page.count("# TYPE audited_rows_total counter") == 1
    told = {family.name: family for family in text_string_to_metric_families("\n".join(page))}
    assert (told["audited_seconds"].type, told["audited_size"].type) == ("histogram", "summary")
    assert {sample.name for sample in told["audited_seconds"].samples} == {
        f"audited_seconds_{part}" for part in ("bucket", "count", "sum")
    }
    assert 'audited_seconds_bucket{le="1.0"} 4.0' in of_two
    assert "audited_seconds_count 4.0" in of_two
    assert "audited_size_sum 8.0" in of_two
    assert [line for line in page if line.startswith("audited_rows_total{")] == [
        'audited_rows_total{tenant="blue"} 4.0'
    ]
    assert 'audited_seconds_bucket{le="1.0"} 2.0' in page
    assert len([line for line in page if line.startswith("# TYPE process_cpu_seconds_total")]) == 1
    assert not [line for line in page if "_created" in line]


async def test_explanations_carry_the_response_headers_of_the_class():
    async with serving(here("Talker")) as plane:
        answer = await plane.explain_v1("m", b'{"instances": [1]}')
    assert answer == V1Answer({"explanations": [1]}, {"x-after": "yes"})


async def test_a_structured_event_is_known_by_its_attributes_as_under_kserve():
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "time": "2020-01-01T00:00:00Z"}
    body = json.dumps({**event, "data": {"instances": [[1, 2]]}}).encode()
    async with serving(here("DocumentedPredictor")) as plane:
        assert await plane.predict_v1("m", body) == {"predictions": [21.0]}


async def test_when_to_come_back_is_said_as_the_class_says_it():
    from fastapi import HTTPException

    error = translate(HTTPException(429, "busy", headers={"Retry-After": "7"}))
    assert isinstance(error, Overloaded)
    assert (str(error), error.retry_after_s) == ("busy", 7.0)


async def test_a_constructor_is_given_what_its_signature_names(tmp_path):
    async with serving(
        here("WithDirectory"), name="named", model_dir=tmp_path, threads=3, extra={"mode": "exact"}
    ) as plane:
        assert hosted(plane, "named").seen == ("named", str(tmp_path), 3, "exact")


def test_what_a_constructor_lacks_is_named_and_what_it_does_not_take_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="WithDirectory takes 'model_dir' and there is no model directory"):
        build_model(ModelSettings(name="m", implementation=here("WithDirectory")))
    settings = ModelSettings(name="m", implementation=here("WithDirectory"), model_dir=tmp_path, extra={"mod": 1})
    with pytest.raises(ConfigError, match=r"no parameter 'mod'.*did you mean 'mode'"):
        build_model(settings)


async def test_functions_and_ready_instances_are_hosted():
    async with serving(here("make_predictor"), extra={"factor": 3}) as plane:
        assert await plane.predict_v1("m", b'{"instances": [2]}') == {"predictions": [6]}
    async with serving(here("ready_instance")) as plane:
        assert await plane.predict_v1("m", b'{"instances": [[1, 1]]}') == {"predictions": [11.0]}


async def test_a_class_that_is_not_ready_after_load_does_not_start():
    with pytest.raises(SerinusError, match="left `ready` False"):
        async with serving(here("NeverReady")):
            pass
