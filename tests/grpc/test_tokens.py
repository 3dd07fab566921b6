"""Bearer tokens over gRPC: every call asks but health, on both engines, streams before anything of them is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import grpc
from grpc_support import ENGINES, serving
from serinus.dataplane.access.access_tokens import Tokens
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.reflection import REFLECTION_PATHS
from serinus.server.grpc.service import INFER, INFER_STREAM, SERVICE
from serinus.server.request_access import HEALTH, RequestAccess, grpc_kind

TOKEN = "first-token-0123456789"
ASKED = RequestAccess(Tokens([TOKEN]))
GOOD = (("authorization", f"Bearer {TOKEN}"),)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
STREAMS = (INFER_STREAM, *REFLECTION_PATHS)


def raw(channel: grpc.Channel, path: str, message: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.Call:
    """Make a call of bytes; gives it when it has ended."""
    if path in STREAMS:
        call = channel.stream_stream(path)(iter([message]), metadata=metadata, timeout=20)
        try:
            next(call)
        except (grpc.RpcError, StopIteration):
            pass
        call.cancel()
        return call
    call = channel.unary_unary(path).future(message, metadata=metadata, timeout=20)
    call.exception()
    return call


@pytest.mark.parametrize("engine", ENGINES)
def test_every_call_but_health_wants_a_token(engine: str):
    with serving(engine, request_access=ASKED) as server, grpc.insecure_channel(server.address) as channel:
        unary = server.server._engine._service.unary if engine == "grpcio" else server.server._engine.service.unary
        for path in (INFER, *unary, *STREAMS):
            without = raw(channel, path, b"")
            is_open = grpc_kind(path) == HEALTH
            assert (without.code() == UNAUTHENTICATED) is not is_open, (path, without.code())
            assert raw(channel, path, b"", GOOD).code() != UNAUTHENTICATED, path
        assert f"/{SERVICE}/ServerLive" in unary


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refusal_carries_the_challenge_and_tells_no_names(engine: str):
    with serving(engine, request_access=ASKED) as server, grpc.insecure_channel(server.address) as channel:
        message = pb.ModelInferRequest(model_name="nobody").SerializeToString()
        none = raw(channel, INFER, message)
        other = raw(channel, INFER, message, (("authorization", "Bearer another-token-0123456789"),))
        known = raw(channel, INFER, message, GOOD)
    assert dict(none.trailing_metadata())["www-authenticate"] == 'Bearer realm="serinus"'
    assert dict(other.trailing_metadata())["www-authenticate"] == 'Bearer realm="serinus", error="invalid_token"'
    assert none.details() == "this server needs a token, as 'Authorization: Bearer TOKEN'; none came"
    assert "nobody" not in none.details()
    assert known.code() == grpc.StatusCode.NOT_FOUND


BAD = {
    "cut": f"Bearer {TOKEN[:-1]}",
    "two in one": f"Bearer {TOKEN} {TOKEN}",
    "another scheme": f"Basic {TOKEN}",
    "huge": "Bearer " + "x" * 30_000,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", BAD)
def test_what_is_not_the_token_is_refused(engine: str, case: str):
    with serving(engine, request_access=ASKED) as server, grpc.insecure_channel(server.address) as channel:
        assert raw(channel, INFER, b"", (("authorization", BAD[case]),)).code() == UNAUTHENTICATED
        twice = (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}"))
        assert raw(channel, INFER, b"", twice).code() == UNAUTHENTICATED
        assert raw(channel, INFER, b"", GOOD).code() != UNAUTHENTICATED


@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_that_is_taken_back_ends_the_next_request_of_a_stream(engine: str):
    access = RequestAccess(Tokens([TOKEN]))
    message = pb.ModelInferRequest(model_name="nobody").SerializeToString()
    with serving(engine, request_access=access) as server, grpc.insecure_channel(server.address) as channel:
        answered = threading.Event()

        def requests() -> Iterator[bytes]:
            yield message
            answered.wait(20)
            access.tokens = Tokens(["second-token-0123456789"])
            yield message

        call = channel.stream_stream(INFER_STREAM)(requests(), metadata=GOOD, timeout=20)
        answers: list[str] = []
        for answer in call:
            answers.append(pb.ModelStreamInferResponse.FromString(answer).error_message)
            answered.set()
    assert "nobody" in answers[0]
    assert "needs a token" in answers[1]
