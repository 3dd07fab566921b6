"""A tiny real server (HTTP, and gRPC where it is told to) for the local runner's tests: a program that takes the flags of KServe's controller.

It answers `/v2/health/ready`, `/v2/models/M/ready`, `/v2/models/M/infer` and gRPC ModelInfer with a JSON object that says who answered; as a
transformer it asks its predictor first and passes on no header. Hundreds of it are started in a run of tests, so it imports no more than it
needs: gRPC takes as much CPU to import as all else of its start.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["METHOD", "ask"]

METHOD = "/inference.GRPCInferenceService/ModelInfer"


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
            import grpc

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
    rpc = _serve_grpc(state) if options.serve_grpc else None  # before HTTP, which says that it is ready
    web = _Http(("127.0.0.1", options.http_port), _handler(state))
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    if options.dies_once and os.path.exists(options.dies_once):
        os.unlink(options.dies_once)
        time.sleep(2)  # it is ready, and then
        os._exit(5)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: ended.set())
    ended.wait()
    if rpc is not None:
        rpc.stop(5).wait()
    while state.busy:
        time.sleep(0.01)  # its threads answer what they have
    os._exit(0)


def _serve_grpc(state: _State) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    rpc = grpc.server(ThreadPoolExecutor(16))
    method = grpc.unary_unary_rpc_method_handler(lambda _request, _context: json.dumps(state.infer("grpc")).encode())
    rpc.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": method}),)
    )
    rpc.add_insecure_port(f"127.0.0.1:{state.options.grpc_port}")
    rpc.start()
    return rpc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--serve_grpc", action="store_true")
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


if __name__ == "__main__":
    main()
