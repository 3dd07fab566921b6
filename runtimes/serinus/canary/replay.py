"""The judge over recorded looks, of one rollout or of many mixed in one file."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from ..errors import ConfigError, InvalidInput
from .judge import Decision, Judge
from .looks import Look, load_line, read_look
from .policy import Policy
from .standing import Standing

__all__ = ["Replay"]

_MOST_PROBLEMS = 20


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
        self._problems: list[str] = []
        self._has_lines = False
        self._failures = 0

    def decisions(self, lines: Iterable[bytes]) -> Iterator[Decision]:
        """A decision a look, until its run ends; blank lines are passed over."""
        for judge, _ in self._judged(lines):
            yield judge.explain()

    def standings(self, lines: Iterable[bytes]) -> Iterator[tuple[Look, Decision, Standing]]:
        """A look, its decision and where its run stands after it, for each that is judged."""
        for judge, look in self._judged(lines):
            yield look, judge.explain(), judge.standing()

    def final_decisions(self, lines: Iterable[bytes]) -> list[Decision]:
        """Each run's last decision, in the order of the runs' first looks."""
        for _ in self._judged(lines):
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
            more = self._failures - len(self._problems)
            raise ConfigError([*self._problems, *([f"{self._file}: {more} lines more like these"] if more else [])])

    def _judged(self, lines: Iterable[bytes]) -> Iterator[tuple[Judge, Look]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            self._has_lines = True
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                value = load_line(line)
            except InvalidInput as error:
                self._fail(
                    number, str(error)
                )  # whose it was cannot be told; counts are cumulative, so that a look may be missing
                continue
            run = value.get("run", "")
            if run in self._ended:
                continue
            try:
                look = read_look(value)
            except InvalidInput as error:
                self._end(number, run, str(error))
                continue
            judge = self._judges.get(look.run)
            if judge is None:
                judge = self._judges[look.run] = Judge(self._policy)
            try:
                verdict = judge.see(look)
            except InvalidInput as error:
                self._end(number, run, str(error))
                continue
            if verdict in {"promote", "rollback"}:
                self._ended.add(look.run)
            yield judge, look

    def _end(self, number: int, run: str, text: str) -> None:
        """End a run without a decision."""
        self._fail(number, f"run {run!r}: {text}" if run else text)
        self._ended.add(run)
        self._judges.pop(run, None)

    def _fail(self, number: int, text: str) -> None:
        self._failures += 1
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append(f"{self._file}:{number}: {text}")
