"""Reflection without an engine: both versions describe themselves, and every symbol leads to its file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from serinus.errors import InvalidInput
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.grpc.reflection import REFLECTION_PATHS, Reflection

SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health")
V1, ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"


async def asked(*requests: bytes) -> list[Any]:
    async def messages() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    answers = Reflection(SERVICES, pb.DESCRIPTOR.pool).stream(messages())
    return [reflection_pb2.ServerReflectionResponse.FromString(answer) async for answer in answers]


async def files(**request: Any) -> dict[str, Any]:
    """The files that are told, by their names."""
    (answer,) = await asked(reflection_pb2.ServerReflectionRequest(**request).SerializeToString())
    told = answer.file_descriptor_response.file_descriptor_proto
    found = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in told]
    return {file.name: file for file in found}


def types_of(file: Any) -> set[str]:
    """Every name of a type that a file refers to."""
    methods = [method for service in file.service for method in service.method]
    fields = [field for message in file.message_type for field in message.field]
    return {name for method in methods for name in (method.input_type, method.output_type)} | {
        field.type_name for field in fields if field.type_name
    }


@pytest.mark.parametrize("package", [V1, ALPHA])
async def test_each_version_describes_itself_by_its_own_name(package: str):
    (file,) = (await files(file_containing_symbol=f"{package}.ServerReflection")).values()
    assert file.package == package
    assert ("v1alpha" in file.name) is (package == ALPHA)
    assert [service.name for service in file.service] == ["ServerReflection"]
    (method,) = file.service[0].method
    assert (method.name, method.client_streaming, method.server_streaming) == ("ServerReflectionInfo", True, True)
    assert method.input_type == f".{package}.ServerReflectionRequest"
    assert method.output_type == f".{package}.ServerReflectionResponse"
    names = {f".{package}.{message.name}" for message in file.message_type}
    assert types_of(file) <= names
    assert len(names) == len(reflection_pb2.DESCRIPTOR.message_types_by_name) == 8


async def test_the_messages_of_both_versions_are_equal():
    ours, theirs = [
        next(iter((await files(file_containing_symbol=f"{package}.ServerReflection")).values()))
        for package in (V1, ALPHA)
    ]
    assert len(ours.message_type) == len(theirs.message_type)
    for one, other in zip(ours.message_type, theirs.message_type, strict=True):
        assert [(field.name, field.number, field.type, field.label) for field in one.field] == [
            (field.name, field.number, field.type, field.label) for field in other.field
        ]
    assert b"v1alpha" not in ours.SerializeToString()


@pytest.mark.parametrize(
    ("symbol", "package"),
    [
        ("inference.GRPCInferenceService", "inference"),
        ("inference.GRPCInferenceService.ModelInfer", "inference"),
        ("inference.ModelInferRequest", "inference"),
        ("inference.ModelInferRequest.InferInputTensor", "inference"),
        ("inference.ModelInferRequest.model_name", "inference"),
        ("grpc.health.v1.Health", "grpc.health.v1"),
        ("grpc.health.v1.Health.Check", "grpc.health.v1"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc.health.v1"),
        (f"{V1}.ServerReflection.ServerReflectionInfo", V1),
        (f"{V1}.ListServiceResponse", V1),
        (f"{ALPHA}.ServerReflection.ServerReflectionInfo", ALPHA),
    ],
)
async def test_a_symbol_of_any_kind_leads_to_its_file(symbol: str, package: str):
    assert package in {file.package for file in (await files(file_containing_symbol=symbol)).values()}


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        "inference",
        "inference.Nobody",
        "inference.GRPCInferenceService.Nobody",
        "Nobody.At.All",
        f"{V1}.Nobody",
        ".",
    ],
)
async def test_a_symbol_that_is_not_there_is_not_found_and_the_stream_goes_on(symbol: str):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol).SerializeToString()
    services = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    absent, listed = await asked(request, services)
    assert absent.error_response.error_code == 5
    assert [one.name for one in listed.list_services_response.service] == sorted(SERVICES)


async def test_a_file_is_found_by_its_name_in_whichever_pool_it_lies():
    for symbol in (*SERVICES, f"{V1}.ServerReflection", f"{ALPHA}.ServerReflection"):
        name = next(iter(await files(file_containing_symbol=symbol)))
        assert name in await files(file_by_filename=name)
    (absent,) = await asked(reflection_pb2.ServerReflectionRequest(file_by_filename="no.proto").SerializeToString())
    assert absent.error_response.error_code == 5


async def test_extensions_are_asked_for_where_the_message_lies():
    for name in ("inference.ModelInferRequest", "grpc.health.v1.HealthCheckRequest"):
        request = reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type=name)
        (answer,) = await asked(request.SerializeToString())
        assert answer.all_extension_numbers_response.base_type_name == name
        assert list(answer.all_extension_numbers_response.extension_number) == []
        request = reflection_pb2.ServerReflectionRequest(
            file_containing_extension=reflection_pb2.ExtensionRequest(containing_type=name, extension_number=1)
        )
        (answer,) = await asked(request.SerializeToString())
        assert answer.error_response.error_code == 5


async def test_what_is_no_request_ends_the_stream_in_words():
    with pytest.raises(InvalidInput, match="the message is not a ServerReflectionRequest"):
        await asked(b"\x0a\xff")


def test_both_paths_are_offered():
    assert tuple(f"/{package}.ServerReflection/ServerReflectionInfo" for package in (V1, ALPHA)) == REFLECTION_PATHS
