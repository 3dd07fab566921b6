"""The local runner with the real Envoy and real processes: routing, splits, revisions, crashes, restarts, the end."""

from __future__ import annotations

import collections
import json
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import grpc
from command_support import command
from depth import draws
from local_support import all_ready, ask, is_running, manifest, pids_below, up
from waiting import wait_until

pytestmark = pytest.mark.slow

STANDARD = "  annotations:\n    serving.kserve.io/deploymentMode: Standard\n"


def _within(count: int, total: int, share: float) -> bool:
    """Whether a count fits a share: five standard deviations, missed once in a million and a half runs."""
    return abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1


def test_rest_and_grpc_reach_the_same_revision_through_one_port(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--serve_grpc"))
    with up(tmp_path, "isvc.yaml") as running:
        rest, rpc = running.infer(), running.infer_grpc()
        assert (rest["protocol"], rpc["protocol"]) == ("rest", "grpc")
        assert rest["pid"] == rpc["pid"]
        assert rest["header"] == rpc["header"] == rest["revision"] == "fraud-predictor-00001"
        assert rest["path"] == "/v2/models/fraud/infer"
        for host in (
            "fraud-default.example.com",
            "fraud-predictor.default.localhost",
            "fraud-predictor.default",
            "FRAUD.default.localhost:1",
        ):
            assert running.infer(host)["pid"] == rest["pid"]
        status, _, body = ask(running.gateway, "/v2", host="nobody.default.localhost")
        assert status == 404
        assert "fraud.default.localhost" in json.loads(body)["error"]
        table = running.cli("status").stdout
        assert "fraud-predictor-00001" in table
        assert "curl -s -H 'Host: fraud.default.localhost'" in table
        assert "v1 listens on" in running.cli("logs", "fraud").stdout


def test_standard_mode_leads_inference_alone_to_the_grpc_port_as_kserves_route_does(tmp_path: Path) -> None:
    text = manifest("--serve_grpc", annotations=STANDARD)
    ports = "ports: [{name: http, containerPort: 8080}, {name: h2c, containerPort: 8081}]"
    (tmp_path / "isvc.yaml").write_text(text.replace("image: tiny\n", f"image: tiny\n        {ports}\n"))
    (tmp_path / "knative.yaml").write_text(manifest("--serve_grpc", name="other"))
    with up(tmp_path, "isvc.yaml", "knative.yaml") as running:
        assert running.infer_grpc()["protocol"] == "grpc"

        def health(host: str) -> grpc.RpcError:
            with grpc.insecure_channel(running.gateway, options=[("grpc.default_authority", host)]) as channel:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
                return refused.value

        held = health("fraud.default.localhost")
        assert held.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "KServe's HTTPRoute leads /inference.GRPCInferenceService/*" in str(held.details())
        # The tiny server knows no health service and says so itself: the call came to it.
        assert "HTTPRoute" not in str(health("other.default.localhost").details())


def test_a_transformer_calls_its_predictor_over_rest_and_over_grpc(tmp_path: Path) -> None:
    for protocol, spoken in (("v2", "rest"), ("grpc-v2", "grpc")):
        folder = tmp_path / protocol
        folder.mkdir()
        (folder / "isvc.yaml").write_text(
            manifest(
                "--tag=model",
                "--serve_grpc",
                transformer=["--tag=features", "--serve_grpc", f"--predictor_protocol={protocol}"],
            )
        )
        with up(folder, "isvc.yaml") as running:
            answer = running.infer()
            assert answer["tag"] == "features"
            assert answer["header"] == "fraud-transformer-00001"
            assert answer["predictor"]["tag"] == "model"
            assert answer["predictor"]["protocol"] == spoken
            assert running.infer("fraud-predictor.default.localhost")["tag"] == "model"
            assert running.infer_grpc()["predictor"]["protocol"] == spoken


def test_a_canary_gets_its_share_and_its_transformer_never_calls_the_other_revision(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    features = ["--tag=features", "--predictor_protocol=v2"]
    path.write_text(manifest("--tag=v1", percent=20, transformer=features))
    with up(tmp_path, "isvc.yaml") as running:
        # The first revision gets everything, whatever the field says.
        assert {running.infer()["predictor"]["tag"] for _ in range(20)} == {"v1"}
        path.write_text(manifest("--tag=v2", percent=20, transformer=features))
        running.wait(lambda s: len(s["services"][0]["traffic"]) == 2 and all_ready(s), "the split")
        seen = collections.Counter()
        total = draws(600, 300)
        for _ in range(total):
            answer = running.infer()
            # The revision that the gateway names is the one that answered, and its predictor is of the same chain.
            seen[
                (answer["header"], answer["revision"], answer["predictor"]["tag"], answer["predictor"]["revision"])
            ] += 1
        assert set(seen) == {
            ("fraud-transformer-00001", "fraud-transformer-00001", "v1", "fraud-predictor-00001"),
            ("fraud-transformer-00002", "fraud-transformer-00002", "v2", "fraud-predictor-00002"),
        }
        assert _within(
            seen[("fraud-transformer-00002", "fraud-transformer-00002", "v2", "fraud-predictor-00002")], total, 0.2
        )
        for tag, host in (("v2", "latest-fraud.default.localhost"), ("v1", "prev-fraud.default.localhost")):
            assert {running.infer(host)["predictor"]["tag"] for _ in range(10)} == {tag}
        assert {running.infer("latest-fraud-predictor.default.localhost")["tag"] for _ in range(5)} == {"v2"}


def test_traffic_moves_by_percent_to_promotion_and_back_by_rollback(tmp_path: Path) -> None:
    from serinus.local.run.control_socket import Client, ControlFailed

    (tmp_path / "v1.yaml").write_text(manifest("--tag=v1"))
    (tmp_path / "v2.yaml").write_text(manifest("--tag=v2", percent=10))
    with up(tmp_path, "v1.yaml", "v2.yaml") as running:
        running.wait(lambda s: all_ready(s) and len(s["services"][0]["traffic"]) == 2, "both revisions")
        client = Client(running.state)
        for percent in (50, 100):
            status = client.ask("traffic", name="fraud", percent=percent, wait_s=30)
            assert status["services"][0]["traffic"][0]["percent"] == percent
        assert {running.infer()["tag"] for _ in range(20)} == {"v2"}
        # 0 on a revision that is rolled out brings the one before back, as KServe's status logic does.
        status = client.ask("traffic", name="default/fraud", percent=0, wait_s=30)
        assert [(t["tag"], t["percent"]) for t in status["services"][0]["traffic"]] == [("latest", 0), ("prev", 100)]
        assert {running.infer()["tag"] for _ in range(20)} == {"v1"}
        assert running.infer("latest-fraud.default.localhost")["tag"] == "v2"
        with pytest.raises(ControlFailed, match="101 is not a percentage"):
            client.ask("traffic", name="fraud", percent=101)


def test_canaries_of_standard_mode_share_by_weight_and_a_rename_promotes_without_a_restart(tmp_path: Path) -> None:
    from local_support import SERVER

    def model(tag: str) -> str:
        (tmp_path / tag).mkdir(exist_ok=True)  # KServe takes a predictor's new name only with a storage URI of its own
        uri = f"file://{tmp_path / tag}"
        return f"{{modelFormat: {{name: tiny}}, runtime: tiny, storageUri: '{uri}', args: ['--tag={tag}']}}"

    runtime = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: tiny}\nspec:\n"
        "  supportedModelFormats: [{name: tiny, autoSelect: true}]\n  protocolVersions: [v2, grpc-v2]\n  containers:\n"
        f"    - name: kserve-container\n      image: tiny\n      command: [python, {SERVER}]\n"
        "      args: ['--model_name={{.Name}}', '--http_port=8080', '--grpc_port=8081']\n"
    )
    head = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: fraud\n" + STANDARD
    canary = (
        f"spec:\n  predictor:\n    name: v1\n    model: {model('one')}\n"
        f"  canary:\n  - trafficPercent: 30\n    predictor:\n      name: v2\n      model: {model('two')}\n"
    )
    path = tmp_path / "isvc.yaml"
    path.write_text(head + canary)
    (tmp_path / "runtime.yaml").write_text(runtime)
    with up(tmp_path, ".", "--no-watch") as running:
        total = draws(400, 200)
        seen = collections.Counter(running.infer()["tag"] for _ in range(total))
        assert set(seen) == {"one", "two"}
        assert _within(seen["two"], total, 0.3)
        two = running.infer("fraud-v2-predictor.default.localhost")
        assert two["header"] == "fraud-v2-predictor-00001"
        path.write_text(head + f"spec:\n  predictor:\n    name: v2\n    model: {model('two')}\n")
        running.cli("up", ".")
        assert {running.infer()["pid"] for _ in range(30)} == {two["pid"]}
        rows = running.status()["services"][0]["components"]
        assert [row["revision"] for row in rows] == ["fraud-v2-predictor-00001"]


def test_a_crashed_process_comes_back_and_its_neighbours_do_not_notice(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(manifest(name="fraud") + "---\n" + manifest(name="other"))
    with up(tmp_path, "a.yaml") as running:
        first = running.infer()["pid"]
        with pytest.raises(OSError):
            raise OSError(ask(running.gateway, "/crash", b"{}", host="fraud.default.localhost")[0])
        assert running.infer("other.default.localhost", "other")["model_name"] == "other"
        status = running.wait(
            lambda s: all_ready(s) and s["services"][0]["components"][0]["restarts"] == 1, "the restart"
        )
        row = status["services"][0]["components"][0]
        assert "exit code 3" in row["last_exit"]
        assert running.infer()["pid"] == row["pid"] != first
        os.kill(status["gateway"]["pid"], signal.SIGKILL)
        running.wait(lambda s: s["gateway"]["restarts"] == 1 and s["gateway"]["ready"], "the gateway's restart")
        assert running.infer()["pid"] == row["pid"]


class _Load:
    """Requests over REST and gRPC from several threads until stopped; each must be answered."""

    def __init__(self, running: object) -> None:
        self.running = running
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._end = threading.Event()
        calls = (running.infer, running.infer, running.infer_grpc)  # type: ignore[attr-defined]
        self._threads = [threading.Thread(target=self._work, args=(call,)) for call in calls]
        for thread in self._threads:
            thread.start()

    def _work(self, call: object) -> None:
        while not self._end.is_set():
            try:
                answer = call()  # type: ignore[operator]
                self.answers.append(f"{answer['protocol']} {answer['pid']}")
                time.sleep(0.01)  # of a hundred requests a second none is lost either
            except Exception as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_a_rolling_restart_and_a_new_revision_under_load_lose_no_request(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    features = ["--tag=features", "--serve_grpc", "--predictor_protocol=v2"]
    path.write_text(manifest("--tag=v1", "--slow=0.02", transformer=features))
    with up(tmp_path, "isvc.yaml", "--no-watch") as running:
        before = pids_below(running.status())
        load = _Load(running)
        try:
            running.cli("restart", "fraud")
            middle = pids_below(running.status())
            path.write_text(manifest("--tag=v2", "--slow=0.02", transformer=features))
            running.cli("up", "isvc.yaml")
            after = running.status()
        finally:
            load.stop()
        assert load.failures == []
        assert len({answer.split()[1] for answer in load.answers}) >= 3
        assert {answer.split()[0] for answer in load.answers} == {"rest", "grpc"}
        assert len(before & middle) == 2, "the supervisor and the gateway stay, both processes are new"
        assert running.infer()["predictor"]["tag"] == "v2"
        assert [row["revision"] for row in after["services"][0]["components"]] == [
            "fraud-predictor-00002",
            "fraud-transformer-00002",
        ]


def test_a_wrong_manifest_is_refused_whole_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest())
    with up(tmp_path, "isvc.yaml") as running:
        pid = running.infer()["pid"]
        path.write_text(manifest().replace("containers:", "contaners:"))
        running.wait(lambda s: "did you mean containers?" in running.output(), "the complaint")
        assert "isvc.yaml:7:spec.predictor.contaners" in running.output()
        assert running.infer()["pid"] == pid
        done = running.cli("up", "isvc.yaml", check=False)
        assert done.returncode == 1
        assert "did you mean containers?" in done.stderr


def test_a_revision_that_never_becomes_ready_gets_no_traffic(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest("--tag=v1"))
    with up(tmp_path, "isvc.yaml") as running:
        path.write_text(manifest("--tag=v2", "--crash_at_start"))
        running.wait(lambda s: any(row["restarts"] >= 2 for row in s["services"][0]["components"]), "two crashes")
        assert {running.infer()["tag"] for _ in range(20)} == {"v1"}
        path.write_text(manifest("--tag=v3"))
        running.wait(lambda s: all_ready(s) and len(s["services"][0]["components"]) == 1, "the mended revision")
        assert {running.infer()["tag"] for _ in range(20)} == {"v3"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest(transformer=["--predictor_protocol=v2"]))
    with up(tmp_path, "isvc.yaml") as running:
        pids = pids_below(running.status())
        assert len(pids) == 4
        running.process.send_signal(number)
        running.process.wait(30)
        wait_until(lambda: not any(map(is_running, pids)), limit_s=15)
        if number != signal.SIGKILL:
            assert running.process.returncode == 0
            assert not (running.state / "control.sock").exists()


def test_detached_it_answers_when_ready_and_down_ends_it(tmp_path: Path) -> None:
    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        return command(tmp_path, *words)

    (tmp_path / "isvc.yaml").write_text(manifest())
    (tmp_path / "request.json").write_text("{}")
    try:
        done = cli("up", "isvc.yaml", "--detach", "--port", "0")
        assert done.returncode == 0, done.stdout + done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("curl "))
        answer = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True
        )
        assert json.loads(answer.stdout)["model_name"] == "fraud"
        pids = pids_below(json.loads(cli("status", "-o", "json").stdout))
        assert cli("down", "fraud").returncode == 0
        assert json.loads(cli("status", "-o", "json").stdout)["services"] == []
    finally:
        ended = cli("down")
    assert ended.stdout == "stopped\n"
    assert [pid for pid in pids if is_running(pid)] == []
    assert "nothing runs" in cli("down").stdout
    assert cli("status").returncode == 1
    (tmp_path / "isvc.yaml").write_text(manifest("--crash_at_start"))
    done = cli("up", "isvc.yaml", "--detach", "--port", "0")
    assert done.returncode == 1
    assert "exit code 7" in done.stderr
