"""What a run is about goes away: the namespace, the service amid a step, Prometheus, the local runner. Each is said, none moves traffic."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warm_start
from canary_cluster import BODY, MODEL, POLICY, cluster, local_manifest
from canary_pages import free_port, prometheus, wait_until
from canary_world import World, world
from kubernetes_server import ISVC, Refusal
from local_support import Up, all_ready, ask, up
from serinus.canary.sources.prometheus_source import PrometheusSource
from serinus.canary.sources.source import ArmNames
from serinus.canary.targets.target import TargetFailed, TargetGone
from serinus.cli.canary.canary_run import EXIT_STATUS

SERVICE = ISVC.format("default", "m")


def terminate(made: World) -> None:
    """Delete the namespace: the API server creates nothing in it any more, and the service waits for KServe's finalizer."""
    made.server.terminating.add("default")
    made.server.objects[SERVICE]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def end(made: World) -> None:
    """Let all that was in the namespace be gone."""
    terminate(made)
    for path in [each for each in made.server.objects if "/namespaces/default/" in each]:
        del made.server.objects[path]
    made.server.pods.clear()
    made.share = lambda: 10  # type: ignore[method-assign] # clients still have connections


def test_a_namespace_that_is_not_there_is_named(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        end(made)
        with pytest.raises(
            TargetGone, match=r"no InferenceService m in namespace default; name another with --namespace"
        ):
            made.run()
        assert made.moves == []


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_in_a_namespace_that_is_being_deleted_no_run_begins(tmp_path: Path, mode: str):
    with world(tmp_path, mode, bad=0.005) as made:
        terminate(made)
        before = made.server.writes.copy()
        with pytest.raises(TargetGone, match=r"default/m is being deleted since 2026-01-01T00:00:00Z"):
            made.run()
        assert made.moves == []
        assert made.server.writes == before


def test_where_no_record_can_be_kept_no_run_begins(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        made.server.terminating.add("default")  # the service has not been reached yet
        with pytest.raises(
            TargetFailed, match=r"cannot be kept, so nothing is moved: .*403.*because it is being terminated"
        ):
            made.run()
        assert made.moves == []
        assert made.share() == 0


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
@pytest.mark.parametrize(("change", "said"), [(terminate, "is being deleted"), (end, "there is no InferenceService m")])
def test_a_namespace_that_is_deleted_amid_a_run_ends_it(
    tmp_path: Path, mode: str, change: Callable[[World], None], said: str
):
    with world(tmp_path, mode, bad=0.005) as made:
        made.on_sleep = [lambda: None, lambda: change(made)]
        ending = made.run()
        assert (ending.kind, made.moves) == ("changed", [10])
        assert said in ending.words


@pytest.mark.parametrize("change", [terminate, end])
def test_a_service_that_goes_while_a_step_comes_into_force_ends_the_run_at_once(
    tmp_path: Path, change: Callable[[World], None]
):
    with world(tmp_path, "Standard", bad=0.005) as made:
        controller = made.controller(settle_s=600.0)
        settled = controller._target.is_settled

        def gone(*arguments: Any) -> bool:
            change(made)  # after the step was written, before it is in force
            return settled(*arguments)

        controller._target.is_settled = gone  # type: ignore[method-assign]
        began = made.now
        ending = controller.run()
        assert ending.kind == "changed"
        assert "somebody else has deleted the service" in ending.words
        assert made.now - began < 60


def test_a_server_that_fails_once_after_a_step_does_not_end_the_run(tmp_path: Path):
    with world(tmp_path, bad=0.005) as made:
        get, left = made.server.get, [2]
        settled: list[bool] = []

        def failing(path: str, query: Any) -> Any:
            found = get(path, query)
            if path == SERVICE and made.moves and not settled:
                settled.append(True)
                return found  # the change is in force
            if path == SERVICE and settled and left[0]:
                left[0] -= 1
                raise Refusal(503, "the leader is being elected")
            return found

        made.server.get = failing  # type: ignore[method-assign]
        assert made.run().kind == "promoted"
        assert any("the leader is being elected; trying again" in each for each in made.told("problem"))


class Broken(http.server.BaseHTTPRequestHandler):
    """What a gateway says in a Prometheus' place."""

    status, body = 503, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def answering(port: int, status: int, body: bytes) -> Iterator[None]:
    handler = type("Answer", (Broken,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(10)


class Watched:
    """`serinus canary run` as a process, and the events that it has printed."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.lines: list[str] = []
        told, out = os.pipe()
        self._told = os.fdopen(told)
        with os.fdopen(out, "wb") as output:
            command = ["canary", "run", *words, "-o", "json"]
            self.process = warm_start.start(command, env=os.environ, cwd=folder, out=output)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._told:
            self.lines.extend(self._told)  # ends with the process

    def events(self, kind: str, since: int = 0) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines[since:] if line.startswith("{")]
        return [each for each in found if each["kind"] == kind]

    def wait(self, kind: str, said: str = "", since: int = 0) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, "".join(self.lines)
            return any(said in each["words"] for each in self.events(kind, since))

        wait_until(holds)

    def end(self) -> int:
        status = self.process.wait(60)
        self._reader.join(10)
        return status


@contextlib.contextmanager
def watched(words: list[str], folder: Path) -> Iterator[Watched]:
    run = Watched(words, folder)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.end()


@pytest.mark.slow
@pytest.mark.prometheus
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on the PATH")
def test_a_prometheus_that_goes_answers_nonsense_and_comes_back_is_waited_for(tmp_path: Path):
    with cluster(tmp_path) as (server, options):
        # A step takes some 8 s of this traffic.
        (tmp_path / "policy.yaml").write_text(POLICY.replace("canary_requests: 200", "canary_requests: 16000"))
        targets = [f"127.0.0.1:{pod['metadata']['annotations']['prometheus.io/port']}" for pod in server.pods]
        port = free_port()
        words = [
            "m",
            *options,
            "--policy",
            "policy.yaml",
            "--interval",
            "0.5",
            "--prometheus",
            f"http://127.0.0.1:{port}",
        ]
        names = ArmNames("m-predictor-00001", "m-predictor-00002", "m")
        with contextlib.ExitStack() as running:
            with prometheus(tmp_path, {"models": targets}, port=port) as url:
                wait_until(lambda: not PrometheusSource(url).observe(names).problems)
                run = running.enter_context(watched(words, tmp_path))
                run.wait("look")
            run.wait("problem", "Connection refused")
            before, judged = len(run.lines), len(run.events("look"))
            with answering(port, 503, b"no healthy upstream"):
                run.wait("problem", "503", before)
            with answering(port, 200, b"<html>please log in</html>"):
                run.wait("problem", "the answer is none of Prometheus' HTTP API: b'<html>", before)
            assert (len(run.events("look")), len(run.events("move"))) == (judged, 1)
            with prometheus(tmp_path, {"models": targets}, port=port):
                assert run.end() == 0
            assert run.events("end")[0]["ending"] == "promoted"
            assert run.events("move")[-1]["percent"] is None


@contextlib.contextmanager
def canary_under_load(folder: Path, path: Path, running: Up) -> Iterator[None]:
    """Bring the canary in at 0 %, and send requests."""
    path.write_text(local_manifest(folder, "Knative", "two.py", 0))
    running.wait(lambda s: all_ready(s) and len(s["services"][0]["traffic"]) == 2, "the canary at 0 %")
    done = threading.Event()

    def load() -> None:
        while not done.wait(0.004):
            with contextlib.suppress(OSError):
                ask(running.gateway, "/v2/models/fraud/infer", BODY, host="fraud.default.localhost")

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)


def local(folder: Path) -> tuple[Path, list[str]]:
    """A manifest of a first version, and the options of a run whose step takes minutes."""
    for name in ("one.py", "two.py"):
        (folder / name).write_text(f"EVERY = 0\n{MODEL}")
    (folder / "policy.yaml").write_text(POLICY.replace("canary_requests: 200", "canary_requests: 100000"))
    path = folder / "isvc.yaml"
    path.write_text(local_manifest(folder, "Knative", "one.py", None))
    return path, ["fraud", "--policy", "policy.yaml", "--interval", "0.5"]


@pytest.mark.slow
def test_a_local_runner_that_ends_and_starts_anew_ends_the_run_and_another_one_begins(tmp_path: Path):
    path, words = local(tmp_path)
    with contextlib.ExitStack() as ended:
        run = None
        for how in ("killed", "down", ""):
            path.write_text(local_manifest(tmp_path, "Knative", "one.py", None))
            with up(tmp_path, "isvc.yaml") as running, canary_under_load(tmp_path, path, running):
                if run is not None:
                    assert run.end() == EXIT_STATUS["changed"]
                    assert "serinus up was started anew" in run.events("end")[0]["words"]
                    assert len(run.events("move")) == 1
                    shares = {
                        share["revision"]: share["percent"] for share in running.status()["services"][0]["traffic"]
                    }
                    assert sorted(shares.values()) == [0, 100]
                # The revisions have the names of those before, and are others: nothing that was counted of those counts.
                before, run = run, ended.enter_context(watched(words, tmp_path))
                run.wait("look")
                if before is not None:
                    assert any("started anew with serinus up" in each["words"] for each in run.events("note"))
                    assert run.events("begin")[0]["run"] != before.events("begin")[0]["run"]
                if how == "killed":
                    running.process.kill()
                    running.process.wait()
                elif how == "down":
                    running.cli("down")
                if how:
                    run.wait("problem", "nothing runs in .serinus; start it with: serinus up PATH")


@pytest.mark.slow
def test_a_local_runner_that_stands_still_for_a_while_is_waited_for(tmp_path: Path):
    path, words = local(tmp_path)
    with (
        up(tmp_path, "isvc.yaml") as running,
        canary_under_load(tmp_path, path, running),
        contextlib.ExitStack() as ended,
    ):
        run = ended.enter_context(watched(words, tmp_path))
        run.wait("look")
        running.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(2)  # some looks' time: the command waits for the supervisor's answer
            before = len(run.lines)
        finally:
            running.process.send_signal(signal.SIGCONT)
        run.wait("look", since=before)
        assert len(run.events("move")) == 1
