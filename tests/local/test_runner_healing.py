"""What dies, hangs or is refused under `serinus up`, with the real Envoy and real processes: it comes back, or says why it does not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from command_support import command
from depth import some_of
from local_support import Up, all_ready, is_running, manifest, pids_below, up
from serinus.local.run.processes.process_record import FILE, read_record
from waiting import wait_until

pytestmark = pytest.mark.slow

LIVE = "livenessProbe: {httpGet: {path: /v2/health/ready, port: 8080}, periodSeconds: 1, failureThreshold: 2}"


def _with(text: str, *lines: str) -> str:
    """The manifest with more lines in its (first) container."""
    return text.replace("        env: [", "".join(f"        {line}\n" for line in lines) + "        env: [", 1)


def _processes(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes of the service; one that has just been read has none yet."""
    return [row for service in status["services"] if service["name"] == "fraud" for row in service["components"]]


def _restarted(running: Up, times: int = 1) -> dict:
    """Wait until the first process is ready after so many restarts."""
    status = running.wait(
        lambda s: all_ready(s) and s["services"][0]["components"][0]["restarts"] >= times, "the restart", 60.0
    )
    return status["services"][0]["components"][0]


def test_a_slow_starter_with_a_liveness_probe_comes_back_after_each_kill(tmp_path: Path) -> None:
    startup = "startupProbe: {httpGet: {path: /v2/health/ready, port: 8080}, periodSeconds: 1, failureThreshold: 30}"
    (tmp_path / "isvc.yaml").write_text(_with(manifest("--start_after=4"), LIVE, startup))
    with up(tmp_path, "isvc.yaml") as running:
        for times in (1, 2):
            os.kill(running.row["pid"], signal.SIGKILL)
            row = _restarted(running, times)
            assert row["restarts"] == times, "liveness killed it while it started"
            assert "SIGKILL" in row["last_exit"]
        assert running.infer()["pid"] == row["pid"]


def test_a_start_that_takes_longer_than_its_startup_probe_allows_is_ended(tmp_path: Path) -> None:
    startup = "startupProbe: {httpGet: {path: /v2/health/ready, port: 8080}, periodSeconds: 1, failureThreshold: 2}"
    (tmp_path / "isvc.yaml").write_text(_with(manifest("--start_after=60"), startup))
    with up(tmp_path, "isvc.yaml", ready=False) as running:
        running.wait(lambda s: any(row["restarts"] for row in _processes(s)), "the end")
        assert "its startupProbe did not pass within 2 s" in running.cli("logs", "fraud").stdout


def test_a_stopped_process_is_ended_by_its_liveness_probe_and_a_stopped_gateway_by_ours(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(_with(manifest(), LIVE))
    with up(tmp_path, "isvc.yaml") as running:
        os.kill(running.row["pid"], signal.SIGSTOP)
        row = _restarted(running)
        assert running.infer()["pid"] == row["pid"]
        os.kill(running.status()["gateway"]["pid"], signal.SIGSTOP)
        running.wait(lambda s: s["gateway"]["restarts"] == 1 and s["gateway"]["ready"], "the gateway's restart", 60.0)
        assert running.infer()["pid"] == row["pid"]


def test_a_crash_loop_is_told_by_status_with_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest("--crash_at_start", "--tag=broken"))
    with up(tmp_path, "isvc.yaml", "-q", ready=False) as running:
        running.wait(lambda s: any(row["crash_loop"] for row in _processes(s)), "the crash loop")
        done = running.cli("status", check=False)
        assert done.returncode == 1
        assert "default/fraud: predictor fraud-predictor-00001 (kserve-container): crash loop" in done.stdout
        assert "ended with exit code 7" in done.stdout
        assert "| broken listens on" in done.stdout
        path.write_text(
            manifest("--tag=mended")
        )  # the first start has not been ready yet: an edit mends it all the same
        running.wait(all_ready, "the mended one")
        assert running.infer()["tag"] == "mended"
        assert running.cli("status").returncode == 0


def test_a_process_whose_port_was_taken_while_it_was_down_comes_back_with_another(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    with up(tmp_path, "isvc.yaml") as running, socket.socket() as thief:
        row = running.row
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(row["pid"], signal.SIGKILL)
        wait_until(lambda: _bind(thief, row["http_port"]))
        thief.listen()
        new = _restarted(running)
        assert new["http_port"] != row["http_port"]
        assert running.infer()["pid"] == new["pid"]


def _bind(thief: socket.socket, port: int) -> bool:
    try:
        thief.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_what_is_left_of_a_killed_supervisor_is_ended_by_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--deaf"))
    for words, code, told in (
        ("status", 1, "is gone without having been stopped"),
        ("down", 0, "fraud-predictor-00001"),
    ):
        with up(tmp_path, "isvc.yaml") as running:
            status = running.status()
            pids, deaf = pids_below(status), running.row["pid"]
            # A reaper that is stopped does as little as one that is gone, and must not stay itself.
            os.kill(status["reaper"], signal.SIGKILL if words == "status" else signal.SIGSTOP)
            os.kill(status["pid"], signal.SIGKILL)
            running.process.wait(10)
            assert is_running(deaf), "neither the kernel's signal nor the reaper ends it"
            os.kill(deaf, signal.SIGSTOP)
            done = running.cli(words, check=False)
            assert done.returncode == code
            assert told in done.stdout + done.stderr
            assert not any(map(is_running, {*pids, status["reaper"]}))
            assert "nothing runs" in running.cli("down").stdout


def test_a_killed_reaper_is_replaced_and_does_its_work(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--deaf"))
    with up(tmp_path, "isvc.yaml") as running:
        first = running.status()["reaper"]
        os.kill(first, signal.SIGKILL)
        running.wait(lambda s: s["reaper"] not in {first, None} and is_running(s["reaper"]), "another reaper")
        pids = pids_below(running.status())
        running.process.kill()
        running.process.wait(10)
        wait_until(lambda: not any(map(is_running, pids)))


def test_an_up_after_a_kill_takes_the_same_port(tmp_path: Path) -> None:
    patience = "  predictor:\n    terminationGracePeriodSeconds: 3\n"
    (tmp_path / "isvc.yaml").write_text(manifest("--deaf").replace("  predictor:\n", patience))
    with up(tmp_path, "isvc.yaml") as running:
        status = running.status()
        port = status["gateway"]["port"]
        os.kill(status["reaper"], signal.SIGKILL)
        os.kill(status["gateway"]["pid"], signal.SIGSTOP)
        running.process.kill()
        running.process.wait(10)
        done = running.cli("up", "isvc.yaml", "--detach", "--port", str(port), check=False)
        try:
            assert done.returncode == 0, done.stdout + done.stderr
            assert running.infer()["tag"] == "v1"
            assert not any(map(is_running, pids_below(status)))
        finally:
            running.cli("down")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "of another version": lambda _: b'{"version": 0}',
    "no text at all": lambda _: b"\xff\x00\n",
}


@pytest.mark.timeout(300)
def test_a_damaged_state_folder_stops_neither_up_nor_down(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    for name, damage in DAMAGE.items():
        with up(tmp_path, "isvc.yaml") as running:  # after the first time: what is damaged
            assert running.infer()["tag"] == "v1"
            os.kill(running.status()["reaper"], signal.SIGKILL)
            running.process.kill()
            running.process.wait(10)
        for file in (FILE, "supervisor.json", "lock", "gateway/cds.json", "gateway/bootstrap.json"):
            path = running.state / file
            path.write_bytes(damage(path.read_bytes()))
        assert all(each.pid > 1 for each in read_record(running.state)), name
        assert running.cli("status", check=False).returncode == 1, name
    with up(tmp_path, "isvc.yaml") as running:
        assert running.infer()["tag"] == "v1"


def test_a_state_folder_that_cannot_be_made_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    (tmp_path / "file").write_text("")
    for more in ([], ["--detach"]):
        command = [
            sys.executable,
            "-m",
            "serinus.cli",
            "up",
            "isvc.yaml",
            "--state-dir",
            "file/state",
            "--port",
            "0",
            *more,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "--state-dir file/state: cannot be written: Not a directory" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_refused_edit_is_in_the_status_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(manifest())
    with up(tmp_path, "isvc.yaml") as running:
        pid = running.infer()["pid"]
        path.write_text(manifest().replace("containers:", "contaners:"))
        status = running.wait(lambda s: s["refused"], "the refusal")
        assert "did you mean containers?" in str(status["refused"])
        told = running.cli("status").stdout
        assert "isvc.yaml: its newest state is refused; what was there before runs on" in told
        assert "did you mean containers?" in told
        path.write_text("{[")
        running.wait(lambda s: s["refused"] and "contan" not in str(s["refused"]), "another refusal")
        path.unlink()
        running.wait(lambda s: "no such file" in str(s["refused"]).lower(), "the missing file")
        path.write_text(manifest())
        running.wait(lambda s: not s["refused"], "the mend")
        assert running.infer()["pid"] == pid


def test_an_edit_that_kserve_forbids_of_an_update_is_refused_and_taken_of_a_new_service(tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    mode = "  annotations:\n    serving.kserve.io/deploymentMode: {}\n"
    path.write_text(manifest(annotations=mode.format("Standard")))
    with up(tmp_path, "isvc.yaml", "--no-watch") as running:
        path.write_text(manifest(annotations=mode.format("Knative")))
        done = running.cli("up", "isvc.yaml", check=False)
        assert done.returncode == 1
        assert "cannot be changed from Standard to Knative" in done.stderr
        assert "cannot be changed" in str(running.status()["refused"])
        running.cli("down", "fraud")
        running.cli("up", "isvc.yaml")
        assert running.status()["refused"] == []
        assert running.infer()["tag"] == "v1"


def test_a_second_up_waits_for_its_own_services_and_not_for_others_that_still_start(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(manifest("--start_after=60", name="slow"))
    (tmp_path / "isvc.yaml").write_text(manifest())
    with up(tmp_path, "slow.yaml", ready=False) as running:
        running.wait(lambda status: bool(status["services"]), "the slow service")
        told = running.cli("up", "isvc.yaml").stdout
        assert "default/slow" in told
        assert "starting" in told
        assert running.infer()["tag"] == "v1"
        (tmp_path / "isvc.yaml").write_text(manifest("--crash_at_start"))
        assert running.cli("up", "isvc.yaml", check=False).returncode == 1, "its own that does not start is told"


def test_options_of_a_second_up_hold_for_its_paths_or_are_refused(tmp_path: Path) -> None:
    from local_support import SERVER

    head = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: fraud}\nspec:\n  predictor:\n"
    )
    model = "    minReplicas: 2\n    containers:\n    - name: kserve-container\n      image: mine\n"
    storage = "      args: ['--model_dir=/mnt/models']\n      env: [{name: STORAGE_URI, value: 'pvc://claim/m'}, {name: PROTOCOL, value: v2}]\n"
    (tmp_path / "isvc.yaml").write_text(head + model + storage)
    (tmp_path / "other.yaml").write_text(manifest(name="other"))
    for name in ("one", "two"):
        (tmp_path / name / "m").mkdir(parents=True)
    command = f"{sys.executable} {SERVER} --http_port=8080 --grpc_port=8081"
    with up(tmp_path, "other.yaml") as running:
        other = running.row["pid"]
        assert "is no image of this project" in running.cli("up", "isvc.yaml", check=False).stderr
        running.cli("up", "isvc.yaml", "--image", f"mine={command} --tag=first", "--mount", "claim=one")
        assert running.infer()["tag"] == "first"
        rows = _rows(running)
        assert len(rows) == 1
        running.cli("up", "isvc.yaml", "--replicas", "2")
        running.wait(lambda s: all_ready(s) and all(row["ready"] for row in _processes(s)), "two replicas")
        assert len(_rows(running)) == 2
        running.cli("up", "isvc.yaml", "--replicas", "1")
        running.wait(lambda s: len(_processes(s)) == 1, "one replica again")
        running.cli("up", "isvc.yaml", "--image", f"mine={command} --tag=second")
        assert running.infer()["tag"] == "second"
        before = _rows(running)[0]["pid"]
        running.cli("up", "isvc.yaml", "--mount", "claim=two")
        after = _rows(running)[0]["pid"]
        assert after != before, "another folder is another model"
        assert str(tmp_path / "two/m").encode() in Path(f"/proc/{after}/cmdline").read_bytes()
        assert running.infer("other.default.localhost", "other")["pid"] == other
        for words, told in (
            (("--port", "1"), "--port 1: the gateway runs at 127.0.0.1:"),
            (("--host", "0.0.0.0"), "--host 0.0.0.0: the gateway runs at 127.0.0.1:"),
            (("--mount", "claim"), "--mount claim"),
            (("--image", "x"), "expected NAME=COMMAND"),
            (("--pull",), "--pull is for the start"),
        ):
            done = running.cli("up", "isvc.yaml", *words, check=False)
            assert done.returncode == 1, words
            assert told in done.stderr, words
        running.cli("up", "isvc.yaml", "--port", running.gateway.rsplit(":", 1)[1])


def _rows(running: Up) -> list[dict]:
    return _processes(running.status())


def test_prestop_runs_before_sigterm_within_the_grace(tmp_path: Path) -> None:
    hook = "lifecycle: {preStop: {exec: {command: [sh, -c, 'echo $0 >> hooks; sleep 1', '$(WHO)']}}}"
    text = _with(manifest(), hook, f"workingDir: {tmp_path}").replace("env: [", "env: [{name: WHO, value: me}, ", 1)
    (tmp_path / "isvc.yaml").write_text(text)
    with up(tmp_path, "isvc.yaml") as running:
        old = running.row["pid"]
        running.cli("restart", "fraud")
        assert (tmp_path / "hooks").read_text() == "me\n"
        assert running.row["pid"] != old
        os.kill(running.row["pid"], signal.SIGKILL)
        _restarted(running)
        assert (tmp_path / "hooks").read_text() == "me\n", "one that has ended has nothing before its end"
        running.cli("down")
        assert (tmp_path / "hooks").read_text() == "me\nme\n"


def test_a_prestop_that_does_not_end_is_cut_off_with_the_grace(tmp_path: Path) -> None:
    hook = "lifecycle: {preStop: {exec: {command: [sleep, '600']}}}"
    text = _with(manifest("--deaf"), hook).replace(
        "    containers:", "    terminationGracePeriodSeconds: 2\n    containers:"
    )
    (tmp_path / "isvc.yaml").write_text(text)
    with up(tmp_path, "isvc.yaml") as running:
        deaf = running.row["pid"]
        running.cli("down")
        assert not is_running(deaf)
        log = (running.state / "logs" / "fraud-predictor-00001.log").read_text()
        assert "preStop: not over after 2 s; SIGTERM follows" in log
        assert "still there 2 s after it was told to stop; it is killed" in log


def test_a_new_process_that_crashes_in_a_rolling_restart_leaves_the_old_one(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    command = "'import os, sys; os.path.exists(sys.argv[1]) and sys.exit(9); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])'"
    text = manifest().replace("command: [python, ", f"command: [python, -c, {command}, {json.dumps(str(flag))}, ")
    (tmp_path / "isvc.yaml").write_text(text)
    with up(tmp_path, "isvc.yaml") as running:
        pid = running.infer()["pid"]
        flag.write_text("")
        done = running.cli("restart", "fraud", check=False)
        assert done.returncode == 1
        assert "fraud-predictor-00001: the new process ended with exit code 9" in done.stderr
        assert running.infer()["pid"] == pid
        assert len(running.status()["services"][0]["components"]) == 1
        flag.unlink()
        running.cli("restart", "fraud")
        assert running.infer()["pid"] != pid


def test_a_new_process_that_the_gateway_does_not_hear_yet_leaves_the_old_one_in_place(tmp_path: Path) -> None:
    """Readiness is the runner's; Envoy asks for itself, and on a busy machine gets its first answer later than it is waited for."""
    (tmp_path / "isvc.yaml").write_text(manifest("--deaf_to_envoy=18"))
    with up(tmp_path, "isvc.yaml", ready=False) as running:
        running.wait(all_ready, "ready", timeout_s=60)
        with ThreadPoolExecutor(1) as pool:
            restart = pool.submit(running.cli, "restart", "fraud")
            pids = []
            while not restart.done():
                pids.append(running.infer()["pid"])
                time.sleep(0.2)  # a client that asks again
            restart.result()
        assert len(set(pids)) == 2
        assert running.infer()["pid"] == pids[-1]
        log = (running.state / "logs" / "gateway.log").read_text()
        assert "the change of clusters is not confirmed" in log, "it took longer than one change may"


def test_a_new_process_that_dies_once_it_was_ready_leaves_the_old_one_until_it_is_back(tmp_path: Path) -> None:
    short = tmp_path / "short"
    (tmp_path / "isvc.yaml").write_text(manifest(f"--dies_once={short}"))
    with up(tmp_path, "isvc.yaml") as running:
        old = running.infer()["pid"]
        short.write_text("")
        with ThreadPoolExecutor(1) as pool:
            restart = pool.submit(running.cli, "restart", "fraud")
            pids = [old]
            while not restart.done():
                pids.append(running.infer()["pid"])
                time.sleep(0.05)  # a client that asks again
            restart.result()
        assert not short.exists()
        assert len(set(pids)) <= 2
        assert running.infer()["pid"] != old
        assert running.row["restarts"] == 1


def test_a_new_revision_that_dies_once_it_was_ready_gets_no_traffic_until_it_is_back(tmp_path: Path) -> None:
    short = tmp_path / "short"
    (tmp_path / "isvc.yaml").write_text(manifest(f"--dies_once={short}"))
    with up(tmp_path, "isvc.yaml") as running:
        old = running.infer()["pid"]
        short.write_text("")
        (tmp_path / "isvc.yaml").write_text(manifest(f"--dies_once={short}", "--tag=v2"))
        tags, end = {"v1"}, time.monotonic() + 60
        while tags != {"v1", "v2"} and time.monotonic() < end:
            answer = running.infer()
            tags.add(answer["tag"])
            assert answer["tag"] == "v2" or answer["pid"] == old
            time.sleep(0.05)  # a client that asks again
        assert tags == {"v1", "v2"}
        assert not short.exists()


# Starts and ends that meet ------------------------------------------------------------------------------------------


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    whole = [sys.executable, "-m", "serinus.cli", *words]
    return subprocess.Popen(whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_ups_at_once_run_both_services_in_one_supervisor(tmp_path: Path) -> None:
    for name in ("fraud", "other"):
        (tmp_path / f"{name}.yaml").write_text(manifest(name=name))
    both = [_start(tmp_path, "up", f"{name}.yaml", "--detach", "--port", "0") for name in ("fraud", "other")]
    try:
        said = [process.communicate(timeout=100)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        running = Up(both[0], tmp_path, tmp_path / ".serinus" / "supervisor.log")  # type: ignore[arg-type]
        assert running.infer()["tag"] == running.infer("other.default.localhost", "other")["tag"] == "v1"
    finally:
        assert command(tmp_path, "down").stdout == "stopped\n"


@pytest.mark.parametrize("after_s", some_of([0.3, 1.0, 2.0, 3.0], 2))
def test_down_during_up_leaves_no_process(tmp_path: Path, after_s: float) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest("--start_after=1"))
    starting = _start(tmp_path, "up", "isvc.yaml", "--port", "0")
    time.sleep(after_s)  # at some moment of its start
    told = command(tmp_path, "down").stdout
    pids = [each.pid for each in read_record(tmp_path / ".serinus")]
    if "stopped" not in told and starting.poll() is None:
        # It had not begun when it was told to end, though it may have by now; it is ended as a user would.
        starting.send_signal(signal.SIGINT)
    said = starting.communicate(timeout=60)[0]
    assert "Traceback" not in said
    assert not any(map(is_running, pids))


def test_a_supervisor_that_is_stopped_while_it_starts_is_ended_by_down(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    starting = _start(tmp_path, "up", "isvc.yaml", "--port", "0")
    wait_until(lambda: (tmp_path / ".serinus" / "lock").is_file() and (tmp_path / ".serinus" / "lock").read_text())
    starting.send_signal(signal.SIGSTOP)
    assert not (tmp_path / ".serinus" / "supervisor.json").exists(), "it was stopped before it could be asked"
    assert command(tmp_path, "down").stdout == "stopped\n"
    assert "Traceback" not in starting.communicate(timeout=60)[0]
    assert read_record(tmp_path / ".serinus") == []


def test_a_supervisor_that_is_stopped_is_ended_by_down(tmp_path: Path) -> None:
    (tmp_path / "isvc.yaml").write_text(manifest())
    with up(tmp_path, "isvc.yaml") as running:
        pids = pids_below(running.status())
        running.process.send_signal(signal.SIGSTOP)
        done = running.cli("down")
        assert done.stdout == "stopped\n"
        assert "did not answer and was killed" in done.stderr
        running.process.wait(10)
        assert not any(map(is_running, pids))
