"""Server reflection, v1 and v1alpha, so that grpcurl and grpcui need no .proto file.

Our messages live in a descriptor pool of their own, because the clients of KServe and Triton register the same package in the
process-wide one. Reflection therefore looks in ours first and in the process-wide pool for health and reflection themselves.
The two versions have equal messages (gRPC, doc/server-reflection.md), so one handler of bytes serves both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2  # noqa: F401 # puts grpc.health.v1 into the process-wide pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ...errors import InvalidInput
from .calls_in_flight import check_small

__all__ = ["REFLECTION_PATHS", "Reflection"]

REFLECTION_PATHS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def _file_of_method(pool: Any, name: str) -> Any:
    """Find what a pool does not: a method is a symbol too (gRPC, reflection.proto: "<package>.<service>[.<method>]")."""
    service, _, method = name.rpartition(".")
    return pool.FindServiceByName(service).methods_by_name[method].containing_service.file


def _v1() -> Any:
    """Describe reflection's v1, of which grpcio-reflection has no module, by v1alpha's description."""
    file: Any = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    methods = [method for service in file.service for method in service.method]
    fields = [field for message in file.message_type for field in message.field]
    for part, names in (
        *((method, ("input_type", "output_type")) for method in methods),
        *((field, ("type_name",)) for field in fields),
        (file, ("name", "package")),
    ):
        for name in names:
            if getattr(part, name):
                setattr(part, name, getattr(part, name).replace("v1alpha", "v1"))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


class _Pools:
    """The part of a DescriptorPool that reflection uses, over several pools, first found first taken."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def _find(self, look: Callable[[Any], Any]) -> Any:
        for pool in self._pools:
            try:
                return look(pool)
            except KeyError:
                continue
        raise KeyError

    def FindFileByName(self, name: str) -> Any:  # noqa: N802 # DescriptorPool's name
        return self._find(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, name: str) -> Any:  # noqa: N802 # DescriptorPool's name
        try:
            return self._find(lambda pool: pool.FindFileContainingSymbol(name))
        except KeyError:
            return self._find(lambda pool: _file_of_method(pool, name))

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802 # DescriptorPool's name
        return self._find(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802 # DescriptorPool's name
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802 # DescriptorPool's name
        return message.file.pool.FindAllExtensions(message)


class Reflection:
    """Answers reflection streams.

    Args:
        services: full names of all services.
        pool: where the inference service's descriptors are.
    """

    def __init__(self, services: tuple[str, ...], pool: Any) -> None:
        pools = _Pools(pool, descriptor_pool.Default(), _v1())
        self._servicer = reflection.aio.ReflectionServicer(services, pool=pools)  # type: ignore[arg-type] # duck-typed pool

    async def stream(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer each request of a stream in turn.

        Raises:
            InvalidInput: a message that does not decode.
        """

        async def requests() -> AsyncIterator[Any]:
            async for message in messages:
                check_small(message, "ServerReflectionRequest")
                try:
                    yield reflection_pb2.ServerReflectionRequest.FromString(message)
                except DecodeError:
                    raise InvalidInput("the message is not a ServerReflectionRequest") from None

        answers: Any = self._servicer.ServerReflectionInfo(
            requests(), None
        )  # an async generator, whatever its stub says
        async for response in answers:
            yield response.SerializeToString()
