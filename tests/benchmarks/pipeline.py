"""The fraud pipeline, raw transaction in and decision out: serinus's forms beside a KServe transformer and predictor.

The classes are the same everywhere (`FraudFeatures`, `Ensemble`); the KServe pair runs them under `kserve.ModelServer`, gRPC
between them, latency logs off. Each request is a transaction of its own, so that no answer comes from the memory of earlier ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import Slice, summarise, wrk
from .peers import CACHE, free_ports, quiet_kserve

__all__ = ["measure"]

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "inferenceservices" / "fraud" / "model"
TOKEN = "@ID@"


@dataclass
class _Form:
    name: str
    processes: list[subprocess.Popen[bytes]]
    port: int

    def stop(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                process.kill()


def _body() -> bytes:
    """One raw transaction; its id is filled in for each request."""
    request = json.loads((ROOT / "inferenceservices" / "fraud" / "request.json").read_text())
    request.pop("id", None)
    for tensor in request["inputs"]:
        tensor["shape"] = [1]
        tensor["data"] = [TOKEN] if tensor["name"] == "transaction_id" else tensor["data"][:1]
    return json.dumps(request, separators=(",", ":")).encode()


def _spawn(log: str, *command: str) -> subprocess.Popen[bytes]:
    path = CACHE / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with path.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _serinus_fused() -> _Form:
    ports = free_ports()
    flags = ["--class", "ensemble_server", "--transformer", "fraud_features", "--model_dir", str(MODEL)]
    return _Form("serinus fused", [_serve("serinus-fused", ports, *flags)], ports["http"])


def _serinus_split() -> _Form:
    ports, back = free_ports(), free_ports()
    predictor = _serve("serinus-predictor", back, "--class", "ensemble_server", "--model_dir", str(MODEL))
    flags = [
        "--class",
        "fraud_features",
        "--predictor_host",
        f"127.0.0.1:{back['grpc']}",
        "--predictor_protocol",
        "grpc-v2",
    ]
    return _Form("serinus split", [_serve("serinus-transformer", ports, *flags), predictor], ports["http"])


def _serve(log: str, ports: Any, *flags: str) -> subprocess.Popen[bytes]:
    where = ["--host", "127.0.0.1", "--http_port", str(ports["http"]), "--grpc_port", str(ports["grpc"])]
    names = ["--model_name", "fraud", "--nthread", "1", "--log_level", "WARNING"]
    return _spawn(log, "-m", "serinus.cli", "serve", *where, *names, *flags)


def _kserve_pair() -> _Form:
    ports, back = free_ports(), free_ports()
    quiet = ["--enable_latency_logging", "false", "--log_config_file", str(quiet_kserve()), "--model_name", "fraud"]
    predictor = _spawn(
        "kserve-predictor",
        *("-m", "ensemble_server", "--model_dir", str(MODEL), "--nthread", "1", *quiet),
        *("--http_port", str(back["http"]), "--grpc_port", str(back["grpc"])),
    )
    transformer = _spawn(
        "kserve-transformer",
        *("-m", "fraud_features", *quiet, "--http_port", str(ports["http"]), "--grpc_port", str(ports["grpc"])),
        *("--predictor_host", f"127.0.0.1:{back['grpc']}", "--predictor_protocol", "grpc-v2"),
    )
    return _Form("KServe transformer + predictor", [transformer, predictor], ports["http"])


def _wait(form: _Form, body: bytes) -> None:
    """Wait for the first decision, and hold it to be one."""
    url = f"http://127.0.0.1:{form.port}/v2/models/fraud/infer"
    deadline = time.monotonic() + 90
    while True:
        message = urllib.request.Request(
            url, data=body.replace(TOKEN.encode(), b"first"), headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(message, timeout=30) as answer:
                outputs = {output["name"]: output["data"] for output in json.loads(answer.read())["outputs"]}
        except OSError as error:
            dead = [process for process in form.processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                detail = error.read().decode()[:500] if isinstance(error, urllib.error.HTTPError) else str(error)
                raise RuntimeError(f"{form.name} does not answer: {detail}") from None
            time.sleep(0.05)
            continue
        if outputs["decision"][0] not in {"approve", "review", "decline"}:
            raise RuntimeError(f"{form.name} answers no decision: {outputs}")
        return


def measure(seconds: float, rounds: int, say: Callable[[str], None], *, connections: int = 16) -> list[dict[str, Any]]:
    """Measure every form, in turns.

    Returns:
        Figures of each, as `measure.summarise` names them, with its name under `peer`.
    """
    body = _body()
    forms: list[_Form] = []
    try:
        for make in (_serinus_fused, _serinus_split, _kserve_pair):
            forms.append(make())
            say(f"pipeline: starting {forms[-1].name}")
        for form in forms:
            _wait(form, body)
        slices: dict[str, list[Slice]] = {form.name: [] for form in forms}
        for turn in range(rounds + 1):
            for form in forms:
                part = _slice(form, body, connections, seconds if turn else 0.5, turn)
                if turn:
                    slices[form.name].append(part)
    finally:
        for form in forms:
            form.stop()
    rows = []
    for form in forms:
        figures = summarise(slices[form.name])
        rows.append({"peer": form.name, **figures})
        say(f"pipeline: {form.name:<32} {figures['rps']:>8.0f}/s  CPU {figures['cpu_us']:>7.0f} us/request")
    return rows


def _slice(form: _Form, body: bytes, connections: int, seconds: float, turn: int) -> Slice:
    return wrk(
        f"http://127.0.0.1:{form.port}/v2/models/fraud/infer",
        body,
        {"Content-Type": "application/json"},
        pid=[process.pid for process in form.processes],
        connections=connections,
        seconds=seconds,
        token=TOKEN,
        prefix=f"{turn}-",
    )
