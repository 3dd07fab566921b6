"""A process that runs tests, many times, in a copy of the tree: it has imported what is not ours, and forks for each run.

A line of JSON on its standard input asks for a run, and a line on its output answers. It never imports a module of ours
itself, so that each run reads the copy's files as they then are.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Recorder", "main"]

# Half of the time of a short run goes to these.
_IMPORTED_ONCE = (
    "numpy", "grpc", "google.protobuf.descriptor_pool", "yaml", "orjson", "uvloop", "httptools", "httpx", "requests",
    "pytest", "looptime", "pytest_asyncio", "coverage", "schemathesis", "hypothesis", "hypothesis.strategies",
)  # fmt: skip
_IMPORTED_BEFORE = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
_COMMON = ["-q", "-W", _IMPORTED_BEFORE, "-p", "no:cacheprovider", "--tb=line", "-m", "not slow"]
# A test that hangs is stopped after this long; the slowest quick one takes 4 s while its lines are noted.
_TEST_SECONDS = 10


class Recorder:
    """A pytest plugin that notes the lines of ours that each test runs, and how long it takes."""

    def __init__(self, coverage: Any) -> None:
        self._coverage = coverage
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, its fixtures included."""
        self._coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over."""
        self.seconds[nodeid] += time.monotonic()
        self._coverage.switch_context("")


def _record(tests: list[str], answer: Path) -> int:
    import coverage
    import pytest

    cover = coverage.Coverage(data_file=None, source=["runtimes", "transformers"], config_file=False)
    recorder = Recorder(cover)
    cover.start()
    status = pytest.main([*_COMMON, *tests], plugins=[recorder])
    cover.stop()
    data = cover.get_data()
    here = Path.cwd()
    lines = {Path(name).relative_to(here).as_posix(): data.contexts_by_lineno(name) for name in data.measured_files()}
    answer.write_text(json.dumps({"seconds": recorder.seconds, "lines": lines}))
    return int(status)


def _run(tests: list[str]) -> int:
    import pytest

    return int(pytest.main([*_COMMON, "-x", f"--timeout={_TEST_SECONDS}", *tests]))


def _child(request: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 99
    try:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        status = _record(request["tests"], Path(request["record"])) if "record" in request else _run(request["tests"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(process: int, seconds: float) -> int | None:
    """Return the exit status, or None where the time was over; nothing of the run is left either way."""
    end = time.monotonic() + seconds
    status = None
    try:
        while status is None and time.monotonic() < end:
            done, raw = os.waitpid(process, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(raw)
            else:
                time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # its own group: servers that the tests started are in it
    if status is None:
        os.waitpid(process, 0)
    return status


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Answer requests until the input ends."""
    sys.path.remove(str(Path(__file__).parent))  # its modules are no top-level names
    for name in _IMPORTED_ONCE:
        with suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for request in _requests():
        began = time.monotonic()
        process = os.fork()
        if process == 0:
            _child(request)
        status = _wait(process, request["limit_s"])
        print(json.dumps({"status": status, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
