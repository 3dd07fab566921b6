"""Users, testers and copies at the real Envoy; and the version before, kept warm."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from pathlib import Path

import pytest

from depth import draws
from local_support import Up, all_ready, manifest, up
from serinus.local.plan.envoy_config import admin_path
from serinus.local.run.control_socket import Client, ControlFailed
from waiting import wait_until

pytestmark = pytest.mark.slow

OLD, NEW = "fraud-predictor-00001", "fraud-predictor-00002"


class Asker:
    """One connection to the gateway."""

    def __init__(self, running: Up) -> None:
        self._connection = http.client.HTTPConnection(running.gateway, timeout=20)

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def tag(self, **fields: str) -> str:
        """Which version answers a request with these header fields."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        headers |= {"Host": "fraud.default.localhost", "Content-Type": "application/json"}
        self._connection.request("POST", "/v2/models/fraud/infer", b"{}", headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)["tag"]


def two_versions(running: Up, folder: Path, annotation: str, *args: str) -> Client:
    """Put a second version beside the first, without traffic."""
    (folder / "isvc.yaml").write_text(manifest("--tag=v2", *args, percent=0, annotations=annotation))
    running.wait(lambda s: all_ready(s) and len(s["services"][0]["traffic"]) == 2, "the canary at 0 %")
    return Client(running.state)


@pytest.mark.parametrize("kind", ["header", "cookie"])
def test_a_user_stays_on_one_version_and_never_goes_back_while_the_canary_grows(tmp_path: Path, kind: str) -> None:
    annotation = f"  annotations:\n    serinus.dev/affinity: {kind}=uid\n"
    (tmp_path / "isvc.yaml").write_text(manifest("--tag=v1", annotations=annotation))
    with up(tmp_path, "isvc.yaml") as running, contextlib.closing(Asker(running)) as asker:
        control = two_versions(running, tmp_path, annotation)

        def tag(user: int) -> str:
            return asker.tag(uid=f"u{user}") if kind == "header" else asker.tag(Cookie=f"uids=u0; uid=u{user};x=1")

        count = draws(300, 200)
        users, before = range(count), set[int]()
        for percent in (10, 25, 60):
            control.ask("traffic", name="fraud", percent=percent, wait_s=20)
            now = {user for user in users if tag(user) == "v2"}
            assert now == {user for user in users if tag(user) == "v2"}
            assert before < now
            # Six standard deviations; the same users each time, so that this is no matter of luck.
            share = percent / 100
            assert abs(len(now) - count * share) <= 6 * (count * share * (1 - share)) ** 0.5
            before = now
        assert {asker.tag() for _ in range(60)} == {"v1", "v2"}, "without a key a request is split at random"
        # Nobody chooses an arm by the gateway's own header.
        bucket = {asker.tag(uid="u1", Cookie="uid=u1", x_serinus_bucket=str(number)) for number in range(0, 100, 5)}
        assert len(bucket) == 1
        log = running.state / "logs" / "access.log"
        wait_until(lambda: len(log.read_text().splitlines()) >= 6 * count + 80)
        keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
        assert len({key for key in keys if key and key != "-"}) == count
        assert keys.count("-") == 60
        assert f"u{count - 1}" not in log.read_text(), "the log has no key itself"


def test_a_tester_reaches_a_version_by_its_revision_or_tag_before_it_has_traffic(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--tag=v1"))
    with up(tmp_path, "isvc.yaml") as running, contextlib.closing(Asker(running)) as asker:
        control = two_versions(running, tmp_path, "")
        assert {asker.tag() for _ in range(20)} == {"v1"}
        assert asker.tag(X_Serinus_Revision=NEW) == asker.tag(Knative_Serving_Tag="latest") == "v2"
        control.ask("traffic", name="fraud", percent=100, wait_s=20)
        control.ask("traffic", name="fraud", percent=50, wait_s=20)
        assert {asker.tag(X_Serinus_Revision=OLD) for _ in range(10)} == {"v1"}
        assert {asker.tag(Knative_Serving_Tag="prev") for _ in range(10)} == {"v1"}
        assert {asker.tag(X_Serinus_Revision="nobody") for _ in range(60)} == {"v1", "v2"}, "as Knative: split"


def test_copies_reach_the_canary_and_no_client_notices_whatever_becomes_of_them(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--tag=v1"))
    with up(tmp_path, "isvc.yaml") as running, contextlib.closing(Asker(running)) as asker:
        control = two_versions(running, tmp_path, "")
        with pytest.raises(ControlFailed, match="120 is not a percentage"):
            control.ask("mirror", name="fraud", percent=120)
        with pytest.raises(ControlFailed, match="no canary v9"):
            control.ask("mirror", name="fraud", percent=10, canary="v9")
        answer = control.ask("mirror", name="fraud", percent=100)
        assert answer["services"][0]["mirror"] == 100
        admin = f"127.0.0.1:{answer['gateway']['admin_port']}"
        bootstrap = json.loads(next(tmp_path.rglob("bootstrap.json")).read_text())
        key = bootstrap["node"]["metadata"]["admin_key"]
        for method, path in (
            ("POST", "/quitquitquit"),
            ("POST", "/drain_listeners"),
            ("GET", "/config_dump"),
            ("GET", "/"),
        ):
            connection = http.client.HTTPConnection(admin, timeout=10)
            connection.request(method, path)
            assert connection.getresponse().status == 403, "any page and any user could end the gateway"
            connection.close()

        def copies() -> int:
            connection = http.client.HTTPConnection(admin, timeout=10)
            counted = f"/stats?filter=^cluster.{NEW}/http.upstream_rq_2xx$&usedonly&format=json"
            connection.request("GET", admin_path(counted, key))
            stats = json.loads(connection.getresponse().read())["stats"]
            connection.close()
            return stats[0]["value"] if stats else 0

        assert {asker.tag() for _ in range(40)} == {"v1"}
        wait_until(lambda: copies() == 40)
        (pid,) = {row["pid"] for row in answer["services"][0]["components"] if row["revision"] == NEW}
        os.kill(pid, signal.SIGKILL)
        assert {asker.tag() for _ in range(40)} == {"v1"}
        running.wait(all_ready, "the canary again")
        before = copies()
        control.ask("mirror", name="fraud", percent=0)
        assert {asker.tag() for _ in range(20)} == {"v1"}
        assert copies() == before


def test_the_version_before_a_promotion_is_kept_so_long_and_takes_all_traffic_back_at_once(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--tag=v1"))
    with up(tmp_path, "isvc.yaml") as running, contextlib.closing(Asker(running)) as asker:
        control = two_versions(running, tmp_path, "")
        pids = {row["revision"]: row["pid"] for row in running.status()["services"][0]["components"]}
        with pytest.raises(ControlFailed, match="-1 s is no time to keep a version warm"):
            control.ask("traffic", name="fraud", percent=None, warm_s=-1)
        answer = control.ask("traffic", name="fraud", percent=None, wait_s=20, warm_s=600)
        (service,) = answer["services"]
        assert (service["warm"], len(service["traffic"])) == (OLD, 1)
        assert {asker.tag() for _ in range(20)} == {"v2"}
        answer = control.ask("traffic", name="fraud", percent=0, wait_s=20)
        assert {asker.tag() for _ in range(20)} == {"v1"}
        assert {row["revision"]: row["pid"] for row in answer["services"][0]["components"]} == pids
        control.ask("traffic", name="fraud", percent=None, wait_s=20, warm_s=0.5)
        running.wait(lambda s: {row["revision"] for row in s["services"][0]["components"]} == {NEW}, "the old one gone")
        assert running.status()["services"][0]["warm"] == ""
