"""Outputs with other numbers of rows than the inputs are predicted alone, and right over every transport and through a pipeline."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

import grpc
from row_graphs import EQUAL_ROWS, GRAPHS, PICTURES, answers
from serinus import Call, InferRequest, Model, ModelSettings, Tensor, TensorSpec
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.errors import ModelFailed
from serinus.protocol import proto_codec
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferResponse
from serve_support import Served, serving

pytestmark = pytest.mark.slow  # each form is asked over every transport

HAS_KSERVE = importlib.util.find_spec("kserve") is not None


def written(folder: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """A repository of all graphs, and what each answers."""
    expected = {}
    for name, make in GRAPHS.items():
        expected[name] = answers(make(folder / name))
        document = {"name": name, "implementation": "onnx_server"}
        (folder / name / "model-settings.json").write_text(json.dumps(document))
    return expected


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, list[dict[str, np.ndarray]]]]]:
    folder = tmp_path_factory.mktemp("rows")
    expected = written(folder / "models")
    with serving(folder, str(folder / "models")) as served:
        yield served, expected


def request_of(model: str, picture: int, *, binary: bool) -> InferRequest:
    return InferRequest(model, [Tensor.of("image", np.array(PICTURES[picture], np.float32))], id="i", binary=binary)


def over_rest(served: Served, model: str, picture: int, *, binary: bool) -> InferResponse:
    body = RestCodec().encode_request(request_of(model, picture, binary=binary), binary=binary)
    fields = {"Content-Type": body.content_type}
    if body.json_length is not None:
        fields["Inference-Header-Content-Length"] = str(body.json_length)
    url = f"http://127.0.0.1:{served.http_port}/v2/models/{model}/infer"
    # Without the system's CAs, which take ten times what the request does to read.
    answer = httpx.post(url, content=body.to_bytes(), headers=fields, timeout=30, verify=False)
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    assert (length is not None) == binary
    return RestCodec().decode_response(answer.content, int(length) if length else None)


def over_json(served: Served, model: str, picture: int) -> InferResponse:
    return over_rest(served, model, picture, binary=False)


def over_binary(served: Served, model: str, picture: int) -> InferResponse:
    return over_rest(served, model, picture, binary=True)


def over_grpc(served: Served, model: str, picture: int) -> InferResponse:
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return proto_codec.decode_response(
            call(proto_codec.encode_request(request_of(model, picture, binary=True)), timeout=30)
        )


TRANSPORTS = {"json": over_json, "binary": over_binary, "grpc": over_grpc}


def hold(response: InferResponse, expected: Mapping[str, np.ndarray]) -> None:
    assert [output.name for output in response.outputs] == list(expected)
    for output in response.outputs:
        assert output.shape == expected[output.name].shape
        np.testing.assert_array_equal(output.data, expected[output.name], strict=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("model", GRAPHS)
def test_v2_answers_each_request_what_the_graph_does(server, model: str, transport: str):
    served, expected = server
    asked = [index for index in range(len(PICTURES)) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:  # at the same time, so that what is joined would be joined
        found = list(pool.map(lambda index: TRANSPORTS[transport](served, model, index), asked))
    for index, response in zip(asked, found, strict=True):
        hold(response, expected[model][index])


@pytest.mark.parametrize("model", GRAPHS)
def test_they_are_predicted_alone_and_say_so(server, model: str):
    served, _ = server
    status, metadata = served.ask("GET", f"/v2/models/{model}")
    assert (status, metadata["properties"]["batching"]) == (200, "alone")
    assert served.ask("GET", f"/v2/models/{model}/config")[1]["max_batch_size"] == 0


@pytest.mark.parametrize("model", GRAPHS)
def test_v1_answers_whole_tensors_in_column_format(server, model: str):
    served, expected = server
    for picture, outputs in zip(PICTURES, expected[model], strict=True):
        status, answer = served.ask("POST", f"/v1/models/{model}:predict", {"inputs": picture})
        assert status == 200, answer
        columns = {name: array.tolist() for name, array in outputs.items()}
        assert answer == {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}


@pytest.mark.parametrize("model", EQUAL_ROWS)
def test_v1_answers_as_many_rows_as_there_are_in_row_format(server, model: str):
    served, expected = server
    for picture, outputs in zip(PICTURES, expected[model], strict=True):
        status, answer = served.ask("POST", f"/v1/models/{model}:predict", {"instances": picture})
        assert status == 200, answer
        columns = {name: array.tolist() for name, array in outputs.items()}
        if len(columns) == 1:
            rows = next(iter(columns.values()))
        else:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        assert answer == {"predictions": rows}


@pytest.mark.parametrize("model", [name for name in GRAPHS if name not in EQUAL_ROWS])
def test_v1_says_how_to_ask_for_outputs_that_make_no_rows(server, model: str):
    served, _ = server
    status, answer = served.ask("POST", f"/v1/models/{model}:predict", {"instances": PICTURES[0]})
    assert status == 400
    assert "ask in column format ('inputs')" in answer["error"]


FRONTED = ("anonymous", "kept")


@pytest.fixture(scope="module", params=["fused", "split v2", "split grpc-v2", "split v1"])
def front(
    request: pytest.FixtureRequest, server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Served]]:
    """A deployment with a transformer in front of each of `FRONTED`, and its name."""
    if not HAS_KSERVE:
        pytest.skip("kserve is not installed")
    served, _ = server
    folder = tmp_path_factory.mktemp("front")
    through = "conformance_kserve:Through"
    fused = request.param == "fused"
    for name in FRONTED:
        place = folder / "models" / name
        place.mkdir(parents=True)
        if fused:
            GRAPHS[name](place)
        document = {"name": name, "implementation": "onnx_server" if fused else through}
        (place / "model-settings.json").write_text(json.dumps(document))
    if fused:
        flags = ("--transformer", through)
    else:
        protocol = request.param.split()[1]
        port = served.grpc_port if protocol == "grpc-v2" else served.http_port
        flags = ("--predictor_host", f"127.0.0.1:{port}", "--predictor_protocol", protocol)
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    words = (str(folder / "models"), "--allow_implementation", through, *flags)
    with serving(folder, *words, environment=environment) as running:
        yield request.param, running


@pytest.mark.parametrize("model", FRONTED)
def test_a_transformer_in_front_changes_nothing(server, front: tuple[str, Served], model: str):
    served, expected = server
    deployment, running = front
    for index, (picture, outputs) in enumerate(zip(PICTURES, expected[model], strict=True)):
        if deployment != "split v1":
            for transport in TRANSPORTS.values():
                hold(transport(running, model, index), outputs)
        if deployment in ("fused", "split v1"):
            asked = running.ask("POST", f"/v1/models/{model}:predict", {"instances": picture})
            assert asked == served.ask("POST", f"/v1/models/{model}:predict", {"instances": picture})
            assert asked[0] == 200


class Filter(Model):
    """Gives back the rows that are not negative; found independent where nobody shows it a negative one."""

    batching = "earned"
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def predict(self, inputs: Mapping[str, np.ndarray], call: Call) -> Mapping[str, np.ndarray]:
        return {"y": inputs["x"][inputs["x"][:, 0] >= 0]}


async def test_what_the_check_did_not_see_is_answered_alone_and_joined_no_more(caplog):
    plane = Plane(Registry(Filter))
    try:
        await plane.start([ModelSettings(name="m", batchable=True, warmup=False)])
        assert plane.model_config("m").max_batch_rows

        async def ask(value: float) -> list[list[float]]:
            (output,) = (await plane.infer(InferRequest("m", [Tensor.of("x", np.float32([[value]]))]))).outputs
            return output.data.tolist()

        assert await ask(-1) == []
        for _ in range(2):
            found = await asyncio.gather(*map(ask, [1, -2, 3, -4]))
            assert found == [[[1]], [], [[3]], []]
        assert not plane.model_config("m").max_batch_rows
        assert plane.model_metadata("m").parameters["batching"] == "alone"
        assert caplog.text.count("joined no more") == 1
    finally:
        await plane.close()


class Declared(Filter):
    """Its author says that rows are joined, and is wrong."""

    batching = "declared"


async def test_an_author_who_promises_a_row_for_each_is_held_to_it():
    plane = Plane(Registry(Declared))
    try:
        await plane.start([ModelSettings(name="m", warmup=False)])
        with pytest.raises(ModelFailed, match=r"output 'y' has shape \[0, 1\], its inputs had 1 rows"):
            await plane.infer(InferRequest("m", [Tensor.of("x", np.float32([[-1]]))]))
    finally:
        await plane.close()
