"""A real Prometheus on a free loopback port, with our rules evaluated each second and without their `for`."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from promtool import rules
from waiting import wait_until

__all__ = ["ask_prometheus", "free_port", "prometheus_server"]

EACH_SECOND = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}


def free_port() -> int:
    """A port that nobody listens on; Prometheus and Alertmanager take no port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def prometheus_server(folder: Path, configuration: Mapping[str, Any]) -> Iterator[str]:
    """Start it with a configuration, to which the rules are added; its address. Stopped on exit.

    Raises:
        AssertionError: it ended at once; with its log.
    """
    quick = copy.deepcopy(rules())
    for group in quick["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule.pop("for", None)
    (folder / "rules.yaml").write_text(yaml.safe_dump(quick))
    whole = {"global": EACH_SECOND, "rule_files": [str(folder / "rules.yaml")], **configuration}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(whole))
    log, port = folder / "prometheus.log", free_port()
    words = [
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(["prometheus", *words], stdout=output, stderr=subprocess.STDOUT)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return "Server is ready to receive web requests" in log.read_text()

        wait_until(ready, limit_s=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask_prometheus(address: str, path: str, **arguments: str) -> Any:
    """Ask its API; the data of the answer."""
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)["data"]
