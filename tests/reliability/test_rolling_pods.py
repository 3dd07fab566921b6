"""Servers replaced one after another as a cluster and as Docker do it, by the same signals in the same order: no request of a kept connection is lost.

A router sends to its endpoints in turn over kept connections, as a gateway does. What ends a server is told to the router late, as endpoints are told in
a cluster, or before, as whoever runs `docker stop` by hand does. SIGKILL comes when the grace is over, and is counted.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import warm_start
from depth import draws, only_deep
from serinus.server.exit_bound import CLOSING_S
from serve_support import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
BODY = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[0]}]}'
SLOW = BODY.replace(b"[0]}]", b"[2]}]")
"""Hangs for some seconds (`fault_models`), and is answered."""
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "tests" / "support")}
SENDERS = 4


def _manifests_delay_s() -> float:
    """What the manifests give endpoints to forget a pod."""
    texts = [path.read_text() for path in (ROOT / "manifests" / "base").glob("clusterservingruntime-*.yaml")]
    found = {
        float(value) for text in texts for value in re.findall(r'SERINUS_DRAIN_DELAY_S\n\s+value: "([\d.]+)"', text)
    }
    assert found, "the manifests have a delay"
    return min(found)


@dataclass(frozen=True)
class Stop:
    """How a server is ended."""

    told_after_s: float
    """From the beginning of the end until the router knows; negative: it knows before."""
    pre_stop_s: float = 0.0
    """`lifecycle.preStop.sleep`."""
    drain_delay_s: float = 0.0
    grace_s: float = 30.0


MANIFESTS = "as the manifests have it"
STOPS = {
    MANIFESTS: Stop(told_after_s=1.0, drain_delay_s=_manifests_delay_s()),
    "preStop sleep": Stop(told_after_s=1.0, pre_stop_s=3.0),
    "docker stop": Stop(told_after_s=-0.5, grace_s=10.0),
}


class Router:
    """Sends in turn to all endpoints, over connections that it keeps, for as long as `sending`."""

    def __init__(self) -> None:
        self.endpoints: tuple[int, ...] = ()
        self.answered = 0
        self.problems: Counter[str] = Counter()
        self._next = itertools.count()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(SENDERS)]

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send as long as the block runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()

    def _send(self) -> None:
        kept: dict[int, http.client.HTTPConnection] = {}
        while not self._end.is_set():
            endpoints = self.endpoints
            for gone in set(kept).difference(endpoints):
                kept.pop(gone).close()
            port = endpoints[next(self._next) % len(endpoints)]
            connection = kept.get(port) or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("POST", "/v2/models/m/infer", BODY, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.problems[str(answer.status)] += 1
                kept[port] = connection  # http.client connects anew after `Connection: close`
            except (OSError, http.client.HTTPException) as error:
                self.problems[f"{type(error).__name__}: {error}"] += 1
                connection.close()
                kept.pop(port, None)
            time.sleep(0.002)  # some hundred requests a second are enough
        for connection in kept.values():
            connection.close()


def _end(router: Router, served: Served, stop: Stop) -> int:
    """End a server; gives its exit status."""
    began = time.monotonic()
    left = tuple(port for port in router.endpoints if port != served.http_port)
    telling = threading.Timer(max(0.0, stop.told_after_s), setattr, (router, "endpoints", left))
    telling.start()
    if stop.told_after_s < 0:
        telling.join()
        time.sleep(-stop.told_after_s)  # requests that were being sent have arrived
    time.sleep(stop.pre_stop_s)
    served.process.send_signal(signal.SIGTERM)
    try:
        status = served.process.wait(max(0.0, began + stop.grace_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        served.process.kill()
        status = served.process.wait()
    telling.join()
    return status


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == MANIFESTS else [only_deep(f"[{MANIFESTS}]")]) for name in STOPS],
)
def test_servers_replaced_under_load_lose_no_request(name: str, tmp_path: Path) -> None:
    stop, folders = STOPS[name], itertools.count()
    router, statuses = Router(), []

    def start(stack: contextlib.ExitStack) -> Served:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        flags = (
            "--class",
            "fault_models:IllInThread",
            "--model_name",
            "m",
            "--drain_delay_s",
            f"{stop.drain_delay_s:g}",
        )
        served = stack.enter_context(serving(folder, *flags, environment=ENVIRONMENT, timeout_s=90))
        router.endpoints += (served.http_port,)
        return served

    with contextlib.ExitStack() as stack:
        present = [start(stack), start(stack)]
        with router.sending():
            for _ in range(draws(2, 1)):
                new = start(stack)
                old = present.pop(0)
                present.append(new)
                slow = http.client.HTTPConnection("127.0.0.1", old.http_port, timeout=30)
                slow.request("POST", "/v2/models/m/infer", SLOW, {"Content-Type": "application/json"})
                time.sleep(0.2)  # it is in its predict
                statuses.append(_end(router, old, stop))
                assert slow.getresponse().status == 200, "what was in flight is answered"
                slow.close()
        for served in present:
            served.process.kill()  # their own ends, with their delays, are like those that were seen
    print(f"{name}: {router.answered} answered")
    assert router.problems == {}
    assert router.answered > 0
    assert set(statuses) == {0}, "it ends by itself within the grace"


def test_a_pod_of_the_manifests_ends_by_itself_before_it_would_be_killed() -> None:
    """terminationGracePeriodSeconds is Kubernetes' default of 30 s: a ServingRuntime has no field for it."""
    given = set()
    for path in (ROOT / "manifests" / "base").glob("clusterservingruntime-*.yaml"):
        for container in yaml.safe_load(path.read_text())["spec"]["containers"]:
            variables = {each["name"]: each.get("value", "") for each in container.get("env", [])}
            given.add(tuple(sorted(pair for pair in variables.items() if pair[0].startswith("SERINUS_DRAIN"))))
    for variables in given:
        done = warm_start.run(["serve", "--show_settings"], env={**os.environ, **dict(variables)})
        assert done.returncode == 0, done.stderr
        shown = done.stdout
        settings = dict(line.split()[:2] for line in shown.splitlines() if line.startswith("drain_"))
        assert float(settings["drain_delay_s"]) == _manifests_delay_s()
        assert float(settings["drain_delay_s"]) + float(settings["drain_timeout_s"]) + CLOSING_S <= 30 - 3, variables
