"""What the files of a run cost in CPU, which is the same on a busy machine and on a quiet one: `COSTS=20 make test` prints the twenty dearest.

Seconds of user and system time of the process that ran a test and of all processes that it started and waited for. A server that a module's tests
share counts for the test in whose teardown it ends. Work before the first test (imports, collection) is a row of its own.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["CpuCosts"]

START = "imports and collection"


def cpu_s() -> float:
    """Of this process and those that it waited for, so far."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class CpuCosts:
    """A plugin of pytest, in each process of a run; the one that reports adds up what the others tell."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._files: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Count what it took to come to the first test."""
        try:
            return (yield)
        finally:
            self._files[START] += cpu_s()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Count a test with its fixtures."""
        before = cpu_s()
        try:
            return (yield)
        finally:
            used = cpu_s() - before
            self._files[item.nodeid.partition("::")[0]] += used
            self._tests[item.nodeid] += used

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the process that reports."""
        if hasattr(session.config, "workeroutput"):
            told = {"files": dict(self._files), "tests": dict(self._tests.most_common(self._most))}
            session.config.workeroutput["cpu_costs"] = told

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a process of xdist told."""
        told = getattr(node, "workeroutput", {}).get("cpu_costs", {})
        self._files.update(told.get("files", {}))
        self._tests.update(told.get("tests", {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the dearest files and tests, and the sum of all."""
        terminalreporter.section(f"{sum(self._files.values()):.0f} s of CPU")
        for costs in (self._files, self._tests):
            for name, used in costs.most_common(self._most):
                terminalreporter.write_line(f"{used:8.1f} s  {name}")
            terminalreporter.write_line("")
