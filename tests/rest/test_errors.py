"""What a client is told when it is wrong or we are; the HTTP departures of KServe's server, each the other way round here."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import orjson
import pytest

from http_support import Raw
from rest_support import X1, X, rest, wire

INFER = "/v2/models/row/infer"


def with_input(**changes: object) -> dict:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


BINARY = {
    "a length that is no number": ("x", b"", 400),
    "a negative length": ("-1", b"", 400),
    "a length beyond the body": ("99999", b"", 400),
    "a length of 30 digits": ("9" * 30, b"", 400),
    "too few bytes": (None, b"\0" * 11, 400),
    "too many bytes": (None, b"\0" * 13, 400),
    "the right bytes": (None, b"\0" * 12, 200),
}


@pytest.mark.parametrize("name", BINARY)
async def test_binary_requests_are_held_to_their_lengths(name):
    """Departures 7 and 15."""
    length, tail, status = BINARY[name]
    head = orjson.dumps(with_input(data=None, parameters={"binary_data_size": 12}))
    async with rest("row") as server:
        fields = {"Inference-Header-Content-Length": length or str(len(head))}
        answer = await server.ask("POST", INFER, head + tail, fields)
        assert answer.status == status, answer
        if status == 400:
            assert list(answer.json) == ["error"]


async def test_the_content_type_does_not_decide_what_a_body_is():
    """Departure 15: a binary body under application/json is binary (JSON under any type: test_endpoints.py)."""
    head = orjson.dumps(with_input(data=None, parameters={"binary_data_size": 12}))
    async with rest("row") as server:
        fields = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/json"}
        assert (await server.ask("POST", INFER, head + b"\0" * 12, fields)).status == 200
        answer = await server.ask("POST", INFER, X, {"Content-Type": "application/json; charset=utf-16"})
        assert answer.status == 415
        assert "utf-8" in answer.json["error"]


async def test_binary_outputs_are_given_when_asked_for_and_carry_their_headers():
    """Departures 5 and 17: by binary_data_output and by output, with Content-Type and Content-Length."""
    async with rest("row") as server:
        for request in (
            {**X, "parameters": {"binary_data_output": True}},
            {**X, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        ):
            answer = await server.ask("POST", INFER, request)
            assert answer.headers["content-type"] == "application/octet-stream"
            length = int(answer.headers["inference-header-content-length"])
            assert len(answer.body) == int(answer.headers["content-length"]) == length + 8


async def test_a_failing_model_is_500_without_its_secrets_and_the_connection_lives_on(caplog):
    async with rest("broken", "row") as server:
        client = await Raw.open(server.port)
        answer = await server.ask_on(client, "POST", "/v2/models/broken/infer", X1)
        assert answer.status == 500
        assert b"secret" not in answer.body
        for secret in (b"ZeroDivision", b"Traceback", b".py"):
            assert secret not in answer.body
        assert (await server.ask_on(client, "POST", INFER, X)).status == 200
        await client.close()
    assert sum("secret" in str(record.exc_info) for record in caplog.records if record.exc_info) == 1


async def test_health_checks_are_answered_while_a_model_predicts():
    """KServe's took 2.8 s during a predict of 3 s: here the check comes back although the predict never does."""
    async with rest("gate") as server:
        client = await Raw.open(server.port)
        await client.send(wire("POST", "/v2/models/gate/infer", X1))
        live = await server.ask("GET", "/v2/health/live")
        assert live.status == 200
        server.model("gate").open.set()
        assert (await client.answer()).status == 200
        await client.close()


async def test_a_client_that_leaves_takes_its_request_out_of_the_queue():
    async with rest("gate") as server:
        first, second = await Raw.open(server.port), await Raw.open(server.port)
        await first.send(wire("POST", "/v2/models/gate/infer", X1))
        await server.ask("GET", "/v2/health/live")
        await second.send(wire("POST", "/v2/models/gate/infer", X1))
        await server.ask("GET", "/v2/health/live")
        second.reset()
        cancelled = b'serinus_requests_total{model="gate",version="",outcome="cancelled"} 1'
        while cancelled not in (await server.ask("GET", "/metrics")).body:
            pass
        server.model("gate").open.set()
        assert (await first.answer()).status == 200
        await first.close()


# Content codings


def codings(body: bytes) -> dict[str, bytes]:
    raw = zlib.compressobj(wbits=-15)
    return {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body[:10]) + gzip.compress(body[10:]),
        "deflate": zlib.compress(body),
        "Deflate": raw.compress(body) + raw.flush(),
        "identity": body,
    }


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_compressed_requests_are_understood(http):
    async with rest("row", http=http) as server:
        for coding, body in codings(orjson.dumps(X)).items():
            answer = await server.ask("POST", INFER, body, {"Content-Encoding": coding})
            assert answer.status == 200, (coding, answer)
            assert "content-encoding" not in answer.headers
        big = orjson.dumps({**X, "parameters": {"pad": np.random.default_rng(1).bytes(600_000).hex()}})
        assert (await server.ask("POST", INFER, gzip.compress(big), {"Content-Encoding": "gzip"})).status == 200


async def test_compressed_requests_that_are_not_are_4xx():
    body = gzip.compress(orjson.dumps(X))
    async with rest("row", max_body_bytes=1_000_000) as server:
        client = await Raw.open(server.port)
        for coding, sent, status in (
            ("gzip", b"nonsense", 400),
            ("gzip", body[:-4], 400),
            ("gzip", body + b"more", 400),
            ("deflate", zlib.compress(b"{}") + b"more", 400),
            ("br", body, 415),
            ("gzip, gzip", gzip.compress(body), 415),
            ("gzip", gzip.compress(b" " * 1_000_001), 413),
            ("gzip", gzip.compress(b" " * 900_000) * 2, 413),
        ):
            answer = await server.ask_on(client, "POST", INFER, sent, {"Content-Encoding": coding})
            assert answer.status == status, (coding, answer)
            assert list(answer.json) == ["error"]
            if status == 415:
                assert answer.headers["accept-encoding"] == "gzip, deflate"
            assert (await server.ask_on(client, "POST", INFER, X)).status == 200, "the connection lives on"
        await client.close()


ACCEPTED = {
    "gzip": "gzip",
    "deflate": "deflate",
    "gzip;q=1.0, identity; q=0.5": "gzip",
    "br;q=1, gzip;q=0.2, identity;q=0": "gzip",
    "*;q=0, deflate;q=0.4": "deflate",
    "identity, gzip;q=0.5": None,
    "gzip;q=0.5, identity;q=0.5": "gzip",
    "gzip, deflate, br": None,
    "gzip;q=0": None,
    "br": None,
    "identity": None,
    "*": None,
    "gzip;q=nonsense": None,
    "": None,
}


@pytest.mark.parametrize("accept", ACCEPTED)
async def test_answers_are_compressed_only_for_those_who_ask(accept):
    async with rest("row", compress_min_bytes=0) as server:
        answer = await server.ask("POST", INFER, X, {"Accept-Encoding": accept})
        coding = answer.headers.get("content-encoding")
        assert coding == ACCEPTED[accept]
        body = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](answer.body)
        assert body == (await server.ask("POST", INFER, X)).body


# CloudEvents

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-time": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize("path", ["/v1/models/row:predict", INFER])
async def test_binary_events_are_answered_by_binary_events(path):
    body = {"instances": [[1, 2, 3]]} if "v1" in path else X
    async with rest("row") as server:
        answer = await server.ask("POST", path, body, EVENT)
        assert answer.status == 200
        assert answer.headers["ce-specversion"] == "1.0"
        assert answer.headers["ce-type"] == "io.kserve.inference.response"
        assert answer.headers["ce-source"] == "io.kserve.inference.row"
        assert answer.headers["ce-id"] not in ("", "1")
        assert answer.headers["content-type"] == "application/json"
        assert "predictions" in answer.json or "outputs" in answer.json


@pytest.mark.parametrize("path", ["/v1/models/row:predict", INFER])
async def test_structured_events_are_answered_by_structured_events(path):
    body = {"instances": [[1, 2, 3]]} if "v1" in path else X
    event = {name.removeprefix("ce-"): value for name, value in EVENT.items()}
    async with rest("row") as server:
        answer = await server.ask(
            "POST", path, {**event, "data": body}, {"Content-Type": "application/cloudevents+json; charset=utf-8"}
        )
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/cloudevents+json"
        document = answer.json
        assert (document["specversion"], document["type"]) == ("1.0", "io.kserve.inference.response")
        assert "predictions" in document["data"] or "outputs" in document["data"]


async def test_events_that_are_none_are_400():
    async with rest("row") as server:
        for missing in ("ce-id", "ce-source", "ce-type"):
            fields = {name: value for name, value in EVENT.items() if name != missing}
            answer = await server.ask("POST", "/v1/models/row:predict", {"instances": [[1, 2, 3]]}, fields)
            assert answer.status == 400
            assert missing in answer.json["error"]
        answer = await server.ask("POST", INFER, X, {**EVENT, "ce-specversion": "9"})
        assert answer.status == 400
        kind = {"Content-Type": "application/cloudevents+json"}
        for body in (b"nonsense", b"[]", {"specversion": "1.0"}, {**_plain(), "data_base64": "?"}, _plain()):
            assert (await server.ask("POST", INFER, body, kind)).status == 400


def _plain() -> dict[str, str]:
    return {name.removeprefix("ce-"): value for name, value in EVENT.items()}
