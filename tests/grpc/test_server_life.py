"""What a gRPC server has its engine do, and how long it lets the loop look for calls that were sent before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serinus.server.grpc import GrpcServer


class Engine:
    """Notes what it is told."""

    name, port, listeners = "grpcio", 7, ()

    def __init__(self) -> None:
        self.told: list[Any] = []

    def stop_accepting(self) -> None:
        self.told.append("stop")

    async def drain(self, timeout_s: float) -> None:
        self.told.append(("drain", timeout_s))

    async def close(self) -> None:
        self.told.append("close")


@pytest.mark.looptime
async def test_an_engine_is_told_each_step_of_the_end_and_calls_that_were_sent_have_a_tenth_of_a_second():
    engine, loop = Engine(), asyncio.get_running_loop()
    server = GrpcServer(engine)
    assert (server.engine, server.port) == ("grpcio", 7)
    began = loop.time()
    await server.take_waiting()
    assert loop.time() - began == pytest.approx(0.1)
    assert engine.told == []
    server.stop_accepting()
    await server.drain(3.0)
    await server.close()
    assert engine.told == ["stop", ("drain", 3.0), "close"]
