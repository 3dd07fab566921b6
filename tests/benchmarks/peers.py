"""The servers that are measured: how each is installed, started, asked and checked.

Each gets what its own documentation advises for speed: one process, one native thread, logs of single requests off; MLServer
without parallel workers; Triton with dynamic batching. Every answer is compared with the Booster's before anything is timed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import grpc

from .work import Work

__all__ = ["PEERS", "Peer", "Running", "free_ports", "install", "quiet_kserve", "request", "start"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "bench"

Ports = Mapping[str, int]


@dataclass(frozen=True)
class Peer:
    """One server under measurement."""

    name: str
    what: str
    """Version and settings, as the table prints them."""
    command: Callable[[Path, Work, Ports], list[str]]
    """(python, work, ports) to the command line."""
    requirements: Sequence[str] = ()
    """Installed in an environment of its own; empty: the project's."""
    workloads: Sequence[str] = ("W1", "W1b", "W1g", "W2", "W2b", "W2g")
    interpreter: str | None = None
    """The Python of its environment, where this program's own does not do."""
    path: str = "/v2/models/model/infer"
    environment: Mapping[str, str] = field(default_factory=dict)
    rows_json: Callable[[Work, int], bytes] | None = None
    """Body of the JSON workloads; None: V2."""
    scores: Callable[[object], list[float]] | None = None
    """Reads the answer; None: V2."""
    prepare: Callable[[Path, Work, Ports], None] | None = None
    is_floor: bool = False
    """Does no work: its answer is not checked."""


def _serinus(*extra: str) -> Callable[[Path, Work, Ports], list[str]]:
    def command(python: Path, work: Work, ports: Ports) -> list[str]:
        return [
            *(str(python), "-m", "serinus.cli", "serve", str(work.model_file), "--model_name", "model"),
            *("--host", "127.0.0.1", "--http_port", str(ports["http"]), "--grpc_port", str(ports["grpc"])),
            *("--nthread", "1", "--log_level", "WARNING", *extra),
        ]

    return command


def _kserve_default(python: Path, work: Work, ports: Ports) -> list[str]:
    return [
        *(str(python), str(HERE / "servers" / "kserve_server.py"), "--model_name", "model"),
        *("--model_file", str(work.model_file), "--http_port", str(ports["http"]), "--grpc_port", str(ports["grpc"])),
    ]


def _kserve(python: Path, work: Work, ports: Ports) -> list[str]:
    return [
        *_kserve_default(python, work, ports),
        *("--enable_latency_logging", "false", "--log_config_file", str(quiet_kserve())),
    ]


def quiet_kserve() -> Path:
    """A logging configuration for KServe's server that leaves out what it logs of each request."""
    quiet = {
        "version": 1,
        "disable_existing_loggers": False,
        "root": {"level": "WARNING"},
        "loggers": {name: {"level": "WARNING"} for name in ("kserve", "uvicorn", "uvicorn.access", "uvicorn.error")},
    }
    file = CACHE / "kserve-logging.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(quiet))
    return file


def _mlserver(python: Path, work: Work, ports: Ports) -> list[str]:
    return [str(python.parent / "mlserver"), "start", str(CACHE / "mlserver" / "model")]


def _prepare_mlserver(folder: Path, work: Work, ports: Ports) -> None:
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    shutil.copy(work.model_file, model / "model.ubj")
    settings = {
        "name": "model",
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": "./model.ubj"},
    }
    (model / "model-settings.json").write_text(json.dumps(settings))
    server = {"parallel_workers": 0, "host": "127.0.0.1", "debug": False}
    server |= {"http_port": ports["http"], "grpc_port": ports["grpc"], "metrics_port": ports["metrics"]}
    (model / "settings.json").write_text(json.dumps(server))


def _triton(python: Path, work: Work, ports: Ports) -> list[str]:
    names = ("http", "grpc", "metrics")
    flags = [word for name in names for word in (f"--{name}_port", str(ports[name]))]
    return [str(python), str(HERE / "servers" / "triton_server.py"), "--model_file", str(work.model_file), *flags]


def _litserve(python: Path, work: Work, ports: Ports) -> list[str]:
    script = HERE / "servers" / "litserve_server.py"
    return [str(python), str(script), "--model_file", str(work.model_file), "--http_port", str(ports["http"])]


def _bento(python: Path, work: Work, ports: Ports) -> list[str]:
    service = f"{HERE / 'servers'}"
    return [
        *(str(python.parent / "bentoml"), "serve", "bento_service:Scorer", "--working-dir", service),
        *("--port", str(ports["http"]), "--host", "127.0.0.1"),
    ]


def _nginx(python: Path, work: Work, ports: Ports) -> list[str]:
    return ["nginx", "-c", str(CACHE / "nginx" / "nginx.conf"), "-g", "daemon off;"]


def _prepare_nginx(folder: Path, work: Work, ports: Ports) -> None:
    """Answer every POST with the bytes that serinus would answer one row with."""
    folder.mkdir(parents=True, exist_ok=True)
    output = {"name": "predict", "datatype": "FP32", "shape": [1], "data": [float(str(work.expected[0]))]}
    reply = json.dumps({"model_name": "model", "outputs": [output]}, separators=(",", ":"))
    (folder / "nginx.conf").write_text(
        f"""\
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body;
  client_max_body_size 64m;
  server {{
    listen 127.0.0.1:{ports["http"]};
    default_type application/json;
    location / {{ return 200 '{reply}'; }}
  }}
}}
"""
    )


def _own_rows(work: Work, rows: int) -> bytes:
    body = json.loads(work.json_body(rows))
    return json.dumps({"data": body["inputs"][0]["data"]}, separators=(",", ":")).encode()


_REST_ONLY = ("W1", "W2")
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}

PEERS: tuple[Peer, ...] = (
    Peer("serinus", "thin HTTP, native gRPC, one process", _serinus()),
    Peer(
        "serinus-plain",
        "uvicorn, grpcio, one process",
        _serinus("--http", "uvicorn", "--grpc", "grpcio"),
    ),
    Peer(
        "kserve",
        "0.21.0, kserve.Model with Booster.inplace_predict, nthread=1, latency and access logs off",
        _kserve,
        workloads=("W1", "W1b", "W1g", "W2", "W2b", "W2g"),
        environment=_ONE_THREAD,
    ),
    Peer(
        "kserve-default",
        "0.21.0, the same class, without any flag: it logs each request",
        _kserve_default,
        workloads=("W1", "W1g"),
        environment=_ONE_THREAD,
    ),
    Peer(
        "mlserver",
        "1.7.1, mlserver-xgboost, parallel_workers=0, OMP_NUM_THREADS=1",
        _mlserver,
        requirements=("mlserver==1.7.1", "mlserver-xgboost==1.7.1", "uvloop<0.22", "setuptools<81"),
        workloads=("W1", "W1g", "W2", "W2g"),
        environment=_ONE_THREAD,
        prepare=_prepare_mlserver,
    ),
    Peer(
        "triton",
        "nvidia-pytriton 0.7.0 (Python backend), dynamic batching, max batch 4096, no delay",
        _triton,
        requirements=("nvidia-pytriton==0.7.0", "xgboost-cpu", "numpy<2.3"),
        # Its embedded interpreter is an early 3.11, which the standard library of 3.11.6 and later does not fit
        # (RLock._recursion_count); Debian 12's 3.11.2 does.
        interpreter="/usr/bin/python3.11",
        environment=_ONE_THREAD,
    ),
    Peer(
        "bentoml",
        "one worker, own API",
        _bento,
        requirements=("bentoml", "xgboost-cpu"),
        workloads=_REST_ONLY,
        path="/predict",
        environment=_ONE_THREAD,
        rows_json=_own_rows,
        scores=lambda answer: list(answer),  # type: ignore[call-overload]
    ),
    Peer(
        "litserve",
        "one worker, own API",
        _litserve,
        requirements=("litserve", "xgboost-cpu"),
        workloads=_REST_ONLY,
        path="/predict",
        environment=_ONE_THREAD,
        rows_json=_own_rows,
        scores=lambda answer: answer["data"],  # type: ignore[index]
    ),
    Peer(
        "nginx",
        "one worker, answers a fixed body: the floor",
        _nginx,
        workloads=("W1",),
        prepare=_prepare_nginx,
        is_floor=True,
    ),
)


@dataclass
class Running:
    """A started server."""

    peer: Peer
    process: subprocess.Popen[bytes]
    ports: Ports
    ready_s: float
    """Seconds from its start to its first right answer."""
    log: Path

    def url(self) -> str:
        """Where REST requests go."""
        return f"http://127.0.0.1:{self.ports['http']}{self.peer.path}"

    def stop(self) -> None:
        """End the whole process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(15)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return


def install(peer: Peer) -> Path:
    """Make the peer's environment where it needs one of its own; returns its Python.

    Raises:
        subprocess.CalledProcessError: its packages do not install here.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = CACHE / "env" / peer.name
    python = folder / "bin" / "python"
    stamp = folder / ".requirements"
    wanted = "\n".join([*peer.requirements, peer.interpreter or ""])
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = Path(sys.executable).with_name("uv")
        own = peer.interpreter if peer.interpreter and shutil.which(peer.interpreter) else sys.executable
        subprocess.run([str(uv), "venv", "-q", "--clear", "--python", own, str(folder)], check=True)
        subprocess.run([str(uv), "pip", "install", "-q", "--python", str(python), *peer.requirements], check=True)
        stamp.write_text(wanted)
    return python


def free_ports() -> Ports:
    """Three loopback ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = dict(zip(("http", "grpc", "metrics"), (sock.getsockname()[1] for sock in sockets), strict=True))
    for sock in sockets:
        sock.close()
    return ports


def start(peer: Peer, python: Path, work: Work, *, timeout_s: float = 120) -> Running:
    """Start the peer, wait for its first answer and check every workload's answer.

    Raises:
        RuntimeError: it ended, was not ready in time, or answered something else than the Booster.
    """
    ports = free_ports()
    if peer.prepare is not None:
        peer.prepare(CACHE / peer.name, work, ports)
    log = CACHE / f"{peer.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **peer.environment, "BENCH_MODEL_FILE": str(work.model_file)}
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command(python, work, ports),
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(peer, process, ports, 0.0, log)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{peer.name} ended with status {process.returncode}: {log.read_text()[-2000:]}")
            try:
                _post(running, _json_body(peer, work, 1), {"Content-Type": "application/json"})
                break
            except OSError as error:
                if time.perf_counter() - begin > timeout_s:
                    raise RuntimeError(f"{peer.name} was not ready in {timeout_s:.0f} s: {error}") from None
                time.sleep(0.005)
        running.ready_s = time.perf_counter() - begin
        if not peer.is_floor:
            _check(running, work)
    except BaseException:
        running.stop()
        raise
    return running


def _json_body(peer: Peer, work: Work, rows: int) -> bytes:
    return peer.rows_json(work, rows) if peer.rows_json is not None else work.json_body(rows)


def request(running: Running, work: Work, workload: str) -> tuple[str, bytes, dict[str, str]]:
    """Kind (rest or grpc), body and headers of a workload's request."""
    rows = 1 if workload.startswith("W1") else 64
    if workload.endswith("g"):
        return "grpc", work.grpc_frame(rows, "model"), {}
    if workload.endswith("b"):
        body, head = work.binary_body(rows)
        return "rest", body, {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)}
    return "rest", _json_body(running.peer, work, rows), {"Content-Type": "application/json"}


def _post(running: Running, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    message = urllib.request.Request(running.url(), data=body, headers=dict(headers), method="POST")
    with urllib.request.urlopen(message, timeout=30) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


def _check(running: Running, work: Work) -> None:
    for workload in running.peer.workloads:
        kind, body, headers = request(running, work, workload)
        if kind == "grpc":
            found = _grpc_scores(running.ports["grpc"], body[5:])
        else:
            answer, answered = _post(running, body, headers)
            found = _rest_scores(running.peer, answer, answered)
        expected = work.expected[: 1 if workload.startswith("W1") else 64]
        if len(found) != len(expected) or not np.allclose(found, expected, atol=1e-5):
            raise RuntimeError(f"{running.peer.name} answers {workload} wrongly: {found[:3]}, expected {expected[:3]}")


def _rest_scores(peer: Peer, answer: bytes, headers: Mapping[str, str]) -> list[float]:
    head = headers.get("inference-header-content-length")
    content = json.loads(answer[: int(head)] if head else answer)
    if peer.scores is not None:
        return peer.scores(content)
    output = content["outputs"][0]
    if "data" in output:
        return list(np.ravel(output["data"]))
    return np.frombuffer(answer[int(head or 0) :], np.float32).tolist()


def _grpc_scores(port: int, message: bytes) -> list[float]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = call(message, timeout=30, wait_for_ready=True)
    from tritonclient.grpc import service_pb2

    response = service_pb2.ModelInferResponse.FromString(answer)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
    return list(response.outputs[0].contents.fp32_contents)
