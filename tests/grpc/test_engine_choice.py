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
ABSENT, ASKED, TLS = "pygrpc-native is not installed", "asked for", "TLS is on"


@pytest.mark.parametrize(
    ("wanted", "tls", "installed", "engine", "said"),
    [
        ("auto", False, True, "native", "gRPC engine: native"),
        ("auto", False, False, "grpcio", GRPCIO.format(ABSENT)),
        ("auto", True, True, "grpcio", GRPCIO.format(TLS)),
        ("auto", True, False, "grpcio", GRPCIO.format(TLS)),
        ("grpcio", False, True, "grpcio", GRPCIO.format(ASKED)),
        ("grpcio", False, False, "grpcio", GRPCIO.format(ABSENT)),
        ("grpcio", True, True, "grpcio", GRPCIO.format(TLS)),
        ("native", False, True, "native", None),
    ],
)
def test_the_engine_follows_what_is_asked_for_what_is_installed_and_tls_and_the_log_says_why(
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


@pytest.mark.parametrize(
    ("installed", "said"),
    [(True, "--grpc native has no TLS; use --grpc grpcio"), (False, r"pip install 'serinus\[grpc_native\]'")],
)
def test_a_native_engine_that_is_asked_for_and_cannot_serve_is_refused(
    installed: bool, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(ConfigError, match=said):
        choose_engine(ServerSettings(grpc="native", ssl_certfile="c", ssl_keyfile="k"))
