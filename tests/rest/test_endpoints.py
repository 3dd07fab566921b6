"""V2 REST as the protocol documents have it: their own examples, every datatype, every endpoint, on both transports."""

from __future__ import annotations

import asyncio
import struct

import numpy as np
import orjson
import pytest

from http_support import Raw
from rest_support import NUMERIC, X1, X, rest, wire

BOTH = pytest.mark.parametrize("http", ["thin", "uvicorn"])


@BOTH
async def test_server_metadata_has_name_version_and_extensions(http):
    """inference_rest.md, "Server Metadata Response JSON Object"."""
    async with rest("row", http=http) as server:
        for path in ("/v2", "/v2/"):
            answer = await server.ask("GET", path)
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
            document = answer.json
            assert set(document) == {"name", "version", "extensions"}
            assert document["name"] == "serinus"
            assert {"binary_tensor_data", "model_repository", "statistics"} <= set(document["extensions"])


@BOTH
async def test_health_says_true_with_200(http):
    async with rest("row", http=http) as server:
        assert (await server.ask("GET", "/v2/health/live")).json == {"live": True}
        ready = await server.ask("GET", "/v2/health/ready")
        assert (ready.status, ready.json["ready"]) == (200, True)
        model = await server.ask("GET", "/v2/models/row/ready")
        assert (model.status, model.json) == (200, {"name": "row", "ready": True})
        assert (await server.ask("GET", "/v2/models/row/versions/1/ready")).status == 200


async def test_a_server_that_stops_is_not_ready_but_live():
    async with rest("row") as server:
        server.plane.stop_ready()
        for path in ("/v2/health/ready", "/v2/models/row/ready", "/v1/models/row"):
            answer = await server.ask("GET", path)
            assert answer.status == 503, path
            assert answer.json["ready"] is False
            assert "not ready" in answer.json["error"]
            assert int(answer.headers["retry-after"]) >= 1
        assert (await server.ask("GET", "/v2/health/live")).status == 200


async def test_a_model_that_is_unloaded_is_not_ready_and_not_found_is_404():
    async with rest("row", "simple") as server:
        assert (await server.ask("POST", "/v2/repository/models/row/unload")).status == 200
        assert (await server.ask("GET", "/v2/models/row/ready")).status == 404
        infer = await server.ask("POST", "/v2/models/row/infer", X)
        assert (infer.status, "retry-after" in infer.headers) == (404, False)
        assert (await server.ask("GET", "/v2/models/nobody/ready")).status == 404


@BOTH
async def test_model_metadata_has_the_documents_fields(http):
    """inference_rest.md, "Model Metadata Response JSON Object"; `versions` only where there are any."""
    async with rest("row", "simple", http=http) as server:
        for path in ("/v2/models/row", "/v2/models/row/versions/2"):
            document = (await server.ask("GET", path)).json
            assert document["name"] == "row"
            assert document["versions"] == ["1", "2"]
            assert document["platform"] == "test_row"
            assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
            assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
        assert "versions" not in (await server.ask("GET", "/v2/models/simple")).json


@BOTH
async def test_the_documents_infer_example(http):
    """inference_rest.md, "Inference Request Examples": names, id, output filter (its BOOL input has 3 values here, as it says)."""
    request = {
        "id": "42",
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
        ],
        "outputs": [{"name": "input0"}],
    }
    async with rest("echo", http=http) as server:
        answer = await server.ask("POST", "/v2/models/echo/infer", request)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert answer.json == {
            "model_name": "echo",
            "id": "42",
            "parameters": {"a": 1},
            "outputs": [{"name": "input0", "datatype": "UINT32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
        }


async def test_the_id_is_echoed_and_never_invented():
    async with rest("row") as server:
        assert "id" not in (await server.ask("POST", "/v2/models/row/infer", X)).json
        assert (await server.ask("POST", "/v2/models/row/infer", {**X, "id": ""})).json["id"] == ""
        assert (await server.ask("POST", "/v2/models/row/infer", {**X, "id": "é\n"})).json["id"] == "é\n"


async def test_versions_are_chosen_by_the_path_and_named_in_the_answer():
    async with rest("row", "simple") as server:
        for version, expected in (("", "2"), ("/versions/1", "1"), ("/versions/2", "2")):
            answer = await server.ask("POST", f"/v2/models/row{version}/infer", X)
            assert answer.json["model_version"] == expected
        answer = await server.ask("POST", "/v2/models/row/versions/3/infer", X)
        assert answer.status == 404
        assert "'1', '2'" in answer.json["error"]
        assert (await server.ask("POST", "/v2/models/simple/versions/1/infer", X)).status == 404


SAMPLES = {
    "BOOL": [True, False],
    "FP16": [1.5, -65504.0],
    "FP32": [1.5, -3.4028235e38],
    "FP64": [0.1, 1e300],
    "BF16": [1.5, -2.0],
    "UINT64": [0, 2**64 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "BYTES": ["é", ""],
}


@pytest.mark.parametrize("datatype", [*NUMERIC, "BYTES"])
async def test_every_datatype_goes_round_in_json_flat_and_nested(datatype):
    values = SAMPLES.get(datatype, [1, 100])
    async with rest("echo") as server:
        for shape, data in (([2], values), ([2, 1], [[values[0]], [values[1]]]), ([2, 1], values)):
            tensor = {"name": "t", "shape": shape, "datatype": datatype, "data": data}
            answer = await server.ask("POST", "/v2/models/echo/infer", {"inputs": [tensor]})
            assert answer.status == 200, answer.body
            output = answer.json["outputs"][0]
            assert (output["datatype"], output["shape"], output["data"]) == (datatype, shape, values)


RAW = {
    "FP32": np.array([1.5, -2.25], "<f4").tobytes(),
    "FP16": np.array([1.5, -2.25], "<f2").tobytes(),
    "BF16": b"\xc0\x3f\x10\xc0",
    "BOOL": b"\x01\x00",
    "INT64": struct.pack("<qq", -1, 2**62),
    "BYTES": struct.pack("<I", 3) + b"a\xff\0" + struct.pack("<I", 0),
}


@BOTH
@pytest.mark.parametrize("datatype", RAW)
async def test_every_datatype_goes_round_raw(datatype, http):
    """extension_binary_data.md: raw in, raw out, and the headers that say how long the JSON part is."""
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "t",
                    "shape": [2],
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(RAW[datatype])},
                }
            ],
            "outputs": [{"name": "t", "parameters": {"binary_data": True}}],
        }
    )
    async with rest("echo", http=http) as server:
        answer = await server.ask(
            "POST",
            "/v2/models/echo/infer",
            head + RAW[datatype],
            {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
        )
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "application/octet-stream"
        length = int(answer.headers["inference-header-content-length"])
        assert int(answer.headers["content-length"]) == len(answer.body)
        output = orjson.loads(answer.body[:length])["outputs"][0]
        assert output["parameters"]["binary_data_size"] == len(RAW[datatype])
        assert answer.body[length:] == RAW[datatype]


async def test_a_raw_body_is_the_only_inputs_bytes():
    """extension_binary_data.md, "Raw Binary Request": Inference-Header-Content-Length 0."""
    async with rest("row") as server:
        body = np.array([[0.5, 0.25, 0.125]], "<f4").tobytes()
        answer = await server.ask("POST", "/v2/models/row/infer", body, {"Inference-Header-Content-Length": "0"})
        assert answer.status == 200, answer.body
        length = int(answer.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(answer.body[length:], "<f4"), np.float32([0.125, 0.875]))


async def test_classification_gives_the_best_classes():
    """extension_classification.md: "score:index:label" strings, best first."""
    request = {**X, "outputs": [{"name": "y", "parameters": {"classification": 1}}]}
    async with rest("row") as server:
        output = (await server.ask("POST", "/v2/models/row/infer", request)).json["outputs"][0]
        assert output["datatype"] == "BYTES"
        (best,) = np.array(output["data"]).ravel()
        assert best.split(":")[1:] == ["1", "high"]


async def test_a_timeout_parameter_that_passes_is_504():
    """extension_schedule_policy.md: microseconds."""
    async with rest("gate") as server:
        answer = await server.ask("POST", "/v2/models/gate/infer", {**X1, "parameters": {"timeout": 50_000}})
        assert answer.status == 504
        server.model("gate").open.set()


async def test_a_full_queue_is_429_and_says_when_to_come_back():
    async with rest("gate") as server:
        clients = [await Raw.open(server.port) for _ in range(8)]
        for client in clients:
            await client.send(wire("POST", "/v2/models/gate/infer", X1))
        answers = [asyncio.ensure_future(client.answer()) for client in clients]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        server.model("gate").open.set()
        got = await asyncio.gather(*answers)
        assert {answer.status for answer in got} == {200, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in got if answer.status == 429)
        for client in clients:
            await client.close()


async def test_statistics_have_the_fields_that_perf_analyzer_reads():
    async with rest("row", "simple") as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        one = (await server.ask("GET", "/v2/models/row/versions/2/stats")).json["model_stats"]
        assert [(stat["name"], stat["version"], stat["inference_count"]) for stat in one] == [("row", "2", 1)]
        timings = one[0]["inference_stats"]
        assert {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"} <= set(timings)
        assert timings["success"]["count"] == 1
        assert timings["success"]["ns"] >= timings["queue"]["ns"] + timings["compute_infer"]["ns"]
        everything = (await server.ask("GET", "/v2/models/stats")).json["model_stats"]
        assert {stat["name"] for stat in everything} == {"row", "simple"}
        assert (await server.ask("GET", "/v2/models/nobody/stats")).status == 404


async def test_models_are_loaded_and_unloaded():
    async with rest("row") as server:
        assert (await server.ask("POST", "/v2/models/late/infer", X)).status == 404
        loaded = await server.ask("POST", "/v2/repository/models/late/load", {"parameters": {}})
        assert (loaded.status, loaded.json) == (200, {"name": "late", "load": True})
        assert (await server.ask("POST", "/v2/models/late/infer", X)).status == 200
        index = {entry["name"]: entry for entry in (await server.ask("POST", "/v2/repository/index")).json}
        assert index["late"]["state"] == "READY"
        assert index["simple"]["state"] == "UNAVAILABLE"
        ready = (await server.ask("POST", "/v2/repository/index", {"ready": True})).json
        assert {entry["name"] for entry in ready} == {"late", "row"}
        gone = await server.ask("POST", "/v2/repository/models/late/unload")
        assert (gone.status, gone.json) == (200, {"name": "late", "unload": True})
        assert (await server.ask("POST", "/v2/repository/models/nobody/load")).status == 404
        assert (await server.ask("POST", "/v2/repository/index", [1])).status == 400
        assert (await server.ask("POST", "/v2/repository/index", {"ready": "yes"})).status == 400


async def test_the_list_of_models_and_the_configuration():
    async with rest("row", "simple") as server:
        assert sorted((await server.ask("GET", "/v2/models")).json["models"]) == ["row", "simple"]
        config = (await server.ask("GET", "/v2/models/row/config")).json
        assert config["max_batch_size"] == 4096
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]


async def test_v1_rows_columns_and_a_models_own():
    async with rest("row", "speaker") as server:
        rows = await server.ask("POST", "/v1/models/row:predict", {"instances": [[1, 2, 3], [0, 0, 0]]})
        assert (rows.status, rows.json) == (200, {"predictions": [[-5.0, 6.0], [1.0, 0.0]]})
        columns = await server.ask("POST", "/v1/models/row/versions/1:predict", {"inputs": {"x": [[1, 2, 3]]}})
        assert columns.json == {"outputs": [[-5.0, 6.0]]}
        assert (await server.ask("POST", "/v1/models/row:predict", {"rows": []})).status == 400
        own = await server.ask("POST", "/v1/models/speaker:predict", {"anything": [1]})
        assert own.json == {"predictions": [0, 1, 2], "said": [1]}
        refused = await server.ask("POST", "/v1/models/speaker:predict", {})
        assert (refused.status, refused.json) == (400, {"error": "'anything' was expected"})
        assert (await server.ask("POST", "/v1/models/speaker:explain", {"a": 1})).json == {"explanations": [{"a": 1}]}
        none = await server.ask("POST", "/v1/models/row:explain", {"instances": [[1, 2, 3]]})
        assert none.status == 501
        assert (await server.ask("GET", "/v1/models")).json == {"models": ["row", "speaker"]}
        assert (await server.ask("GET", "/v1/models/row")).json == {"name": "row", "ready": True}
        assert (await server.ask("GET", "/v1/models/row%3Apredict")).status == 405
        assert (await server.ask("POST", "/v1/models/row%3Apredict", {"instances": [[1, 2, 3]]})).status == 200
        assert (await server.ask("GET", "/v1/models/nobody")).status == 404


async def test_metrics_and_liveness():
    async with rest("row") as server:
        await server.ask("POST", "/v2/models/row/infer", X)
        await server.ask("GET", "/nowhere")
        page = await server.ask("GET", "/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'nv_inference_request_success{model="row",version="2"' in page.body
        assert (await server.ask("GET", "/")).json == {"status": "alive"}


@BOTH
async def test_response_headers_of_a_model_reach_the_client_but_cannot_split_the_answer(http):
    async with rest("echo", http=http) as server:
        request = {"inputs": [{"name": "t", "shape": [1], "datatype": "INT8", "data": [1]}]}
        answer = await server.ask("POST", "/v2/models/echo/infer", request, {"X-Say": "a b"})
        assert answer.headers["x-said"] == "a b"


async def test_request_ids_come_back():
    async with rest("row") as server:
        for method, path, body in (
            ("POST", "/v2/models/row/infer", X),
            ("GET", "/v2", None),
            ("GET", "/nowhere", None),
            ("OPTIONS", "/v2", None),
        ):
            answer = await server.ask(method, path, body, {"X-Request-Id": "r-1"})
            assert answer.headers["x-request-id"] == "r-1"
        assert "x-request-id" not in (await server.ask("GET", "/v2")).headers


async def test_names_are_percent_decoded_and_other_forms_of_the_target_are_understood():
    async with rest("row") as server:
        assert (await server.ask("GET", "/v2/models/r%6Fw")).status == 200
        assert (await server.ask("GET", "http://localhost/v2/models/row?x=1")).status == 200
        assert (await server.ask("GET", "/v2/models/row/?x")).status == 200
        assert (await server.ask("GET", "/v2/models/a%2Fb")).status == 404
        assert (await server.ask("GET", "/v2/models/%FF")).status == 400
        assert (await server.ask("GET", "/v2//models/row")).status == 404
        assert (await server.ask("OPTIONS", "*")).status == 204
        assert (await server.ask("GET", "*")).status == 400


@BOTH
async def test_other_methods_are_405_and_name_those_that_work(http):
    async with rest("row", http=http) as server:
        for method, path, allow in (
            ("GET", "/v2/models/row/infer", "OPTIONS, POST"),
            ("DELETE", "/v2/models/row", "GET, HEAD, OPTIONS"),
            ("POST", "/v2", "GET, HEAD, OPTIONS"),
        ):
            answer = await server.ask(method, path)
            assert (answer.status, answer.headers["allow"]) == (405, allow)
            assert allow in answer.json["error"]
        for path in ("/v1/models/row:classify", "/v1/models/row/versions/1:classify"):
            answer = await server.ask("POST", path, {"examples": []})
            assert (answer.status, "':classify' is nothing that V1 does" in answer.json["error"]) == (404, True)
        assert (await server.ask("POST", "/v1/models/row", {"instances": []})).status == 405
        options = await server.ask("OPTIONS", "/v2/models/row/infer")
        assert (options.status, options.headers["allow"], options.body) == (204, "OPTIONS, POST", b"")
        assert "content-length" not in options.headers
        head = await server.ask("HEAD", "/v2/models/row")
        assert head.status == 200
        assert int(head.headers["content-length"]) > 10


async def test_an_unknown_path_names_those_that_there_are():
    async with rest("row") as server:
        answer = await server.ask("GET", "/v3")
        assert answer.status == 404
        assert "/v2/models/{model}/infer" in answer.json["error"]
        answer = await server.ask("POST", "/v2/models/nobody/infer", X)
        assert answer.status == 404
        assert "'row'" in answer.json["error"]


async def test_a_models_own_routes_are_served():
    async def handler(request):
        assert request.headers["x-a"] == "b"
        said = orjson.dumps(
            [request.method, request.path, dict(request.query), request.parameters, request.body.decode()]
        )
        return 201, {"Content-Type": "text/x", "X-Own": "1"}, said

    async def broken(request):
        raise ZeroDivisionError("a secret")

    routes = [("PUT", "/own/{name}/route", handler), ("GET", "/own/broken", broken)]
    async with rest("row", extra_routes=routes) as server:
        answer = await server.ask("PUT", "/own/a%20b/route?c=d", b"body", {"X-A": "b"})
        assert (answer.status, answer.headers["content-type"], answer.headers["x-own"]) == (201, "text/x", "1")
        assert answer.json == ["PUT", "/own/a%20b/route", {"c": "d"}, ["a b"], "body"]
        failed = await server.ask("GET", "/own/broken")
        assert failed.status == 500
        assert b"secret" not in failed.body
        assert b"ZeroDivisionError" not in failed.body
        assert "/own/{name}/route" in (await server.ask("GET", "/openapi.json")).json["paths"]
