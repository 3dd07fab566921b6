"""Ports that two settings ask for, or that cannot be listened on, with sockets that hold them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.server.port_checks import check_ports, port_problems
from serinus.settings import ServerSettings


def both(name: str, other: str, port: int) -> str:
    return f"--{name} and --{other} are both {port}; choose another for one of them, or 0 for any that is free"


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({}, []),
        ({"http_port": 1, "grpc_port": 2, "metrics_port": 3, "health_port": 4}, []),
        ({"http_port": 0, "grpc_port": 0, "metrics_port": 0, "health_port": 0}, []),
        ({"http_port": 1, "grpc_port": 2, "metrics_port": 1}, []),
        ({"http_port": 1, "grpc_port": 1}, [("http_port", "grpc_port", 1)]),
        ({"http_port": 1, "grpc_port": 1, "enable_grpc": False}, []),
        ({"http_port": 1, "grpc_port": 2, "health_port": 1}, [("http_port", "health_port", 1)]),
        ({"http_port": 1, "grpc_port": 2, "metrics_port": 2}, [("metrics_port", "grpc_port", 2)]),
        ({"http_port": 1, "grpc_port": 2, "metrics_port": 3, "health_port": 3}, [("metrics_port", "health_port", 3)]),
        ({"http_port": 1, "grpc_port": 2, "health_port": 2}, [("health_port", "grpc_port", 2)]),
        (
            {"http_port": 1, "grpc_port": 1, "health_port": 1},
            [("http_port", "health_port", 1), ("http_port", "grpc_port", 1), ("health_port", "grpc_port", 1)],
        ),
    ],
)
def test_two_settings_may_not_ask_for_one_port_but_REST_and_metrics(settings: Any, pairs: list[tuple[str, str, int]]):
    assert port_problems(ServerSettings(**settings)) == [both(*pair) for pair in pairs]


@contextlib.contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that somebody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        sock.listen()
        yield sock.getsockname()[1]


FREE = {"http_port": 0, "grpc_port": 0}
NAMES = ("http_port", "grpc_port", "metrics_port", "health_port")


def problems(**settings: Any) -> list[str]:
    only_metrics = settings.pop("only_metrics", False)
    try:
        check_ports(ServerSettings(**{**FREE, **settings}), only_metrics=only_metrics)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("name", NAMES)
def test_a_port_that_is_taken_is_told_and_any_that_is_free_is_not(name: str):
    with taken() as port:
        (problem,) = problems(**{name: port})
        assert problem.startswith(f"{name}: cannot listen on 127.0.0.1:{port}: ")
        assert problem.endswith("; choose another, or 0")
    assert problems(**{name: port}) == [], "it is let go"
    assert problems() == []


def test_all_that_are_taken_are_told_together():
    with taken() as one, taken() as two, taken() as three, taken() as four:
        found = problems(http_port=one, grpc_port=two, metrics_port=three, health_port=four)
        assert [each.partition(":")[0] for each in found] == list(NAMES)
        assert len(problems(http_port=one, grpc_port=two, enable_grpc=False)) == 1


@pytest.mark.parametrize(("only_metrics", "told"), [(False, list(NAMES)), (True, ["metrics_port", "health_port"])])
def test_those_of_inference_are_left_out_where_they_are_bound_already(only_metrics: bool, told: list[str]):
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(taken()) for name in NAMES}
        found = problems(**ports, only_metrics=only_metrics)
    assert [each.partition(":")[0] for each in found] == told


@pytest.mark.parametrize("only_metrics", [True, False])
def test_a_port_that_REST_and_metrics_share_is_asked_for_once(only_metrics: bool):
    with taken() as port:
        found = problems(http_port=port, metrics_port=port, only_metrics=only_metrics)
    assert [each.partition(":")[0] for each in found] == ([] if only_metrics else ["http_port"])


def test_a_port_whose_last_connection_still_lingers_is_free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()  # first, so that it is this side that waits
        assert client.recv(1) == b""
        client.close()
    assert problems(http_port=port) == []


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_host_with_colons_is_one_of_IPv6():
    with contextlib.suppress(OSError), taken("::1") as port:
        (problem,) = problems(host="::1", http_port=port)
        assert problem.startswith(f"http_port: cannot listen on ::1:{port}: ")
        assert problems(http_port=port) == [], "the other family has ports of its own"
    assert problems(host="::1") == []


def test_a_host_that_is_none_of_this_machine_is_told():
    (problem,) = problems(host="192.0.2.1", http_port=18_080)
    assert problem.startswith("http_port: cannot listen on 192.0.2.1:18080: ")
