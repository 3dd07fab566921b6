"""All rows together: whether one can run here, how it is shown, and what of its expectations does not hold."""

from __future__ import annotations

import os
import shutil
from collections import Counter

from benchmarks.faults import file_faults, host_faults, local_faults, model_faults, process_faults
from benchmarks.faults.rows import ROWS, Observed, Row

__all__ = ["HEAD", "ROWS", "broken", "can_run", "shown"]

HEAD = "| fault | the client sees | neighbours lose | live | ready | well after | note |\n|---|---|---|---|---|---|---|"
_SOURCES = (model_faults, process_faults, file_faults, host_faults, local_faults)
"""Imported for the rows that they register, in the table's order."""


def can_run(row: Row) -> str:
    """Say what is missing for a row, empty where nothing is."""
    if row.needs == "mount":
        return "" if os.geteuid() == 0 else "no right to mount a tmpfs"
    return "" if not row.needs or shutil.which(row.needs) else f"no {row.needs} on the PATH"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {answer}" for answer, count in counts.most_common())


def shown(row: Row, observed: Observed) -> str:
    """The row of the table."""
    lost = observed.neighbour.bad
    total = observed.neighbour.counts.total()
    cells = [
        row.fault,
        _counted(observed.client),
        f"{_counted(lost)} of {total}" if lost else f"0 of {total}",
        " → ".join(observed.live.changes[:8]),
        " → ".join(observed.ready.changes[:8]),
        "never by itself" if observed.healed_s is None else f"{observed.healed_s:.1f} s",
        observed.note,
    ]
    return f"| {' | '.join(cells)} |"


def broken(row: Row, observed: Observed) -> list[str]:
    """What does not hold of what must; nothing of it is a time."""
    expected, problems = row.expected, []
    if not observed.client or not set(observed.client) <= expected.client:
        problems.append(f"the client saw {dict(observed.client)}, expected {sorted(expected.client)}")
    if observed.neighbour.bad and not expected.neighbour_loses:
        problems.append(f"the neighbour lost {dict(observed.neighbour.bad)}")
    excused = Counter({"reset": 1} if expected.ends_a_probe else {})
    if observed.live.bad - excused and expected.stays_live:
        problems.append(f"liveness said {observed.live.changes}")
    if expected.turns_unready is not None and bool(observed.ready.bad) != expected.turns_unready:
        problems.append(f"readiness said {observed.ready.changes}")
    if (observed.healed_s is not None) != expected.heals:
        problems.append("it did not heal" if expected.heals else "it healed, and nobody is known to have done it")
    elif expected.heals and not expected.neighbour_loses and observed.ready.changes[-1] != "200":
        problems.append(f"readiness ended as {observed.ready.changes}")
    return problems
