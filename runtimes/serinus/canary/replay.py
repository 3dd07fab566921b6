"""The judge over recorded looks, of one rollout or of many mixed in one file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ..errors import ConfigError, InvalidInput
from .judge import Decision, Judge
from .looks import Look, load_line, read_look
from .policy import Policy
from .standing import Standing

__all__ = ["Replay"]

_MOST_PROBLEMS: Final = 20
_FINAL: Final = frozenset({"promote", "rollback"})
_TOGETHER: Final = 1 << 25
"""Bytes of lines that are sorted by run before they are judged, where only the end of each is wanted."""
_RUN: Final = re.compile(rb'\s*\{\s*"run"\s*:\s*"([^"\\]*)"')


class Replay:
    """Judges looks as they come; a run ends at its first promote or rollback.

    A look that cannot be used ends its run, since every count after it means something else than was thought; other runs go on. After a line that
    is no JSON all of them do, since it tells no run.
    """

    def __init__(self, policy: Policy, file: str) -> None:
        """Begin.

        Args:
            policy: for every run.
            file: name of the looks' file, for messages.
        """
        self._policy = policy
        self._file = file
        self._judges: dict[str, Judge] = {}
        self._ended: set[str] = set()
        self._problems: list[tuple[int, str]] = []
        """What was wrong, with the line's number; the first of them."""
        self._has_lines = False
        self._failures = 0

    def decisions(self, lines: Iterable[bytes]) -> Iterator[Decision]:
        """A decision a look, until its run ends; blank lines are passed over."""
        for judge, _ in self._judged(enumerate(lines, 1)):
            yield judge.explain()

    def standings(self, lines: Iterable[bytes]) -> Iterator[tuple[Look, Decision, Standing]]:
        """A look, its decision and where its run stands after it, for each that is judged."""
        for judge, look in self._judged(enumerate(lines, 1)):
            yield look, judge.explain(), judge.standing()

    def final_decisions(self, lines: Iterable[bytes]) -> list[Decision]:
        """Each run's last decision, in the order of the runs' first looks."""
        for _ in self._judged(_by_run(enumerate(lines, 1))):
            pass
        return [judge.explain() for judge in self._judges.values()]

    def raise_problems(self) -> None:
        """Raise what was wrong with lines, or that there was none.

        Raises:
            ConfigError: anything was.
        """
        if not self._has_lines:
            raise ConfigError(f"{self._file} has no look; one JSON object a line was expected")
        if self._problems:
            self._keep_first_problems()
            told = [f"{self._file}:{number}: {text}" for number, text in self._problems]
            more = self._failures - len(told)
            raise ConfigError([*told, *([f"{self._file}: {more} lines more like these"] if more else [])])

    def _judged(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[Judge, Look]]:
        for number, line in lines:
            if not line.strip():
                continue
            self._has_lines = True
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                value = load_line(line)
            except InvalidInput as error:
                # Whose it was cannot be told; counts are cumulative, so that a look may be missing.
                self._fail(number, str(error))
                continue
            seen = self._see(number, value)
            if seen is not None:
                yield seen

    def _see(self, number: int, value: dict[str, Any]) -> tuple[Judge, Look] | None:
        """Judge a line; None: its run has ended, or ends with it since it cannot be used."""
        run = value.get("run", "")
        if run in self._ended:
            return None
        try:
            look = read_look(value)
            judge = self._judges.get(run)
            if judge is None:
                judge = self._judges[run] = Judge(self._policy)
            verdict = judge.see(look)
        except InvalidInput as error:
            self._fail(number, f"run {run!r}: {error}" if run else str(error))
            self._ended.add(run)
            self._judges.pop(run, None)
            return None
        if verdict in _FINAL:
            self._ended.add(run)
        return judge, look

    def _fail(self, number: int, text: str) -> None:
        self._failures += 1
        self._problems.append((number, text))
        if len(self._problems) > 2 * _MOST_PROBLEMS:
            self._keep_first_problems()

    def _keep_first_problems(self) -> None:
        """Of lines that are judged run by run, too, the first of the file are told."""
        self._problems.sort()
        del self._problems[_MOST_PROBLEMS:]


def _by_run(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, those of a run one after another as far as memory goes and otherwise in their order.

    A judge that sees several looks in a row stays in the processor's cache: a fifth of the time, of a thousand runs that are mixed.
    """
    of_runs: dict[bytes, list[tuple[int, bytes]]] = {}
    held = 0
    for each in lines:
        line = each[1]
        of_runs.setdefault(_run_of(line), []).append(each)
        held += len(line)
        if held > _TOGETHER:
            for of_run in of_runs.values():
                yield from of_run
            of_runs, held = {}, 0
    for of_run in of_runs.values():
        yield from of_run


def _run_of(line: bytes) -> bytes:
    """A line's run; empty: it tells none."""
    found = _RUN.match(line)
    if found is not None and b"\\" not in line and line.count(b'"run"') == 1:
        return found[1]
    if b"run" not in line and b"\\" not in line:
        return b""
    try:
        return load_line(line).get("run", "").encode()
    except InvalidInput:
        return b""
