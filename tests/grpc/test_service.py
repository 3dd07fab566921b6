"""What each gRPC call means, on bytes, without an engine: who is refused and how, what is counted, what goes along with an answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from dataplane_support import Doubler, serving
from grpc_calls import TOKEN, Heard, broken, deflated, message_of, refusals, request, service_of
from serinus.dataplane.access.access_tokens import Tokens
from serinus.dataplane.access.repository_access import RepositoryAccess
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import (
    GrpcStatus,
    NotFound,
    Overloaded,
    Unauthenticated,
)
from serinus.model import RequestModel
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.types import InferRequest, InferResponse, Tensor
from serinus.server.connections.unsent_answers import UnsentAnswers
from serinus.server.grpc.answers import Failure
from serinus.server.grpc.deflate import HIDDEN_HEADER
from serinus.server.grpc.service import (
    INFER,
    INFER_STREAM,
    SERVICE,
    _leading_name,
    plain_headers,
)
from serinus.server.request_access import RequestAccess
from waiting import turns

# Metadata


@pytest.mark.parametrize(
    ("pairs", "headers"),
    [
        ([], {}),
        ([("a", "1"), ("b", "2")], {"a": "1", "b": "2"}),
        ([("a", "1"), ("trace-bin", b"\0")], {"a": "1"}),
        ([("x-bin", b"\0"), ("y-bin", b"\1"), ("bin", "3")], {"bin": "3"}),
        ([("a", "1"), ("a", "2")], {"a": "1,2"}),
        ([("a", "1"), ("b", "x"), ("a", "2"), ("a", "3")], {"a": "1,2,3", "b": "x"}),
        ([("x-bin", b"\0"), ("x-bin", b"\1"), ("a", "1")], {"a": "1"}),
        ([(HIDDEN_HEADER, "deflate"), ("a", "1")], {"a": "1"}),
        ([(HIDDEN_HEADER, "deflate"), ("a", "1"), ("a", "2")], {"a": "1,2"}),
    ],
)
def test_metadata_are_headers_joined_by_commas_and_without_what_is_binary_or_our_own(pairs: Any, headers: Any):
    assert plain_headers(pairs) == headers
    assert plain_headers(tuple(pairs)) == headers


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (b"", None),
        (b"\x0a", None),
        (b"\x0a\x00", ""),
        (b"\x0a\x01m", "m"),
        (b"\x0a\x01m\x1a\x02id", "m"),
        (b"\x0a\x01m\x12\x011", None),
        (b"\x0a\x7f" + b"n" * 127, "n" * 127),
        (b"\x0a\x80\x01" + b"n" * 128, None),
        (b"\x12\x011\x0a\x01m", None),
        (b"\x1a\x01m", None),
        (b"\x0a\x02\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_a_message_begins_with_its_models_name_where_no_version_follows(message: bytes, name: str | None):
    assert _leading_name(message) == name


# ModelInfer


async def test_a_request_is_answered_with_its_response_and_what_is_to_go_along():
    async with serving(Doubler, metrics=Metrics()) as plane:
        for revision, metadata in (
            ("", (("x-request-id", "i"),)),
            ("r-7", (("x-request-id", "i"), ("x-serinus-revision", "r-7"))),
        ):
            heard = Heard()
            service = service_of(plane, revision=revision)
            assert service.infer(request(id="9"), {"x-request-id": "i"}, None, heard) is not None
            answer, sent = await heard.response()
            assert (answer.id, answer.model_name) == ("9", "m")
            assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 2]
            assert sent == metadata
            heard = Heard()
            service.infer(request(), {}, None, heard)
            assert (await heard.response())[1] == (metadata[1:] or None)
        assert refusals(plane) == {}


@pytest.mark.parametrize(("revision", "trailing"), [("", ()), ("r-7", (("x-serinus-revision", "r-7"),))])
async def test_a_model_that_is_not_there_is_said_to_be_so_and_counted(revision: str, trailing: Any):
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, revision=revision)
        for message in (request("none"), request("m", version="4"), broken("none")):
            heard = Heard()
            service.infer(message, {}, None, heard)
            failure = await heard.failure()
            assert (failure.code, failure.trailing) == (GrpcStatus.NOT_FOUND, trailing)
        assert refusals(plane) == {GrpcStatus.NOT_FOUND: 3}


async def test_what_is_no_request_is_refused_and_counted_and_what_a_model_refuses_is_the_models_to_count():
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane)
        for message in (b"\xff", request() + b"\xff", broken("m")):
            heard = Heard()
            assert service.infer(message, {}, None, heard) is None
            assert (await heard.failure()).code == GrpcStatus.INVALID_ARGUMENT
        assert refusals(plane) == {GrpcStatus.INVALID_ARGUMENT: 3}
        wrong = message_of("m", np.ones((1, 3), np.float32)).SerializeToString()
        heard = Heard()
        service.infer(wrong, {}, None, heard)
        assert (await heard.failure()).code == GrpcStatus.INVALID_ARGUMENT
        heard = Heard()
        service.infer(request(value=13), {}, None, heard)
        assert (await heard.failure()).code == GrpcStatus.INTERNAL
        assert refusals(plane) == {GrpcStatus.INVALID_ARGUMENT: 3}


async def test_a_call_whose_time_is_over_is_told_so():
    async with serving(Doubler, metrics=Metrics()) as plane:
        heard = Heard()
        service_of(plane).infer(request(), {}, 0.0, heard)
        assert (await heard.failure()).code == GrpcStatus.DEADLINE_EXCEEDED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_draining_server_takes_no_more_and_is_not_ready(stream: bool):
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane)
        assert (service.server_ready(), service.server_live(), service.model_ready("m")) == (True, True, True)
        service.drain()
        assert (service.server_ready(), service.server_live(), service.model_ready("m")) == (False, True, False)
        heard = Heard()
        service.infer(request(), {}, None, heard, stream=stream)
        failure = await heard.failure()
        assert (failure.code, failure.message) == (
            GrpcStatus.UNAVAILABLE,
            "the server is draining and takes no new calls; try another replica",
        )


async def test_readiness_follows_the_plane():
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane)
        plane.stop_ready()
        assert (service.server_ready(), service.server_live(), service.model_ready("m")) == (False, True, False)
        with pytest.raises(NotFound):
            service.model_ready("none")
        with pytest.raises(NotFound):
            service.model_ready("m", "4")


async def test_a_message_that_the_transport_refused_for_its_size_is_said_to_be_too_large():
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, grpc_max_receive_message_length=5000)
        assert len(service.too_large_marker) == 12
        assert service.too_large_marker != service_of(plane).too_large_marker
        assert service.too_large_marker[:1] == b"\xff"
        for begin in (lambda heard: service.infer(service.too_large_marker, {}, None, heard),):
            heard = Heard()
            begin(heard)
            failure = await heard.failure()
        assert failure.code == GrpcStatus.RESOURCE_EXHAUSTED
        assert failure.message.startswith(
            "the request message is larger than 5000 bytes (grpc_max_receive_message_length)"
        )
        heard = Heard()
        await service.call(f"/{SERVICE}/ServerLive", service.too_large_marker, {}, heard)
        assert (await heard.failure()) == failure
        assert refusals(plane) == {GrpcStatus.RESOURCE_EXHAUSTED: 2}


async def test_a_response_beyond_the_limit_is_refused_and_one_within_is_sent():
    async with serving(Doubler, metrics=Metrics()) as plane:
        heard = Heard()
        service_of(plane).infer(request(rows=50), {}, None, heard)
        size = len((await heard.told)[0])
        for limit, fits in ((size, True), (size - 1, False)):
            heard = Heard()
            service_of(plane, grpc_max_send_message_length=limit).infer(request(rows=50), {}, None, heard)
            if fits:
                await heard.response()
            else:
                failure = await heard.failure()
                assert failure.code == GrpcStatus.RESOURCE_EXHAUSTED
                assert f"has {size} bytes, the limit is {limit}" in failure.message


async def test_a_large_answer_needs_room_beside_those_that_wait_and_a_small_one_does_not():
    async with serving(Doubler, metrics=Metrics()) as plane:
        account = UnsentAnswers(1000)
        account.waiting_bytes = 10
        service = service_of(plane, unsent=account)
        assert service.unsent is account
        for rows, code in ((1, None), (20_000, GrpcStatus.RESOURCE_EXHAUSTED)):
            heard = Heard()
            service.infer(request(rows=rows), {}, None, heard)
            if code is None:
                await heard.response()
            else:
                failure = await heard.failure()
                assert (failure.code, dict(failure.trailing)["retry-after"]) == (code, "1")
        assert account.refused == 1
        own = service_of(plane, max_unsent_bytes=77, send_timeout_s=3.0).unsent
        assert (own._most_bytes, own._patience_s) == (77, 3.0)


class Odd(RequestModel):
    """Answers what cannot be written."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("m", [Tensor("y", "FP32", (1,), None)], headers={"a": "1"})


async def test_an_answer_that_cannot_be_written_is_a_failure_of_the_server():
    async with serving(Odd, metrics=Metrics()) as plane:
        heard = Heard()
        service_of(plane, revision="r-7").infer(request(), {"x-request-id": "i"}, None, heard)
        failure = await heard.failure()
        assert failure.code == GrpcStatus.INTERNAL
        assert failure.trailing[-1] == ("x-serinus-revision", "r-7")


# Large and deflated messages


def numbers(count: int) -> bytes:
    """A request whose numbers are written one by one, four bytes each."""
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[count // 2, 2]).contents.fp32_contents.extend([1.0] * count)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("message", "laborious"),
    [
        (b"", False),
        (request(), False),
        (deflated(request()), True),
        (numbers(2), False),
        (numbers(80_000), True),
        (request(rows=40_000), False),  # raw bytes, which cost nothing to read
    ],
    ids=["empty", "usual", "deflated", "small", "large", "large and raw"],
)
async def test_a_message_that_takes_long_to_read_is_known(message: bytes, laborious: bool):
    async with serving(Doubler, metrics=Metrics()) as plane:
        assert service_of(plane).is_laborious(message) is laborious


async def test_a_deflated_request_is_read_in_a_thread_and_answered_as_any():
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane)
        heard = Heard()
        assert service.infer(deflated(request(id="9")), {}, None, heard) is not None
        await turns(1)
        assert (await heard.response())[0].id == "9"
        assert service.plain(request()) == request()
        assert service.plain(deflated(request())) == request()
        assert service.parsed(deflated(request(id="9"))).id == "9"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (deflated(request())[:-1], GrpcStatus.INVALID_ARGUMENT),
        (deflated(request("none")), GrpcStatus.NOT_FOUND),
        (deflated(broken("none")), GrpcStatus.NOT_FOUND),
        (deflated(request() + b"\xff"), GrpcStatus.INVALID_ARGUMENT),
        (deflated(b"\0" * 5001), GrpcStatus.RESOURCE_EXHAUSTED),
    ],
    ids=["damaged", "of no model", "of no model and no request", "no request", "large"],
)
async def test_what_is_wrong_with_one_that_is_read_in_a_thread_is_told_and_counted(message: bytes, code: int):
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, grpc_max_receive_message_length=5000)
        heard = Heard()
        service.infer(message, {}, None, heard)
        assert (await heard.failure()).code == code
        assert refusals(plane) == {code: 1}


async def test_a_client_that_leaves_while_its_message_is_read_is_told_nothing():
    async with serving(Doubler, metrics=Metrics()) as plane:
        heard = Heard()
        reading = service_of(plane).infer(deflated(request()), {}, None, heard)
        assert reading is not None
        reading.cancel()
        await asyncio.to_thread(lambda: None)
        await turns()
        assert not heard.told.done()


# Tokens


async def test_a_call_whose_kind_needs_a_token_is_asked_for_it_before_it_is_read():
    asked = RequestAccess(Tokens([TOKEN]), frozenset({"inference", "metadata"}))
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, request_access=asked)
        for headers, good in (({}, False), ({"authorization": f"Bearer {TOKEN}"}, True)):
            for stream in (False, True):
                heard = Heard()
                service.infer(request() if good else b"\xff", headers, None, heard, stream=stream)
                if good:
                    await heard.response()
                else:
                    assert (await heard.failure()).code == GrpcStatus.UNAUTHENTICATED
            for name in ("ServerMetadata", "ServerLive"):
                heard = Heard()
                await service.call(f"/{SERVICE}/{name}", b"", headers, heard)
                told = await heard.told
                assert isinstance(told, Failure) is (not good and name == "ServerMetadata")
        assert refusals(plane) == {GrpcStatus.UNAUTHENTICATED: 3}
        service.authenticate(f"/{SERVICE}/ServerLive", {})
        with pytest.raises(Unauthenticated):
            service.authenticate(INFER_STREAM, {})
        service_of(plane).authenticate(INFER, {})


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_only_who_may_changes_the_models(name: str):
    async with serving(Doubler, metrics=Metrics()) as plane:
        plane.access = RepositoryAccess(mode="token", tokens=Tokens([TOKEN]))
        service = service_of(plane)
        kind = pb.RepositoryModelLoadRequest if name.endswith("ModelLoad") else pb.RepositoryModelUnloadRequest
        asked = kind(model_name="m").SerializeToString()
        before = plane.registry.find("m")
        heard = Heard()
        await service.call(f"/{SERVICE}/{name}", asked, {}, heard)
        assert (await heard.failure()).code == GrpcStatus.UNAUTHENTICATED
        assert plane.registry.find("m") is before
        heard = Heard()
        await service.call(f"/{SERVICE}/{name}", asked, {"authorization": f"Bearer {TOKEN}"}, heard)
        assert not isinstance(await heard.told, Failure)
        assert ("m" in plane.loaded()) is (name == "RepositoryModelLoad")
        heard = Heard()
        await service.call(f"/{SERVICE}/RepositoryIndex", b"", {}, heard)
        assert not isinstance(await heard.told, Failure), "to look changes nothing"


# Other unary calls


async def test_a_unary_call_is_answered_with_its_message():
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane)
        for message in (
            pb.ModelReadyRequest(name="m").SerializeToString(),
            deflated(pb.ModelReadyRequest(name="m").SerializeToString()),
        ):
            heard = Heard()
            await service.call(f"/{SERVICE}/ModelReady", message, {"x-request-id": "i"}, heard)
            payload, metadata = await heard.told
            assert pb.ModelReadyResponse.FromString(payload).ready
            assert metadata is None
        heard = Heard()
        await service.call(
            f"/{SERVICE}/ModelMetadata", pb.ModelMetadataRequest(name="none").SerializeToString(), {}, heard
        )
        assert (await heard.failure()).code == GrpcStatus.NOT_FOUND
        assert refusals(plane) == {GrpcStatus.NOT_FOUND: 1}
        heard = Heard()
        await service.call("/grpc.health.v1.Health/Check", b"", {}, heard)
        assert (await heard.told)[0] == b"\x08\x01"


async def test_a_repository_of_several_workers_is_told_in_the_planes_place():
    told: list[Any] = []

    async def repository(*words: Any) -> None:
        told.append(words)

    async with serving(Doubler, metrics=Metrics()) as plane:
        plane.access = RepositoryAccess(mode="open")
        heard = Heard()
        asked = pb.RepositoryModelUnloadRequest(model_name="m").SerializeToString()
        await service_of(plane, repository=repository).call(f"/{SERVICE}/RepositoryModelUnload", asked, {}, heard)
        await heard.told
        assert [words[:2] for words in told] == [("unload", "m")]
        assert "m" in plane.loaded()


# A model that lets nobody in


async def test_a_model_that_is_full_refuses_by_its_name_without_reading_on(monkeypatch: pytest.MonkeyPatch):
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, revision="r-7")
        assert not service.is_refusing
        error = Overloaded("full", 1.0)
        monkeypatch.setitem(plane.full, "m", plane.registry.find("m"))
        monkeypatch.setattr(plane, "refuse_unread", lambda name: error if name == "m" else None)
        assert service.is_refusing
        failures = []
        for damaged in (b"\x0a\x01m\xff", b"\x0a\x01m\xff\xff"):
            heard = Heard()
            assert service.infer(damaged, {}, None, heard) is None
            failures.append(await heard.failure())
        assert failures[0] is failures[1], "made once"
        assert failures[0] == Failure(
            GrpcStatus.RESOURCE_EXHAUSTED, "full", (("retry-after", "1"), ("x-serinus-revision", "r-7"))
        )
        error = Overloaded("fuller", 1.0)
        heard = Heard()
        service.infer(request(), {}, None, heard)
        assert (await heard.failure()).message == "fuller"
        for message, stream, code in (
            (request("none"), False, GrpcStatus.NOT_FOUND),
            (b"\x12\x011", False, GrpcStatus.INVALID_ARGUMENT),
            (b"\x0a\x01m\xff", True, GrpcStatus.INVALID_ARGUMENT),
        ):
            heard = Heard()
            service.infer(message, {}, None, heard, stream=stream)
            assert (await heard.failure()).code == code


# The log


async def test_a_call_is_told_to_the_access_log_with_its_model_and_its_request_id(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "serinus.access")
    async with serving(Doubler, metrics=Metrics()) as plane:
        service = service_of(plane, access_log=True)
        for message, headers in ((request(), {"x-request-id": "one"}), (request("none"), {"x-request-id": "two"})):
            heard = Heard()
            service.infer(message, headers, None, heard)
            await heard.told
        heard = Heard()
        await service.call(f"/{SERVICE}/ServerReady", b"", {"x-request-id": "three"}, heard)
        assert (await heard.told)[1] == (("x-request-id", "three"),)
        heard = Heard()
        leaving = service.infer(request(), {"x-request-id": "four"}, None, heard)
        assert leaving is not None
        leaving.cancel()
        await turns()
    told = [record.getMessage() for record in caplog.records if record.name == "serinus.access"]
    assert len(told) == 4
    for line, words in zip(
        told,
        (
            ["ModelInfer", "one", "m"],
            ["ModelInfer", "two"],
            ["ServerReady", "three"],
            ["ModelInfer", "four", "m"],
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line
