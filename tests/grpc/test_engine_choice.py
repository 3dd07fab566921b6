"""Which gRPC engine serves, and the reason that the log gives."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import pytest

from serinus.errors import ConfigError
from serinus.server.grpc.grpc_server import choose_engine
from serinus.settings import ServerSettings

GRPCIO = "gRPC engine: grpcio ({}); for trusted networks: "
ABSENT, ASKED = "pygrpc-native is not installed", "asked for"


@pytest.mark.parametrize(
    ("wanted", "tls", "installed", "engine", "said"),
    [
        ("auto", False, True, "native", "gRPC engine: native"),
        ("auto", False, False, "grpcio", GRPCIO.format(ABSENT)),
        ("auto", True, True, "native", "gRPC engine: native"),
        ("auto", True, False, "grpcio", GRPCIO.format(ABSENT)),
        ("grpcio", False, True, "grpcio", GRPCIO.format(ASKED)),
        ("grpcio", False, False, "grpcio", GRPCIO.format(ABSENT)),
        ("grpcio", True, True, "grpcio", GRPCIO.format(ASKED)),
        ("native", False, True, "native", None),
        ("native", True, True, "native", None),
    ],
)
def test_the_engine_follows_what_is_asked_for_what_is_installed_whether_tls_is_on_or_not_and_the_log_says_why(
    wanted: str,
    tls: bool,
    installed: bool,
    engine: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    sought: list[str] = []
    found = object() if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sought.append(name) or found)
    files: dict[str, Any] = {"ssl_certfile": "c", "ssl_keyfile": "k"} if tls else {}
    assert choose_engine(ServerSettings(grpc=wanted, **files)) == engine  # type: ignore[arg-type] # one of its words
    assert sought == ["pygrpc_native"]
    assert [line[: len(said or "")] for line in caplog.messages] == ([] if said is None else [said])


def test_a_native_engine_that_is_asked_for_and_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'serinus\[grpc-native\]'"):
        choose_engine(ServerSettings(grpc="native", ssl_certfile="c", ssl_keyfile="k"))
