"""Where `serinus serve` listens: on this machine alone unless told otherwise, with every port and every engine."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from pathlib import Path
from typing import Literal

import pytest
import yaml

import warm_start
from depth import some_of
from serinus import Model
from serinus.cli.serving.options import parse
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.server.rest.rest_server import start_rest
from serinus.settings import ServerSettings
from waiting import wait_until

pytestmark = pytest.mark.slow  # each test starts a server

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
from serinus import Model, TensorSpec

class Doubler(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] * 2}
"""


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket in state LISTEN of these processes (proc(5), /proc/net/tcp)."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                # grpcio binds IPv4 addresses as IPv6 ones (RFC 4291, 2.5.5.2).
                found.add((socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:"), int(port, 16)))
    return found


def family_of(pid: int) -> set[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(family_of(int(child)) for child in children))


def addresses(tmp_path: Path, *flags: str, environment: dict[str, str] | None = None) -> tuple[set[str], str]:
    """Start a server without a word on where to listen, and give the addresses that it listens on, and its log."""
    (tmp_path / "listening_model.py").write_text(MODEL)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SERINUS_", "MLSERVER_"))}
    log = tmp_path / "serve.log"
    words = ["--class", "listening_model:Doubler", "--http_port", "0", "--grpc_port", "0", *flags]
    with log.open("w") as output:
        variables = {**clean, "PYTHONPATH": str(tmp_path), **(environment or {})}
        process = warm_start.start(["serve", *words], env=variables, out=output, session=True)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return "ready in" in log.read_text()

        wait_until(ready, limit_s=60)
        found = listening(family_of(process.pid))
        assert len({port for _, port in found}) >= 2, "REST and gRPC"
        return {address for address, _ in found}, log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize(("http", "grpc"), [("thin", "native"), ("uvicorn", "grpcio")])
def test_a_server_is_reached_from_this_machine_alone(tmp_path: Path, http: str, grpc: str):
    found, said = addresses(tmp_path, "--http", http, "--grpc", grpc, "--metrics_port", "0")
    assert found == {"127.0.0.1"}
    where = r"REST on 127\.0\.0\.1:\d+, gRPC on 127\.0\.0\.1:\d+ \(\w+\), metrics on 127\.0\.0\.1:\d+; repository control: off"
    assert re.search(where, said)


@pytest.mark.parametrize("grpc", some_of(["native", "grpcio"], 1))  # both engines are asked above
def test_so_are_workers(tmp_path: Path, grpc: str):
    found, _ = addresses(tmp_path, "--workers", "2", "--grpc", grpc)
    assert found == {"127.0.0.1"}


def test_a_host_that_is_named_is_the_one(tmp_path: Path):
    """127.0.0.2 stands for another address of this machine: the test listens on loopback alone."""
    found, said = addresses(tmp_path, "--metrics_port", "0", environment={"MLSERVER_HOST": "127.0.0.2"})
    assert found == {"127.0.0.2"}
    assert "REST on 127.0.0.2:" in said


@pytest.mark.parametrize(
    ("words", "environment", "host"),
    [
        ([], {}, "127.0.0.1"),
        ([], {"MLSERVER_HOST": "0.0.0.0"}, "0.0.0.0"),
        ([], {"MLSERVER_HOST": "0.0.0.0", "SERINUS_HOST": "127.0.0.1"}, "127.0.0.1"),
        (["--host", "::1"], {"MLSERVER_HOST": "0.0.0.0", "SERINUS_HOST": "127.0.0.1"}, "::1"),
    ],
    ids=["by default", "in our image", "a variable over the image's", "a flag over both"],
)
def test_whoever_names_the_host_wins_over_the_image(words: list[str], environment: dict[str, str], host: str):
    assert parse(words, environment).values["host"] == host
    assert ServerSettings().host == "127.0.0.1"


def test_the_image_says_that_it_listens_everywhere():
    stages = re.split(r"^FROM ", (ROOT / "runtimes" / "Dockerfile").read_text(), flags=re.MULTILINE)
    (system,) = [stage for stage in stages if stage.split("\n")[0].endswith(" AS system")]
    assert "    MLSERVER_HOST=0.0.0.0\n" in system
    assert "FROM system AS assembled\n" in (ROOT / "runtimes" / "Dockerfile").read_text()


def containers() -> dict[str, dict]:
    found = {}
    # Those of services as a whole, with what components add: tests/repository/test_service_manifests.py.
    paths = [*ROOT.glob("manifests/base/*.yaml"), *ROOT.glob("inferenceservices/**/servingruntime.yaml")]
    for path in paths:
        for document in yaml.safe_load_all(path.read_text()):
            stack = [document]
            while stack:
                node = stack.pop()
                if isinstance(node, dict):
                    for one in node.get("containers", []):
                        found[f"{path.relative_to(ROOT)}: {one.get('name')} {one.get('image')}, {len(found)}"] = one
                    stack.extend(node.values())
                elif isinstance(node, list):
                    stack.extend(node)
    return found


CONTAINERS = containers()


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_manifest_says_that_its_container_listens_everywhere(name: str):
    assert "--host=0.0.0.0" in CONTAINERS[name]["args"]


def test_there_are_manifests():
    assert len(CONTAINERS) >= 9


@pytest.mark.parametrize(("http", "is_said"), [("thin", False), ("uvicorn", True)])
async def test_the_start_says_of_a_transport_without_our_bounds_whom_it_is_for(
    http: Literal["thin", "uvicorn"], is_said: bool, caplog: pytest.LogCaptureFixture
):
    plane = Plane(Registry(Model))
    await plane.start([])
    settings = ServerSettings(host="127.0.0.1", http_port=0, http=http)
    with caplog.at_level(logging.INFO, "serinus"):
        server = await start_rest(plane, settings, metrics=plane.metrics)
    try:
        assert ("HTTP transport: uvicorn; for trusted networks" in caplog.text) is is_said
    finally:
        await server.close()
        await plane.close()
