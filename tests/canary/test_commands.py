"""`serinus canary run`, `status`, `promote`, `rollback` and `report`, as a pipeline and a person use them."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from canary_cluster import BODY, MODEL, POLICY, cluster, local_manifest
from canary_load import report_of
from kubernetes_server import service_object
from local_support import all_ready, ask, up
from serinus.canary.rollout.run_events import Event
from serinus.cli.canary.canary_run import EXIT_STATUS
from serinus.cli.canary.canary_view import RunView
from serinus.cli.operator import run as command

pytestmark = pytest.mark.slow  # commands in processes of their own


def watch(folder: Path, options: list[str], *more: str) -> int:
    return command(
        ["canary", "run", "m", *options, "--policy", str(folder / "policy.yaml"), "--interval", "0.1", *more]
    )


@pytest.mark.parametrize(("bad", "status", "ending"), [(0.005, 0, "promoted"), (0.3, 10, "rolled back")])
def test_a_run_ends_with_its_exit_status_and_leaves_a_report(
    tmp_path: Path, bad: float, status: int, ending: str, capsys: pytest.CaptureFixture[str]
):
    with cluster(tmp_path, bad=bad) as (_, options):
        assert watch(tmp_path, options, "-o", "json") == status
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert events[0]["kind"] == "begin"
        assert (events[-1]["kind"], events[-1]["ending"]) == ("end", ending)
        assert command(["canary", "report", "m", *options[2:]]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["ending"] == ending
        assert report["service"]["canary"] == "m-predictor-00002"
        assert report["moves"][0]["percent"] == 10
        assert report["decision"]["decision"] == {"promoted": "promote", "rolled back": "rollback"}[ending]
        assert len(report["looks"]) == sum(event["kind"] == "look" for event in events)
        assert report["last_look"]["canary"]["requests"] > 0
        looks = tmp_path / "state" / "canary" / "m.looks.jsonl"
        assert (
            command(
                ["canary", "replay", str(looks), "--policy", str(tmp_path / "policy.yaml"), "--final", "-o", "json"]
            )
            == 0
        )
        assert json.loads(capsys.readouterr().out)["reasons"] == report["decision"]["reasons"]


@pytest.mark.parametrize(("bad", "status", "value"), [(0.005, 11, 50), (0.3, 10, 0)], ids=["one step up", "rollback"])
def test_decide_only_gives_a_pipeline_an_exit_status_and_a_patch(
    tmp_path: Path, bad: float, status: int, value: int, capsys: pytest.CaptureFixture[str]
):
    with cluster(tmp_path, bad=bad, percent=10) as (server, options):
        # A promotion takes more requests than there can be in the time of a step.
        (tmp_path / "policy.yaml").write_text(POLICY.replace("points: 2", "points: 0.01"))
        for name in ("patch.yaml", "patch.json"):
            assert watch(tmp_path, options, "--decide-only", "--patch", str(tmp_path / name), "-o", "json") == status
            expected = [{"op": "replace", "path": "/spec/predictor/canaryTrafficPercent", "value": value}]
            assert yaml.safe_load((tmp_path / name).read_text()) == expected
        assert server.writes == []
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (last["kind"], last["ending"]) == ("end", "verdict")
        assert watch(tmp_path, options, "--dry-run", "-o", "lines") == 0
        assert "nothing was changed" in capsys.readouterr().out
        assert server.writes == []


def test_without_a_verdict_in_time_the_status_says_so(tmp_path: Path):
    with cluster(tmp_path) as (server, options):
        server.pods.clear()
        assert watch(tmp_path, options, "--for", "0.5") == 12
        assert server.service()["spec"]["predictor"]["canaryTrafficPercent"] == 10


def test_a_service_that_cannot_be_moved_has_a_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with cluster(tmp_path) as (server, options):
        server.put(service_object(uri="gs://b/v2"))
        assert watch(tmp_path, options) == 15
        assert "already has all traffic" in capsys.readouterr().err
        assert command(["canary", "status", "m", *options]) == 15
        assert command(["canary", "run", "nope", *options]) == 15
        assert "there is no InferenceService nope" in capsys.readouterr().err


def test_a_person_sees_promotes_and_rolls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with cluster(tmp_path, percent=30) as (server, options):
        assert command(["canary", "status", "m", *options]) == 0
        shown = capsys.readouterr().out
        assert "default/m (Knative): stable m-predictor-00001, canary m-predictor-00002" in shown
        assert "30 % asked for, 30 % in force, ready" in shown
        assert command(["canary", "status", "m", *options, "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["percent"] == 30
        assert command(["canary", "promote", "m", *options, "--dry-run"]) == 0
        assert json.loads(capsys.readouterr().out)["patch"] == [
            {"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"}
        ]
        assert server.writes == []
        assert command(["canary", "rollback", "m", *options]) == 0
        assert server.service()["spec"]["predictor"]["canaryTrafficPercent"] == 0
        assert command(["canary", "promote", "m", *options]) == 0
        assert "m-predictor-00002 was promoted" in capsys.readouterr().out
        assert "canaryTrafficPercent" not in server.service()["spec"]["predictor"]
        assert command(["canary", "rollback", "m", *options]) == 15


def test_a_run_under_way_ends_when_a_person_decides(tmp_path: Path):
    with cluster(tmp_path, bad=0.005) as (server, options):
        (tmp_path / "policy.yaml").write_text(POLICY.replace("canary_requests: 200", "canary_requests: 100000000"))
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(watch(tmp_path, options, "-o", "lines")))
        thread.start()
        deadline = time.monotonic() + 20
        while server.service()["spec"]["predictor"]["canaryTrafficPercent"] != 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # into the run's own looks
        assert command(["canary", "run", "m", *options]) == 14
        assert command(["canary", "rollback", "m", *options]) == 0
        thread.join(20)
        assert statuses == [13]
        assert server.service()["spec"]["predictor"]["canaryTrafficPercent"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--patch", "a.yaml"], "--patch is written by --decide-only"),
        (["--selector", "a=b"], "are of a Prometheus"),
        (["--prometheus", "http://p", "--endpoint", "a=http://b"], "choose one"),
        (["--endpoint", "a"], "REVISION=http://HOST:PORT/metrics was expected"),
        (["--metric", "clicks"], "NAME=rate:WHERE"),
        (["--policy", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_options_that_make_no_sense_are_errors(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with cluster(tmp_path) as (_, options):
        assert command(["canary", "run", "m", *options, *words]) == 1
        assert said in capsys.readouterr().err


def test_a_report_of_no_run_says_which_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["canary", "report", "m", "--state-dir", str(tmp_path)]) == 1
    assert "m.events.jsonl has no run m; serinus canary run writes it" in capsys.readouterr().err


# On this machine


def test_real_servers_of_standard_mode_under_serinus_up_are_judged_by_real_requests(tmp_path: Path):
    """A bad version, and then a good one; those of Knative mode are in test_rollouts.py."""
    for name, every in (("one", 0), ("bad", 3), ("good", 0)):
        (tmp_path / f"{name}.py").write_text(f"EVERY = {every}\n{MODEL}")
    (tmp_path / "policy.yaml").write_text(
        POLICY.replace("[10, 50, 100]", "[30, 100]").replace("points: 2", "points: 15")
    )
    (tmp_path / "isvc.yaml").write_text(local_manifest(tmp_path, "Standard", "bad.py", 0))
    old = "fraud-v1-predictor-00001"
    with up(tmp_path, "isvc.yaml") as running:
        done = threading.Event()

        def load() -> None:
            while not done.wait(0.004):
                ask(running.gateway, "/v2/models/fraud/infer", BODY, host="fraud.default.localhost")

        def shares(status: dict[str, Any]) -> dict[str, int]:
            return {share["revision"]: share["percent"] for share in status["services"][0]["traffic"]}

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        try:
            for number, (name, status) in enumerate((("bad", 10), ("good", 0)), 1):
                new = f"fraud-v2-predictor-{number:05d}"
                if number > 1:  # a file that is written again is applied again
                    (tmp_path / "isvc.yaml").write_text(local_manifest(tmp_path, "Standard", f"{name}.py", 0))
                running.wait(lambda s, new=new: all_ready(s) and shares(s) == {old: 100, new: 0}, "the canary at 0 %")
                words = ["run", "fraud", "--policy", "policy.yaml", "--interval", "1", "--for", "90", "-o", "lines"]
                ended = running.cli("canary", *words, check=False)
                assert ended.returncode == status, ended.stdout + ended.stderr
                report = report_of(running)
                assert report["problems"] == []
                assert report["last_look"]["canary"]["latency"]
                assert shares(running.status())[old if status else new] == 100
        finally:
            done.set()
            thread.join(20)


def test_the_documented_exit_statuses_are_those_of_the_code():
    text = (Path(__file__).resolve().parents[2] / "runtimes" / "serinus" / "CANARIES.md").read_text()
    rows = [line.split("|")[1:3] for line in text.partition("| status | |")[2].splitlines()[2:] if line.startswith("|")]
    documented = {int(status) for row in rows for status in row[0].split(",")}
    assert documented == {*EXIT_STATUS.values(), 1, 2, 130}


def test_the_live_picture_shows_both_arms_the_verdict_and_what_was_told_last():
    screen = Console(file=io.StringIO(), force_terminal=True, width=160, height=40, color_system=None)
    view = RunView("auto", screen)
    arm = {"requests": 1000, "errors": 5, "latency": {"le_s": [0.01, 0.1], "counts": [900, 90, 10]}}
    counts = {"percent": 10.0, "stable": arm, "canary": {**arm, "requests": 100, "errors": 0}}
    verdict = {"decision": "hold", "look": 7, "reasons": ["errors: about 900 requests more", "latency: enough"]}
    view.start()
    view.show(Event("begin", "m-2 beside m-1", {"time": 0.0, "stable": "m-1", "canary": "m-2", "percent": 0}))
    view.show(Event("problem", "no pod was heard", {"time": 1.0}))
    view.show(Event("look", "hold: errors", {"time": 2.0, "counts": counts, "verdict": verdict}))
    view.stop()
    shown = screen.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    for text in (
        "m-1",
        "90 %",
        "1,000",
        "5 (0.50 %)",
        "<= 10 ms",
        "hold after look 7",
        "latency: enough",
        "no pod was heard",
    ):
        assert text in shown
