"""ResNet-50 through the server against the framework's own in-process time, all in one run.

    python -m benchmarks.vision [--models .cache/vision] [--seconds 8] [--output FILE]        (with PYTHONPATH=tests)

For TensorFlow, PyTorch and ONNX Runtime, and for 1 and 8 rows: the model is served by `serinus serve` in a process of its own; FP32
pixels go in and probabilities come out over one keep-alive connection, REST with the binary extension. The in-process figure is
that framework's own call (SavedModel signature, TorchScript, InferenceSession.run) in a process of its own, with as many threads.
The two are measured in turns, in short rounds, so that what else the machine does falls on both; the figure of each is the median
over all calls, and their ratio is taken round by round, so that a slow minute cancels out. One side always waits while the other
works.
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
from pathlib import Path
from typing import Any

import numpy as np

from serinus import InferRequest, Tensor
from serinus.protocol.rest_codec import RestCodec

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

    def __init__(self, form: str, port: int) -> None:
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

    rows_of_table = []
    flags = ("--class", f"{'tensorflow' if form == 'tensorflow' else form}_server", "--model_name", "m")
    with serving(scratch, str(folder), *flags, "--nthread", str(THREADS), timeout_s=180) as server:
        inside, served = Inside(form, folder), Served(form, server.http_port)
        try:
            for rows in ROWS:
                mine: list[float] = []
                theirs: list[float] = []
                ratios = []
                for _ in range(max(4, round(seconds / ROUND_S))):
                    one, other = inside.round(rows, ROUND_S), served.round(rows, ROUND_S)
                    theirs += one
                    mine += other
                    ratios.append(float(np.median(other) / np.median(one)))
                rows_of_table.append(
                    {
                        "framework": FORMS[form],
                        "rows": rows,
                        "in_process_ms": 1000 * float(np.median(theirs)),
                        "served_ms": 1000 * float(np.median(mine)),
                        "added": float(np.median(ratios)) - 1,
                        "added_low": float(np.quantile(ratios, 0.25)) - 1,
                        "added_high": float(np.quantile(ratios, 0.75)) - 1,
                        "calls": [len(theirs), len(mine)],
                    }
                )
        finally:
            served.close()
            inside.close()
    return rows_of_table


def main() -> int:
    """Measure all three, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="ResNet-50: served against in-process")
    parser.add_argument("--models", type=Path, default=Path(".cache/vision"))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of each side, for each framework and number of rows"
    )
    parser.add_argument("--form", action="append", choices=tuple(FORMS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", choices=tuple(FORMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments.worker:
        worker(arguments.worker, arguments.models)
        return 0
    found = []
    print(
        f"{arguments.model}, {THREADS} threads, rounds of {ROUND_S:.0f} s in turns; added: median over rounds [quartiles]"
    )
    print(f"{'framework':<24}{'rows':>5}{'in process ms':>15}{'served ms':>12}   added")
    for form in arguments.form or FORMS:
        with tempfile.TemporaryDirectory() as scratch:
            for row in compare(form, arguments.models / arguments.model / form, arguments.seconds, Path(scratch)):
                found.append(row)
                spread = f"[{row['added_low']:+.1%} to {row['added_high']:+.1%}]"
                name, rows = row["framework"], row["rows"]
                times = f"{row['in_process_ms']:>15.2f}{row['served_ms']:>12.2f}"
                print(
                    f"{name:<24}{rows:>5}{times}   {row['added']:+.1%} {spread}",
                    flush=True,
                )
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"model": arguments.model, "threads": THREADS, "rows": found}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
