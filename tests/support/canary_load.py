"""A stand-in model in versions that are better, slower, failing or wrong, under `serinus up`, and a bounded load that keeps account of every answer."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from local_support import Up, all_ready

__all__ = ["POLICY", "Load", "load", "report_of", "wait_for_canary", "write_service"]

HOST = "fraud.default.localhost"

MODEL = """
import time

from serinus import Model, TensorSpec


class Scores(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)
    calls = 0

    def predict(self, inputs, call):
        Scores.calls += bool(inputs["x"].any())  # what warms it up does not count
        time.sleep(SLEEP_S)
        if EVERY and Scores.calls % EVERY == 0:
            raise RuntimeError("every so often")
        return {"y": inputs["x"] ** POWER}
"""
"""Scores are the inputs, which are even between 0 and 1; a power other than 1 moves them."""

POLICY = """
steps: [50, 100]
level: 0.05
promotion_level: 0.05
warm_up: {canary_requests: 20, seconds: 0}
minimum: {canary_requests: 200, seconds: 2}
maximum: {seconds: 80, then: hold}
guardrails:
  errors: {margin_percentage_points: 5}
  latency: {quantile: 0.9, margin_percent: 50}
  score: {tolerated_psi: 0.05, promotion_psi: 0.25}
"""
"""Wide margins: what is tried out is the way from an answer to the decision, not the judge's thrift, which has its own benchmark."""


def write_service(
    folder: Path,
    version: str,
    *,
    percent: int | None = None,
    sleep_s: float = 0.003,
    every: int = 0,
    power: float = 1.0,
    annotations: Mapping[str, str] | None = None,
) -> Path:
    """Write the service in one version.

    Args:
        folder: gets the model's file and `isvc.yaml`.
        version: names the model's file.
        percent: canaryTrafficPercent.
        sleep_s: what a prediction takes.
        every: each so-many-th prediction raises; 0: none.
        power: of the score.
        annotations: of the InferenceService.
    """
    (folder / f"{version}.py").write_text(f"SLEEP_S, EVERY, POWER = {sleep_s}, {every}, {power}\n{MODEL}")
    container = {
        "name": "kserve-container",
        "image": "local",
        "command": ["python", "-m", "serinus.cli", "serve"],
        "args": [
            *("--model_name=fraud", "--http_port=8080", "--grpc_port=8081", "--execution=inline"),
            *("--class", f"{folder}/{version}.py:Scores", "--score_output", "y"),
        ],
        "env": [{"name": "PROTOCOL", "value": "v2"}],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
    }
    predictor: dict[str, Any] = {"containers": [container]}
    if percent is not None:
        predictor["canaryTrafficPercent"] = percent
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "fraud", "annotations": dict(annotations or {})},
        "spec": {"predictor": predictor},
    }
    path = folder / "isvc.yaml"
    path.write_text(yaml.safe_dump(service))
    return path


def wait_for_canary(running: Up) -> None:
    """Wait until the second version is there, without traffic."""
    running.wait(lambda s: all_ready(s) and len(s["services"][0]["traffic"]) == 2, "the canary at 0 %")


def report_of(running: Up) -> dict[str, Any]:
    """What `serinus canary report fraud` prints, asked from here: a process of the command line takes 0.4 s of CPU."""
    from serinus.cli.operator import run as command

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(["canary", "report", "fraud", "--state-dir", str(running.state)]) == 0
    return json.loads(printed.getvalue())


class Load:
    """Clients with one connection each, one request at a time, and what became of each."""

    def __init__(self, gateway: str, users: int) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        """By revision and status."""
        self.users: dict[str, set[str]] = {}
        """Revisions that answered each user."""
        self.broken: list[str] = []
        """Requests that got no answer."""
        self._gateway = gateway
        self._users = users
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def failures(self) -> dict[tuple[str, int], int]:
        """Answers other than 200."""
        return {key: count for key, count in self.answers.items() if key[1] != 200}

    def run(self, seed: int) -> None:
        """Ask until the end, at most some 250 times a second."""
        draw = random.Random(seed)  # scores, no secret
        connection = http.client.HTTPConnection(self._gateway, timeout=20)
        while not self._ended.wait(0.004):
            user = f"user-{draw.randrange(self._users)}"
            value = draw.random()
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]})
            fields = {"Host": HOST, "Content-Type": "application/json", "Cookie": f"a=1; uid={user}"}
            try:
                connection.request("POST", "/v2/models/fraud/infer", body, fields)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.broken.append(repr(error))
                connection.close()
                continue
            revision = answer.getheader("x-serinus-revision") or ""
            with self._lock:
                self.answers[revision, answer.status] += 1
                self.users.setdefault(user, set()).add(revision)
        connection.close()

    def end(self) -> None:
        """Tell the clients to end."""
        self._ended.set()


@contextlib.contextmanager
def load(running: Up, *, clients: int = 4, users: int = 1000) -> Iterator[Load]:
    """Keep asking the service while the block runs."""
    found = Load(running.gateway, users)
    threads = [threading.Thread(target=found.run, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        found.end()
        for thread in threads:
            thread.join(30)
