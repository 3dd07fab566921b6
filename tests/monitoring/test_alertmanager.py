"""Our alerts on their whole way: a fault of a real server, Prometheus, Alertmanager with the routes that we ship, a receiver's webhook."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from prometheus_server import free_port, prometheus_server
from promtool import MONITORING, alerting_rules, has_prometheus
from scraped_cluster import MODELS, SERVICE, discovered, scrape_job
from serve_support import serving
from waiting import wait_until

ALERTMANAGER = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
"""Upstream's name, and Debian's."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.prometheus,
    pytest.mark.skipif(
        not has_prometheus() or ALERTMANAGER is None or shutil.which("amtool") is None,
        reason="needs prometheus and prometheus-alertmanager (Debian's packages)",
    ),
]

POD = "fraud-predictor"


def shipped() -> dict[str, Any]:
    """Alertmanager's configuration, as the chart gives it on."""
    return yaml.safe_load((MONITORING / "alertmanager.yaml").read_text())["alertmanager"]["config"]


@dataclass
class Receiver:
    """What came to a webhook: the last part of its path, and the message."""

    address: str
    came: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def alert(self, where: str, status: str, name: str) -> dict[str, Any] | None:
        """The last alert of a name that came to a receiver in this state, or None."""
        found = [
            alert
            for path, message in self.came
            if path == where
            for alert in message["alerts"]
            if alert["status"] == status and alert["labels"]["alertname"] == name
        ]
        return found[-1] if found else None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            listening.came.append((self.path.rpartition("/")[2], body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    listening = Receiver(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield listening
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def alertmanager(folder: Path, receiver: Receiver) -> Iterator[str]:
    """Start Alertmanager with what we ship, its receivers at the test's address and its waits a second; `HOST:PORT`."""
    configuration = shipped()
    configuration["route"].update(group_wait="1s", group_interval="1s")
    for each in configuration["receivers"]:
        for webhook in each.get("webhook_configs", ()):
            webhook["url"] = f"{receiver.address}/{webhook['url'].rpartition('/')[2]}"
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    words = [
        f"--config.file={folder / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    log = folder / "alertmanager.log"
    with log.open("w") as output:
        process = subprocess.Popen([str(ALERTMANAGER), *words], stdout=output, stderr=subprocess.STDOUT)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
                return answer.status == 200
            return False

        wait_until(ready)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_a_fault_is_told_to_the_pager_with_what_to_do_and_told_again_when_it_has_ended(
    tmp_path: Path, receiver: Receiver
):
    ready = tmp_path / "ready"
    ready.touch()
    words = ("--class", f"{MODELS}:ReadyWithAFile", "--model_name", SERVICE)
    environment = {"PYTHONPATH": str(MODELS.parent), "READY_FILE": str(ready)}
    with (
        serving(tmp_path, *words, environment=environment) as served,
        alertmanager(tmp_path, receiver) as address,
        prometheus_server(
            tmp_path,
            {
                "scrape_configs": [scrape_job({f"127.0.0.1:{served.http_port}": discovered(POD)})],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]},
            },
        ),
    ):
        ready.unlink()
        wait_until(lambda: receiver.alert("pager", "firing", "SerinusModelNotReady"), limit_s=60)
        told = receiver.alert("pager", "firing", "SerinusModelNotReady")
        assert told
        (rule,) = (rule for rule in alerting_rules() if rule["alert"] == "SerinusModelNotReady")
        labels, annotations = told["labels"], told["annotations"]
        assert (labels["severity"], labels["namespace"], labels["inferenceservice"]) == ("critical", "models", SERVICE)
        assert annotations["summary"] == rule["annotations"]["summary"]
        assert annotations["runbook"] == "manifests/monitoring/RUNBOOKS.md#serinusmodelnotready"
        assert f"{POD}-0" in annotations["description"]
        assert receiver.alert("pager", "resolved", "SerinusModelNotReady") is None
        ready.touch()
        wait_until(lambda: receiver.alert("pager", "resolved", "SerinusModelNotReady"), limit_s=60)
    assert {path for path, _ in receiver.came} == {"pager"}


def test_each_alert_goes_to_the_receiver_of_its_severity(tmp_path: Path):
    path = tmp_path / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(shipped()))
    checked = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    severities = {(rule["alert"], rule["labels"]["severity"]) for rule in alerting_rules()} | {("Watchdog", "none")}
    for name, severity in sorted(severities):
        labels = (f"alertname={name}", f"severity={severity}", "namespace=models", "inferenceservice=fraud")
        command = ["amtool", "config", "routes", "test", f"--config.file={path}", *labels]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        wanted = {"critical": "pager", "warning": "chat", "none": "nobody"}[severity]
        assert done.stdout.split() == [wanted], (name, severity, done.stderr)


def test_a_page_keeps_the_same_alerts_warning_from_the_chat(tmp_path: Path, receiver: Receiver):
    def fire(severity: str, service: str, window: str) -> dict[str, Any]:
        labels = {"alertname": "SerinusErrorBudgetBurn", "severity": severity, "window": window}
        return {"labels": {**labels, "namespace": "models", "inferenceservice": service}}

    with alertmanager(tmp_path, receiver) as address:
        alerts = [fire("critical", "fraud", "1h"), fire("warning", "fraud", "3d"), fire("warning", "vision", "3d")]
        request = urllib.request.Request(
            f"http://{address}/api/v2/alerts", json.dumps(alerts).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()
        wait_until(lambda: {path for path, _ in receiver.came} == {"pager", "chat"})
    told = {
        (path, alert["labels"]["inferenceservice"]) for path, message in receiver.came for alert in message["alerts"]
    }
    assert told == {("pager", "fraud"), ("chat", "vision")}
