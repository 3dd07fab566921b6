"""ResNet-50 through the server against the framework's own in-process time, all in one run.

A part of `make bench` (`--parts vision`), and by itself, with PYTHONPATH=tests:

    python -m benchmarks.vision [--models .cache/vision] [--seconds 8]

For TensorFlow, PyTorch and ONNX Runtime, and for 1 and 8 rows: the model is served by `serinus serve` in a process of its own; FP32
pixels go in and probabilities come out over one keep-alive connection, REST with the binary extension. The in-process figure is
that framework's own call (SavedModel signature, TorchScript, InferenceSession.run) in a process of its own, with as many threads and
otherwise as the framework comes (ONNX Runtime's threads do not spin, as served).
The two are measured in turns, in short rounds, so that what else the machine does falls on both; the figure of each is the median
over all calls, and their ratio is taken round by round, so that a slow minute cancels out. One side always waits while the other
works. CPU time is the whole process's per call; where something else uses the machine, it says more than the clock.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serinus import InferRequest, Tensor
from serinus.protocol.rest_codec import RestCodec

from .measure import cpu_seconds

__all__ = ["measure"]

MODELS = Path(".cache/vision")
FORMS = {"tensorflow": "TensorFlow SavedModel", "torch": "TorchScript", "onnx": "ONNX Runtime"}
ROWS = (1, 8)
ROUND_S = 1.0
THREADS = max(1, len(os.sched_getaffinity(0)))


def pixels(form: str, rows: int) -> np.ndarray:
    """FP32 [rows, 224, 224, 3], or channels first."""
    shape = (rows, 224, 224, 3) if form == "tensorflow" else (rows, 3, 224, 224)
    return np.random.default_rng(0).uniform(-100, 100, shape).astype(np.float32)


def in_process(form: str, folder: Path) -> Any:
    """The framework's own call: a function from pixels to probabilities."""
    if form == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        loaded = tf.saved_model.load(str(folder / "1"))
        signature = loaded.signatures["serving_default"]
        return lambda array, keep=loaded: signature(images=tf.constant(array))["probabilities"].numpy()
    if form == "torch":
        import torch

        torch.set_num_threads(THREADS)
        module = torch.jit.load(str(folder / "model.pt")).eval()

        def predict(array: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(array)).numpy()

        return predict
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"images": array})[0]


def worker(form: str, folder: Path) -> None:
    """The in-process side: for each line `rows seconds` on standard input, one line of times (s) on standard output."""
    predict = in_process(form, folder)
    arrays = {rows: pixels(form, rows) for rows in ROWS}
    for array in arrays.values():
        for _ in range(3):
            predict(array)
    print("ready", flush=True)
    for line in sys.stdin:
        rows, seconds = line.split()
        times, end = [], time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            began = time.perf_counter()
            predict(arrays[int(rows)])
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)


class Inside:
    """The in-process side, driven from here."""

    def __init__(self, form: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.vision", "--worker", form, "--models", str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.pid = self._process.pid
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the in-process side ended")
        return line

    def round(self, rows: int, seconds: float) -> list[float]:
        """Times of the calls of one round, s."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rows} {seconds}\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


class Served:
    """The served side: one keep-alive connection."""

    def __init__(self, form: str, port: int, pid: int) -> None:
        self.pid = pid
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        codec = RestCodec()
        self._requests = {}
        for rows in ROWS:
            request = InferRequest("m", [Tensor.of("images", pixels(form, rows))], binary=True)
            body = codec.encode_request(request, binary=True)
            self._requests[rows] = (b"".join(body.chunks), {"Inference-Header-Content-Length": str(body.json_length)})
        for rows in ROWS:
            for _ in range(3):
                self._ask(rows)

    def _ask(self, rows: int) -> None:
        body, headers = self._requests[rows]
        self._connection.request("POST", "/v2/models/m/infer", body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:500]!r}")

    def round(self, rows: int, seconds: float) -> list[float]:
        """Times from before the request is sent until its answer is read, s."""
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            self._ask(rows)
            times.append(time.perf_counter() - began)
        return times

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def compare(form: str, folder: Path, seconds: float, scratch: Path) -> list[dict[str, Any]]:
    """Measure one framework both ways."""
    from serve_support import serving

    table = []
    flags = ("--class", f"{form}_server", "--model_name", "m", "--nthread", str(THREADS))
    with serving(scratch, str(folder), *flags, timeout_s=180, fresh=True) as server:
        inside, served = Inside(form, folder), Served(form, server.http_port, server.process.pid)
        try:
            for rows in ROWS:
                times: dict[Inside | Served, list[float]] = {inside: [], served: []}
                cpu_s: dict[Inside | Served, float] = {inside: 0.0, served: 0.0}
                ratios = []
                for _ in range(max(4, round(seconds / ROUND_S))):
                    medians = []
                    for side in (inside, served):
                        before = cpu_seconds(side.pid)
                        calls = side.round(rows, ROUND_S)
                        cpu_s[side] += cpu_seconds(side.pid) - before
                        times[side] += calls
                        medians.append(float(np.median(calls)))
                    ratios.append(medians[1] / medians[0] - 1)
                table.append(
                    {
                        "framework": FORMS[form],
                        "rows": rows,
                        "in_process_ms": 1e3 * float(np.median(times[inside])),
                        "served_ms": 1e3 * float(np.median(times[served])),
                        "in_process_cpu_ms": 1e3 * cpu_s[inside] / len(times[inside]),
                        "served_cpu_ms": 1e3 * cpu_s[served] / len(times[served]),
                        "added": float(np.median(ratios)),
                        "added_low": float(np.quantile(ratios, 0.25)),
                        "added_high": float(np.quantile(ratios, 0.75)),
                        "calls": [len(times[inside]), len(times[served])],
                    }
                )
        finally:
            served.close()
            inside.close()
    return table


def measure(
    seconds: float, say: Callable[[str], None], *, models: Path = MODELS, forms: Sequence[str] = tuple(FORMS)
) -> list[dict[str, Any]]:
    """Measure ResNet-50 in each framework; its models are made where they are missing.

    Args:
        seconds: of each side, for each framework and number of rows.
        say: told what is being done.
        models: folder of `python -m image_pixels.models`.
        forms: keys of `FORMS`.

    Returns:
        Figures of each framework and number of rows.
    """
    from image_pixels.models import is_built

    if not is_built(models, "resnet50"):
        say("vision: making ResNet-50 in its three forms")
        subprocess.run(
            [sys.executable, "-m", "image_pixels.models", "--model", "resnet50", "--output", str(models)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    found = []
    for form in forms:
        with tempfile.TemporaryDirectory() as scratch:
            for row in compare(form, models / "resnet50" / form, seconds, Path(scratch)):
                found.append(row)
                say(
                    f"vision: {row['framework']:<22} {row['rows']} rows  in process {row['in_process_ms']:.1f} ms  "
                    f"served {row['served_ms']:.1f} ms  {added(row)}  "
                    f"CPU {row['in_process_cpu_ms']:.1f} and {row['served_cpu_ms']:.1f} ms"
                )
    return found


def added(row: dict[str, Any]) -> str:
    """What serving adds: the median over rounds, and the quartiles."""
    return f"{row['added']:+.1%} [{row['added_low']:+.1%} to {row['added_high']:+.1%}]"


def main() -> int:
    """Measure all three by themselves."""
    parser = argparse.ArgumentParser(description="ResNet-50: served against in-process")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side, for each framework and row count")
    parser.add_argument("--form", action="append", choices=tuple(FORMS))
    parser.add_argument("--worker", choices=tuple(FORMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments.worker:
        worker(arguments.worker, arguments.models)
        return 0
    print(f"ResNet-50, {THREADS} threads, rounds of {ROUND_S:.0f} s in turns; added: median over rounds [quartiles]")
    measure(
        arguments.seconds,
        lambda text: print(text, flush=True),
        models=arguments.models,
        forms=arguments.form or [*FORMS],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
