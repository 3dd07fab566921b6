"""What the processes of a run tell the one that prints, where pytest-xdist runs tests side by side: of a test that passes, that it did.

pytest-xdist 3.8 sends six messages a test (xdist/remote.py): its start, a report of each of its three phases, its end, and that the next may
begin. A message is packed and unpacked in Python, and of a test that passes nobody looks at more than two: of eleven thousand tests, that is seconds.
"""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["tell_less"]


def tell_less(config: pytest.Config) -> None:
    """Leave out what nobody looks at, in a process of pytest-xdist; nothing where somebody does: at times of phases, or at what passing tests print.

    Args:
        config: pytest's, of any process: one that prints, or that runs alone, has nothing to leave out.
    """
    option = config.option
    asked = (option.verbose > 0, option.durations, option.xmlpath, set("PA") & set(option.reportchars))
    worker = next((one for one in config.pluginmanager.get_plugins() if type(one).__name__ == "WorkerInteractor"), None)
    if worker is None or any(asked):
        return
    config.pluginmanager.unregister(worker)
    worker.__class__ = _terse(type(worker))
    config.pluginmanager.register(worker)


def _terse(kind: type[Any]) -> type[Any]:
    """A kind of xdist's worker, which is defined anew in each process: its module is sent there as text."""

    class Terse(kind):
        pytest_runtest_logstart = None  # which pluggy takes for no hook
        pytest_runtest_logfinish = None
        _setup: pytest.TestReport | None = None
        _failed = False

        @pytest.hookimpl
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            """Tell of the call, and of the other phases of a test that does not pass."""
            if report.when == "setup":
                self._setup, self._failed = report, not report.passed
                if report.passed:
                    return
            elif not report.passed:
                self._failed = True
            if self._setup is not None and self._failed:
                setup, self._setup = self._setup, None
                if setup is not report:
                    super().pytest_runtest_logreport(report=setup)
            if report.when == "call" or self._failed:
                super().pytest_runtest_logreport(report=report)

    return Terse
