"""Which variables turn tracing on, and that what is wrong with them turns it off and keeps no server from serving."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serinus.tracing.tracer import start_tracing

HALVES = """
import sys
from serinus import Model, TensorSpec

class Halves(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def load(self):
        print("loaded", sorted(name for name in sys.modules if name.startswith("opentelemetry")), flush=True)
        raise OSError("that is all")

    def predict(self, inputs, call):
        return {"y": inputs["x"] / 2}
"""
ON = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": ON}, ""),
        ({"OTEL_TRACES_EXPORTER": "none,otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": ON}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": ON}, ""),
        ({"OTEL_SDK_DISABLED": " TRUE ", "OTEL_TRACES_EXPORTER": "otlp"}, ""),
        ({"OTEL_SERVICE_NAME": "a", "OTEL_TRACES_SAMPLER": "always_on"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "names 'zipkin'; expected console, none, otlp"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "'http/json'; expected grpc or http/protobuf",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_PROPAGATORS": "b3"}, "expected 'tracecontext'"),
    ],
    ids=lambda value: ",".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_nothing_is_traced(environ: dict[str, str], said: str, caplog: Any):
    caplog.set_level(logging.WARNING)
    assert start_tracing(environ, service="s") is None
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


@pytest.mark.slow
def test_without_its_variables_no_package_of_OpenTelemetry_is_imported(tmp_path: Path):
    (tmp_path / "halves.py").write_text(HALVES)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SERINUS_"))}
    words = [
        sys.executable,
        "-m",
        "serinus.cli",
        "serve",
        "--class",
        f"{tmp_path}/halves.py:Halves",
        "--http_port",
        "0",
    ]
    done = subprocess.run([*words, "--grpc_port", "0"], env=clean, capture_output=True, text=True, timeout=60)
    assert "loaded []" in done.stdout, done.stdout + done.stderr


def test_where_the_package_is_missing_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert start_tracing({"OTEL_TRACES_EXPORTER": "otlp"}, service="s") is None
    assert "pip install 'serinus[otel]'" in caplog.text
