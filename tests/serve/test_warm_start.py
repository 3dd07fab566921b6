"""A process whose imports were made beforehand is one as the interpreter starts it: its words, variables, folder, streams, status and parent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

import warm_start
from waiting import wait_until

pytestmark = pytest.mark.slow  # it makes the imports of every command

MODEL = """\
import json, os, signal, sys, threading
from serinus import Model
import beside  # of PYTHONPATH

class Tells(Model):
    def load(self):
        told = {
            "argv": sys.argv[1:], "orig_argv": sys.orig_argv, "cwd": os.getcwd(), "path": sys.path[:3], "mine": os.environ.get("MINE"),
            "sid": os.getsid(0) == os.getpid(), "parent": os.getppid(), "main": sys.modules["__main__"].__spec__.name,
            "threads": threading.active_count(), "SIGPIPE": signal.getsignal(signal.SIGPIPE).name, "beside": beside.__file__,
            "files": len(os.listdir("/proc/self/fd")), "utf8": sys.stdout.encoding, "tz": __import__("time").tzname[0],
        }
        print(json.dumps(told), flush=True)
        raise RuntimeError("that is all")
"""


def test_it_is_as_the_interpreter_would_have_started_it(tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(MODEL)
    (tmp_path / "here").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "beside.py").touch()
    path = os.pathsep.join((str(tmp_path), str(tmp_path / "beside")))
    environment = {**os.environ, "PYTHONPATH": path, "MINE": "a=b\n", "TZ": "Asia/Tokyo"}
    words = ["serve", "--class", "tells:Tells", "--http_port", "0", "--grpc_port", "0"]
    told = []
    for begin in (warm_start.fresh, warm_start.start):
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            process = begin(words, env=environment, cwd=tmp_path / "here", out=out, err=err, session=True)
        assert process.wait(60) == 1
        assert "that is all" in (tmp_path / "err").read_text()
        told.append(json.loads((tmp_path / "out").read_text()))
    assert told[0] == told[1]
    assert told[1]["parent"] == os.getpid()


def test_its_end_is_told_to_this_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["serve", "--model_repository", str(tmp_path), "--http_port", "0", "--grpc_port", "0"]
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)):
        with log.open("w") as out:
            process = warm_start.start(words, env=os.environ, out=out)
        wait_until(lambda: re.search("ready in", log.read_text()))
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert psutil.Process(process.pid).ppid() == os.getpid()
        process.send_signal(number)
        assert process.wait(30) == process.poll() == process.returncode == status
        process.kill()  # which has no one to go to


def test_a_command_is_run_to_its_end_with_its_streams_apart(tmp_path: Path) -> None:
    done = warm_start.run(["serve", "--http_prot", "1"], env=os.environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --http-port" in done.stderr
    done = warm_start.run(["--version"], env=os.environ, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("serinus ")


WRITES = """\
import os, subprocess, sys
from serinus import Model

class Writes(Model):
    def load(self):
        place = os.environ["PLACE"]
        try:
            open(os.path.join(place, "a"), "w").close()
        except PermissionError:
            print("may not", flush=True)
        subprocess.run(["touch", os.path.join(place, "b")], stderr=sys.stdout)
        sys.stdout.flush()
        raise RuntimeError("that is all")
"""


def test_it_may_be_told_to_obey_permissions_though_it_is_roots(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o555)
    (tmp_path / "writes.py").write_text(WRITES)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PLACE": str(place), "LC_ALL": "C"}
    words = ["serve", "--class", "writes:Writes", "--http_port", "0", "--grpc_port", "0"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = warm_start.start(words, env=environment, out=out, err=err, obeys=True)
    assert process.wait(60) == 1
    told = (tmp_path / "out").read_text()
    assert ("may not" in told, "Permission denied" in told, list(place.iterdir())) == (True, True, [])
