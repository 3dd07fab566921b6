"""Ways to run a hosted model and real servers; kserve_classes.py has what is hosted."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.hosts import build_model
from serinus.model import Call, Model
from serinus.protocol.types import Tensor, TensorSpec
from serinus.settings import ModelSettings, PredictorSettings
from waiting import wait_until

REPOSITORY = Path(__file__).parents[2]


class Pixels(Model):
    """A serinus model: the sum of each row, and how many rows each predict got."""

    platform = "serinus_test"
    execution = "inline"
    inputs = (TensorSpec("pixels", "FP32", (-1, -1)),)
    outputs = (TensorSpec("sum", "FP32", (-1,)),)

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.batches: list[int] = []

    def predict(self, inputs: Any, call: Call) -> dict[str, np.ndarray]:
        rows = inputs["pixels"]
        self.batches.append(len(rows))
        return {"sum": rows.sum(axis=1, dtype=np.float32)}


class Texts(Model):
    """A serinus model: gives texts back."""

    execution = "inline"
    inputs = (TensorSpec("t", "BYTES", (-1,)),)
    outputs = (TensorSpec("t", "BYTES", (-1,)),)

    def predict(self, inputs: Any, call: Call) -> dict[str, np.ndarray]:
        return dict(inputs)


def here(name: str) -> str:
    """Name a class of this module or of kserve_classes.py as `--class` would."""
    return f"{'hosts_support' if name in globals() else 'kserve_classes'}:{name}"


@contextlib.asynccontextmanager
async def serving(
    implementation: str,
    *,
    name: str = "m",
    transformer: str | None = None,
    predictor: PredictorSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Plane]:
    """Load a model into a data plane of this loop."""

    def factory(wanted: ModelSettings) -> Model:
        return build_model(wanted, transformer=transformer, predictor=predictor)

    plane = Plane(Registry(factory))
    await plane.start([ModelSettings(name=name, implementation=implementation, **settings)])
    try:
        yield plane
    finally:
        await plane.close()


def hosted(plane: Plane, name: str = "m") -> Any:
    """The author's instance behind a served name."""
    return plane.registry.find(name, "").model.hosted  # type: ignore[attr-defined] # a host


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(arguments: list[str], url: str, *, python: str = sys.executable, cwd: Path | None = None) -> Iterator[None]:
    """Run a real server until the block ends; it has answered `url` with 200 when the block begins."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    # A file: a pipe that nobody reads would hold a server that says much.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [python, *arguments], env=environment, cwd=cwd, stdout=said, stderr=subprocess.STDOUT
        ) as child,
    ):
        try:
            _wait(child, url, said)
            yield
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


def _wait(child: subprocess.Popen[bytes], url: str, said: IO[bytes]) -> None:
    def answers() -> bool:
        if child.poll() is not None:
            said.seek(0)
            raise AssertionError(f"the server ended: {said.read().decode()[-3000:]}")
        # What is asked every 10 ms takes the processor from the server that starts: a client of httpx reads the system's CAs first.
        asked = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(asked.netloc, timeout=2)
        try:
            connection.request("GET", asked.path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    wait_until(answers, limit_s=60)


REST = {"host": "127.0.0.1", "content-type": "application/json"}


GRPC = {"user-agent": "grpc-python/1.0"}


def text(*values: str) -> Tensor:
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode() for value in values]
    return Tensor.of("kind", array)


def rows(*values: list[float]) -> Tensor:
    return Tensor.of("x", np.array(values, dtype=np.float32))
