"""Answers in pieces over REST, on both transports: events, V1 bodies, custom routes; what either end's leaving does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import rest_support
from http_support import Answer, Raw
from rest_support import Rest, X, rest, wire
from stream_support import COUNTING, Counting, count
from waiting import turns, until

STREAM = "/v2/models/counting/infer_stream"
EVENTS = "text/event-stream; charset=utf-8"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rest_support.MODELS, "counting", Counting)


@pytest.fixture(params=["thin", "uvicorn"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Rest]:
    async with rest("counting", "row", "echo", http=request.param) as running:
        yield running


@contextlib.asynccontextmanager
async def raw(port: int, **options: Any) -> AsyncIterator[Raw]:
    client = await Raw.open(port, **options)
    try:
        yield client
    finally:
        await client.close()


async def head(client: Raw) -> Answer:
    return await client.answer(head_only=True)


async def piece(client: Raw) -> bytes:
    """Read one chunk (RFC 9112, 7.1); empty for the last."""
    length = int(await asyncio.wait_for(client.reader.readuntil(b"\r\n"), 20), 16)
    data = await asyncio.wait_for(client.reader.readexactly(length + 2), 20)
    assert data[length:] == b"\r\n"
    return data[:length]


async def pieces(client: Raw) -> bytes:
    """Read chunks to the last one."""
    got = b""
    while part := await piece(client):
        got += part
    return got


def events(body: bytes) -> list[Any]:
    assert body.endswith(b"\n\n") or not body
    return [json.loads(event.removeprefix("data: ")) for event in body.decode().split("\n\n") if event]


def numbers(body: bytes) -> list[int]:
    return [event["outputs"][0]["data"][0] for event in events(body)]


async def test_each_response_is_an_event_and_leaves_before_the_next_one_is_made(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(3, parameters={"hold": True}, id="a"), {"X-Request-Id": "r"}))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        model.go.release()
        answer = await head(client)
        assert (answer.status, answer.headers["content-type"]) == (200, EVENTS)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert (answer.headers["cache-control"], answer.headers["x-first"]) == ("no-cache", "yes")
        assert answer.headers["x-request-id"] == "r"
        for n in range(3):
            (event,) = events(await piece(client))
            assert model.given == n + 1
            assert event == {
                "model_name": "counting",
                "id": "a",
                "outputs": [
                    {"name": "n", "datatype": "INT64", "shape": [1], "data": [n]},
                    {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]},
                ],
            }
            model.go.release()
        assert await piece(client) == b""
        assert model.closed == 1
        # The connection goes on.
        await client.send(wire("POST", STREAM, count(2)))
        assert (await head(client)).status == 200
        assert numbers(await pieces(client)) == [0, 1]


async def test_a_stream_of_nothing_is_an_empty_answer(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(0)))
        assert (await head(client)).status == 200
        assert await pieces(client) == b""


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (STREAM, b"{", 400, "JSON"),
        (STREAM, {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}]}, 400, "'count'"),
        (STREAM, {"inputs": [{"name": "count", "datatype": "FP32", "shape": [1], "data": [1]}]}, 400, "FP32"),
        (STREAM, count(3, parameters={"fail_at": 0}), 400, "does not count to 0"),
        (STREAM, count(3, parameters={"break_at": 0}), 500, "failed to predict"),
        (STREAM, count(3, outputs=[{"name": "m"}]), 400, "'m'"),
        (STREAM, count(3, parameters={"binary_data_output": True}), 400, "binary"),
        (STREAM, count(3, parameters={"timeout": "soon"}), 400, "timeout"),
        (STREAM.replace("counting", "nope"), count(1), 404, "nope"),
        (STREAM.replace("/infer", "/versions/7/infer"), count(1), 404, "7"),
    ],
)
async def test_what_fails_before_the_first_response_is_an_error_like_any_other(server: Rest, path, body, status, said):
    async with raw(server.port) as client:
        for _ in range(2):
            await client.send(wire("POST", path, body))
            answer = await client.answer()
            assert answer.status == status
            assert said in answer.json["error"]
            assert "secret" not in answer.json["error"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"fail_at": 2}, "it does not count to 2"),
        ({"break_at": 2}, "model 'counting' failed to predict; the server's log has the details"),
    ],
)
async def test_what_fails_later_is_the_last_event(server: Rest, parameters, said):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(5, parameters=parameters)))
        assert (await head(client)).status == 200
        *good, last = events(await pieces(client))
        assert [event["outputs"][0]["data"] for event in good] == [[0], [1]]
        assert last == {"error": said}
        (statistics,) = server.plane.statistics("counting")
        assert (statistics["inference_stats"]["fail"]["count"], statistics["inference_stats"]["success"]["count"]) == (
            1,
            0,
        )


async def test_a_timeout_ends_a_stream(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(5, parameters={"hold": True, "timeout": 100_000})))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        model.go.release()
        await head(client)
        first, last = events(await pieces(client))
        assert first["outputs"][0]["data"] == [0]
        assert "deadline" in last["error"]
        await until(lambda: model.closed)


async def test_requested_outputs_are_the_only_ones(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(2, outputs=[{"name": "n"}])))
        await head(client)
        assert [[output["name"] for output in event["outputs"]] for event in events(await pieces(client))] == [
            ["n"]
        ] * 2


@pytest.mark.parametrize("path", ["row", "row/versions/1", "echo"])
async def test_a_model_without_a_stream_gives_its_one_answer(server: Rest, path: str):
    async with raw(server.port) as client:
        await client.send(wire("POST", f"/v2/models/{path}/infer", X))
        whole = await client.answer()
        await client.send(wire("POST", f"/v2/models/{path}/infer_stream", X))
        await head(client)
        assert events(await pieces(client)) == [whole.json]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_ends_the_stream(server: Rest, how: str):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(10, parameters={"hold": True})))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        model.go.release()
        await head(client)
        await piece(client)
        if how == "reset":
            client.reset()
        else:
            await client.close()

        for _ in range(3):  # a closed client is only noticed when something is sent to it
            given = model.given
            model.go.release()
            await until(lambda given=given: model.closed or model.given > given)
        await until(lambda: model.closed)
        served = server.plane.registry.find("counting")
        await until(lambda: served.in_flight == 0)
        assert model.given < 10
        assert sum(counter.get("cancelled", 0) for counter in [served.statistics.failures]) == 1


@pytest.mark.slow
async def test_a_slow_reader_holds_the_model_back(server: Rest):
    async with raw(server.port, limit=2**16) as client:
        size = 400_000
        await client.send(wire("POST", STREAM, count(100, parameters={"size": size})))
        model = COUNTING["counting"]
        await until(lambda: model.given > 5)
        given = -1
        while given != model.given:
            given = model.given
            await asyncio.sleep(0.3)  # that nothing more is made can only be seen by waiting
        assert given < 60
        await head(client)
        body = await pieces(client)
        assert numbers(body) == list(range(100))
        assert len(body) > 100 * size


async def test_unloading_waits_for_streams(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(2, parameters={"hold": True})))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        unloading = asyncio.ensure_future(server.plane.unload("counting"))
        await turns()
        assert not unloading.done()
        model.go.release()
        model.go.release()
        await head(client)
        assert numbers(await pieces(client)) == [0, 1]
        await unloading


async def test_a_server_that_stops_waits_for_streams(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(2, parameters={"hold": True})))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        model.go.release()
        await head(client)
        await piece(client)
        draining = asyncio.ensure_future(server.server.drain(20))
        await turns()
        assert not draining.done()
        model.go.release()
        assert numbers(await pieces(client)) == [1]
        await draining


async def test_v1_bodies_come_in_pieces(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", "/v1/models/counting:predict", {"instances": [3], "hold": True}))
        model = COUNTING["counting"]
        for n in range(3):
            model.go.release()
            if not n:
                answer = await head(client)
                assert (answer.status, answer.headers["content-type"], answer.headers["x-own"]) == (
                    200,
                    "text/x-lines",
                    "1",
                )
            assert await piece(client) == b"%d\n" % n
            assert model.given == n + 1
        assert await piece(client) == b""
        served = server.plane.registry.find("counting")
        await until(lambda: served.in_flight == 0)
        (statistics,) = server.plane.statistics("counting")
        assert statistics["inference_stats"]["success"]["count"] == 1


async def test_a_v1_body_that_fails_at_its_first_piece_has_a_status(server: Rest):
    answer = await server.ask("POST", "/v1/models/counting:predict", {"instances": [3], "break_at": 0})
    assert (answer.status, "secret" in answer.json["error"]) == (500, False)


async def test_a_v1_body_that_cannot_be_completed_is_seen_to_be_broken(server: Rest, caplog):
    async with raw(server.port) as client:
        with caplog.at_level(logging.ERROR):
            await client.send(wire("POST", "/v1/models/counting:predict", {"instances": [3], "break_at": 2}))
            await head(client)
            got = b""
            with pytest.raises((asyncio.IncompleteReadError, ValueError)):
                while part := await piece(client):
                    got += part
        assert got in (b"0\n1\n", b"0\n", b"")
        assert "broke off" in caplog.text


async def test_a_cloud_event_holds_all_pieces(server: Rest):
    event = {"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "a", "Ce-Type": "b"}
    answer = await server.ask("POST", "/v1/models/counting:predict", {"instances": [3]}, event)
    assert (answer.status, answer.body) == (200, b"0\n1\n2\n")
    assert answer.headers["ce-specversion"] == "1.0"


async def test_pieces_are_not_compressed_and_whole_answers_are(server: Rest):
    async with raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(2), {"Accept-Encoding": "gzip"}))
        assert "content-encoding" not in (await head(client)).headers
        assert numbers(await pieces(client)) == [0, 1]


# What only the thin transport does: uvicorn answers one request of a connection at a time, and chunks for HTTP/1.0


async def test_pipelined_streams_are_answered_in_order():
    async with rest("counting", "row") as server, raw(server.port) as client:
        model = COUNTING["counting"]
        await client.send(
            wire("POST", STREAM, count(2, parameters={"hold": True}))
            + wire("POST", STREAM, count(30))
            + wire("POST", "/v2/models/row/infer", X)
            + wire("POST", STREAM, count(1), {"Connection": "close"})
        )
        await until(lambda: model.opened == 3)
        model.go.release()
        model.go.release()
        await head(client)
        assert numbers(await pieces(client)) == [0, 1]
        await head(client)
        assert numbers(await pieces(client)) == list(range(30))
        assert (await client.answer()).json["outputs"]
        assert (await head(client)).headers["connection"] == "close"
        assert numbers(await pieces(client)) == [0]
        assert await client.ended()


@pytest.mark.parametrize("fields", ["", "Connection: keep-alive\r\n"])
async def test_the_end_of_the_connection_ends_a_stream_for_http_1_0(fields: str):
    async with rest("counting") as server, raw(server.port) as client:
        body = json.dumps(count(3)).encode()
        await client.send(
            f"POST {STREAM} HTTP/1.0\r\n{fields}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = await head(client)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert not {"transfer-encoding", "content-length"} & set(answer.headers)
        assert numbers(await asyncio.wait_for(client.reader.read(), 20)) == [0, 1, 2]


async def test_a_client_that_sends_no_more_still_gets_its_stream(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serinus.server.http.connection._PROBE_S", 0.01)
    async with rest("counting") as server, raw(server.port) as client:
        await client.send(wire("POST", STREAM, count(2, parameters={"hold": True})))
        model = COUNTING["counting"]
        await until(lambda: model.opened)
        model.go.release()
        await head(client)
        assert numbers(await piece(client)) == [0]
        client.end_input()
        await asyncio.sleep(0.03)  # longer than it takes to probe a client that waits for an answer
        model.go.release()
        assert numbers(await pieces(client)) == [1]
        assert await client.ended()


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_a_route_of_a_models_own_may_answer_in_pieces(http: str):
    async def handler(request: Any) -> Any:
        async def body() -> AsyncIterator[bytes]:
            for part in (b"one ", b"", b"two"):
                yield part

        return 200, {"Content-Type": "text/x"}, body()

    async with rest("row", http=http, extra_routes=[("GET", "/own", handler)]) as server, raw(server.port) as client:
        for _ in range(2):
            await client.send(wire("GET", "/own"))
            assert (await head(client)).headers["content-type"] == "text/x"
            assert await pieces(client) == b"one two"
            await client.send(wire("HEAD", "/own"))
            assert (await head(client)).status == 200


async def test_the_configuration_says_which_model_is_decoupled(server: Rest):
    told = (await server.ask("GET", "/v2/models/counting/config")).json
    assert told["model_transaction_policy"] == {"decoupled": True}
    assert "model_transaction_policy" not in (await server.ask("GET", "/v2/models/row/config")).json
