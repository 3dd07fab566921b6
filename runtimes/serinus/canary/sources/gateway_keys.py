"""Distinct users of each arm, as the gateway of `serinus up` saw them: the hashes in its access log, counted.

Theory of operation. Where a service has affinity, the gateway writes a 64-bit hash of the user's key on every line that it split by it, and `-` where the
request had no key and was split at random. A user is a unit that was drawn, and so is a request without a key. What a tester led to one revision
was not drawn, has no key on its line, and counts as no unit.

Kept are the 65,536 smallest hashes of an arm. As long as there are no more the count is exact; beyond, it is estimated from how close together they
lie (k minimum values: Bar-Yossef et al., RANDOM 2002), with a standard error of 0.4 %. Memory is bounded, whatever the log holds.

A gateway of Kubernetes tells no such thing: its metrics have no distinct counts, and its access log is in no place that could be known here.
There a look says no users, and requests are what is counted.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..looks import Arm
from .source import ArmNames, Observation, Source

__all__ = ["DistinctKeys", "WithAffinityKeys"]

_MOST: Final = 1 << 16
_HASH: Final = re.compile(r"[0-9a-f]{16}")
_NONE: Final = "-"
_CHUNK: Final = 1 << 20


class DistinctKeys:
    """How many different 64-bit hashes there were.

    Args:
        most: hashes that are kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kept: set[int] = set()
        self._heap: list[int] = []
        """Negated, so that the largest that is kept comes first."""
        self._count = 0

    def add(self, key: int) -> None:
        """Take a hash."""
        if key in self._kept:
            return
        if len(self._kept) < self._most:
            self._kept.add(key)
            heapq.heappush(self._heap, -key)
            self._count = len(self._kept)
        elif key < -self._heap[0]:
            self._kept.add(key)
            self._kept.discard(-heapq.heapreplace(self._heap, -key))
            # An estimate that is less than what was told would be a counter that goes back.
            self._count = max(self._count, round((self._most - 1) * 2.0**64 / -self._heap[0]))

    @property
    def count(self) -> int:
        """Different hashes; it never goes back."""
        return self._count


class WithAffinityKeys:
    """A source with the gateway's users added to its arms, where the gateway splits by users.

    Args:
        source: of the counts.
        access_log: of the gateway of `serinus up`: a JSON object a line, with `revision` and `key`.
    """

    def __init__(self, source: Source, access_log: Path) -> None:
        self._source = source
        self._path = access_log
        self._offset: int | None = None
        self._rest = b""
        self._keys: dict[str, DistinctKeys] = {}
        self._keyless: dict[str, int] = {}
        self._told = False

    def observe(self, names: ArmNames) -> Observation:
        """See `Source.observe`; the log is read from the first look on.

        What both arms did in the while in which they are asked is in the requests and not in the users, so that there are never more of these.
        """
        notes = self._read() if self._offset is not None else ()
        observed = self._source.observe(names)
        if self._offset is None:
            notes = self._read()
        if notes:
            return replace(observed, notes=(*observed.notes, *notes))
        if not self._told:
            return observed
        return replace(
            observed,
            stable=self._with(observed.stable, names.stable),
            canary=self._with(observed.canary, names.canary),
        )

    def _with(self, arm: Arm, revision: str) -> Arm:
        keys = self._keys.get(revision)
        return replace(arm, affinity_keys=(keys.count if keys else 0) + self._keyless.get(revision, 0))

    def _read(self) -> Sequence[str]:
        """Take in what is new; at first, only where the log ends. Gives notes of what failed."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if self._offset is None:
                    self._offset = size
                    return ()
                if size < self._offset:  # somebody has emptied it
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                while chunk := file.read(_CHUNK):
                    self._offset += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n")
                    for line in lines:
                        self._enter(line)
        except OSError as error:
            return (f"users are not counted, {self._path}: {error.strerror}; requests are",)
        return ()

    def _enter(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, revision = entry["key"], entry["revision"]
        except (ValueError, KeyError, TypeError):
            return  # cut off, or of an older gateway
        if not isinstance(key, str) or not isinstance(revision, str):
            return
        if key == _NONE:
            self._keyless[revision] = self._keyless.get(revision, 0) + 1
        elif _HASH.fullmatch(key):
            self._keys.setdefault(revision, DistinctKeys()).add(int(key, 16))
        else:
            return
        self._told = True
