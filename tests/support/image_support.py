"""The images as containers: with the rights that the ServingRuntimes give them, half a CPU, and a small real model each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
DOCKER = os.environ.get("DOCKER", "docker")
TAG = "test"
BASE = "python:3.11-slim"
"""What PYTHON_IMAGE of the Dockerfile is."""
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""What the manifests' security context says, in Docker's words."""
FRAUD = ROOT / "inferenceservices" / "fraud"


def has_engine() -> bool:
    """Whether a Docker engine (or what DOCKER names) answers."""
    if shutil.which(DOCKER) is None:
        return False
    return subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode == 0


def docker(*arguments: str, stdin: str | None = None) -> str:
    """Run the engine's command; returns what it prints."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False, input=stdin)
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


@functools.cache
def build(name: str) -> str:
    """Build an image as users do; returns its name with the tests' tag. IMAGES_BUILT=1: `make images TAG=test` has been run."""
    if os.environ.get("IMAGES_BUILT"):
        return f"{name}:{TAG}"
    done = subprocess.run(
        ["make", f"image/{name}", f"TAG={TAG}", f"DOCKER={DOCKER}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return f"{name}:{TAG}"


def make_variable(name: str) -> list[str]:
    """The words of a variable of the Makefile."""
    rule = f"show: ; @echo $({name})"
    done = subprocess.run(
        ["make", "-s", "-f", "Makefile", "--eval", rule, "show"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def layer_sizes(image: str, count: int) -> list[int]:
    """Bytes of each layer, from the system up: of the instructions that make one, in `docker history`."""
    lines = docker("history", "--no-trunc", "-H=false", "--format", "{{.Size}} {{.CreatedBy}}", image).splitlines()
    made = [line for line in reversed(lines) if _makes_a_layer(line.partition(" ")[2])]
    if len(made) > count:  # BuildKit makes an empty layer of a WORKDIR that is there, the classic builder none
        made = [line for line in made if not (line.startswith("0 ") and "WORKDIR" in line)]
    if len(made) != count:
        raise ValueError(f"{image}: {count} layers, but {len(made)} instructions that make one: {made}")
    return [int(line.partition(" ")[0]) for line in made]


def _makes_a_layer(instruction: str) -> bool:
    """Whether an instruction, as `docker history` writes it, makes a layer: those that set a variable or a label do not."""
    plain = instruction.removeprefix("/bin/sh -c ").removeprefix("#(nop)").strip()
    if "#(nop)" not in instruction and not instruction.startswith(
        ("ENV ", "LABEL ", "CMD ", "USER ", "EXPOSE ", "ENTRYPOINT ", "ARG ")
    ):
        return True
    return plain.split(" ")[0] in ("COPY", "ADD", "WORKDIR")


@dataclass(frozen=True)
class Container:
    """A running container."""

    id: str
    port: int
    grpc_port: int
    started: float
    """time.monotonic() of `docker run`."""
    ready_s: float = 0.0
    """Seconds from `docker run` to the first answer that it is ready."""

    def logs(self) -> str:
        """All that it wrote."""
        done = subprocess.run([DOCKER, "logs", self.id], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def ask(self, path: str, body: Any = None, *, timeout_s: float = 60) -> Any:
        """Send a GET, or a POST of this body; returns the JSON of an answer that is 200."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}\n{self.logs()[-3000:]}") from error

    def is_running(self) -> bool:
        """Whether its process lives."""
        return docker("inspect", "-f", "{{.State.Running}}", self.id) == "true"

    def wait_until(self, path: str, *, limit_s: float = 240) -> float:
        """Wait until a path answers 200; returns the seconds since `docker run`."""
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10):
                    return time.monotonic() - self.started
            except OSError:
                assert self.is_running(), self.logs()
                assert time.monotonic() - self.started < limit_s, self.logs()
                time.sleep(0.05)  # a container starts: its port is all there is to wait on

    def resident_mib(self) -> float:
        """Resident memory of its processes (`VmRSS` of each), in MiB."""
        lines = docker("exec", self.id, "sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null | grep -E '^(Name|VmRSS)'")
        found = re.findall(r"Name:\s+(\S+)\nVmRSS:\s+(\d+) kB", lines)
        return sum(int(size) for name, size in found if name not in ("sh", "cat", "grep")) / 1024


@contextlib.contextmanager
def container(
    image: str,
    *arguments: str,
    mounts: Mapping[Path, str] | None = None,
    environment: Mapping[str, str] | None = None,
    cpus: float | None = 0.5,
    ready: str | None = "/v2/health/ready",
    host_network: bool = False,
) -> Iterator[Container]:
    """Run an image, hardened, with its REST port on loopback; removed at the end.

    Args:
        image: name with tag.
        arguments: flags of `serinus serve`.
        mounts: folders here to folders there, read-only. They are made readable for the container's user.
        environment: variables of the process.
        cpus: its limit; None: none.
        ready: path to wait for; None: return at once.
        host_network: share loopback with this machine, to reach a predictor that listens there.
    """
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, grpc_port = one.getsockname()[1], other.getsockname()[1]
    flags = [*HARDENED, *(() if cpus is None else ("--cpus", str(cpus)))]
    for here, there in (mounts or {}).items():
        _let_read(here)
        flags += ["-v", f"{here}:{there}:ro"]
    for name, value in (environment or {}).items():
        flags += ["-e", f"{name}={value}"]
    if host_network:
        flags += ["--network", "host"]
        arguments = ("--host", "127.0.0.1", "--http_port", str(port), "--grpc_port", str(grpc_port), *arguments)
    else:
        flags += ["-p", f"127.0.0.1:{port}:8080", "-p", f"127.0.0.1:{grpc_port}:8081"]
    started = time.monotonic()
    running = Container(docker("run", "-d", *flags, image, *arguments), port, grpc_port, started)
    try:
        if ready is not None:
            running = dataclasses.replace(running, ready_s=running.wait_until(ready))
        yield running
    finally:
        docker("rm", "-f", running.id)


def _let_read(folder: Path) -> None:
    """Open a folder of a test to the container's user; what is in the tree is open already."""
    if not folder.is_relative_to(ROOT):
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


# A small model for each image


@dataclass(frozen=True)
class Example:
    """What an image serves in the tests and in the table."""

    write: Callable[[Path], None]
    """Writes the model directory."""
    request: str | None = None
    """File with a V2 request; None: one row of zeros, by the model's metadata."""
    environment: Mapping[str, str] = field(default_factory=dict)
    predictor: str | None = None
    """The folder that serves the model, where the image is a transformer alone."""


def _fraud(folder: Path) -> None:
    shutil.copytree(FRAUD / "model", folder, dirs_exist_ok=True)


def _xgboost(folder: Path) -> None:
    shutil.copy(FRAUD / "model" / "fraud.ubj", folder / "model.ubj")


def _lightgbm(folder: Path) -> None:
    import lightgbm
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(200, 4))
    data = lightgbm.Dataset(rows, rows[:, 0] > 0)
    lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, data, 5).save_model(folder / "model.txt")


def _sklearn(folder: Path) -> None:
    import numpy as np
    import skops.io
    from sklearn.ensemble import RandomForestClassifier

    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    skops.io.dump(RandomForestClassifier(5, random_state=0).fit(rows, rows[:, 0] > 0), folder / "model.skops")


def _catboost(folder: Path) -> None:
    import catboost
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    model = catboost.CatBoostClassifier(5, thread_count=1, logging_level="Silent", allow_writing_files=False)
    model.fit(rows, (rows[:, 0] > 0).astype(int)).save_model(str(folder / "model.cbm"))


def _mlflow(folder: Path) -> None:
    from classic_models import write_mlflow

    write_mlflow(folder)


def _onnx(folder: Path) -> None:
    from damaged_files import FORMATS

    FORMATS["onnx"].make(folder)


def _torch(folder: Path) -> None:
    from damaged_files import FORMATS

    FORMATS["torchscript"].make(folder)


def _tensorflow(folder: Path) -> None:
    from damaged_files import FORMATS

    FORMATS["saved_model"].make(folder)


def _colours(folder: Path) -> None:
    from vision_support import colour_model

    colour_model(folder)


def _colours_of_tensorflow(folder: Path) -> None:
    import tensorflow as tf

    class Colours(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, name="images")])
        def serve(self, images: Any) -> Any:
            return {"probabilities": tf.nn.softmax(tf.reduce_mean(images, (1, 2)))}

    module = Colours()
    tf.saved_model.save(module, str(folder), signatures=module.serve)


def _recommender(folder: Path) -> None:
    from recommender_support import train

    with_both = folder.parent / f"{folder.name}-trained"
    train(with_both)
    for path in [*(with_both / "v1").iterdir(), *with_both.iterdir()]:
        if path.is_file():
            shutil.copy(path, folder)


def _labels(folder: Path) -> None:
    shutil.copy(SUPPORT / "conformance_models.py", folder)


SMALL = {
    f"IMAGE_PIXELS_{name}": value
    for name, value in {
        "PRESET": "torchvision",
        "RESIZE": "10",
        "CROP": "8",
        "LAYOUT": "NHWC",
        "MEAN": "0,0,0",
        "SCALE": "0.02,0.02,0.02",
    }.items()
}
"""Of `image_pixels`, for models of 8 x 8 pixels."""
VISION = str(ROOT / "inferenceservices" / "vision" / "request.json")
EXAMPLES: dict[str, Example] = {
    "serinus_base": Example(
        _labels, environment={"SERINUS_CLASS": "conformance_models:Labels", "PYTHONPATH": "/mnt/models"}
    ),
    "xgboost_server": Example(_xgboost),
    "lightgbm_server": Example(_lightgbm),
    "sklearn_server": Example(_sklearn),
    "catboost_server": Example(_catboost),
    "classic_server": Example(_lightgbm),
    "mlflow_server": Example(_mlflow),
    "onnx_server": Example(_onnx),
    "torch_server": Example(_torch),
    "tensorflow_server": Example(_tensorflow),
    "ensemble_server": Example(_fraud),
    "ensemble_server-trees": Example(_fraud),
    "ensemble_server-fraud_features": Example(_fraud, str(FRAUD / "request.json")),
    "ensemble_server-trees-fraud_features": Example(_fraud, str(FRAUD / "request.json")),
    "tensorflow_server-image_pixels": Example(_colours_of_tensorflow, VISION, SMALL),
    "torch_server-recommender_features": Example(
        _recommender, str(ROOT / "inferenceservices/recommender/request.json")
    ),
    "fraud_features": Example(_fraud, str(FRAUD / "request.json"), predictor="ensemble_server"),
    "image_pixels": Example(_colours, VISION, SMALL, predictor="onnx_server"),
    "recommender_features": Example(
        _recommender, str(ROOT / "inferenceservices/recommender/request.json"), predictor="torch_server"
    ),
}


@contextlib.contextmanager
def example(name: str, folder: Path, *, cpus: float | None = 0.5) -> Iterator[Container]:
    """Run an image with its example, `model` by name; for a transformer, with its predictor on this machine beside it."""
    from serve_support import serving

    chosen, model = EXAMPLES[name], folder / "model"
    if not model.is_dir():
        model.mkdir(parents=True)
        chosen.write(model)
    with contextlib.ExitStack() as stack:
        arguments = ["--model_name", "model", "--model_dir", "/mnt/models"]
        if chosen.predictor is not None:
            predictor = ("--class", chosen.predictor, "--model_dir", str(model), "--model_name", "model")
            served = stack.enter_context(serving(folder, *predictor, timeout_s=180))
            arguments += ["--predictor_host", f"127.0.0.1:{served.http_port}", "--predictor_protocol", "v2"]
        mounts = {model: "/mnt/models"}
        yield stack.enter_context(
            container(
                f"{name}:{TAG}",
                *arguments,
                mounts=mounts,
                environment=chosen.environment,
                cpus=cpus,
                host_network=chosen.predictor is not None,
            )
        )


def request_of(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A V2 request for an image's example: its file's, or a row of zeros for each input of the metadata."""
    if (file := EXAMPLES[name].request) is not None:
        return json.loads(Path(file).read_text())
    inputs = []
    for tensor in metadata["inputs"]:
        shape = [max(1, side) for side in tensor["shape"]]
        count = functools.reduce(lambda product, side: product * side, shape, 1)
        data = ["0"] * count if tensor["datatype"] == "BYTES" else [0] * count
        inputs.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": data})
    return {"inputs": inputs}
