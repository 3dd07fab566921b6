"""Where the local gateway listens: addresses of both kinds and names of them; and how what is printed of it reaches it."""

from __future__ import annotations

import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from local_support import Up, manifest, up
from serinus.cli.asked_service import find_service
from serinus.local.run.control_socket import reached_address

HAS_IPV6 = Path("/proc/net/if_inet6").is_file() and f"{1:032x}" in Path("/proc/net/if_inet6").read_text()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:80"),
        ("0.0.0.0", "127.0.0.1:80"),
        ("", "127.0.0.1:80"),
        ("::1", "[::1]:80"),
        ("::", "[::1]:80"),
        ("fe80::1", "[fe80::1]:80"),
    ],
)
def test_an_address_is_written_as_urls_have_it(host: str, address: str) -> None:
    assert reached_address(host, 80) == address


def fraud_url(running: Up) -> str:
    """Where `serinus infer` would ask."""
    return find_service("fraud", url=None, model=None, state_dir=running.state, over_grpc=False).url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "address"),
    [
        pytest.param("::1", "::1", marks=pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")),
        ("localhost", "127.0.0.1"),
    ],
)
def test_a_gateway_listens_where_it_is_told_to_and_is_reached_there(host: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    with up(tmp_path, "isvc.yaml", "--host", host) as running:
        assert running.status()["gateway"]["host"] == address
        port = running.status()["gateway"]["port"]
        socket.create_connection((address, port), timeout=10).close()
        line = next(line for line in running.output().splitlines() if line.startswith("curl "))
        asked = subprocess.run([*shlex.split(line), "-g", "-i"], capture_output=True, text=True, check=True, timeout=20)
        assert "404" in asked.stdout.splitlines()[0], "the tiny server's own answer to what it does not know"
        assert "x-serinus-revision: fraud-predictor-00001" in asked.stdout
        assert fraud_url(running) == f"http://{reached_address(address, port)}"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_a_host_that_is_none_of_this_machine_is_told_in_a_line(host: str, tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    with up(tmp_path, "isvc.yaml", "--host", host, ready=False) as running:
        assert running.process.wait(40) != 0
        assert f"--host {host}: " in running.output()
        assert "127.0.0.1 or ::1" in running.output()
        assert "Traceback" not in running.output()
