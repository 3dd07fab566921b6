"""Whole rollouts on this machine: real servers behind the real Envoy, a bounded load, and every client's answer accounted for."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canary_load import POLICY, Load, load, report_of, wait_for_canary, write_service
from local_support import Up, all_ready, up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OLD, NEW = "fraud-predictor-00001", "fraud-predictor-00002"


UNHURRIED = POLICY.replace("margin_percent: 50", "margin_percent: 450, tolerated_ratio: 5")
"""A process that has just started is slow on a busy machine, and copies of requests reach it first."""
TOLERANT = UNHURRIED.replace("points: 5", "points: 1")
"""On a busy machine a request that fails takes longer, too: its traceback is written. 2 % of errors are beyond the margin."""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `serinus up` for the rollouts that begin with the same old version."""
    folder = tmp_path_factory.mktemp("rollouts")
    write_service(folder, "one")
    with up(folder, "isvc.yaml") as running:
        yield running


def bring_in(running: Up, version: str, **options: Any) -> str:
    """Bring the service back to its old version alone, whatever was before, and then in a new one at 0 %; the new one's revision."""

    def shares(status: dict[str, Any]) -> dict[str, int]:
        ready = all_ready(status)
        return {each["revision"]: each["percent"] for each in status["services"][0]["traffic"]} if ready else {}

    write_service(running.folder, "one")
    running.wait(lambda status: shares(status) == {OLD: 100}, "the old version alone")
    write_service(running.folder, version, percent=0, **options)
    (new,) = shares(running.wait(lambda status: len(shares(status)) == 2, "the canary at 0 %")).keys() - {OLD}
    return new


def run(running: Up, *words: str, policy: str = POLICY) -> tuple[int, dict[str, Any]]:
    """Run the canary to its end; its status and its report."""
    (running.folder / "policy.yaml").write_text(policy)
    options = ["--policy", "policy.yaml", "--interval", "1", "--for", "80", "-o", "lines", *words]
    ended = running.cli("canary", "run", "fraud", *options, check=False)
    report = report_of(running)
    assert report["problems"] == [], ended.stdout
    return ended.returncode, report


def split(running: Up) -> dict[str, int]:
    return {share["revision"]: share["percent"] for share in running.status()["services"][0]["traffic"]}


def assert_nobody_else_failed(seen: Load, failing: str = "") -> None:
    """No request failed but those that the canary itself failed."""
    assert seen.broken == []
    assert set(seen.failures) == ({(failing, 500)} if failing else set())
    assert seen.answers[OLD, 200] > 200


@pytest.mark.parametrize(
    ("version", "status", "metric"),
    [
        ({"sleep_s": 0.0}, 0, None),
        ({"sleep_s": 0.012}, 10, "latency"),
        # Quicker than stable, so that latency cannot be what decides.
        ({"every": 50, "sleep_s": 0.001}, 10, "errors"),
        ({"power": 2.0, "sleep_s": 0.001}, 10, "score"),
    ],
    ids=["better", "slow", "2-percent-errors", "other-scores"],
)
def test_a_version_is_promoted_where_it_is_better_and_rolled_back_where_it_is_slow_fails_or_scores_otherwise(
    runner: Up, request: pytest.FixtureRequest, version: dict[str, Any], status: int, metric: str | None
) -> None:
    new = bring_in(runner, request.node.callspec.id, **version)
    with load(runner) as seen:
        ended, report = run(runner, policy=TOLERANT if metric in ("errors", "score") else POLICY)
    assert ended == status, report
    assert report["decision"]["metric"] == metric
    assert split(runner)[OLD if status else new] == 100
    assert_nobody_else_failed(seen, new if metric == "errors" else "")
    assert report["counted"] == "requests"


def test_a_failing_version_is_found_by_copies_of_requests_and_no_client_notices(runner: Up) -> None:
    bring_in(runner, "failing", every=10, sleep_s=0.001)
    with load(runner) as seen:
        ended, report = run(runner, "--shadow", "100")
    assert ended == 10, report
    assert report["decision"]["metric"] == "errors"
    assert {(look["percent"], look["shadow"]) for look in report["looks"]} == {(0, 100)}, (
        "it never had a request of a client's own"
    )
    assert {key[0] for key in seen.answers} == {OLD}
    assert_nobody_else_failed(seen)
    written = (runner.state / "canary" / "fraud.looks.jsonl").read_text().splitlines()
    looks = [look for look in map(json.loads, written) if look["run"].startswith(report["run"])]
    assert {look["run"] for look in looks} == {f"{report['run']} shadow"}
    last = looks[-1]["canary"]
    assert last["errors"] > 5
    assert last["latency"]["counts"]
    assert sum(last["score"]["counts"]) > 100


def test_a_good_version_goes_from_copies_to_users_who_stay_and_its_predecessor_is_at_hand_after_it(
    tmp_path: Path,
) -> None:
    sticky = {"serinus.dev/affinity": "cookie=uid"}
    write_service(tmp_path, "one", annotations=sticky)
    with up(tmp_path, "isvc.yaml") as running:
        write_service(tmp_path, "two", percent=0, sleep_s=0.0, annotations=sticky)
        wait_for_canary(running)
        with load(running, users=100_000) as seen:
            ended, report = run(running, "--shadow", "50", "--warm", "600", policy=UNHURRIED)
            assert ended == 0, report["decision"]
            time.sleep(0.5)  # some answers of the promoted version
            began = seen.answers[OLD, 200]
            assert running.status()["services"][0]["warm"] == OLD
            old = {row["pid"] for row in running.status()["services"][0]["components"] if row["revision"] == OLD}
            assert "was rolled back" in running.cli("canary", "rollback", "fraud").stdout
            assert split(running)[OLD] == 100
            now = running.status()["services"][0]["components"]
            assert {row["pid"] for row in now if row["revision"] == OLD} == old, "the very process went on"
            running.wait(lambda _: seen.answers[OLD, 200] > began, "answers of the old version")
        assert_nobody_else_failed(seen)
        words = [move["words"] for move in report["moves"]]
        assert words[:3] == [
            f"a copy of 50 % of the requests to {NEW}",
            "no copies any more",
            "canaryTrafficPercent: 50",
        ]
        last = report["last_look"]
        for arm in ("stable", "canary"):
            assert 0 < last[arm]["affinity_keys"] <= last[arm]["requests"] * 1.05 + 100
        assert report["counted"] == "users"


def test_copies_of_a_run_that_was_ended_amid_them_end_too(runner: Up) -> None:
    bring_in(runner, "copied")
    (runner.folder / "endless.yaml").write_text(POLICY.replace("canary_requests: 200", "canary_requests: 1000000"))
    words = ["canary", "run", "fraud", "--policy", "endless.yaml", "--interval", "0.5", "-o", "lines"]

    def end_amid_copies(number: signal.Signals) -> int:
        process = runner.start(*words, "--shadow", "100")
        try:
            runner.wait(lambda status: status["services"][0]["mirror"] == 100, "copies")
            process.send_signal(number)
            return process.wait(30)
        finally:
            process.kill()
            process.wait(30)

    assert end_amid_copies(signal.SIGTERM) == 130
    assert runner.status()["services"][0]["mirror"] == 0
    assert end_amid_copies(signal.SIGKILL) == -signal.SIGKILL
    assert runner.status()["services"][0]["mirror"] == 100
    assert "it gets a copy of 100 % of the requests" in runner.cli("canary", "status", "fraud").stdout
    time.sleep(2.5)  # the dead one's record is not taken over before four looks were missed
    assert runner.cli(*words, "--for", "1", check=False).returncode == 12
    assert runner.status()["services"][0]["mirror"] == 0
