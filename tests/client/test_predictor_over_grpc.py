"""The way from a transformer to its predictor over gRPC: channels, headers, deadlines, statuses."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc.aio
import pytest

import grpc
from predictor_support import Predictor, Servicer, client, http, question
from serinus.errors import (
    InvalidInput,
    NotReady,
    Overloaded,
    TimedOut,
    UpstreamFailed,
)
from serinus.server.refusals import refuse


async def test_each_client_has_a_channel_to_its_own_target():
    async with Servicer("a").listening() as first, Servicer("b").listening() as second:
        one, two = client(first, protocol="grpc-v2"), client(second, protocol="grpc-v2")
        assert (await one.infer(question(id="9"))).model_name == "a"
        answer = await two.infer(question(id="9"))
        assert (answer.model_name, answer.id, answer.outputs[0].data.tolist()) == ("b", "9", [[3.0, 5.0]])
        assert await one.server_ready()
        assert await one.model_ready("m")
        await one.close()
        await two.close()


async def test_a_header_that_grpc_cannot_carry_is_left_behind():
    servicer = Servicer("a")
    headers = {"baggage": "who=ü", "tracestate": "a\x07b", "traceparent": "00-1", "x-request-id": "r 1"}
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2")
        answer = await ours.infer(question(headers=headers))
        await ours.close()
    assert answer.outputs[0].data.tolist() == [[3.0, 5.0]]
    metadata = servicer.calls[0][0]
    assert (metadata["traceparent"], metadata["x-request-id"]) == ("00-1", "r 1")
    assert not {"baggage", "tracestate"} & metadata.keys()


@pytest.mark.slow
async def test_a_grpc_predictor_that_is_back_after_a_while_is_reached_at_once():
    servicer = Servicer("a")
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2")
        await ours.infer(question())
    gone = time.monotonic()
    while time.monotonic() - gone < 6:  # long enough that gRPC's own pauses, by now 4 s, would be seen
        with pytest.raises(UpstreamFailed):
            await ours.infer(question())
        await asyncio.sleep(0.1)  # gRPC's core keeps its own time
    async with servicer.listening(port):
        back = time.monotonic()
        while not await ours.server_ready():
            assert time.monotonic() - back < 2
            await asyncio.sleep(0.02)  # likewise
        assert (await ours.infer(question())).model_name == "a"
        await ours.close()


async def test_grpc_carries_deadline_and_headers():
    servicer = Servicer("a")
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2")
        await ours.infer(question(deadline=time.monotonic() + 7, headers={"traceparent": "00-1", "cookie": "no"}))
        await ours.close()
    metadata, remaining = servicer.calls[0]
    assert metadata["traceparent"] == "00-1"
    assert "cookie" not in metadata
    assert remaining is not None
    assert 5 < remaining <= 7.01  # gRPC writes a deadline of seconds in steps of 10 ms, rounded up


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, UpstreamFailed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimedOut),
        (grpc.StatusCode.UNAVAILABLE, NotReady),
        (grpc.StatusCode.INTERNAL, UpstreamFailed),
    ],
)
async def test_a_grpc_status_becomes_the_right_error_and_is_not_retried(status: grpc.StatusCode, expected: type):
    servicer = Servicer("a", status)
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2", retries=3)
        with pytest.raises(expected, match="because"):
            await ours.infer(question())
        await ours.close()
    assert len(servicer.calls) == 1


async def test_a_grpc_refusal_with_pushback_is_tried_again():
    servicer = Servicer("a", grpc.StatusCode.UNAVAILABLE, "10")
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2", retries=1)
        assert (await ours.infer(question())).model_name == "a"
        await ours.close()
    assert len(servicer.calls) == 2


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
@pytest.mark.parametrize(("http_status", "expected"), [(429, Overloaded), (503, NotReady)])
async def test_when_a_full_predictor_says_to_come_back_is_what_the_client_is_told(
    protocol: str, http_status: int, expected: type[Overloaded | NotReady]
):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if http_status == 429 else grpc.StatusCode.UNAVAILABLE
    rest, servicer = Predictor(http(http_status, retry_after="7")), Servicer("a", code, retry_after="7")
    async with rest.listening(), servicer.listening() as port:
        ours = client(rest.port if protocol == "v2" else port, protocol=protocol)
        with pytest.raises(expected, match="the predictor answered") as caught:
            await ours.infer(question())
        await ours.close()
    refusal = refuse(caught.value, lambda: "a request", log=logging.getLogger("test"))
    assert (refusal.http_status, refusal.retry_after_s) == (http_status, 7)


async def test_a_grpc_refusal_of_our_own_server_is_tried_again_as_over_rest():
    servicer = Servicer("a", grpc.StatusCode.UNAVAILABLE, retry_after="0")
    async with servicer.listening() as port:
        ours = client(port, protocol="grpc-v2", retries=1)
        assert (await ours.infer(question())).model_name == "a"
        await ours.close()
    assert len(servicer.calls) == 2
