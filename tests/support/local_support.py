"""A tiny real server (HTTP and gRPC) for the local runner's tests, and a runner of `serinus up` as a process.

As a program it takes the flags that KServe's controller injects. It answers `/v2/health/ready`, `/v2/models/M/ready`,
`/v2/models/M/infer` and gRPC ModelInfer with a JSON object that says who answered; as a transformer it asks its predictor
first and passes on no header.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from command_support import command

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SERVER = Path(__file__).resolve()


# The server ----------------------------------------------------------------------------------------------------------


class _State:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.busy = 0
        self.lock = threading.Lock()
        self.ready_at = time.monotonic() + options.ready_after
        deaf_s = 30.0 if options.dies_once and os.path.exists(options.dies_once) else options.deaf_to_envoy
        self.heard_at = time.monotonic() + deaf_s

    def infer(self, protocol: str) -> dict[str, Any]:
        with self.lock:
            self.busy += 1
        try:
            if self.options.slow:
                time.sleep(self.options.slow)  # a request that is in flight while its process is replaced
            answer: dict[str, Any] = {
                "model_name": self.options.model_name,
                "tag": self.options.tag,
                "pid": os.getpid(),
                "protocol": protocol,
                "revision": os.environ.get("K_REVISION"),
            }
            if self.options.predictor_host:
                answer["predictor"] = self._predict()
            return answer
        finally:
            with self.lock:
                self.busy -= 1

    def _predict(self) -> dict[str, Any]:
        host, model = self.options.predictor_host, self.options.model_name
        if self.options.predictor_protocol == "grpc-v2":
            with grpc.insecure_channel(host) as channel:
                return json.loads(channel.unary_unary(METHOD)(b"{}", timeout=10))
        status, _, body = ask(host, f"/v2/models/{model}/infer", b"{}")
        if status != 200:
            raise RuntimeError(f"predictor answered {status}: {body!r}")
        return json.loads(body)


def _handler(state: _State) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            return

        def _answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if (self.headers.get("User-Agent") or "").startswith("Envoy/HC"):
                while time.monotonic() < state.heard_at:
                    time.sleep(0.1)  # as on a busy machine
            ready = time.monotonic() > state.ready_at
            if self.path.endswith("/ready"):
                self._answer(200 if ready else 503, {"ready": ready})
            elif self.path == "/environment":
                self._answer(200, {"env": dict(os.environ), "argv": sys.argv})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/crash":
                os._exit(3)
            told = {key: self.headers.get(key) for key in ("Host", "Traceparent", "X-Tenant")}
            request = json.loads(body) if body[:1] in (b"{", b"[") else None
            more = {"path": self.path, "host": told["Host"], "headers": told, "request": request}
            self._answer(state.options.status, {**state.infer("rest"), **more})

    return Handler


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def _serve(options: argparse.Namespace) -> None:
    state = _State(options)
    print(f"{options.tag} listens on {options.http_port} and {options.grpc_port}", flush=True)
    if options.crash_at_start:
        sys.exit(7)
    if options.start_after:
        time.sleep(options.start_after)  # nothing listens meanwhile
    if options.chatty:
        for _ in range(3000):
            print("x" * 1000)
    web = _Http(("127.0.0.1", options.http_port), _handler(state))
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    rpc = grpc.server(ThreadPoolExecutor(16))
    method = grpc.unary_unary_rpc_method_handler(lambda _request, _context: json.dumps(state.infer("grpc")).encode())
    rpc.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method}),)
    )
    rpc.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    rpc.start()
    if options.dies_once and os.path.exists(options.dies_once):
        os.unlink(options.dies_once)
        time.sleep(2)  # it is ready, and then
        os._exit(5)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: ended.set())
    ended.wait()
    rpc.stop(5).wait()
    while state.busy:
        time.sleep(0.01)  # its threads answer what they have
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--grpc_port", type=int, default=int(os.environ.get("SERINUS_GRPC_PORT") or 8081))
    parser.add_argument("--model_name", default=os.environ.get("INFERENCE_SERVICE_NAME", "model"))
    parser.add_argument("--model_dir", default="")
    parser.add_argument("--predictor_host", default="")
    parser.add_argument("--predictor_protocol", default="v1")
    parser.add_argument("--tag", default="v1")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--ready_after", type=float, default=0.0)
    parser.add_argument("--dies_once", default="", help="a file that makes the next life a short one")
    parser.add_argument("--chatty", action="store_true", help="say 3 MB at the start")
    parser.add_argument("--deaf_to_envoy", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--start_after", type=float, default=0.0)
    parser.add_argument("--crash_at_start", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    _serve(parser.parse_args())


# The tests' side -----------------------------------------------------------------------------------------------------


def ask(
    address: str, path: str, body: bytes | None = None, *, host: str = "", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One HTTP request; POST where there is a body."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        sent = {"Content-Type": "application/json", **({"Host": host} if host else {}), **(headers or {})}
        connection.request("GET" if body is None else "POST", path, body, sent)
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def container(*args: str, name: str = "kserve-container", extra: str = "") -> str:
    """A container block of the tiny server, to be indented by 6."""
    words = ", ".join(json.dumps(word) for word in (*args,))
    return (
        f"- name: {name}\n        image: tiny\n"
        f"        command: [python, {json.dumps(str(SERVER))}, --http_port=8080, --grpc_port=8081]\n"
        f"        args: [{words}]\n"
        "        resources: {requests: {cpu: 100m, memory: 64Mi}}\n"
        f"        env: [{{name: PROTOCOL, value: v2}}]{extra}\n"
    )


def manifest(
    *args: str, name: str = "fraud", percent: int | None = None, transformer: Sequence[str] = (), annotations: str = ""
) -> str:
    """An InferenceService of the tiny server, perhaps with a transformer before it."""
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"
        f"metadata:\n  name: {name}\n{annotations}spec:\n  predictor:\n"
    )
    if percent is not None:
        text += f"    canaryTrafficPercent: {percent}\n"
    text += f"    containers:\n      {container(*args)}"
    if transformer:
        block = container(*transformer).replace("--http_port=8080, ", "")
        text += f"  transformer:\n    containers:\n      {block}"
    return text


class Up:
    """A `serinus up` that runs."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
        self.process = process
        self.folder = folder
        self.state = folder / ".serinus"
        self.log = log

    @property
    def row(self) -> dict[str, Any]:
        """The first process of the first service."""
        from serinus.local.run.control_socket import Client

        return Client(self.state).ask("status", timeout_s=20)["services"][0]["components"][0]

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the service's folder, in this process: one of its own takes 0.4 s of CPU to import what this one has."""
        done = command(self.folder, *words)
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.output()
        return done

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that goes on; whoever starts it ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "serinus.cli", *words],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def status(self) -> dict[str, Any]:
        """What `serinus status -o json` prints, asked from here: a process of the command line takes 0.4 s of CPU to ask it."""
        from serinus.local.run.control_socket import Client

        return Client(self.state).ask("status", timeout_s=30.0)

    def wait(self, holds: Any, what: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """Wait until the status is as wanted."""
        end = time.monotonic() + timeout_s
        status: dict[str, Any] = {}
        from serinus.local.run.control_socket import Client, NotRunning

        while time.monotonic() < end:
            assert self.process.poll() is None, self.output()
            with contextlib.suppress(NotRunning):
                status = Client(self.state).ask("status", timeout_s=10)
                if holds(status):
                    return status
            time.sleep(0.05)  # other processes start and stop, and nobody is told
        raise AssertionError(f"{what} did not come true: {json.dumps(status, indent=1)}\n{self.output()}")

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{json.loads((self.state / 'supervisor.json').read_text())['port']}"

    def infer(self, host: str = "fraud.default.localhost", model: str = "fraud") -> dict[str, Any]:
        status, headers, body = ask(self.gateway, f"/v2/models/{model}/infer", b"{}", host=host)
        assert status == 200, (status, body)
        return {**json.loads(body), "header": headers.get("x-serinus-revision")}

    def infer_grpc(self, host: str = "fraud.default.localhost") -> dict[str, Any]:
        with grpc.insecure_channel(self.gateway, options=[("grpc.default_authority", host)]) as channel:
            answer, call = channel.unary_unary(METHOD).with_call(b"{}", timeout=20)
            initial = dict(call.initial_metadata())
            return {**json.loads(answer), "header": initial.get("x-serinus-revision")}


def all_ready(status: dict[str, Any]) -> bool:
    return bool(status["services"]) and all(service["ready"] for service in status["services"])


def pids_below(status: dict[str, Any]) -> set[int]:
    found = {row["pid"] for service in status["services"] for row in service["components"]}
    return {pid for pid in (*found, status["gateway"]["pid"], status["pid"]) if pid}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


@contextlib.contextmanager
def up(
    folder: Path,
    *words: str,
    ready: bool = True,
    env: dict[str, str] | None = None,
    python: Sequence[str] = (sys.executable,),
) -> Iterator[Up]:
    """Run `serinus up` in the foreground of a folder until the block ends."""
    log = folder / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*python, "-m", "serinus.cli", "up", *words, "--port", "0"],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    running = Up(process, folder, log)
    try:
        if ready:
            running.wait(all_ready, "ready")
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
