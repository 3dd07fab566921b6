"""InferenceGraphs of tiny real services, end to end through the real Envoy."""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from local_support import Up, all_ready, ask, manifest, up

pytestmark = pytest.mark.slow

HEAD = "---\napiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: g}\nspec:\n"
GRAPH = (
    HEAD
    + """
  routerTimeouts: {serviceClient: 2}
  nodes:
    root:
      routerType: Switch
      steps:
      - {condition: '[@this].#(to=="sequence")', nodeName: chain}
      - {condition: '[@this].#(to=="ensemble")', nodeName: both}
      - {condition: '[@this].#(to=="splitter")', nodeName: split}
      - {condition: '[@this].#(to=="hard")', nodeName: hard}
      - {condition: '[@this].#(to=="gone")', serviceUrl: 'http://gone.default.svc.cluster.local/x'}
      - {condition: '[@this].#(to=="slow")', serviceName: slow}
    chain:
      routerType: Sequence
      steps:
      - {serviceName: one, name: first}
      - {serviceName: two, name: second, data: $response}
      - {serviceName: one, condition: 'request.request.#', name: never}
    both:
      routerType: Ensemble
      steps:
      - {serviceName: one, name: first}
      - {serviceUrl: 'http://two-predictor.default.svc.cluster.local/custom'}
    split:
      routerType: Splitter
      steps:
      - {serviceName: one, weight: 30}
      - {serviceName: two, weight: 70}
    hard:
      routerType: Sequence
      steps:
      - {serviceName: bad, dependency: Hard}
      - {serviceName: one}
"""
)
SERVICES = "---\n".join(
    [
        manifest("--tag=one", name="one"),
        manifest("--tag=two", name="two").replace("value: v2", "value: v1"),
        manifest("--tag=bad", "--status=418", name="bad"),
        manifest("--tag=slow", "--slow=6", name="slow"),
    ]
)


def post(
    running: Up, body: Any, headers: dict[str, str] | None = None, host: str = "g.default.localhost"
) -> tuple[int, Any]:
    status, _, answer = ask(running.gateway, "/", json.dumps(body).encode(), host=host, headers=headers)
    return status, json.loads(answer)


def test_a_graph_of_every_node_runs_beside_its_services(tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(SERVICES)
    (tmp_path / "graph.yaml").write_text(GRAPH)
    with up(tmp_path, "services.yaml", "graph.yaml", "--propagate-header", "X-Tenant") as running:
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-tenant": "t"}
        status, answer = post(running, {"to": "sequence"}, trace)
        assert status == 200
        assert (answer["tag"], answer["path"]) == ("two", "/v1/models/two:predict")
        assert answer["headers"] == {
            "Host": "two.default.svc.cluster.local",
            "Traceparent": trace["traceparent"],
            "X-Tenant": "t",
        }
        before = answer["request"]
        assert (before["tag"], before["path"]) == ("one", "/v2/models/one/infer")
        assert before["request"] == {"to": "sequence"}

        status, answer = post(running, {"to": "ensemble"})
        assert (status, {key: value["tag"] for key, value in answer.items()}) == (200, {"first": "one", "1": "two"})
        assert answer["1"]["path"] == "/custom"

        seen = collections.Counter(post(running, {"to": "splitter"})[1]["tag"] for _ in range(200))
        assert set(seen) == {"one", "two"}
        assert abs(seen["one"] - 60) < 5 * (200 * 0.3 * 0.7) ** 0.5

        status, answer = post(running, {"to": "hard"})
        assert (status, answer["tag"]) == (418, "bad")
        status, answer = post(running, {"to": "nowhere"})
        assert (status, answer["error"]) == (404, "Failed to process request")
        status, answer = post(running, {"to": "gone"})
        assert status == 404
        assert "no InferenceService has this host" in answer["error"]

        status, answer = post(running, {"to": "slow"})
        assert (status, "did not answer within 2 s" in answer["cause"]) == (500, True)

        row = next(row for row in running.status()["services"] if row["name"] == "g")
        assert (row["kind"], row["ready"], [c["component"] for c in row["components"]]) == (
            "InferenceGraph",
            True,
            ["router"],
        )
        status, _, page = ask(running.gateway, "/metrics", host="g.default.localhost")
        assert status == 200
        assert 'serinus_graph_step_requests_total{graph="default/g",node="chain",step="second"} 1\n' in page.decode()
        assert 'serinus_graph_step_errors_total{graph="default/g",node="hard",step="0"} 1\n' in page.decode()
        assert "g-00001" in running.cli("status").stdout
        assert "-H 'Host: g.default.localhost'" in running.cli("status").stdout
        assert "default/g: 5 nodes" in running.cli("logs", "g").stdout


def test_a_router_comes_back_is_rolled_and_becomes_a_new_revision_when_its_graph_changes(tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(SERVICES)
    (tmp_path / "graph.yaml").write_text(GRAPH.replace("serviceClient: 2", "serviceClient: 50"))
    with up(tmp_path, "services.yaml", "graph.yaml") as running:
        # A client that leaves the gateway ends the call of its step, long before any limit.
        leaving = http.client.HTTPConnection(running.gateway, timeout=1)
        leaving.request("POST", "/", '{"to": "slow"}', {"Host": "g.default.localhost"})
        with pytest.raises(TimeoutError):
            leaving.getresponse()
        leaving.close()
        ended = 'serinus_graph_step_errors_total{graph="default/g",node="root",step="5"} 1'
        running.wait(
            lambda _: ended in ask(running.gateway, "/metrics", host="g.default.localhost")[2].decode(), "the end", 20
        )

        first = next(row for row in running.status()["services"] if row["name"] == "g")["components"][0]
        os.kill(first["pid"], signal.SIGKILL)

        def graph(status: dict[str, Any]) -> dict[str, Any]:
            return next(row for row in status["services"] if row["name"] == "g")

        running.wait(lambda s: graph(s)["components"][0]["restarts"] == 1 and graph(s)["ready"], "the restart")
        assert post(running, {"to": "sequence"})[0] == 200
        assert running.cli("restart", "g").returncode == 0
        assert post(running, {"to": "sequence"})[0] == 200
        (tmp_path / "graph.yaml").write_text(
            HEAD + "  nodes: {root: {routerType: Sequence, steps: [{serviceName: two}]}}\n"
        )
        running.wait(
            lambda s: all_ready(s) and [c["revision"] for c in graph(s)["components"]] == ["g-00002"],
            "the new revision",
        )
        assert post(running, {"to": "anywhere"})[1]["tag"] == "two"
        running.cli("down", "g")
        status, _, body = ask(running.gateway, "/", b"{}", host="g.default.localhost")
        assert (status, b"no InferenceService has this host" in body) == (404, True)
