"""One row through a random forest of 200 trees: sklearn_server beside a kserve.Model that predicts as KServe's sklearnserver, and our XGBoost.

`PYTHONPATH=tests python -m benchmarks.sklearn_row` trains both models, starts the three servers at once and lets them take turns: one client, one
connection, V1 JSON (`{"instances": [[...]]}`), one native thread each. Every answer is checked before anything is timed. It prints the requests
a second of each server (the median of the rounds), their ratios, and the CPU time of a request.

The KServe model is what python/sklearnserver/sklearnserver/model.py of KServe (aaac4e2, 2026-08) does with a request: `get_predict_input`,
`predict_proba` of the model as joblib loads it, `get_predict_response`; logs of single requests are off.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .peers import quiet_kserve

HERE = Path(__file__).resolve().parent
FEATURES = 30
TREES = 200


@dataclass
class _Server:
    name: str
    process: subprocess.Popen[bytes]
    port: int
    body: bytes
    expected: list[float]
    rates: list[float]
    cpu_us: list[float]


def _port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _train(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train both models on the same rows; returns a row and what each answers."""
    import joblib
    import skops.io
    import xgboost
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(0)
    data = random.normal(size=(5000, FEATURES)).astype(np.float32)
    labels = (data[:, :5].sum(axis=1) + random.normal(size=len(data)) > 0).astype(int)
    forest = RandomForestClassifier(TREES, random_state=0, n_jobs=1).fit(data, labels)
    (folder / "skops").mkdir()
    skops.io.dump(forest, folder / "skops" / "model.skops")
    (folder / "joblib").mkdir()
    joblib.dump(forest, folder / "joblib" / "model.joblib")
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 6, "nthread": 1}, xgboost.DMatrix(data, labels), TREES
    )
    (folder / "xgboost").mkdir()
    booster.save_model(folder / "xgboost" / "model.ubj")
    row = data[:1]
    return row, forest.predict_proba(row)[0], booster.inplace_predict(row)


def _start(name: str, words: list[str], port: int, expected: list[float], row: np.ndarray) -> _Server:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREDICT_PROBA": "true"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    body = json.dumps({"instances": row.astype(float).tolist()}).encode()
    return _Server(name, process, port, body, expected, [], [])


def _ask(connection: http.client.HTTPConnection, server: _Server) -> list[float]:
    connection.request("POST", "/v1/models/model:predict", server.body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    (prediction,) = answer["predictions"]
    return prediction if isinstance(prediction, list) else [prediction]


def _check(server: _Server) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            got = _ask(connection, server)
            break
        except (OSError, http.client.HTTPException, KeyError, ValueError):
            if time.monotonic() > until or server.process.poll() is not None:
                raise SystemExit(f"{server.name} does not answer") from None
            time.sleep(0.3)
    np.testing.assert_allclose(got, server.expected, rtol=1e-6)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _slice(server: _Server, seconds: float) -> None:
    """Ask over one raw socket, as fast as answers come, so that the client costs little beside the servers."""
    request = (
        f"POST /v1/models/model:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(server.body)}\r\n\r\n"
    ).encode() + server.body
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count, began, used = 0, time.perf_counter(), _cpu_s(server.process.pid)
        while (taken := time.perf_counter() - began) < seconds:
            client.sendall(request)
            answer = client.recv(65536)
            while not answer.rstrip().endswith(b"}"):
                answer += client.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{server.name}: {answer[:200]!r}")
            count += 1
    server.rates.append(count / taken)
    server.cpu_us.append(1e6 * (_cpu_s(server.process.pid) - used) / count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one slice")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    row, forest, booster = _train(folder)

    def serve(kind: str, port: int) -> list[str]:
        return [
            *(
                sys.executable,
                "-m",
                "serinus.cli",
                "serve",
                str(folder / kind),
                "--model_name",
                "model",
                "--nthread",
                "1",
            ),
            *("--host", "127.0.0.1", "--http_port", str(port), "--enable_grpc", "false", "--log_level", "WARNING"),
        ]

    ports = [_port() for _ in range(3)]
    kserve = [
        *(sys.executable, str(HERE / "servers" / "kserve_sklearn_server.py"), "--model_name", "model"),
        *("--model_dir", str(folder / "joblib"), "--http_port", str(ports[2]), "--enable_grpc", "false"),
        *("--enable_latency_logging", "false", "--log_config_file", str(quiet_kserve())),
    ]
    servers = [
        _start("serinus sklearn_server", serve("skops", ports[0]), ports[0], forest.tolist(), row),
        _start("serinus xgboost_server", serve("xgboost", ports[1]), ports[1], booster.tolist(), row),
        _start("kserve.Model as sklearnserver", kserve, ports[2], forest.tolist(), row),
    ]
    try:
        for server in servers:
            _check(server)
        for _ in range(asked.rounds):
            for server in servers:
                _slice(server, asked.seconds)
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        for server in servers:
            server.process.wait(timeout=30)
    for server in servers:
        rate, cpu = statistics.median(server.rates), statistics.median(server.cpu_us)
        print(f"{server.name}: {rate:,.0f} requests/s, {cpu:,.0f} us of CPU a request")
    ours, boosted, theirs = (statistics.median(server.rates) for server in servers)
    print(f"sklearn_server / kserve.Model: {ours / theirs:.0f}x in requests/s")
    print(f"sklearn_server / xgboost_server: {boosted / ours:.2f}x in time")


if __name__ == "__main__":
    main()
